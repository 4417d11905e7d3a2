"""MDP's four edits: their identities, and their formulas written out by hand."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.core.edit import Edits, Step
from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.diffedit import MaskBlend
from diffusion_path.edits.mdp import (
    MDP,
    MDPCondition,
    MDPEpsilon,
    MDPGuidance,
    MDPLatent,
    curve_value,
)
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
each_edit = pytest.mark.parametrize("kind", [MDPEpsilon, MDPCondition, MDPLatent, MDPGuidance])
SOURCE, TARGET, NEGATIVE = condition(0), condition(1, scale=0.8), condition(2, scale=0.3)
CFG = 3.0


def sample(denoiser: GaussianDenoiser, path: DiffusionPath, edits: Edits, **options) -> Tensor:
    options = {"cfg": CFG} | options
    return sampled(denoiser, path, TARGET, NEGATIVE, source=SOURCE, edits=edits, **options)


def stepwise(path: DiffusionPath) -> list[tuple[int, float, float]]:
    """The index, the level and the next level of each step."""
    return [(i, *pair) for i, pair in enumerate(pairwise(path.sigmas.tolist()))]


def guided(denoiser: GaussianDenoiser, x: Tensor, sigma: float, target=TARGET) -> Tensor:
    """The guided derivative, by hand."""
    negative = (x - denoiser.denoised(x, sigma, NEGATIVE)) / sigma
    positive = (x - denoiser.denoised(x, sigma, target)) / sigma
    return negative + CFG * (positive - negative)


@each_family
@pytest.mark.parametrize("kind", [MDPEpsilon, MDPLatent])
@pytest.mark.parametrize("first", [0, 4])
def test_the_source_comes_back_at_full_weight(flow: bool, kind: type[MDP], first: int):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    latents = sample(denoiser, path, (kind(weight=1.0, start=0.0, end=1.0),), first=first)
    torch.testing.assert_close(latents, path.latents[first:], rtol=0, atol=1e-4)


@each_family
@pytest.mark.parametrize("kind", [MDPCondition, MDPGuidance])
def test_prompt_and_guidance_at_full_weight_reconstruct_under_the_source_prompt(
    flow: bool, kind: type[MDP]
):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    latents = sample(denoiser, path, (kind(weight=1.0, start=0.0, end=1.0),), cfg=1.0)
    wanted = recorded(denoiser, path.latents[0], path.sigmas, SOURCE)
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-10)


@each_edit
@each_family
def test_at_weight_0_nothing_is_edited_bit_for_bit(flow: bool, kind: type[MDP]):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    plain = sample(denoiser, path, ())
    assert torch.equal(sample(denoiser, path, (kind(weight=0.0, start=0.0, end=1.0),)), plain)


@each_edit
def test_a_window_changes_exactly_its_steps(kind: type[MDP]):
    """Seen step by step: each starts from where the plain path stands."""
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    plain = sample(denoiser, path, ())
    edit = kind(weight=0.7, start=0.3, end=0.65)
    changed = []
    for i in range(path.steps):
        at_plain = path._replace(latents=torch.cat([plain[: i + 1], path.latents[i + 1 :]]))
        latents = sample(denoiser, at_plain, (edit,), first=i)
        if not torch.equal(latents[1], plain[i + 1]):
            changed.append(i)
    assert changed == [3, 4, 5, 6]


@each_edit
def test_a_window_is_counted_on_the_whole_path_wherever_the_sampler_starts(kind: type[MDP]):
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    plain = sample(denoiser, path, (), first=5)
    before = kind(weight=1.0, start=0.0, end=0.5)
    inside = kind(weight=1.0, start=0.0, end=0.6)
    assert torch.equal(sample(denoiser, path, (before,), first=5), plain)
    assert not torch.equal(sample(denoiser, path, (inside,), first=5), plain)


def test_guidance_asks_for_another_evaluation_and_epsilon_at_weight_1_for_none_in_its_window():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    for edit, wanted in (
        (MDPEpsilon(weight=0.99, start=0.2, end=0.6), 20),
        (MDPEpsilon(weight=1.0, start=0.2, end=0.6), 12),
        (MDPCondition(start=0.2, end=0.6), 20),
        (MDPLatent(start=0.2, end=0.6), 20),
        (MDPGuidance(start=0.2, end=0.6), 24),
    ):
        denoiser.evaluations = 0
        sample(denoiser, path, (edit,))
        assert denoiser.evaluations == wanted, edit


def test_guidance_predicts_the_source_as_its_path_was_made():
    """A path recorded under guidance is predicted under guidance: d_A' = u_A + g_A (c_A - u_A)."""
    denoiser, source_negative = GaussianDenoiser(), condition(3, scale=0.6)
    sigmas = levels(6, False)
    x = denoiser.mixing.noised(picture(), picture(1), float(sigmas[0]))
    made = recorded(denoiser, x, sigmas, SOURCE, source_negative, 2.0)
    path = DiffusionPath(
        sigmas=sigmas, latents=made, positive=[], negative=[], cfg=2.0, fingerprint={}
    )
    edit = MDPGuidance(weight=1.0, end=1.0)
    latents = sample(denoiser, path, (edit,), source_negative=source_negative)
    torch.testing.assert_close(latents, made, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("curve", "start", "middle", "end"),
    [
        ("constant", 1.0, 1.0, 1.0),
        ("linear", 1.0, 0.5, 0.0),
        ("cosine", 1.0, 0.5, 0.0),
        ("exponential", 1.0, math.exp(-2.5), math.exp(-5)),
    ],
)
def test_a_curve_falls_from_1_over_its_window(curve, start: float, middle: float, end: float):
    values = [curve_value(curve, u / 100) for u in range(101)]
    assert (values[0], values[50], values[100]) == pytest.approx((start, middle, end))
    assert all(a >= b for a, b in pairwise(values))


