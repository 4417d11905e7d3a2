"""DDIM inversion, with fixed-point iterations: from an image back to the noise that makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser, guided
from ..core.diffusion import Progress, as_it_is, derivative, no_progress


def ddim_inversion(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: Tensor,
    condition: Condition,
    *,
    negative: Condition = None,
    cfg: float = 1.0,
    fixed_point_iterations: int = 0,
    average: int = 1,
    store: Callable[[Tensor], Tensor] = as_it_is,
    progress: Progress = no_progress,
) -> Tensor:
    """Walk from the clean latent upwards along the probability-flow ODE.

    DDIM inversion (Song et al. 2021, arXiv 2010.02502) as Mokady et al. 2023 (arXiv 2211.09794)
    use it: the network is called at the next, larger sigma on the current latent, so that it is
    well defined at sigma = 0. The fixed-point iteration (AIDI, Pan et al. 2023, arXiv 2309.04907;
    ReNoise, Garibi et al. 2024, arXiv 2403.14602) repeats the step with the derivative at the
    point reached; in the limit sampling with the same condition and guidance undoes it exactly.

    Args:
        x0: clean latent (B, C, ...).
        sigmas: noise levels (N + 1,), strictly falling.
        condition: the source prompt.
        negative: used for guidance only.
        cfg: guidance scale; above 1 the error of the inversion grows.
        fixed_point_iterations: repeats k of each step, 0 is plain DDIM; costs k more evaluations.
        average: how many of each step's last estimates to average, as ReNoise does; 1 is none.
        store: what to keep of each latent, such as a copy in ordinary memory.
    Returns:
        The latents at `sigmas` (N + 1, B, C, ...), as stored; the last one is `x0`.
    """
    levels, x = sigmas.tolist(), x0
    latents = [store(x)]
    for i, (sigma, sigma_next) in enumerate(zip(levels[:0:-1], levels[-2::-1], strict=True)):
        estimate, slopes = denoiser.mixing.rescale(x, sigma, sigma_next), []
        for _ in range(1 + fixed_point_iterations):
            denoised = guided(denoiser, estimate, sigma_next, condition, negative, cfg)
            slopes.append(derivative(estimate, denoised, sigma_next))
            estimate = x + (sigma_next - sigma) * slopes[-1]
        x = x + (sigma_next - sigma) * torch.stack(slopes[-average:]).mean(dim=0)
        latents.append(store(x))
        progress(i, denoised, x)
    return torch.stack(latents[::-1])
