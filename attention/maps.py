"""Where in a picture its words are: cross-attention maps, collected along its path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.denoiser import Denoiser, Query
from ..core.diffusion import Progress, no_progress
from ..core.path import Source
from .align import Prompt
from .plan import Attention, Watch, marks


def attention_maps(
    denoiser: Denoiser,
    source: Source,
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
        source: the path, read at its own latents under its own condition.
        prompt: that condition's.
        words: the columns of each word.
        resolution: the shorter side of the layers that count; 0 chooses it.
        steps: which steps to look at; None is all.
    Raises:
        ValueError: the condition is in use at none of them, or no layer has the resolution.
    """
    watch = Watch(weights=marks(prompt, words), resolution=resolution)
    attention = Attention(target=prompt, watched=(watch,))
    total, found = torch.zeros(()), 0
    for number, i in enumerate(range(source.path.steps) if steps is None else steps):
        query = Query(source.latent(i), source.condition, attention)
        (denoised,), seen = denoiser.predict([query], source.levels[i])
        if watch in seen:  # not where another pack answered from its cache
            total, found = seen[watch] + (total if found else 0), found + 1
        progress(number, denoised, query.x)
    if not found:
        raise ValueError(
            "the path's prompt is not used in these steps; move start and end to where it is"
        )
    return total / found
