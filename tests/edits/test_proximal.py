"""Proximal guidance: what it leaves out, and what it puts in its place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_path.core.edit import Step
from diffusion_path.edits.mdp import MDPGuidance
from diffusion_path.edits.null_text import NullText
from diffusion_path.edits.proximal import Proximal
from diffusion_path.tests.analytic import GaussianDenoiser, condition, inverted, sampled

SOURCE, TARGET = condition(0), condition(1, scale=0.8)
each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])


def estimates(batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, batch, 4, 6, 8, generator=generator).unbind()


def step(index: int = 0, **answers: Tensor) -> Step:
    """A step of a path of ten."""
    denoiser = GaussianDenoiser()
    source = denoiser.source(inverted(denoiser))
    sigma, below = source.levels[index : index + 2]
    given = {"source": source, "denoiser": denoiser, "x": source.latent(index)}
    return Step(**given, sigma=sigma, sigma_next=below, **answers)


def held(edit: Proximal, cond: Tensor, uncond: Tensor) -> Tensor:
    """The conditional estimate that is left to guide with."""
    guided, kept = edit.guidance(step(), cond, uncond)
    assert kept is uncond
    return guided


def sample(denoiser, path, target=TARGET, **options):
    options = {"source": SOURCE, "source_negative": SOURCE, "cfg": 5.0} | options
    return sampled(denoiser, path, target, condition(9), **options)


def negative_prompt(denoiser, *more, **options):
    """The path after negative-prompt inversion."""
    path = inverted(denoiser, **options)
    own = NullText(embeddings=denoiser.embedding(SOURCE)[None])
    return path._replace(edits=(own, *more))


@pytest.mark.parametrize("quantile", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_the_small_part_of_the_guidance_is_left_out(norm: str, quantile: float):
    """Counted over source and target, and the source's guidance is 0: half of all is small."""
    cond, uncond = estimates()
    guided = held(Proximal(norm=norm, quantile=quantile), cond, uncond)
    left_out = (guided == uncond).flatten(1).float().mean(dim=1)
    assert left_out.tolist() == pytest.approx([max(2 * quantile - 1, 0)] * 2, abs=0.01)


def test_l0_keeps_the_large_part_as_it_is_and_l1_shrinks_all_of_it_by_the_same():
    cond, uncond = estimates()
    delta = (cond - uncond).abs()
    large = delta > delta.flatten(1).quantile(0.41, dim=1).view(-1, 1, 1, 1)
    hard = held(Proximal(norm="l0"), cond, uncond)
    torch.testing.assert_close(hard[large], cond[large])
    soft = held(Proximal(norm="l1"), cond, uncond)
    for one in range(2):
        shrunk = (delta - (soft - uncond).abs())[one][large[one]]
        torch.testing.assert_close(shrunk, shrunk[:1].expand_as(shrunk), rtol=1e-4, atol=1e-5)
        assert float(shrunk[0]) == pytest.approx(float(delta[one].quantile(0.4)), rel=0.05)
        assert torch.equal((soft - uncond).sign()[large], (cond - uncond).sign()[large])


def test_the_threshold_is_the_authors_quantile_over_source_and_target():
    cond, uncond = estimates()
    delta = (cond - uncond).flatten(1).abs()
    for quantile in (0.55, 0.7, 0.91):
        wanted = torch.cat([torch.zeros_like(delta), delta], dim=1).quantile(quantile, dim=1)
        soft = held(Proximal(norm="l1", quantile=quantile), cond, uncond)
        shrunk = delta - (soft - uncond).flatten(1).abs()
        torch.testing.assert_close(shrunk.amax(dim=1), wanted, rtol=1e-4, atol=1e-5)


def test_pictures_of_a_batch_have_thresholds_of_their_own():
    cond, uncond = estimates()
    cond = torch.cat([uncond[:1] + 100 * (cond - uncond)[:1], cond[1:]])
    together = held(Proximal(), cond, uncond)
    assert torch.equal(together[1:], held(Proximal(), cond[1:], uncond[1:]))


