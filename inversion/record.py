"""Recording: sample an image from noise and keep its path."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..samplers.diffusion import Condition, Denoiser, Progress, derivative, no_progress


def record(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    condition: Condition,
    negative: Condition,
    cfg: float,
    progress: Progress = no_progress,
) -> Tensor:
    """Deterministic DDIM sampling (Song et al. 2021, arXiv 2010.02502, eq. 12 with eta = 0).

    Args:
        x: noisy latent (B, C, ...) at `sigmas[0]`.
        sigmas: noise levels (N + 1,), strictly falling.
        cfg: guidance scale.
    Returns:
        The latents at `sigmas` (N + 1, B, C, ...); the first one is `x`, the last the image.
    """
    levels = sigmas.tolist()
    latents = [x]
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = denoiser.guided(x, sigma, condition, negative, cfg).denoised
        x = x + (sigma_next - sigma) * derivative(x, denoised, sigma)
        latents.append(x)
        progress(i, denoised, x)
    return torch.stack(latents)
