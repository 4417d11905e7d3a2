"""Guidance by a gradient, where the gradient is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_path.core.diffusion import noise_level
from diffusion_path.core.edit import Edits, Step
from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.guidance import Guidance
from diffusion_path.tests.analytic import (
    GaussianDenoiser,
    condition,
    inverted,
    picture,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])


def sample(denoiser: GaussianDenoiser, path: DiffusionPath, edits: Edits = ()) -> Tensor:
    return sampled(denoiser, path, condition(1), condition(2), cfg=3.0, edits=edits)


def away(clean: Tensor, step: Step) -> Tensor:
    """Half the squared distance to a picture."""
    return (clean - picture(5)).square().sum(dim=(1, 2, 3)) / 2


@each_family
def test_a_step_is_that_of_classifier_guidance(flow: bool):
    """With D = mu + g (x - a mu), the gradient of the energy is g (D - wanted)."""
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    scale = 0.02
    free, pulled = (
        sample(denoiser, path),
        sample(denoiser, path, (Guidance(energy=away, scale=scale),)),
    )
    (sigma, sigma_next, *_), prompt = path.sigmas.tolist(), condition(1)
    signal = denoiser.mixing.signal(sigma)
    gain = signal * prompt.scale**2 / denoiser.variance(sigma, prompt)
    clean = denoiser.denoised(path.latents[0], sigma, prompt)
    d = scale * noise_level(sigma, flow) * gain * (clean - picture(5))
    torch.testing.assert_close(pulled[1] - free[1], (sigma_next - sigma) * d, rtol=1e-8, atol=1e-10)


@each_family
def test_what_it_pulls_to_comes_nearer(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    distances = [
        float((sample(denoiser, path, edits)[-1] - picture(5)).norm())
        for edits in ((), (Guidance(energy=away, scale=0.2),), (Guidance(energy=away, scale=1.0),))
    ]
    assert distances[0] > distances[1] > distances[2]


def test_a_scale_of_0_costs_nothing_and_changes_nothing():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)
    free = sample(denoiser, path)
    denoiser.evaluations = 0
    assert torch.equal(sample(denoiser, path, (Guidance(energy=away, scale=0.0),)), free)
    assert denoiser.evaluations == 2 * 10


def test_a_step_of_its_window_costs_one_evaluation_more():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)
    denoiser.evaluations = 0
    sample(denoiser, path, (Guidance(energy=away, end=0.3),))
    assert denoiser.evaluations == 2 * 10 + len(denoiser.source(path).window(0.0, 0.3))


def test_a_video_is_refused():
    path = inverted(GaussianDenoiser())
    with pytest.raises(ValueError, match="video"):
        Guidance(energy=away).check(path._replace(latents=path.latents[..., None]))
