"""Imagic (Kawar et al., CVPR 2023, arXiv 2210.09276), stage A: the embedding that a picture has.

The target prompt's embedding is optimised, with the network frozen, until the network predicts the
noise in the noised picture under it (eq. 3). Between the two embeddings lie the edits (stage C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser, Query
from ..core.diffusion import Progress, no_progress
from .null_text import Look

Level = tuple[float, Tensor]
"""A noise level, and the noise (1, C, ...) to add there."""

CHECKED = 10
"""At how many levels the loss is measured before and after."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What the optimisation has found.

    Attributes:
        embedding: one for each picture (B, tokens, width), float32.
        before, after: the loss (B,) of the first and of the last embedding, over the same levels.
        losses: that of each step (steps, B), at the step's own levels.
    """

    embedding: Tensor
    before: Tensor
    after: Tensor
    losses: Tensor


def levels_of(
    places: Tensor,
    shape: Sequence[int],
    sigma_at: Callable[[float], float],
    generator: torch.Generator,
) -> list[Level]:
    """Levels at `places` (N,), fractions of the model's schedule, each with noise of its own.

    All pictures of a batch get the same, so that none depends on the others.

    Args:
        shape: the latents' (B, C, ...).
        sigma_at: the noise level at a fraction; at 0 and 1 it may be infinite or none.
    """
    inside = places.clamp(1e-4, 1 - 1e-4).tolist()
    return [(sigma_at(one), torch.randn(1, *shape[1:], generator=generator)) for one in inside]


def random_places(number: int, generator: torch.Generator) -> Tensor:
    """As many fractions of the schedule (N,) at random, one in each of N equal parts of it."""
    return (torch.arange(number) + torch.rand(number, generator=generator)) / number


def fit_embedding(
    denoiser: Denoiser,
    x0: Tensor,
    condition: Condition,
    draw: Callable[[int], list[Level]],
    *,
    steps: int = 500,
    learning_rate: float = 1e-3,
    progress: Progress = no_progress,
) -> Fitted:
    """Optimise the embedding of `condition` so that the network reconstructs `x0` under it.

    Adam on `||eps - eps_theta(x_t, t, e)||^2`, with one set of levels a step; for a flow on its
    velocity. The paper takes 100 steps of Imagen; diffusers' community pipeline 500 of SD1.5, one
    level each, at the same rate.

    Args:
        x0: clean latents (B, C, ...), in the model's scale.
        draw: the levels of a step, by its number, in order; those of number -1 measure the loss,
            and are always the same.
    Raises:
        ValueError: the loss became NaN or infinite.
    """

    def look(embedding: Tensor, level: Level) -> Look:
        sigma, noise = level
        with torch.enable_grad():
            embedding = embedding.detach().clone().requires_grad_()
            x = denoiser.mixing.noised(x0, noise.to(x0), sigma)
            prompt = denoiser.with_embedding(condition, embedding)
            (denoised,) = denoiser.predict([Query(x, prompt)], sigma).denoised
            # how far the predicted noise or velocity is off, in either family
            return Look(embedding, denoised, ((denoised - x0) / sigma).flatten(1))

    def loss(embedding: Tensor) -> Tensor:
        return torch.stack([look(embedding, level).loss for level in draw(-1)]).mean(dim=0)

    with denoiser.differentiable(), torch.no_grad():
        x0 = x0.clone()
        embedding = denoiser.embedding(condition).clone().expand(len(x0), -1, -1).contiguous()
        optimizer = torch.optim.Adam([embedding], lr=learning_rate)
        before, losses = loss(embedding), []
        for step in range(steps):
            gradients, tried = [], []
            for level in draw(step):
                seen = look(embedding, level)
                gradients.append(seen.gradient)
                tried.append(seen.loss)
            losses.append(torch.stack(tried).mean(dim=0))
            if not bool(losses[-1].isfinite().all()):
                raise ValueError(
                    "the loss became NaN or infinite; lower learning_rate, or run the model in "
                    "another precision (--bf16-unet, --fp32-unet)"
                )
            embedding.grad = torch.stack(gradients).mean(dim=0)
            optimizer.step()
            progress(step, seen.uncond, x0)
        after = loss(embedding)
    return Fitted(
        embedding=embedding.detach().cpu(),
        before=before.cpu(),
        after=after.cpu(),
        losses=torch.stack(losses).cpu(),
    )
