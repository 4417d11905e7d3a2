"""Proximal guidance: what it leaves out, and what it puts in its place."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diffusion_path.edits.mdp import MDPGuidance
from diffusion_path.inversion.negative_prompt import Proximal
from diffusion_path.samplers.path_sampler import sample_path
from diffusion_path.tests.analytic import GaussianDenoiser, condition, inverted

SOURCE, TARGET = condition(0), condition(1, scale=0.8)
each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])


def estimates(batch: int = 2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, batch, 4, 6, 8, generator=generator).unbind()


def sample(denoiser, path, target=TARGET, **options):
    return sample_path(
        denoiser, path, target, condition(9), SOURCE, SOURCE, cfg=5.0, **options
    ).latents


def negative_prompt(denoiser, **options):
    """The path after negative-prompt inversion."""
    path = inverted(denoiser, **options)
    return dataclasses.replace(path, null_embeddings=denoiser.embedding(SOURCE)[None])


@pytest.mark.parametrize("quantile", [0.3, 0.7])
@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_the_small_part_of_the_guidance_is_left_out(norm: str, quantile: float):
    cond, uncond, clean = estimates()
    guided, kept = Proximal(norm=norm, quantile=quantile)(cond, uncond, clean, part=0.0)
    assert torch.equal(kept, uncond)
    left_out = (guided == uncond).flatten(1).float().mean(dim=1)
    assert left_out.tolist() == pytest.approx([quantile] * 2, abs=0.01)


def test_l0_keeps_the_large_part_as_it_is_and_l1_shrinks_all_of_it_by_the_same():
    cond, uncond, clean = estimates()
    delta = (cond - uncond).abs()
    large = delta > delta.flatten(1).quantile(0.7, dim=1).view(-1, 1, 1, 1)
    hard, _ = Proximal(norm="l0")(cond, uncond, clean, part=0.0)
    torch.testing.assert_close(hard[large], cond[large])
    soft, _ = Proximal(norm="l1")(cond, uncond, clean, part=0.0)
    for one in range(2):
        shrunk = (delta - (soft - uncond).abs())[one][large[one]]
        torch.testing.assert_close(shrunk, shrunk[:1].expand_as(shrunk), rtol=1e-4, atol=1e-5)


def test_pictures_of_a_batch_have_thresholds_of_their_own():
    cond, uncond, clean = estimates()
    cond = torch.cat([uncond[:1] + 100 * (cond - uncond)[:1], cond[1:]])
    together, _ = Proximal()(cond, uncond, clean, part=0.0)
    alone, _ = Proximal()(cond[1:], uncond[1:], clean[1:], part=0.0)
    assert torch.equal(together[1:], alone)


def test_late_on_the_path_what_is_left_out_becomes_the_source():
    cond, uncond, _ = estimates()
    clean = torch.full_like(cond, 7.0)
    cond[:, :, :, 4:] = uncond[:, :, :, 4:]
    early, _ = Proximal(reconstruction=0.6)(cond, uncond, clean, part=0.58)
    assert not bool((early == 7).any())
    late = Proximal(reconstruction=0.6, quantile=0.1)(cond, uncond, clean, part=0.6)
    for estimate in late:
        assert bool((estimate[..., 5:] == 7).all())
        assert not bool((estimate[..., :4] == 7).all())


@each_family
def test_with_the_source_as_negative_guidance_leaves_the_source_alone(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = negative_prompt(denoiser, fixed_point_iterations=60)
    torch.testing.assert_close(sample(denoiser, path, SOURCE), path.latents, rtol=0, atol=1e-4)


@each_family
def test_the_walk_ends_on_the_source_if_everything_counts_as_small(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = negative_prompt(denoiser, fixed_point_iterations=60)
    held = dataclasses.replace(path, proximal=Proximal(quantile=1.0))
    away = (sample(denoiser, path)[-1] - path.clean).norm()
    assert float((sample(denoiser, held)[-1] - path.clean).norm()) < 0.05 * float(away)


def test_a_source_prediction_is_made_under_the_paths_own_embeddings():
    denoiser = GaussianDenoiser()
    path = dataclasses.replace(negative_prompt(denoiser, fixed_point_iterations=60), cfg=5.0)
    latents = sample(denoiser, path, edits=(MDPGuidance(end=1.0),))
    torch.testing.assert_close(latents, path.latents, rtol=0, atol=1e-4)
