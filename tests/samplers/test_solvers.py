"""The solvers of a walk against the exact solution of the ODE, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_path.core.diffusion import Mixing
from diffusion_path.core.path import DiffusionPath
from diffusion_path.samplers.solvers import DDIM, SDEDPM, Noise, Solver, by_ddim, solver_of
from diffusion_path.tests.analytic import (
    Gaussian,
    GaussianDenoiser,
    condition,
    levels,
    picture,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
PROMPT = condition(0)
NEGATIVE = Gaussian(PROMPT.mean, 0.8)
CFG = 2.0


def walked(denoiser: GaussianDenoiser, solver: str, steps: int, **options) -> Tensor:
    """The latents that `solver` takes from noise, under guidance."""
    sigmas = levels(steps, denoiser.mixing.flow)
    path = DiffusionPath(
        sigmas=sigmas,
        latents=denoiser.mixing.noised(picture(), picture(1), float(sigmas[0]))[None],
        positive=[],
        negative=None,
        cfg=1.0,
        fingerprint={},
        solver=solver,
    )
    return sampled(denoiser, path, PROMPT, NEGATIVE, cfg=CFG, **options)


def exact(denoiser: GaussianDenoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """The solution under guidance: with one mean for both, what is away from it goes along with
    the roots of both variances, to the powers of guidance.

    Without guidance the midpoint method is of third order here, by chance.
    """
    away = x - denoiser.mixing.signal(float(sigmas[0])) * PROMPT.mean
    latents = []
    for sigma in sigmas.tolist():
        grown = 1.0
        for prompt, power in ((PROMPT, CFG), (NEGATIVE, 1 - CFG)):
            first = denoiser.variance(float(sigmas[0]), prompt)
            grown *= (denoiser.variance(sigma, prompt) / first) ** (power / 2)
        latents.append(denoiser.mixing.signal(sigma) * PROMPT.mean + grown * away)
    return torch.stack(latents)


def error(denoiser: GaussianDenoiser, solver: str, steps: int) -> float:
    latents = walked(denoiser, solver, steps)
    wanted = exact(denoiser, latents[0], levels(steps, denoiser.mixing.flow))
    return float((latents - wanted).norm() / wanted.norm())


@each_family
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("reuse", 2)])
def test_twice_the_steps_divide_the_error_by_two_to_the_order(flow: bool, solver: str, order: int):
    denoiser = GaussianDenoiser(flow)
    errors = [error(denoiser, solver, steps) for steps in (100, 200, 400)]
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.1)


@each_family
def test_a_higher_order_is_more_exact_at_the_same_cost(flow: bool):
    denoiser = GaussianDenoiser(flow)
    euler = error(denoiser, "euler", 40)
    assert error(denoiser, "midpoint", 20) < euler / 2
    assert error(denoiser, "reuse", 39) < euler / 2


@pytest.mark.parametrize(
    ("solver", "wanted"),
    [("euler", 10), ("midpoint", 20), ("reuse", 11), ("ddpm", 10), ("sde-dpm++", 10)],
)
def test_it_predicts_so_often(solver: str, wanted: int):
    denoiser = GaussianDenoiser()
    eta = float(by_ddim(solver) == solver)
    walked(denoiser, solver, 10, eta=eta, generator=torch.Generator())
    assert denoiser.evaluations == 2 * wanted


def test_a_solver_of_one_walk_knows_nothing_of_another():
    """Each walk gets its own, for some remember the step before."""
    for solver in ("reuse", "sde-dpm++"):
        denoiser = GaussianDenoiser()
        options = [{"eta": 1.0, "generator": torch.Generator().manual_seed(0)} for _ in range(2)]
        once, again = (walked(denoiser, solver, 10, **one) for one in options)
        assert torch.equal(once, again)


def noises(seed: int = 0) -> Noise:
    generator = torch.Generator().manual_seed(seed)

    def noise(x: Tensor, sigma: float, factor: float) -> Tensor:
        return factor * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return noise


@each_family
def test_an_estimate_that_stays_the_same_is_not_extrapolated(flow: bool):
    mixing, x = Mixing(flow=flow), picture(1)
    ways: list[Solver] = [SDEDPM(mixing, 1.0, noises()), DDIM(mixing, 1.0, noises())]
    ends = []
    for solver in ways:
        at = x
        for sigma, below in ((0.9, 0.6), (0.6, 0.3), (0.3, 0.0)):
            at, _ = solver.step(lambda *_: picture(), at, sigma, below)
        ends.append(at)
    torch.testing.assert_close(*ends)


@each_family
def test_an_estimate_is_extrapolated_by_the_logarithm_of_signal_over_noise(flow: bool):
    """To the middle of the step: D_i + h_i / (2 h_i-1) (D_i - D_i-1)."""
    mixing = Mixing(flow=flow)
    solver = SDEDPM(mixing)
    first, second = picture(1), picture(2)
    assert torch.equal(solver.estimate(first, 0.9, 0.7), first)
    h = [
        torch.tensor(mixing.signal(sigma) / sigma, dtype=torch.float64).log()
        for sigma in (0.9, 0.7, 0.4)
    ]
    ratio = (h[2] - h[1]) / (h[1] - h[0])
    wanted = second + ratio / 2 * (second - first)
    torch.testing.assert_close(solver.estimate(second, 0.7, 0.4), wanted)


def test_a_flows_first_and_last_step_are_of_first_order():
    """At level 1 there is no signal, at level 0 no noise."""
    solver = SDEDPM(Mixing(flow=True))
    first, second = picture(1), picture(2)
    assert torch.equal(solver.estimate(first, 1.0, 0.7), first)
    assert torch.equal(solver.estimate(second, 0.7, 0.4), second)
    assert torch.equal(solver.estimate(first, 0.4, 0.0), first)


@each_family
def test_with_noise_the_second_order_is_nearer_to_the_distribution_of_the_data(flow: bool):
    denoiser, prompt, sigmas = GaussianDenoiser(flow), Gaussian(PROMPT.mean, 0.5), levels(30, flow)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 4, 6, 8, generator=generator, dtype=torch.float64)
    deviation = denoiser.variance(float(sigmas[0]), prompt) ** 0.5
    start = denoiser.mixing.signal(float(sigmas[0])) * prompt.mean + deviation * noise

    def away(solver: str) -> float:
        path = DiffusionPath(
            sigmas=sigmas,
            latents=start[None],
            positive=[],
            negative=None,
            cfg=1.0,
            fingerprint={},
            solver=solver,
        )
        options = {"eta": 1.0, "generator": torch.Generator().manual_seed(1)}
        end = sampled(denoiser, path, prompt, cfg=1.0, **options)[-1]
        wanted = denoiser.variance(float(sigmas[-1]), prompt)
        return abs(float((end - prompt.mean).var()) / wanted - 1)

    assert away("sde-dpm++") < away("ddpm") / 2


def test_with_eta_a_path_without_noise_is_walked_by_ddim():
    for solver in ("euler", "midpoint", "reuse"):
        assert type(solver_of(solver, Mixing(), 1.0, noises())) is DDIM


def test_without_eta_a_path_with_noise_is_walked_by_ddim():
    for solver in ("ddpm", "sde-dpm++"):
        assert type(solver_of(solver, Mixing(), 0.0, noises())) is DDIM
