"""What is asked of a model: queries, plain and guided estimates, the plain loop."""

from __future__ import annotations

import pytest
import torch

from diffusion_path.core.denoiser import Query, ddim_sampling, distinct, guided
from diffusion_path.tests.analytic import GaussianDenoiser, condition, levels, picture, recorded

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
POSITIVE, NEGATIVE = condition(1, scale=0.8), condition(2, scale=0.3)


@each_family
@pytest.mark.parametrize("scale", [7.5, 0.0, -1.0])
def test_guidance_goes_from_the_negative_through_the_positive(flow: bool, scale: float):
    denoiser, x = GaussianDenoiser(flow), picture()
    positive, negative = (denoiser.denoised(x, 0.7, one) for one in (POSITIVE, NEGATIVE))
    found = guided(denoiser, x, 0.7, POSITIVE, NEGATIVE, scale)
    torch.testing.assert_close(found, negative + scale * (positive - negative))
    assert denoiser.evaluations == 2


def test_at_guidance_1_it_is_the_plain_estimate_for_one_evaluation():
    denoiser, x = GaussianDenoiser(), picture()
    found = guided(denoiser, x, 0.7, POSITIVE, NEGATIVE, 1.0)
    assert torch.equal(found, denoiser.denoised(x, 0.7, POSITIVE))
    assert denoiser.evaluations == 1


@each_family
def test_the_plain_loop_is_the_walk_without_guidance(flow: bool):
    denoiser, sigmas = GaussianDenoiser(flow), levels(10, flow)
    wanted = recorded(denoiser, picture(), sigmas, POSITIVE)[-1]
    found = ddim_sampling(denoiser, picture(), sigmas.tolist(), POSITIVE)
    torch.testing.assert_close(found, wanted)


def test_a_query_is_asked_once_and_is_the_source_if_anyone_asks_for_the_source():
    x, other, c = picture(), picture(1), condition(0)
    asked = [Query(x, c), Query(other, c), Query(x, c, is_source=True), Query(x, c, patch="any")]
    assert [(one.x is x, one.patch, one.is_source) for one in distinct(asked)] == [
        (True, None, True),
        (False, None, False),
        (True, "any", False),
    ]
    assert Query(x.clone(), c) != Query(x, c)
