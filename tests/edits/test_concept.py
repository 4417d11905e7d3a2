"""Concepts, where the right answer is known: guidance that adds up, and masks of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.core.diffusion import derivative
from diffusion_path.core.edit import Edits, Need
from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.concept import Concept, highest, smoothed
from diffusion_path.tests.analytic import (
    GaussianDenoiser,
    condition,
    inverted,
    levels,
    picture,
    recorded,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
EMPTY, ONE, OTHER, TARGET = (condition(seed) for seed in (7, 1, 2, 3))
FREE: dict[str, Any] = {"guided": False}


def concept(prompt: Any = ONE, **settings: Any) -> Concept:
    return Concept(conditioning=prompt, **settings)


def sample(
    denoiser: GaussianDenoiser, path: DiffusionPath, edits: Edits = (), **given: Any
) -> Tensor:
    """Without a target prompt, unless one is given."""
    given = {"positive": EMPTY, "negative": EMPTY, "cfg": 1.0} | given
    return sampled(denoiser, path, edits=edits, **given)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@each_family
def test_scale_0_is_no_edit_and_costs_nothing(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser, steps=10)
    denoiser.evaluations = 0
    latents = sample(denoiser, path, (concept(scale=0.0),))
    assert denoiser.evaluations == 10
    assert torch.equal(latents, sample(denoiser, path))


@each_family
@pytest.mark.parametrize("scale", [5.0, -2.0])
def test_without_a_mask_one_concept_is_guidance_towards_its_prompt(flow: bool, scale: float):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    guided = sample(denoiser, path, positive=ONE, cfg=scale)
    close(sample(denoiser, path, (concept(scale=scale, **FREE),)), guided)


@each_family
def test_it_is_added_to_the_guidance_of_a_target(flow: bool):
    """One step: the target's guidance and the concept's, each from the negative's estimate."""
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    given = {"positive": TARGET, "cfg": 3.0}
    after = sample(denoiser, path, (concept(scale=5.0, **FREE),), **given)[1]
    sigma, below = path.sigmas[:2].tolist()
    x = path.latents[0]
    empty, one, target = (denoiser.denoised(x, sigma, it) for it in (EMPTY, ONE, TARGET))
    denoised = empty + 3.0 * (target - empty) + 5.0 * (one - empty)
    close(after, x + (below - sigma) * derivative(x, denoised, sigma))


@each_family
@pytest.mark.parametrize("guided", [False, True])
def test_two_concepts_add_up_in_either_order(flow: bool, guided: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    one, other = concept(guided=guided), concept(OTHER, scale=-3.0, guided=guided)
    both = sample(denoiser, path, (one, other))
    close(both, sample(denoiser, path, (other, one)))
    plain = sample(denoiser, path)
    moved = [sample(denoiser, path, (edit,))[1] - plain[1] for edit in (one, other)]
    close(both[1] - plain[1], moved[0] + moved[1])
    assert all(float(by.abs().max()) > 1e-3 for by in moved)


@each_family
def test_a_negative_scale_is_the_opposite_in_the_same_places(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    plain = sample(denoiser, path)[1]
    more, less = (sample(denoiser, path, (concept(scale=s),))[1] - plain for s in (5.0, -5.0))
    close(more, -less)
    assert float(more.abs().max()) > 1e-3


@each_family
def test_threshold_0_masks_nothing(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    everywhere = sample(denoiser, path, (concept(threshold=0.0),))
    assert torch.equal(everywhere, sample(denoiser, path, (concept(**FREE),)))


@each_family
def test_it_acts_where_its_guidance_is_strongest_in_each_picture(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    x, sigma = path.latents[0], float(path.sigmas[0])
    change = denoiser.denoised(x, sigma, ONE) - denoiser.denoised(x, sigma, EMPTY)
    strength = change.abs().sum(dim=1).flatten(1)
    plain = sample(denoiser, path)[1]
    moved = sample(denoiser, path, (concept(threshold=0.75),))[1] - plain
    for its_strength, by in zip(strength, moved, strict=True):
        there = (by.abs().sum(dim=0) > 1e-12).flatten()
        assert set(there.nonzero().flatten().tolist()) == set(
            its_strength.topk(12).indices.tolist()
        )


def test_outside_its_window_it_changes_nothing():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)
    plain = sample(denoiser, path)
    late = sample(denoiser, path, (concept(warm_up=0.7),))
    assert torch.equal(late[:8], plain[:8])
    assert not torch.equal(late[8], plain[8])
    early = sample(denoiser, path, (concept(end=0.3, **FREE),))
    guided = sample(denoiser, path, positive=ONE, cfg=5.0)
    close(early[:4], guided[:4])
    for i in range(3, 10):  # from there on plain steps
        step = sampled(denoiser, path._replace(latents=early), EMPTY, cfg=1.0, first=i)
        close(step[1], early[i + 1])


@pytest.mark.parametrize(
    ("given", "evaluations"),
    [
        ({}, 2),  # the prompt is the negative
        ({"positive": TARGET}, 3),
        ({"positive": TARGET, "cfg": 3.0}, 3),
    ],
)
def test_a_concept_costs_one_evaluation_a_step_and_the_negative_is_asked_once(
    given: dict, evaluations: int
):
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)
    denoiser.evaluations = 0
    sample(denoiser, path, (concept(), concept(OTHER)), **given)
    assert denoiser.evaluations == (evaluations + 1) * 10


def test_a_picture_can_be_recorded_with_it():
    denoiser, sigmas = GaussianDenoiser(), levels(10, flow=False)
    noise = float(sigmas[0]) * picture(seed=5)
    made = recorded(denoiser, noise, sigmas, EMPTY, EMPTY, edits=(concept(**FREE),))
    close(made, recorded(denoiser, noise, sigmas, ONE, EMPTY, cfg=5.0))
    assert concept().needs == Need(0)


def test_a_video_has_one_threshold_for_all_its_frames():
    values = torch.arange(24.0).reshape(2, 1, 3, 2, 2)
    kept = highest(values, 0.75).flatten(1)
    assert kept.sum(dim=1).tolist() == [3.0, 3.0]
    assert bool(kept[:, -3:].all())


def test_maps_are_smoothed_without_loss_and_only_to_their_neighbours():
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 3, 4] = 1
    blurred = smoothed(maps)
    assert float(blurred.sum()) == pytest.approx(1)
    assert int((blurred > 0).sum()) == 9
    middle, side = float(blurred[0, 0, 3, 4]), float(blurred[0, 0, 3, 5])
    assert side / middle == pytest.approx(torch.tensor(-1.0).exp().item())
    assert smoothed(torch.ones(1, 1, 1, 8)).shape == (1, 1, 1, 8)
