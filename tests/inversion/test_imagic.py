"""Imagic's stage A where the embedding that gives a picture is known in closed form.

Gaussian data: the network's estimate is affine in its embedding, the mean, and its expected error
on a picture is least where that mean is the picture itself.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_path.inversion.imagic import Fitted, Level, fit_embedding, levels_of, random_places
from diffusion_path.tests.analytic import GaussianDenoiser, condition, picture

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
TARGET = condition(1)


def draw(flow: bool, seed: int = 0, batch: int = 1):
    """Levels of a step, from 0.1 to 0.9 for a flow, from 0.1 to 10 for another model."""

    def sigma_at(place: float) -> float:
        return 0.9 - 0.8 * place if flow else 10 ** (1 - 2 * place)

    def levels(step: int) -> list[Level]:
        generator = torch.Generator().manual_seed(1000 * seed + step + 1)
        return levels_of(random_places(batch, generator), (2, 4, 6, 8), sigma_at, generator)

    return levels


def fit(flow: bool = False, x0: Tensor | None = None, **options) -> Fitted:
    options = {"steps": 5, "draw": draw(flow)} | options
    return fit_embedding(GaussianDenoiser(flow), picture() if x0 is None else x0, TARGET, **options)


@each_family
def test_it_finds_the_embedding_that_gives_the_picture(flow: bool):
    x0 = picture()
    found = fit(flow, steps=100, learning_rate=5e-2, draw=draw(flow, batch=2))
    start = TARGET.mean.expand_as(x0)
    assert found.embedding.shape == (2, 4 * 6 * 8, 1)
    near = found.embedding.reshape(x0.shape)
    assert float((near - x0).norm()) < 0.15 * float((start - x0).norm())
    assert bool((found.after < found.before).all())


@each_family
def test_it_is_the_papers_loop_written_out(flow: bool):
    """Equation 3 by torch's own Adam and autograd: the noise of an EPS model, a flow's velocity."""
    denoiser, x0, levels = GaussianDenoiser(flow), picture(), draw(flow, batch=2)
    found = fit(flow, steps=20, learning_rate=1e-2, draw=levels)
    embedding = torch.nn.Parameter(denoiser.embedding(TARGET).expand(2, -1, -1).clone())
    optimizer = torch.optim.Adam([embedding], lr=1e-2)
    losses = []
    for step in range(20):
        each = []
        for sigma, noise in levels(step):
            signal = 1 - sigma if flow else 1.0
            x = signal * x0 + sigma * noise
            estimate = denoiser.denoised(x, sigma, denoiser.with_embedding(TARGET, embedding))
            predicted = (x - estimate) / sigma
            wanted = noise - x0 if flow else noise
            each.append((predicted - wanted).square().mean(dim=(1, 2, 3)))
        losses.append(torch.stack(each).mean(dim=0))
        optimizer.zero_grad()
        losses[-1].sum().backward()
        optimizer.step()
    torch.testing.assert_close(found.losses, torch.stack(losses).detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.embedding, embedding.detach(), rtol=1e-6, atol=1e-7)


def test_pictures_of_a_batch_do_not_see_each_other():
    together = fit(steps=8).embedding
    for one in range(2):
        alone = fit(steps=8, x0=picture()[one : one + 1]).embedding
        torch.testing.assert_close(together[one : one + 1], alone, rtol=0, atol=1e-12)


def test_one_seed_gives_one_embedding_and_another_another():
    assert torch.equal(fit().embedding, fit().embedding)
    assert not torch.allclose(fit().embedding, fit(draw=draw(False, seed=1)).embedding)


def test_a_step_has_a_level_in_each_equal_part_of_the_schedule():
    generator = torch.Generator().manual_seed(0)
    drawn = [random_places(4, generator) for _ in range(20)]
    for places in drawn:
        assert [int(4 * place) for place in places] == [0, 1, 2, 3]
    assert not torch.equal(drawn[0], drawn[1])


def test_the_ends_of_the_schedule_are_never_asked_for():
    """ComfyUI has an infinite noise level at 0 and none at 1."""
    asked: list[float] = []
    generator = torch.Generator()
    levels_of(torch.tensor([0.0, 1.0]), (1, 1), lambda p: asked.append(p) or 1.0, generator)
    assert 0 < asked[0] < asked[1] < 1


def test_all_pictures_get_the_same_noise_and_each_level_its_own():
    places, generator = torch.tensor([0.2, 0.8]), torch.Generator()
    (_, first), (_, second) = levels_of(places, (3, 4, 6, 8), float, generator)
    assert first.shape == second.shape == (1, 4, 6, 8)
    assert not torch.equal(first, second)


def test_it_costs_one_evaluation_a_level_and_one_measurement_before_and_after():
    denoiser = GaussianDenoiser()
    calls = fit_embedding(denoiser, picture(), TARGET, draw(False, batch=3), steps=5)
    assert len(calls.losses) == 5
    assert denoiser.evaluations == 3 * (5 + 2)


def test_progress_tells_of_each_step():
    seen: list[int] = []
    fit(steps=4, progress=lambda step, *_: seen.append(step))
    assert seen == [0, 1, 2, 3]


def test_a_loss_that_is_no_number_is_said():
    with pytest.raises(ValueError, match="NaN or infinite; lower learning_rate"):
        fit(x0=picture() * torch.nan)
