"""FlowEdit: its identities, a case with a known result, what it costs and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.core.diffusion import as_it_is
from diffusion_path.core.edit import Edits
from diffusion_path.core.families import Traits
from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.diffedit import MaskBlend
from diffusion_path.edits.flow_edit import FAMILIES, FlowEdit, is_independent
from diffusion_path.edits.pull_to_source import PullToSource
from diffusion_path.inversion.straight import Kind, ddpm_residuals, straight
from diffusion_path.tests import tiny_models
from diffusion_path.tests.analytic import (
    Gaussian,
    GaussianDenoiser,
    condition,
    inverted,
    levels,
    picture,
    sampled,
)
from diffusion_path.tests.calls import results

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
SOURCE, TARGET, NEGATIVE = condition(0), condition(1, scale=0.8), condition(2, scale=0.3)


def straight_path(flow: bool, kind: Kind = "fresh", steps: int = 10, seed: int = 0) -> Any:
    """A straight path of `picture()`."""
    denoiser, generator = GaussianDenoiser(flow), torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(picture().shape, generator=generator, dtype=torch.float64)

    sigmas = levels(steps, flow)
    return DiffusionPath(
        sigmas=sigmas,
        latents=straight(denoiser.mixing, picture(), sigmas, draw, kind),
        positive=[],
        negative=None,
        cfg=1.0,
        fingerprint={"flow": flow},
    )


def sample(flow: bool, path: DiffusionPath, edits: Edits, **options: Any) -> Tensor:
    options = {"cfg": 3.0, "positive": TARGET, "negative": NEGATIVE} | options
    return sampled(GaussianDenoiser(flow), path, source=SOURCE, edits=edits, **options)


@each_family
@pytest.mark.parametrize("kind", ["fresh", "one"])
@pytest.mark.parametrize("average", [1, 2])
def test_under_the_sources_own_prompt_the_source_comes_back(flow: bool, kind: Kind, average: int):
    path = straight_path(flow, kind)
    edits = (FlowEdit(source_cfg=3.0, average=average),)
    torch.testing.assert_close(sample(flow, path, edits, positive=SOURCE), path.latents)


@each_family
def test_at_strength_0_the_source_comes_back(flow: bool):
    path = straight_path(flow)
    edits = (FlowEdit(source_cfg=1.5, strength=0.0),)
    torch.testing.assert_close(sample(flow, path, edits), path.latents)


@each_family
def test_under_the_sources_own_prompt_any_inverted_path_comes_back(flow: bool):
    """Also under guidance, as in direct inversion."""
    path = inverted(GaussianDenoiser(flow))
    edits = (FlowEdit(source_cfg=7.5),)
    torch.testing.assert_close(
        sample(flow, path, edits, positive=SOURCE, cfg=7.5), path.latents, rtol=0, atol=1e-8
    )
    assert not torch.allclose(sample(flow, path, (), positive=SOURCE, cfg=7.5), path.latents)


@each_family
def test_so_it_does_by_the_midpoint_method(flow: bool):
    path = inverted(GaussianDenoiser(flow))._replace(solver="midpoint")
    edits = (FlowEdit(source_cfg=3.0),)
    torch.testing.assert_close(sample(flow, path, edits, positive=SOURCE), path.latents)


@each_family
def test_on_a_path_with_its_own_noise_it_adds_nothing(flow: bool):
    """There the noise is what the source's step is short of its path."""
    denoiser, path = GaussianDenoiser(flow), straight_path(flow)
    given = {"cfg": 3.5, "latent_in": as_it_is}
    noise = ddpm_residuals(denoiser, path.latents, path.sigmas, SOURCE, NEGATIVE, **given)
    path = path._replace(solver="ddpm", residuals=noise)
    plain = sample(flow, path, (), eta=1.0)
    latents = sample(flow, path, (FlowEdit(source_cfg=3.5),), eta=1.0)
    torch.testing.assert_close(latents, plain, rtol=0, atol=1e-5)


@each_family
def test_averaged_it_is_the_mean_of_the_differences_at_each_noise(flow: bool):
    """Of one step from the source: `x' = path' + (1 - sigma' / sigma) mean(T - S)`."""
    denoiser, path = GaussianDenoiser(flow), straight_path(flow, steps=4)
    mixing, (sigma, below) = denoiser.mixing, path.sigmas.tolist()[:2]
    differences = []
    for i in (0, 2):  # of two noises the other is half the path away
        noise = mixing.noise(path.latents[i], path.clean, float(path.sigmas[i]))
        x = mixing.noised(path.clean, noise, sigma)
        target, source = (denoiser.denoised(x, sigma, one) for one in (TARGET, SOURCE))
        differences.append(target - source)
    wanted = path.latents[1] + (1 - below / sigma) * sum(differences) / 2
    edits = (FlowEdit(source_cfg=1.0, average=2),)
    torch.testing.assert_close(sample(flow, path, edits, cfg=1.0)[1], wanted)


