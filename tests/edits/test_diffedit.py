"""DiffEdit: the map of differences, the mask made of it, and the blend with the source."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from diffusion_path.core.masks import check_mask
from diffusion_path.edits.diffedit import MaskBlend, difference, heat, threshold_mask
from diffusion_path.tests.analytic import (
    Gaussian,
    GaussianDenoiser,
    condition,
    inverted,
    levels,
    picture,
    recorded,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
SOURCE, TARGET, NEGATIVE = condition(0), condition(1, scale=0.8), condition(2, scale=0.3)


def sample(denoiser: GaussianDenoiser, edits: tuple, **options) -> Tensor:
    path = inverted(denoiser)
    return sampled(denoiser, path, TARGET, NEGATIVE, source=SOURCE, cfg=3.0, edits=edits, **options)


def square() -> Tensor:
    mask = torch.zeros(1, 6, 8, dtype=torch.float64)
    mask[:, 1:4, 2:5] = 1
    return mask


@each_family
@pytest.mark.parametrize("first", [0, 5])
def test_an_empty_mask_returns_the_source(flow: bool, first: int):
    denoiser = GaussianDenoiser(flow)
    latents = sample(denoiser, (MaskBlend(mask=torch.zeros(1, 6, 8)),), first=first)
    assert torch.equal(latents, inverted(denoiser).latents[first:])


@each_family
def test_a_full_mask_is_no_blend_bit_for_bit(flow: bool):
    denoiser = GaussianDenoiser(flow)
    full = MaskBlend(mask=torch.ones(1, 6, 8))
    assert torch.equal(sample(denoiser, (full,)), sample(denoiser, ()))


def test_outside_the_mask_is_the_source_exactly_and_inside_the_edit():
    denoiser, mask = GaussianDenoiser(), square()
    latents, source = sample(denoiser, (MaskBlend(mask=mask),)), inverted(denoiser).latents
    outside = (mask == 0).expand_as(latents[0])
    assert torch.equal(latents[:, outside], source[:, outside])
    assert float((latents[-1] - source[-1])[~outside].abs().min()) > 1e-3


def test_blending_in_a_window_changes_exactly_its_steps():
    denoiser = GaussianDenoiser()
    source, plain = inverted(denoiser).latents, sample(denoiser, ())
    latents = sample(denoiser, (MaskBlend(mask=torch.zeros(1, 6, 8), start=0.3, end=0.6),))
    is_source = [torch.equal(a, b) for a, b in zip(latents[1:], source[1:], strict=True)]
    assert is_source == [False] * 3 + [True] * 3 + [False] * 4
    assert torch.equal(latents[:4], plain[:4])


def test_a_mask_in_the_size_of_the_picture_is_averaged_over_each_latent_pixel():
    denoiser, mask = GaussianDenoiser(), torch.zeros(1, 48, 64)
    mask[:, :24, :36] = 1  # 3 latent rows, 4.5 latent columns
    small = torch.zeros(1, 6, 8)
    small[:, :3, :4], small[:, :3, 4] = 1, 0.5
    torch.testing.assert_close(
        sample(denoiser, (MaskBlend(mask=mask),)), sample(denoiser, (MaskBlend(mask=small),))
    )


def test_a_batch_of_masks_goes_with_the_batch_of_images():
    denoiser = GaussianDenoiser()
    masks = torch.stack([torch.zeros(6, 8), torch.ones(6, 8)])
    latents = sample(denoiser, (MaskBlend(mask=masks),))
    assert torch.equal(latents[:, 0], inverted(denoiser).latents[:, 0])
    assert torch.equal(latents[:, 1], sample(denoiser, ())[:, 1])


@each_family
def test_the_difference_of_two_gaussians_is_that_of_their_estimates(flow: bool):
    """Two Gaussians that differ in their mean disagree by a multiple of that for any noise."""
    denoiser, sigmas = GaussianDenoiser(flow), levels(10, flow)[5:]
    other = Gaussian(SOURCE.mean + 2 * square(), SOURCE.scale)
    noises = [picture(seed) for seed in range(3)]
    found = difference(denoiser, picture(), noises, sigmas, SOURCE, other)
    signal = denoiser.mixing.signal(float(sigmas[0]))
    kept = 1 - (signal * SOURCE.scale) ** 2 / denoiser.variance(float(sigmas[0]), SOURCE)
    torch.testing.assert_close(found, (2 * kept * square()).float().expand_as(found))
    assert denoiser.evaluations == 6


@each_family
def test_denoise_compares_the_images_sampled_under_each_prompt(flow: bool):
    denoiser, sigmas = GaussianDenoiser(flow), levels(10, flow)[5:]
    noise = picture(7)
    found = difference(denoiser, picture(), [noise], sigmas, SOURCE, TARGET, "denoise")
    assert denoiser.evaluations == 2 * 5
    x = denoiser.mixing.noised(picture(), noise, float(sigmas[0]))
    a, b = (recorded(denoiser, x, sigmas, prompt)[-1] for prompt in (SOURCE, TARGET))
    torch.testing.assert_close(found, (a - b).abs().mean(dim=1).float())


def test_heat_is_the_difference_over_three_times_its_mean_and_no_more_than_1():
    values = torch.tensor([[[0.0, 1.0, 1.5, 0.5, 7.0]]])  # mean 2
    torch.testing.assert_close(heat(values), torch.tensor([[[0, 1 / 6, 1 / 4, 1 / 12, 1.0]]]))
    torch.testing.assert_close(heat(values * 1e6), heat(values))


def test_heat_of_estimates_reaches_one_half_at_the_mean():
    values = torch.tensor([[[0.0, 1.0, 2.0, 9.0]]])
    mask = threshold_mask(heat(values, "x0"), 0.5)
    assert mask.tolist() == [[[0, 0, 0, 1]]]
    spread = heat(values, "x0") - 0.5
    torch.testing.assert_close(spread, (values - 3.0) / (6 * values.std(correction=0)))


@pytest.mark.parametrize("method", ["noise", "x0", "denoise"])
def test_prompts_that_agree_everywhere_give_an_empty_mask(method):
    mask = threshold_mask(heat(torch.zeros(1, 6, 8), method), 0.5)
    assert not mask.any()


def test_a_blur_softens_the_edge_and_keeps_the_sum():
    mask = threshold_mask(square().float(), 0.5)
    soft = threshold_mask(square().float(), 0.5, blur=1)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert len(soft.unique()) > 2
    assert float(soft.sum()) == pytest.approx(float(mask.sum()), rel=1e-5)
    assert float(soft[0, 2, 3]) > float(soft[0, 1, 3]) > float(soft[0, 0, 3]) > 0


def test_a_mask_of_other_proportions_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"the mask is 64 x 64, .* latent is 8 x 6"):
        check_mask(torch.ones(1, 64, 64), inverted(GaussianDenoiser()))


@pytest.mark.parametrize("size", [(6, 8), (48, 64), (47, 64), (480, 641)])
def test_a_mask_of_the_picture_s_proportions_is_accepted_whatever_its_size(size):
    check_mask(torch.ones(1, *size), inverted(GaussianDenoiser()))


def test_masks_for_another_number_of_images_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="the mask holds 3 masks for 2 images; give 1 or 2"):
        check_mask(torch.ones(3, 6, 8), inverted(GaussianDenoiser()))


def test_the_mask_of_a_blend_is_one_that_is_checked():
    mask = square()
    assert [one is mask for one in MaskBlend(mask=mask).masks] == [True]


def test_a_blend_cannot_be_changed_after_it_was_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MaskBlend(mask=square()).start = 0.5