def test_without_guidance_there_is_nothing_to_leave_out():
    cond, _ = estimates()
    guided, uncond = Proximal(quantile=1.0).guidance(step(), cond, None)
    assert guided is cond and uncond is None
    assert Proximal().latent(step(8, cond=cond), cond) is cond


def test_late_on_the_path_what_is_left_out_becomes_the_source():
    cond, uncond = estimates()
    cond[:, :, :, 4:] = uncond[:, :, :, 4:]
    edit, x = Proximal(reconstruction=0.6, quantile=0.5, dilation=0), torch.full_like(cond, 7.0)
    early = step(5, cond=cond, uncond=uncond)
    assert edit.latent(early, x) is x
    late = step(6, cond=cond, uncond=uncond)
    put_back = edit.latent(late, x)
    assert torch.equal(put_back[..., 4:], late.source.latent(7)[..., 4:])
    assert bool((put_back[..., :4] == 7).all())
    assert edit.steps(late.source) == range(6, 10)
    assert Proximal(reconstruction=1.0).steps(late.source) == range(10, 10)


@pytest.mark.parametrize("dilation", [0, 1, 2])
def test_what_changes_is_made_wider_by_as_many_pixels(dilation: int):
    _, uncond = estimates()
    cond = uncond.clone()
    cond[:, 1, 2, 3] += 1.0  # one pixel of one channel
    x = torch.full_like(cond, 7.0)
    late = step(8, cond=cond, uncond=uncond)
    found = Proximal(quantile=0.5, dilation=dilation).latent(late, x) == 7
    wanted = torch.zeros(6, 8)
    wanted[2 - min(dilation, 2) : 3 + dilation, 3 - dilation : 4 + dilation] = 1
    assert torch.equal(found[:, 1].float(), wanted.expand(2, -1, -1))
    assert not bool(found[:, [0, 2, 3]].any())


@each_family
def test_with_the_source_as_negative_guidance_leaves_the_source_alone(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = negative_prompt(denoiser, fixed_point_iterations=60)
    torch.testing.assert_close(sample(denoiser, path, SOURCE), path.latents, rtol=0, atol=1e-4)


@each_family
def test_the_walk_ends_on_the_source_if_everything_counts_as_small(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = negative_prompt(denoiser, fixed_point_iterations=60)
    everything = path._replace(edits=(*path.edits, Proximal(quantile=1.0)))
    assert float((sample(denoiser, path)[-1] - path.clean).norm()) > 0.1
    latents = sample(denoiser, everything)
    assert torch.equal(latents[7:], path.latents[7:])


@each_family
def test_a_walk_that_never_puts_the_source_back_is_guided_by_the_large_part_alone(flow: bool):
    """Written out, with the threshold of each step."""
    denoiser, path = GaussianDenoiser(flow), inverted(GaussianDenoiser(flow))
    negative = denoiser.with_embedding(condition(9), denoiser.embedding(SOURCE).float())
    x, wanted = path.latents[0], [path.latents[0]]
    for sigma, below in zip(path.sigmas.tolist(), path.sigmas.tolist()[1:], strict=False):
        cond, uncond = (denoiser.denoised(x, sigma, one) for one in (TARGET, negative))
        delta = (cond - uncond).flatten(1)
        zeros = torch.zeros_like(delta)
        limit = torch.cat([zeros, delta.abs()], dim=1).quantile(0.8, dim=1, keepdim=True)
        delta = torch.where(delta.abs() > limit, delta, 0).view_as(cond)
        x = x + (below - sigma) * (x - (uncond + 5.0 * delta)) / sigma
        wanted.append(x)
    path = negative_prompt(denoiser, Proximal(quantile=0.8, reconstruction=1.0))
    torch.testing.assert_close(sample(denoiser, path), torch.stack(wanted))


def test_a_source_prediction_is_made_as_the_path_says():
    denoiser = GaussianDenoiser()
    path = negative_prompt(denoiser, fixed_point_iterations=60)._replace(cfg=5.0)
    latents = sample(denoiser, path, edits=(MDPGuidance(end=1.0),))
    torch.testing.assert_close(latents, path.latents, rtol=0, atol=1e-4)