def moved(flow: bool, steps: int, **settings: Any) -> tuple[Tensor, Tensor]:
    """How far the edit moves the picture, where both prompts spread alike; and how far it should.

    Then the two velocities differ by what carries `sqrt(variance)` along, whatever the noise.
    """
    target, denoiser = Gaussian(TARGET.mean, SOURCE.scale), GaussianDenoiser(flow)
    path = straight_path(flow, steps=steps)
    edits = (FlowEdit(source_cfg=1.0, **settings),)
    end = sample(flow, path, edits, positive=target, cfg=1.0)[-1]
    first, last = (float(path.sigmas[i]) for i in (0, -1))
    ratio = denoiser.variance(last, SOURCE) / denoiser.variance(first, SOURCE)
    signals = denoiser.mixing.signal(last), denoiser.mixing.signal(first)
    wanted = (signals[0] - signals[1] * ratio**0.5) * (target.mean - SOURCE.mean)
    return end - path.clean, wanted.expand_as(path.clean)


@each_family
def test_between_two_means_it_moves_the_picture_by_their_difference(flow: bool):
    """At first order: twice the steps, half the error."""
    errors = []
    for steps in (50, 100):
        by, wanted = moved(flow, steps)
        errors.append(float((by - wanted).norm() / wanted.norm()))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


@each_family
@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_strength_scales_how_far_it_moves(flow: bool, strength: float):
    by, _ = moved(flow, 20)
    torch.testing.assert_close(moved(flow, 20, strength=strength)[0], strength * by)


@each_family
def test_an_anchor_keeps_it_nearer_to_the_source(flow: bool):
    distances = [float(moved(flow, 20, anchor=zeta)[0].norm()) for zeta in (0.0, 0.01, 0.1)]
    assert distances == sorted(distances, reverse=True)
    assert distances[1] < 0.99 * distances[0]


@each_family
def test_averaging_over_more_noise_makes_the_edit_depend_less_on_it(flow: bool):
    def spread(average: int) -> float:
        edits = (FlowEdit(source_cfg=1.0, average=average),)
        ends = [sample(flow, straight_path(flow, seed=k), edits)[-1] for k in range(6)]
        return float(torch.stack(ends).std(dim=0).mean())

    one, four = spread(1), spread(4)
    assert 0 < four < 0.9 * one


@each_family
def test_before_start_it_follows_the_source_and_asks_nothing(flow: bool):
    denoiser, path = GaussianDenoiser(flow), straight_path(flow)
    edits = (FlowEdit(source_cfg=3.0, start=0.4),)
    latents = sampled(denoiser, path, TARGET, NEGATIVE, source=SOURCE, cfg=3.0, edits=edits)
    torch.testing.assert_close(latents[:5], path.latents[:5], rtol=0, atol=1e-12)
    assert not torch.allclose(latents[5], path.latents[5])
    assert denoiser.evaluations == 6 * 4
    assert edits[0].follows == 0.4


@each_family
def test_after_end_it_is_plain_sampling(flow: bool):
    path = straight_path(flow)
    latents = sample(flow, path, (FlowEdit(source_cfg=3.0, end=0.6),))
    from_there = path._replace(latents=torch.cat([latents[:7], path.latents[7:]]))
    torch.testing.assert_close(latents[6:], sample(flow, from_there, (), first=6))


@pytest.mark.parametrize(
    ("settings", "wanted", "shared"),
    [
        ({"source_cfg": 1.0}, 3, 0),
        ({"source_cfg": 3.0}, 4, 1),
        ({"source_cfg": 1.0, "strength": 0.5}, 4, 1),
        ({"source_cfg": 3.0, "strength": 0.5}, 5, 2),  # both negatives at the edited latent are one
        ({"source_cfg": 1.0, "average": 2}, 6, 0),
        ({"source_cfg": 1.0, "anchor": 0.01}, 3, 0),
    ],
)
def test_it_costs_so_many_evaluations_a_step(settings: dict, wanted: int, shared: int):
    """The first step asks less, for there the edited latent is the source's."""
    denoiser, path = GaussianDenoiser(), straight_path(False)
    edits = (FlowEdit(**settings),)
    sampled(denoiser, path, TARGET, NEGATIVE, source=SOURCE, cfg=3.0, edits=edits)
    assert denoiser.evaluations == wanted * 10 - shared


