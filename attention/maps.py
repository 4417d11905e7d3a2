"""Where in a picture its words are: cross-attention maps, collected along its path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inversion.path import DiffusionPath
from ..samplers.diffusion import Condition, Denoiser, Progress, no_progress
from .align import Prompt
from .plan import Attention, Watch, marks


def attention_maps(
    denoiser: Denoiser,
    path: DiffusionPath,
    condition: Condition,
    prompt: Prompt,
    words: Sequence[Sequence[int]],
    *,
    resolution: int = 0,
    steps: Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> Tensor:
    """The maps (B, n, height, width) of n words, each the sum of its tokens', as the path has them.

    The mean over steps, layers and heads (Hertz et al., ICLR 2023, arXiv 2208.01626, figure 4).
    Over all tokens of a prompt, the special ones too, it sums to 1 at each place.

    Args:
        path: in the model's own scale and on its device; read at its own latents.
        condition: the condition of `prompt`, under which the path was made.
        words: the columns of each word.
        resolution: the shorter side of the layers that count; 0 chooses it.
        steps: which steps to look at; None is all.
    Raises:
        ValueError: the condition is in use at none of them, or no layer has the resolution.
    """
    watch = Watch(weights=marks(prompt, words), resolution=resolution)
    attention = Attention(target=prompt, watched=(watch,))
    sigmas = path.sigmas.tolist()
    seen: list[Tensor] = []
    for number, i in enumerate(range(path.steps) if steps is None else steps):
        x = path.latents[i]
        guided = denoiser.guided(x, sigmas[i], condition, None, 1.0, attention=attention)
        if watch in guided.seen:  # not where another pack answered from its cache
            seen.append(guided.seen[watch])
        progress(number, guided.denoised, x)
    if not seen:
        raise ValueError(
            "the path's prompt is not used in these steps; move start and end to where it is"
        )
    return torch.stack(seen).mean(dim=0)
