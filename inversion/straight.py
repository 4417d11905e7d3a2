"""Paths that no network has to find: the image, noised to each level."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser, guided
from ..core.diffusion import Mixing, Progress, ddim_parts, no_progress
from ..core.path import DiffusionPath
from ..samplers.solvers import SDEDPM

Draw = Callable[[], Tensor]
"""Fresh noise (B, C, ...) of unit variance."""

Latents = Callable[[Tensor], Tensor]
"""Brings a latent of a path to the model's scale (B, C, ...)."""


Kind = Literal["fresh", "one", "shifted"]
KINDS: tuple[str, ...] = get_args(Kind)


def straight(
    mixing: Mixing, x0: Tensor, sigmas: Tensor, draw: Draw, kind: Kind = "fresh"
) -> Tensor:
    """The image with noise at each level, and the image itself at the last; no network call.

    With "one" noise it is the straight line of FlowEdit (Kulikov et al. 2024, arXiv 2412.08629, eq.
    8); with "fresh" noise at each level, what the authors sample, and the noisings of edit-friendly
    DDPM inversion (Huberman-Spiegelglas et al. 2023, arXiv 2304.06140, eq. 6). "shifted" is fresh
    noise of the next level in place of this one, and none at the last step, for models of few steps
    (TurboEdit, Deutch et al. 2024, arXiv 2408.00735, section 3.2).

    Args:
        x0: clean latent (B, C, ...).
        sigmas: noise levels (N + 1,), strictly falling.
    Returns:
        The latents (N + 1, B, C, ...).
    """
    levels: list[float] = sigmas.tolist()
    noise, latents = draw(), []
    for i, sigma in enumerate(levels[:-1]):
        noise = draw() if i and kind != "one" else noise
        if kind != "shifted":
            latents.append(mixing.noised(x0, noise, sigma))
            continue
        lower = levels[i + 1] if i + 2 < len(levels) else 0.0
        latents.append(mixing.rescale(mixing.noised(x0, noise, lower), lower, sigma))
    return torch.stack([*latents, x0])


def ddpm_residuals(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    condition: Condition,
    negative: Condition = None,
    cfg: float = 1.0,
    *,
    solver: str = "ddpm",
    latent_in: Latents,
    progress: Progress = no_progress,
) -> Tensor:
    """What DDPM's step from each latent of a path is short of the next one.

    Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, arXiv 2304.06140, algorithm 1):
    their noise maps, times the deviation of the step's noise. So they reach the image also where a
    flow's last step has no noise. With "sde-dpm++" the step is that of LEDITS++ (Brack et al. 2023,
    arXiv 2311.16711, section 3.1).

    Args:
        latents: of `straight`, with fresh noise (N + 1, B, C, ...).
        latent_in: brings one of them to the model's scale and device.
    Returns:
        (N, B, C, ...), in the model's scale and in ordinary memory.
    Cost:
        One evaluation a step; two under guidance.
    """
    mixing, levels, found = denoiser.mixing, sigmas.tolist(), []
    order_two = SDEDPM(mixing)
    x = latent_in(latents[0])
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = guided(denoiser, x, sigma, condition, negative, cfg)
        estimate = denoised
        if solver == "sde-dpm++":
            estimate = order_two.estimate(denoised, sigma, sigma_next)
        kept, clean, _ = ddim_parts(mixing, sigma, sigma_next, eta=1.0)
        after = latent_in(latents[i + 1])
        found.append((after - (kept * x + clean * estimate)).to("cpu", torch.float32))
        progress(i, denoised, after)
        x = after
    return torch.stack(found)


def residuals_from(mixing: Mixing, path: DiffusionPath, latent_in: Latents, first: int) -> Tensor:
    """A path's residuals (N, B, C, ...) for a walk that begins at step `first`.

    That step of the walk is of first order, as it has no estimate before it, and so the residual of
    it is too. The source's estimates follow from the residuals that there are; no network call.
    """
    assert path.residuals is not None
    levels, order_two = path.sigmas.tolist(), SDEDPM(mixing)
    begun = path.residuals[first]
    for i, (sigma, sigma_next) in enumerate(pairwise(levels[: first + 2])):
        kept, clean, _ = ddim_parts(mixing, sigma, sigma_next, eta=1.0)
        x, after = latent_in(path.latents[i]), latent_in(path.latents[i + 1])
        estimate = (after - path.residuals[i] - kept * x) / clean
        denoised = order_two.denoised(estimate, sigma, sigma_next)
        begun = path.residuals[i] + clean * (estimate - denoised)
    begun = begun[None].to(path.residuals)
    return torch.cat([path.residuals[:first], begun, path.residuals[first + 1 :]])
