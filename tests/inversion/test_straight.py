"""Straight paths and DDPM inversion: their statistics, their identities, what they cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.core.diffusion import Mixing, as_it_is
from diffusion_path.core.path import DiffusionPath
from diffusion_path.inversion.straight import ddpm_residuals, residuals_from, straight
from diffusion_path.tests.analytic import (
    GaussianDenoiser,
    condition,
    levels,
    picture,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
each_solver = pytest.mark.parametrize("solver", ["ddpm", "sde-dpm++"])
SOURCE, TARGET, NEGATIVE = condition(0), condition(1, scale=0.8), condition(2, scale=0.3)


def drawer(x0: Tensor, seed: int = 0) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(x0.shape, generator=generator, dtype=x0.dtype)


def noises(mixing: Mixing, latents: Tensor, sigmas: Tensor) -> Tensor:
    """The noise of each latent but the last."""
    return torch.stack(
        [
            mixing.noise(x, latents[-1], sigma)
            for x, sigma in zip(latents[:-1], sigmas.tolist()[:-1], strict=True)
        ]
    )


@each_family
@pytest.mark.parametrize("kind", ["fresh", "one"])
def test_each_latent_is_the_image_with_noise_of_unit_variance(flow: bool, kind: str):
    x0 = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(5))
    mixing, sigmas = Mixing(flow=flow), levels(8, flow)
    latents = straight(mixing, x0, sigmas, drawer(x0), kind)
    assert torch.equal(latents[-1], x0)
    for noise in noises(mixing, latents, sigmas):
        assert float(noise.mean()) == pytest.approx(0, abs=0.02)
        assert float(noise.std()) == pytest.approx(1, abs=0.02)
        assert float((noise * x0).mean()) == pytest.approx(0, abs=0.02)


@each_family
def test_one_noise_is_a_straight_line(flow: bool):
    sigmas = levels(8, flow)
    latents = straight(Mixing(flow=flow), picture(), sigmas, drawer(picture()), "one")
    steps = zip(pairwise(latents[:-1]), pairwise(sigmas.tolist()[:-1]), strict=True)
    slopes = [(after - before) / (below - sigma) for (before, after), (sigma, below) in steps]
    for slope in slopes[1:]:
        torch.testing.assert_close(slope, slopes[0])
    if flow:  # whose last level has no noise
        torch.testing.assert_close((latents[-1] - latents[-2]) / -float(sigmas[-2]), slopes[0])


@each_family
def test_fresh_noise_is_another_one_at_each_level(flow: bool):
    x0 = torch.zeros(4, 4, 64, 64)
    mixing, sigmas = Mixing(flow=flow), levels(8, flow)
    found = noises(mixing, straight(mixing, x0, sigmas, drawer(x0), "fresh"), sigmas)
    related = torch.corrcoef(found.flatten(1))
    assert float((related - torch.eye(8)).abs().max()) < 0.02


@each_family
def test_shifted_noise_has_the_next_levels_share_of_the_image(flow: bool):
    """And looks to an EPS network as if it had this one's: its input has unit variance."""
    x0 = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(5))
    mixing, sigmas = Mixing(flow=flow), levels(4, flow).tolist()
    latents = straight(mixing, x0, torch.tensor(sigmas), drawer(x0), "shifted")
    assert torch.equal(latents[-1], x0)
    for i, latent in enumerate(latents[:-1]):
        lower = sigmas[i + 1] if i < 3 else 0.0
        share = mixing.signal(lower)
        if not flow:
            share *= ((1 + sigmas[i] ** 2) / (1 + lower**2)) ** 0.5
        assert float((latent * x0).mean() / x0.square().mean()) == pytest.approx(share, rel=0.1)


def residuals(
    denoiser: GaussianDenoiser, solver: str, cfg: float, steps: int = 10
) -> DiffusionPath:
    """A path with its noise."""
    sigmas = levels(steps, denoiser.mixing.flow)
    latents = straight(denoiser.mixing, picture(), sigmas, drawer(picture()), "fresh")
    options = {"solver": solver, "latent_in": as_it_is}
    found = ddpm_residuals(denoiser, latents, sigmas, SOURCE, NEGATIVE, cfg, **options)
    return DiffusionPath(
        sigmas=sigmas,
        latents=latents,
        positive=[],
        negative=None,
        cfg=cfg,
        fingerprint={},
        solver=solver,
        residuals=found,
    )


def walked(denoiser: GaussianDenoiser, path: DiffusionPath, first: int, cfg: float) -> Tensor:
    options = {"source": SOURCE, "cfg": cfg, "first": first, "eta": 1.0}
    return sampled(denoiser, path, SOURCE, NEGATIVE, **options)


@each_family
@each_solver
@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_the_source_comes_back_under_its_own_prompt(flow: bool, solver: str, cfg: float):
    denoiser = GaussianDenoiser(flow)
    path = residuals(denoiser, solver, cfg)
    latents = walked(denoiser, path, 0, cfg)
    torch.testing.assert_close(latents, path.latents, rtol=0, atol=1e-4)


@each_family
@each_solver
@pytest.mark.parametrize("first", [1, 4, 9])
def test_it_also_does_from_a_later_step_on(flow: bool, solver: str, first: int):
    """With "sde-dpm++" that takes a residual of first order at that step."""
    denoiser = GaussianDenoiser(flow)
    path = residuals(denoiser, solver, 3.5)
    if solver == "sde-dpm++":
        denoiser.evaluations = 0
        begun = residuals_from(denoiser.mixing, path, as_it_is, first)
        assert denoiser.evaluations == 0
        changed = [not torch.equal(*both) for both in zip(begun, path.residuals, strict=True)]
        assert [i for i in range(10) if changed[i]] == [first] * (not flow or first < 9)
        path = path._replace(residuals=begun)
    latents = walked(denoiser, path, first, 3.5)
    torch.testing.assert_close(latents, path.latents[first:], rtol=0, atol=1e-4)


def test_from_the_first_step_on_a_paths_residuals_are_its_own():
    path = residuals(GaussianDenoiser(), "sde-dpm++", 3.5)
    assert path.residuals is not None
    begun = residuals_from(Mixing(), path, as_it_is, 0)
    torch.testing.assert_close(begun, path.residuals, rtol=0, atol=1e-5)


@each_family
@each_solver
def test_it_costs_one_evaluation_a_step_and_two_under_guidance(flow: bool, solver: str):
    for cfg, wanted in ((1.0, 10), (3.5, 20)):
        denoiser = GaussianDenoiser(flow)
        residuals(denoiser, solver, cfg)
        assert denoiser.evaluations == wanted


def test_the_residual_is_the_noise_of_ddpms_own_transition():
    """On a picture of the data, DDPM's residual has the transition's variance and more: the
    noisings are independent, so what two of them differ by is larger."""
    path = residuals(GaussianDenoiser(), "ddpm", 1.0, steps=40)
    assert path.residuals is not None
    for i, (sigma, below) in enumerate(pairwise(path.sigmas.tolist()[:-1])):
        fresh = below * (1 - (below / sigma) ** 2) ** 0.5
        assert float(path.residuals[i].std()) > 0.95 * fresh


@each_solver
def test_another_prompt_takes_the_picture_elsewhere_with_the_same_noise(solver: str):
    denoiser = GaussianDenoiser()
    path = residuals(denoiser, solver, 1.0)
    options = {"source": SOURCE, "cfg": 1.0, "eta": 1.0}
    once, again = (sampled(denoiser, path, TARGET, **options) for _ in range(2))
    assert torch.equal(once, again)
    assert float((once[-1] - path.clean).norm() / path.clean.norm()) > 0.1