def test_the_weight_of_a_step_is_the_curve_at_its_place_in_the_window():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    edit = MDPEpsilon(weight=0.8, curve="linear", start=0.2, end=0.6)
    step = Step(
        source=denoiser.source(path), denoiser=denoiser, x=path.clean, sigma=0.0, sigma_next=0.0
    )
    weights = [edit.w(step.at(step.x, sigma, below)) for _, sigma, below in stepwise(path)]
    assert weights == pytest.approx([0, 0, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0])


@each_family
def test_epsilon_then_latent_is_the_composition_of_their_formulas(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    x, wanted = path.latents[0], [path.latents[0]]
    for i, sigma, below in stepwise(path):
        w_eps = 0.6 * (1 - i / 5) if i < 5 else 0.0
        w_x = 0.3 if 2 <= i < 8 else 0.0
        d_a = (path.latents[i + 1] - path.latents[i]) / (below - sigma)
        d = (1 - w_eps) * guided(denoiser, x, sigma) + w_eps * d_a
        x = x + (below - sigma) * d
        x = (1 - w_x) * x + w_x * path.latents[i + 1]
        wanted.append(x)
    edits = (
        MDPEpsilon(weight=0.6, curve="linear", start=0.0, end=0.5),
        MDPLatent(weight=0.3, start=0.2, end=0.8),
    )
    torch.testing.assert_close(sample(denoiser, path, edits), torch.stack(wanted))
    torch.testing.assert_close(sample(denoiser, path, edits[::-1]), torch.stack(wanted))


@each_family
def test_condition_then_guidance_is_the_composition_of_their_formulas(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    x, wanted = path.latents[0], [path.latents[0]]
    for i, sigma, below in stepwise(path):
        w_c = 0.5 if i < 5 else 0.0
        w_beta = 0.4 * 0.5 * (1 + math.cos(math.pi * (i - 4) / 4)) if 4 <= i < 8 else 0.0
        mixed = denoiser.mix(TARGET, SOURCE, w_c)
        d_source = (x - denoiser.denoised(x, sigma, SOURCE)) / sigma
        d = (1 - w_beta) * guided(denoiser, x, sigma, mixed) + w_beta * d_source
        x = x + (below - sigma) * d
        wanted.append(x)
    edits = (
        MDPCondition(weight=0.5, end=0.5),
        MDPGuidance(weight=0.4, curve="cosine", start=0.4, end=0.8),
    )
    torch.testing.assert_close(sample(denoiser, path, edits), torch.stack(wanted))


@each_family
def test_epsilon_then_mask_is_the_composition_of_their_formulas(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    mask = torch.zeros(1, 6, 8, dtype=torch.float64)
    mask[:, 2:5, 1:4] = 0.75
    x, wanted = path.latents[0], [path.latents[0]]
    for i, sigma, below in stepwise(path):
        w = 0.9 if i < 3 else 0.0
        d_a = (path.latents[i + 1] - path.latents[i]) / (below - sigma)
        d = (1 - w) * guided(denoiser, x, sigma) + w * d_a
        x = x + (below - sigma) * d
        x = mask * x + (1 - mask) * path.latents[i + 1]
        wanted.append(x)
    edits = (MDPEpsilon(weight=0.9, start=0.0, end=0.3), MaskBlend(mask=mask))
    torch.testing.assert_close(sample(denoiser, path, edits), torch.stack(wanted))


def test_edits_of_the_same_thing_are_applied_in_the_order_of_the_chain():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    mask = torch.zeros(1, 6, 8, dtype=torch.float64)
    mask[:, :, :4] = 1
    half, blend = MDPEpsilon(weight=0.5, start=0.0, end=1.0), MDPGuidance(weight=0.5, end=1.0)

    x, sigma, below = path.latents[0], float(path.sigmas[0]), float(path.sigmas[1])
    d_b = guided(denoiser, x, sigma)
    d_a = (path.latents[1] - x) / (below - sigma)
    d_beta = (x - denoiser.denoised(x, sigma, SOURCE)) / sigma
    one_way = x + (below - sigma) * (0.5 * (0.5 * d_b + 0.5 * d_a) + 0.5 * d_beta)
    the_other = x + (below - sigma) * (0.5 * (0.5 * d_b + 0.5 * d_beta) + 0.5 * d_a)

    torch.testing.assert_close(sample(denoiser, path, (half, blend))[1], one_way)
    torch.testing.assert_close(sample(denoiser, path, (blend, half))[1], the_other)


@each_edit
def test_an_edit_cannot_be_changed_after_it_was_made(kind: type[MDP]):
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().weight = 0.5
