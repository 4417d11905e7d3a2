"""Inversion by solvers other than Euler's: the way there, the way back, and what they cost."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.core.path import DiffusionPath
from diffusion_path.inversion.ddim import INVERSIONS, ddim_inversion
from diffusion_path.tests.analytic import (
    GaussianDenoiser,
    condition,
    levels,
    picture,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
each_solver = pytest.mark.parametrize("solver", INVERSIONS)
SOURCE = condition(0)
BACK = {"uni": "euler"}
"""By which solver the sampler goes back, where it is another one."""


def inverted(denoiser: GaussianDenoiser, solver: str, steps: int, **options) -> DiffusionPath:
    sigmas = levels(steps, denoiser.mixing.flow)
    return DiffusionPath(
        sigmas=sigmas,
        latents=ddim_inversion(denoiser, picture(), sigmas, SOURCE, solver=solver, **options),
        positive=[],
        negative=None,
        cfg=1.0,
        fingerprint={},
        solver=BACK.get(solver, solver),
    )


def apart(latents: Tensor, reference: Tensor) -> float:
    return float((latents - reference).norm() / reference.norm())


def round_trip(denoiser: GaussianDenoiser, solver: str, steps: int) -> float:
    """How far the picture is from what sampling makes of its noise."""
    path = inverted(denoiser, solver, steps)
    return apart(sampled(denoiser, path, SOURCE, cfg=1.0)[-1], path.clean)


@each_family
@pytest.mark.parametrize(("solver", "order"), [("uni", 1), ("midpoint", 2), ("reuse", 2)])
def test_it_converges_to_the_exact_solution(flow: bool, solver: str, order: int):
    """At least so fast: by chance the midpoint method is of third order here."""
    denoiser = GaussianDenoiser(flow)

    def error(steps: int) -> float:
        path = inverted(denoiser, solver, steps)
        exact = denoiser.exact(path.clean, float(path.sigmas[-1]), path.sigmas, SOURCE)
        return apart(path.latents, exact)

    errors = [error(steps) for steps in (100, 200, 400)]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] > 2**order * 0.9
    assert errors[1] / errors[2] > 2**order * 0.9


@each_family
@each_solver
def test_the_way_back_leads_to_the_picture(flow: bool, solver: str):
    denoiser = GaussianDenoiser(flow)
    errors = [round_trip(denoiser, solver, steps) for steps in (50, 200)]
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 2


@each_family
@pytest.mark.parametrize(("solver", "steps"), [("uni", 39), ("midpoint", 20), ("reuse", 39)])
def test_the_way_back_is_more_exact_than_eulers_at_the_same_cost(
    flow: bool, solver: str, steps: int
):
    denoiser = GaussianDenoiser(flow)
    euler = round_trip(denoiser, "euler", 40)
    assert round_trip(denoiser, solver, steps) < euler / 2


@each_family
@pytest.mark.parametrize(
    ("solver", "there", "back"),
    [("euler", 10, 10), ("uni", 11, 10), ("midpoint", 20, 20), ("reuse", 11, 11)],
)
def test_it_costs_so_many_evaluations_each_way(flow: bool, solver: str, there: int, back: int):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser, solver, 10)
    assert denoiser.evaluations == there
    sampled(denoiser, path, SOURCE, cfg=1.0)
    assert denoiser.evaluations == there + back


@each_family
@each_solver
def test_it_ends_in_the_picture_itself(flow: bool, solver: str):
    path = inverted(GaussianDenoiser(flow), solver, 5)
    assert path.latents.shape == (6, *picture().shape)
    assert torch.equal(path.clean, picture())


@each_family
@each_solver
def test_at_gamma_1_it_is_the_straight_line_to_the_noise_and_asks_no_model(flow: bool, solver: str):
    """RF-Inversion, eq. 8. A flow arrives at the noise itself at level 1."""
    denoiser, noise = GaussianDenoiser(flow), picture(7)
    sigmas = levels(8, flow) / (0.96 if flow else 1)
    latents = ddim_inversion(
        denoiser, picture(), sigmas, SOURCE, solver=solver, gamma=1.0, noise=noise
    )
    assert denoiser.evaluations == 0
    for latent, sigma in zip(latents, sigmas.tolist(), strict=True):
        wanted = (
            torch.lerp(picture(), noise, sigma)
            if flow
            else (picture() + (sigma - float(sigmas[-1])) * noise)
        )
        torch.testing.assert_close(latent, wanted)


@each_family
def test_gamma_mixes_the_models_slope_with_that_of_the_line_from_where_a_step_begins(flow: bool):
    """RF-Inversion, eq. 8, with DDIM's slope, which is that of the next level."""
    denoiser, noise, gamma = GaussianDenoiser(flow), picture(7), 0.3
    mixing, sigmas = denoiser.mixing, levels(8, flow)
    x, wanted = picture(), [picture()]
    for sigma, above in pairwise(sigmas.tolist()[::-1]):
        at = mixing.rescale(x, sigma, above)
        model = (at - denoiser.denoised(at, above, SOURCE)) / above
        line = (noise - x) / (1 - sigma) if flow else noise
        x = x + (above - sigma) * ((1 - gamma) * model + gamma * line)
        wanted.insert(0, x)
    latents = ddim_inversion(denoiser, picture(), sigmas, SOURCE, gamma=gamma, noise=noise)
    torch.testing.assert_close(latents, torch.stack(wanted))


@each_family
@each_solver
def test_no_level_is_too_much_for_gamma(flow: bool, solver: str):
    """A flow's first is 1, from where no line leads to the noise."""
    sigmas = levels(8, flow) / (0.96 if flow else 1)

    def size(gamma: float) -> float:
        options = {"solver": solver, "gamma": gamma, "noise": picture(7)}
        denoiser = GaussianDenoiser(flow)
        return float(ddim_inversion(denoiser, picture(), sigmas, SOURCE, **options)[0].norm())

    assert size(0.5) < 1.5 * max(size(0.0), size(1.0))


@each_family
@each_solver
def test_without_gamma_the_noise_is_not_looked_at(flow: bool, solver: str):
    denoiser = GaussianDenoiser(flow)
    with_noise = inverted(denoiser, solver, 5, noise=picture(7))
    assert torch.equal(with_noise.latents, inverted(denoiser, solver, 5).latents)
