"""Inversion of the sampling ODE: from an image back to the noise that makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser, guided
from ..core.diffusion import Progress, as_it_is, derivative, no_progress
from ..samplers.solvers import LOWEST, solver_of

INVERSIONS = ("euler", "uni", "midpoint", "reuse")
"""The solvers of an inversion. The sampler goes the same way back, and by Euler's after "uni"."""


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
    solver: str = "euler",
    gamma: float = 0.0,
    noise: Tensor | None = None,
    store: Callable[[Tensor], Tensor] = as_it_is,
    progress: Progress = no_progress,
) -> Tensor:
    """Walk from the clean latent upwards along the probability-flow ODE.

    DDIM inversion (Song et al. 2021, arXiv 2010.02502) as Mokady et al. 2023 (arXiv 2211.09794)
    use it: the network is called at the next, larger sigma on the current latent, so that it is
    well defined at sigma = 0. The fixed-point iteration (AIDI, Pan et al. 2023, arXiv 2309.04907;
    ReNoise, Garibi et al. 2024, arXiv 2403.14602) repeats the step with the derivative at the
    point reached; in the limit sampling with the same condition and guidance undoes it exactly.

    The other solvers begin each step where it begins. "uni" is Uni-Inv (Jiao et al. 2025, arXiv
    2504.13109, algorithm 1), which takes one evaluation where the slope before leads; "midpoint"
    and "reuse" are those of `samplers.solvers`.

    Args:
        x0: clean latent (B, C, ...).
        sigmas: noise levels (N + 1,), strictly falling.
        condition: the source prompt.
        negative: used for guidance only.
        cfg: guidance scale; above 1 the error of the inversion grows.
        fixed_point_iterations: repeats k of each step, 0 is plain DDIM; costs k more evaluations.
        average: how many of each step's last estimates to average, as ReNoise does; 1 is none.
        solver: of `INVERSIONS`; the last two arguments are for "euler".
        gamma: how much to head for `noise` in place of where the model leads: RF-Inversion (Rout
            et al. 2024, arXiv 2410.10792, eq. 8); 0 is not at all, 1 needs no model.
        noise: of unit variance (B, C, ...); needed with `gamma` only.
        store: what to keep of each latent, such as a copy in ordinary memory.
    Returns:
        The latents at `sigmas` (N + 1, B, C, ...), as stored; the last one is `x0`.
    """
    mixing, levels, x = denoiser.mixing, sigmas.tolist(), x0

    def line(x: Tensor, sigma: float) -> Tensor | None:
        """The slope of the straight line from here to the noise."""
        if not gamma or noise is None:
            return None
        end = mixing.noise_scale * noise
        return (end - x) / (1 - sigma) if mixing.flow else end  # elsewhere it never arrives

    def ask(x: Tensor, sigma: float, *_: object) -> Tensor:
        if toward is None:
            return guided(denoiser, x, sigma, condition, negative, cfg)
        straight = x - sigma * toward
        if gamma == 1:
            return straight
        return torch.lerp(guided(denoiser, x, sigma, condition, negative, cfg), straight, gamma)

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = max(sigma, LOWEST)
        return derivative(x, ask(x, level), level)

    other, toward = solver_of(solver, mixing), line(x, levels[-1])
    last = slope(x, levels[-1]) if solver == "uni" else x
    latents = [store(x)]
    for i, (sigma, sigma_next) in enumerate(zip(levels[:0:-1], levels[-2::-1], strict=True)):
        toward = line(x, sigma)
        if solver == "uni":
            last = slope(x + (sigma_next - sigma) * last, sigma_next)
            x = x + (sigma_next - sigma) * last
            denoised = x - sigma_next * last
        elif solver == "euler":
            estimate, slopes = mixing.rescale(x, sigma, sigma_next), []
            for _ in range(1 + fixed_point_iterations):
                denoised = ask(estimate, sigma_next)
                slopes.append(derivative(estimate, denoised, sigma_next))
                estimate = x + (sigma_next - sigma) * slopes[-1]
            x = x + (sigma_next - sigma) * torch.stack(slopes[-average:]).mean(dim=0)
        else:
            x, denoised = other.step(ask, x, sigma, sigma_next)
        latents.append(store(x))
        progress(i, denoised, x)
    return torch.stack(latents[::-1])
