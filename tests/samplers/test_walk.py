"""The loop over an edited path, and its step."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.core.diffusion import Mixing
from diffusion_path.core.path import DiffusionPath
from diffusion_path.samplers.solvers import DDIM
from diffusion_path.tests.analytic import (
    GaussianDenoiser,
    condition,
    fresh,
    inverted,
    levels,
    recorded,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
SOURCE, TARGET, NEGATIVE = condition(0), condition(1, scale=0.8), condition(2, scale=0.3)


def sample(denoiser: GaussianDenoiser, path: DiffusionPath, **options) -> Tensor:
    return sampled(denoiser, path, TARGET, NEGATIVE, source=SOURCE, **options)


@each_family
def test_without_edits_it_is_euler_under_the_target_from_the_paths_own_noise(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    x, wanted = path.latents[0], [path.latents[0]]
    for sigma, below in pairwise(path.sigmas.tolist()):
        negative, positive = (denoiser.denoised(x, sigma, one) for one in (NEGATIVE, TARGET))
        x = x + (below - sigma) * (x - (negative + 7.5 * (positive - negative))) / sigma
        wanted.append(x)
    torch.testing.assert_close(sample(denoiser, path), torch.stack(wanted))


@pytest.mark.parametrize("first", [0, 4, 9])
def test_a_later_start_begins_on_the_source_and_takes_only_the_steps_that_are_left(first: int):
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    denoiser.evaluations = 0
    latents = sample(denoiser, path, first=first)
    assert len(latents) == 11 - first
    assert torch.equal(latents[0], path.latents[first])
    assert denoiser.evaluations == 2 * (10 - first)


def test_progress_tells_of_every_step_in_order():
    denoiser, seen = GaussianDenoiser(), []
    sample(denoiser, inverted(denoiser), first=7, progress=lambda step, *_: seen.append(step))
    assert seen == [0, 1, 2]


def scaled(generator: torch.Generator | None, x: Tensor, sigma: float, factor: float) -> Tensor:
    """What a step adds as noise."""
    return factor * fresh(generator, x)


@each_family
def test_a_step_with_eta_0_is_an_euler_step(flow: bool):
    x, denoised = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64).unbind()
    stepped, _ = DDIM(Mixing(flow=flow)).step(lambda *_: denoised, x, 0.8, 0.5)
    assert torch.equal(stepped, x + (0.5 - 0.8) * (x - denoised) / 0.8)


@each_family
def test_a_step_to_the_clean_image_adds_no_noise(flow: bool):
    x, denoised = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64).unbind()
    noise = partial(scaled, None)
    stepped, _ = DDIM(Mixing(flow=flow), 1.0, noise).step(lambda *_: denoised, x, 0.8, 0.0)
    torch.testing.assert_close(stepped, denoised)


@each_family
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_step_keeps_the_signal_and_the_noise_level_whatever_eta(flow: bool, eta: float):
    """Where the estimate is the true image, the step lands on the image noised to the next level.

    The noise left is what is predicted and what is fresh; its variance is sigma'^2, and its
    correlation with the old noise tells how much is fresh (eq. 16 of the DDIM paper).
    """
    mixing, sigma, below = Mixing(flow=flow), 0.8, 0.5
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1, 4, 250, 400, generator=generator).unbind()
    x = mixing.noised(x0, noise, sigma)
    noise_of = partial(scaled, generator)
    stepped, _ = DDIM(mixing, eta, noise_of).step(lambda *_: x0, x, sigma, below)
    left = stepped - mixing.signal(below) * x0
    assert float(left.std()) == pytest.approx(below, rel=0.01)
    ratio = below * mixing.signal(sigma) / (sigma * mixing.signal(below))
    renewed = eta * (1 - ratio**2) ** 0.5
    correlation = float((left * noise).mean() / left.std())
    assert correlation == pytest.approx((1 - renewed**2) ** 0.5, abs=0.01)


@each_family
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_with_noise_reaches_the_distribution_of_the_data(flow: bool, eta: float):
    denoiser, sigmas = GaussianDenoiser(flow), levels(400, flow)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 4, 6, 8, generator=generator, dtype=torch.float64)
    sigma = float(sigmas[0])
    exact_start = (
        denoiser.mixing.signal(sigma) * TARGET.mean
        + denoiser.variance(sigma, TARGET) ** 0.5 * noise
    )
    end = recorded(denoiser, exact_start, sigmas, TARGET, eta=eta, generator=generator)[-1]
    exact_variance = denoiser.variance(float(sigmas[-1]), TARGET)
    assert float((end - TARGET.mean).var()) == pytest.approx(exact_variance, rel=0.03)
    assert float((end - TARGET.mean).mean()) == pytest.approx(0, abs=0.01)


def test_noise_comes_from_the_generator_alone():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)

    def noisy(seed: int) -> Tensor:
        return sample(denoiser, path, eta=1.0, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1), noisy(2))
