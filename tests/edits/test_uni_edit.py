"""Uni-Edit: its identities, and its formula written out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.uni_edit import UniEdit
from diffusion_path.tests.analytic import GaussianDenoiser, condition, inverted, sampled

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
SOURCE, TARGET = condition(0), condition(1, scale=0.8)


def sample(denoiser: GaussianDenoiser, path: DiffusionPath, *edits: UniEdit, **options) -> Tensor:
    options = {"positive": TARGET, "cfg": 1.0} | options
    return sampled(denoiser, path, source=SOURCE, edits=edits, **options)


@each_family
def test_with_equal_prompts_it_is_the_plain_walk(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    plain = sample(denoiser, path, positive=SOURCE)
    same = sample(denoiser, path, UniEdit(alpha=1.0), positive=SOURCE)
    torch.testing.assert_close(same, plain)


@each_family
def test_before_its_part_it_follows_the_source_and_asks_nothing(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    denoiser.evaluations = 0
    latents = sample(denoiser, path, UniEdit(alpha=0.6))
    torch.testing.assert_close(latents[:5], path.latents[:5], rtol=0, atol=1e-12)
    assert not torch.allclose(latents[5], path.latents[5])
    assert denoiser.evaluations == 6 * 2
    assert UniEdit(alpha=0.6).follows == pytest.approx(0.4)


@each_family
@pytest.mark.parametrize("omega", [0.0, 5.0])
def test_it_is_the_formula(flow: bool, omega: float):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    x, wanted = path.latents[0], [path.latents[0]]
    for sigma, below in pairwise(path.sigmas.tolist()):
        target, source = (
            (x - denoiser.denoised(x, sigma, one)) / sigma for one in (TARGET, SOURCE)
        )
        size = (target - source).abs().mean(dim=1, keepdim=True)
        m = torch.stack([(one - one.min()) / (one.max() - one.min()) for one in size])
        d = m * target + (1 - m) * source + omega * (1 + m) * (target - source)
        x = x + (below - sigma) * d
        wanted.append(x)
    latents = sample(denoiser, path, UniEdit(alpha=1.0, omega=omega))
    torch.testing.assert_close(latents, torch.stack(wanted))


@each_family
def test_each_picture_of_a_batch_is_edited_as_if_alone(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    both = sample(denoiser, path, UniEdit())
    for k in range(2):
        alone = path._replace(latents=path.latents[:, k : k + 1])
        torch.testing.assert_close(both[:, k : k + 1], sample(denoiser, alone, UniEdit()))


@each_family
def test_a_larger_omega_goes_further_from_the_source(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    ends = [sample(denoiser, path, UniEdit(alpha=0.3, omega=omega))[-1] for omega in (0, 1, 2)]
    moved = [float((end - path.clean).norm()) for end in ends]
    assert moved == sorted(moved)
