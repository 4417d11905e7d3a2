"""RF-Inversion's pull: its identities, and its formula written out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.pull_to_source import PullToSource
from diffusion_path.tests.analytic import GaussianDenoiser, condition, inverted, sampled

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
SOURCE, TARGET, NEGATIVE = condition(0), condition(1, scale=0.8), condition(2, scale=0.3)
CFG = 3.0


def sample(denoiser: GaussianDenoiser, path: DiffusionPath, *edits: PullToSource) -> Tensor:
    return sampled(denoiser, path, TARGET, NEGATIVE, source=SOURCE, cfg=CFG, edits=edits)


@each_family
def test_at_eta_1_all_the_way_it_is_the_straight_line_to_the_source_and_asks_nothing(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    denoiser.evaluations = 0
    latents = sample(denoiser, path, PullToSource(eta=1.0, end=1.0))
    first, last = path.sigmas[0], path.sigmas[-1]
    for latent, sigma in zip(latents, path.sigmas, strict=True):
        part = float((first - sigma) / (first - last))
        torch.testing.assert_close(latent, torch.lerp(path.latents[0], path.clean, part))
    assert denoiser.evaluations == 0


@each_family
def test_at_eta_1_in_the_last_step_the_source_comes_back(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    latents = sample(denoiser, path, PullToSource(eta=1.0, start=0.9, end=1.0))
    torch.testing.assert_close(latents[-1], path.clean)
    assert not torch.allclose(latents[-2], path.latents[-2])


@each_family
def test_at_eta_0_nothing_is_edited(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    pulled = sample(denoiser, path, PullToSource(eta=0.0, end=1.0))
    torch.testing.assert_close(pulled, sample(denoiser, path))


@each_family
def test_it_is_the_formula_in_its_window(flow: bool):
    """A flow's image is at level 0, as in the paper."""
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    x, wanted, last = path.latents[0], [path.latents[0]], float(path.sigmas[-1])
    assert last == 0 or not flow
    for i, (sigma, below) in enumerate(pairwise(path.sigmas.tolist())):
        positive, negative = (
            (x - denoiser.denoised(x, sigma, one)) / sigma for one in (TARGET, NEGATIVE)
        )
        d = negative + CFG * (positive - negative)
        if 2 <= i < 5:
            d = d + 0.7 * ((x - path.clean) / (sigma - last) - d)
        x = x + (below - sigma) * d
        wanted.append(x)
    latents = sample(denoiser, path, PullToSource(eta=0.7, start=0.2, end=0.5))
    torch.testing.assert_close(latents, torch.stack(wanted))


def test_a_sampler_that_asks_at_the_images_own_level_gets_no_infinity():
    """Heun's last step does."""
    from diffusion_path.core.edit import Step

    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    last = float(path.sigmas[-1])
    step = Step(
        source=denoiser.source(path),
        denoiser=denoiser,
        x=path.clean + 1,
        sigma=last,
        sigma_next=0.0,
    )
    d = torch.ones_like(path.clean)
    assert torch.equal(PullToSource(end=1.0).prediction(step, d), d)
