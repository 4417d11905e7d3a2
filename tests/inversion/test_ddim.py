"""DDIM inversion and recording against the exact solution of the ODE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_path.inversion.ddim import ddim_inversion
from diffusion_path.tests.analytic import (
    GaussianDenoiser,
    condition,
    inverted,
    levels,
    picture,
    recorded,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])


def error(latents: Tensor, exact: Tensor) -> float:
    return float((latents - exact).norm() / exact.norm())


@each_family
def test_inversion_converges_to_the_exact_solution_at_first_order(flow: bool):
    denoiser, source, x0 = GaussianDenoiser(flow), condition(0), picture()

    def inversion_error(steps: int) -> float:
        sigmas = levels(steps, flow)
        latents = ddim_inversion(denoiser, x0, sigmas, source)
        return error(latents, denoiser.exact(x0, float(sigmas[-1]), sigmas, source))

    errors = [inversion_error(steps) for steps in (100, 200, 400)]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@each_family
def test_recording_converges_to_the_exact_solution_at_first_order(flow: bool):
    denoiser, prompt = GaussianDenoiser(flow), condition(0)

    def recording_error(steps: int) -> float:
        sigmas = levels(steps, flow)
        x = denoiser.mixing.noised(picture(), picture(1), float(sigmas[0]))
        latents = recorded(denoiser, x, sigmas, prompt)
        return error(latents, denoiser.exact(x, float(sigmas[0]), sigmas, prompt))

    errors = [recording_error(steps) for steps in (100, 200, 400)]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@each_family
def test_fixed_point_iterations_make_the_round_trip_exact(flow: bool):
    denoiser = GaussianDenoiser(flow)

    def round_trip_error(iterations: int) -> float:
        path = inverted(denoiser, 20, iterations)
        there = recorded(denoiser, path.latents[0], path.sigmas, condition(0))
        return error(there, path.latents)

    plain, few, many = (round_trip_error(k) for k in (0, 3, 30))
    assert plain > 1e-2
    assert few < plain / 10
    assert many < 1e-5


@each_family
def test_fixed_point_iterations_make_the_round_trip_exact_under_guidance_too(flow: bool):
    denoiser, negative = GaussianDenoiser(flow), condition(1, scale=0.7)
    sigmas = levels(50, flow)
    latents = ddim_inversion(
        denoiser,
        picture(),
        sigmas,
        condition(0),
        negative=negative,
        cfg=3.0,
        fixed_point_iterations=40,
    )
    there = recorded(denoiser, latents[0], sigmas, condition(0), negative, 3.0)
    assert error(there, latents) < 1e-5


@each_family
def test_replaying_the_derivative_of_a_path_returns_its_image(flow: bool):
    path = inverted(GaussianDenoiser(flow))
    x = path.latents[0]
    for i in range(path.steps):
        x = x + (path.sigmas[i + 1] - path.sigmas[i]) * path.derivative(i)
    torch.testing.assert_close(x, path.clean, rtol=0, atol=1e-10)


@each_family
def test_the_image_a_step_was_heading_for_is_the_denoisers_estimate(flow: bool):
    denoiser, prompt = GaussianDenoiser(flow), condition(0)
    path = inverted(denoiser, fixed_point_iterations=60)
    for i in range(path.steps):
        wanted = denoiser.denoised(path.latents[i], float(path.sigmas[i]), prompt)
        torch.testing.assert_close(path.denoised(i), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_inversion_costs_one_evaluation_a_step_and_one_more_for_each_repeat(iterations: int):
    denoiser = GaussianDenoiser()
    assert inverted(denoiser, 10, iterations).latents.shape == (11, 2, 4, 6, 8)
    assert denoiser.evaluations == 10 * (1 + iterations)


def test_the_path_of_an_image_ends_in_the_image_itself():
    assert torch.equal(inverted(GaussianDenoiser()).clean, picture())


def test_progress_tells_of_every_step_in_order():
    seen = []
    sigmas = levels(5, False)
    ddim_inversion(
        GaussianDenoiser(),
        picture(),
        sigmas,
        condition(0),
        progress=lambda step, denoised, x: seen.append((step, x)),
    )
    recorded(
        GaussianDenoiser(),
        seen[-1][1],
        sigmas,
        condition(0),
        progress=lambda step, denoised, x: seen.append((step, x)),
    )
    assert [step for step, _ in seen] == [*range(5), *range(5)]
