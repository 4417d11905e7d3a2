"""Null-text inversion where the right embedding is known in closed form, and against the paper.

Gaussian data make the unconditional estimate affine in its embedding, the mean; so an embedding
exists for every step with which it lands on the path exactly.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_path.edits.null_text import NullText
from diffusion_path.inversion.null_text import Found, null_text_inversion, threshold
from diffusion_path.tests.analytic import GaussianDenoiser, condition, inverted, sampled

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])
SOURCE, NULL, CFG = condition(0), condition(1, scale=0.7), 3.0


def invert(denoiser: GaussianDenoiser, path, null=NULL, **options) -> Found:
    options = (
        {"from_source": null is SOURCE}
        | {"cfg": CFG, "early_stop": 1e-12, "inner_steps": 60}
        | options
    )
    return null_text_inversion(denoiser, path.latents, path.sigmas, SOURCE, null, **options)


def retraced(denoiser: GaussianDenoiser, path, embeddings: Tensor) -> Tensor:
    """The path under guidance, step by step with these embeddings."""
    x, latents = path.latents[0], [path.latents[0]]
    for i in range(path.steps):
        sigma, below = float(path.sigmas[i]), float(path.sigmas[i + 1])
        null = denoiser.with_embedding(NULL, embeddings[i])
        cond, uncond = (denoiser.denoised(x, sigma, one) for one in (SOURCE, null))
        x = x + (below - sigma) * (x - (uncond + CFG * (cond - uncond))) / sigma
        latents.append(x)
    return torch.stack(latents)


@each_family
def test_the_guided_walk_retraces_the_path(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    found = invert(denoiser, path)
    torch.testing.assert_close(
        retraced(denoiser, path, found.embeddings), path.latents, rtol=0, atol=1e-3
    )
    assert found.embeddings.shape == (path.steps, 2, 4 * 6 * 8, 1)


def test_a_path_that_needs_nothing_is_left_alone_and_costs_one_evaluation_a_step():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, fixed_point_iterations=60)
    denoiser.evaluations = 0
    found = invert(denoiser, path, null=SOURCE, early_stop=1e-8)
    assert found.gradients == 0
    assert denoiser.evaluations == path.steps
    assert all(torch.equal(one, found.embeddings[0]) for one in found.embeddings)


@pytest.mark.parametrize("null", [SOURCE, NULL], ids=["source", "negative"])
def test_an_iteration_costs_a_gradient_and_one_or_two_evaluations(null):
    """None of them for the gradient itself: that goes back through the last trial."""
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    denoiser.evaluations = 0
    found = invert(denoiser, path, null=null, inner_steps=3)
    idle = path.steps * (1 if null is SOURCE else 2)
    assert found.gradients > 0
    assert idle + found.gradients <= denoiser.evaluations <= idle + 2 * found.gradients


def test_a_step_is_done_at_the_references_threshold():
    assert [threshold(1e-5, i, 50) for i in (0, 1, 49)] == pytest.approx(
        [1e-5 + i * 2e-5 for i in (0, 1, 49)]
    )


@pytest.mark.parametrize("optimizer", ["line search", "adam"])
def test_pictures_of_a_batch_do_not_see_each_other(optimizer: str):
    denoiser = GaussianDenoiser()
    path = inverted(denoiser)
    options = {"optimizer": optimizer, "inner_steps": 4, "early_stop": 1e-4}
    together = invert(denoiser, path, **options).embeddings
    for one in range(2):
        latents = path.latents[:, one : one + 1]
        alone = null_text_inversion(
            denoiser, latents, path.sigmas, SOURCE, NULL, cfg=CFG, **options
        )
        torch.testing.assert_close(together[:, one : one + 1], alone.embeddings)


def test_adam_is_the_papers_loop_written_out():
    """Algorithm 1, with the rates and the stopping rule of the authors' code."""
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=50)
    found = invert(denoiser, path, optimizer="adam", early_stop=1e-5, inner_steps=10)
    x = path.latents[0][:1]
    embedding = denoiser.embedding(NULL)
    for i in range(10):
        sigma, below = float(path.sigmas[i]), float(path.sigmas[i + 1])
        embedding = embedding.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([embedding], lr=1e-2 * (1 - i / 100))
        cond = denoiser.denoised(x, sigma, SOURCE)
        losses = []
        for _ in range(10):
            uncond = denoiser.denoised(x, sigma, denoiser.with_embedding(NULL, embedding))
            landed = x + (below - sigma) * (x - (uncond + CFG * (cond - uncond))) / sigma
            unit = (1 + below**2) ** 0.5
            loss = ((landed - path.latents[i + 1][:1]) / unit).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
            if losses[-1] < 1e-5 + i * 2e-5:
                break
        ours = [float(loss[0]) for loss in found.losses[i]]
        assert ours[: len(losses)] == pytest.approx(losses, rel=1e-6)
        torch.testing.assert_close(found.embeddings[i][:1], embedding.detach())
        with torch.no_grad():
            uncond = denoiser.denoised(x, sigma, denoiser.with_embedding(NULL, embedding))
            x = x + (below - sigma) * (x - (uncond + CFG * (cond - uncond))) / sigma


def test_it_never_makes_a_step_worse():
    found = invert(GaussianDenoiser(), inverted(GaussianDenoiser()), inner_steps=2)
    for tried in found.losses:
        assert bool((tried[-1] <= tried[0]).all())


def test_progress_tells_of_iterations_in_order_and_of_the_last_of_each_step():
    seen: list[int] = []
    path = inverted(GaussianDenoiser())
    invert(GaussianDenoiser(), path, inner_steps=4, progress=lambda step, *_: seen.append(step))
    assert seen == sorted(seen)
    assert set(range(3, 4 * path.steps, 4)) <= set(seen)
    assert seen[-1] == 4 * path.steps - 1


@each_family
def test_the_sampler_walks_with_a_paths_own_embeddings(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    found = invert(denoiser, path)
    own = NullText(embeddings=found.embeddings, cfg=CFG)
    path = path._replace(cfg=CFG, edits=(own,))
    latents = sampled(denoiser, path, SOURCE, NULL, cfg=CFG)
    torch.testing.assert_close(latents, path.latents, rtol=0, atol=1e-3)
    late = sampled(denoiser, path, SOURCE, NULL, cfg=CFG, first=6)
    torch.testing.assert_close(late, path.latents[6:], rtol=0, atol=1e-3)
    assert torch.equal(own.after(6).embeddings, found.embeddings[6:])