def test_a_negative_of_the_sources_own_is_the_sources():
    """FlowAlign and others may give it one; without, it has the target's."""
    path, own = straight_path(False), condition(5)
    edits = (FlowEdit(source_cfg=3.0),)
    theirs = sample(False, path, edits, source_negative=own)
    assert not torch.allclose(theirs, sample(False, path, edits))
    same = sample(False, path, edits, source_negative=NEGATIVE)
    torch.testing.assert_close(same, sample(False, path, edits))


@each_family
def test_it_works_behind_an_edit_that_reads_the_sources_image(flow: bool):
    path = straight_path(flow)
    edits = (FlowEdit(source_cfg=1.0),)
    reader = PullToSource(eta=0.0, end=1.0)
    torch.testing.assert_close(sample(flow, path, (reader, *edits)), sample(flow, path, edits))


@each_family
def test_a_mask_keeps_the_source_outside(flow: bool):
    path = straight_path(flow)
    mask = torch.zeros(1, 6, 8, dtype=torch.float64)
    mask[:, :, 4:] = 1
    free = sample(flow, path, (FlowEdit(source_cfg=1.0),))[-1]
    held = sample(flow, path, (FlowEdit(source_cfg=1.0), MaskBlend(mask=mask)))[-1]
    torch.testing.assert_close(held[..., :4], path.clean[..., :4])
    torch.testing.assert_close(held[..., 4:], free[..., 4:])


def test_a_path_whose_noise_depends_on_the_step_before_is_refused():
    path = straight_path(False)._replace(solver="sde-dpm++")
    with pytest.raises(ValueError, match="make the path with solver ddpm"):
        FlowEdit().check(path)
    FlowEdit().check(path._replace(solver="ddpm"))


@each_family
def test_one_noise_cannot_be_averaged(flow: bool):
    with pytest.raises(ValueError, match="only one"):
        FlowEdit(average=2).check(straight_path(flow, "one"))
    with pytest.raises(ValueError, match="only one"):
        FlowEdit(average=2).check(straight_path(flow, steps=1))
    path = straight_path(flow)
    with pytest.raises(ValueError, match="noise of its own at each step"):
        FlowEdit(average=2).check(path._replace(residuals=path.latents[:-1]))
    FlowEdit(average=2).check(path)
    FlowEdit(average=1).check(straight_path(flow, "one"))


@each_family
def test_fresh_noise_is_independent_and_that_of_an_inversion_is_not(flow: bool):
    assert is_independent(straight_path(flow))
    assert not is_independent(straight_path(flow, "one"))
    fingerprint = {"flow": flow}
    assert not is_independent(inverted(GaussianDenoiser(flow))._replace(fingerprint=fingerprint))


def test_a_latent_formats_shift_does_not_make_fresh_noise_look_like_one():
    """On a wire, SD3's and Flux's latents have a constant added."""
    path = straight_path(True)
    assert is_independent(path._replace(latents=path.latents + 10))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_open_is_settled_by_the_models_family(family: str):
    settled = FlowEdit().settled(Traits(family))
    assert (settled.source_cfg, settled.start) == (
        FAMILIES[family].source_cfg,
        FAMILIES[family].start,
    )
    given = FlowEdit(source_cfg=2.0, start=0.0, settings="SD3")
    assert given.settled(Traits(family)) == given
    assert FlowEdit(settings="SD3").settled(Traits(family)).source_cfg == 3.5


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux_schnell"])
def test_outside_a_mask_the_samplers_latent_is_the_source_bit_for_bit(comfy: Path, name: str):
    model, latent = getattr(tiny_models, name)(), tiny_models.picture(name, batch=2)
    source, target, negative = (tiny_models.prompt(name, seed) for seed in range(3))
    given = {"model": model, "positive": source, "latent_image": latent, "steps": 6}
    path = results("StraightPath", **given)[0]
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1
    edits = results("MaskBlend", mask=mask, edits=results("FlowEdit", start=0.0)[0])[0]
    prompts = {"positive": target, "negative": negative, "cfg": 3.0}
    edited, same, *_ = results("Sampler", model=model, path=path, edits=edits, **prompts)
    assert torch.equal(edited["samples"][..., :6], path.clean[..., :6])
    assert torch.equal(path.clean, latent["samples"])
    assert torch.equal(same["samples"], latent["samples"])
    assert not torch.allclose(edited["samples"][..., 6:], path.clean[..., 6:], atol=1e-3)
