"""The edits on a network in the real ComfyUI, against its own samplers and written-out formulas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, results, text

STEPS, CFG = 6, 3.0
HALF = 2  # steps that begin in the first half of the model's schedule
SOURCE, TARGET, NEGATIVE = (tiny_models.conditioning(16, seed=seed) for seed in range(3))
ALL = ["MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance"]


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


@pytest.fixture(scope="module")
def path(model: Any) -> Any:
    picture = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    inputs = {"positive": SOURCE, "latent_image": {"samples": picture}, "steps": STEPS}
    return results("DDIMInversion", model=model, **inputs)[0]


@pytest.fixture(scope="module")
def sample(model: Any, path: Any) -> Callable[..., Tensor]:
    def sample(edits: tuple = (), **inputs: Any) -> Tensor:
        return edited(model, path, TARGET, NEGATIVE, cfg=CFG, edits=edits, **inputs)

    return sample


@pytest.fixture(scope="module")
def plain(sample: Callable) -> Tensor:
    return sample()


def chain(*edits: tuple[str, dict]) -> tuple:
    """Edit nodes wired one after another."""
    wired: tuple = ()
    for name, inputs in edits:
        wired = results(name, edits=wired, **inputs)[0]
    return wired


@pytest.mark.parametrize("name", ["MDPEpsilon", "MDPLatent"])
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_the_source_comes_back_at_full_weight(path, sample, name: str, start: float):
    latent = sample(chain((name, {"weight": 1.0, "start": 0.0, "end": 1.0})), start=start)
    torch.testing.assert_close(latent, path.clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_at_weight_0_nothing_is_edited_bit_for_bit(sample, plain, name: str):
    assert torch.equal(sample(chain((name, {"weight": 0.0, "end": 1.0}))), plain)


@pytest.mark.parametrize("name", ALL)
def test_a_window_that_ends_where_the_sampler_starts_edits_nothing(sample, name: str):
    edit = chain((name, {"weight": 1.0, "start": 0.0, "end": 0.5}))
    assert torch.equal(sample(edit, start=0.5), sample(start=0.5))


@pytest.mark.parametrize("name", ALL)
def test_full_weight_in_half_the_path_changes_the_picture(sample, plain, name: str):
    assert float((sample(chain((name, {}))) - plain).norm() / plain.norm()) > 0.01


def test_an_empty_mask_returns_the_source_and_a_full_one_is_no_blend(path, sample, plain):
    empty = sample(chain(("MaskBlend", {"mask": torch.zeros(1, 64, 96)})))
    full = sample(chain(("MaskBlend", {"mask": torch.ones(1, 64, 96)})))
    torch.testing.assert_close(empty, path.clean, rtol=0, atol=1e-6)
    assert torch.equal(full, plain)


def test_the_condition_at_full_weight_is_sampling_under_the_source_prompt(model, path, sample):
    """With another CONDITIONING of the same prompt: the embeddings decide, not the object."""
    copy = [[SOURCE[0][0].clone(), {}]]
    wanted = edited(model, path, copy, NEGATIVE, cfg=CFG)
    mixed = sample(chain(("MDPCondition", {"weight": 1.0, "start": 0.0, "end": 1.0})))
    torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-4)


def test_the_condition_is_mixed_as_comfyui_averages_conditionings(model, path, sample):
    import nodes

    (average,) = nodes.ConditioningAverage().addWeighted(TARGET, SOURCE, 0.7)
    wanted = edited(model, path, average, NEGATIVE, cfg=CFG)
    mixed = sample(chain(("MDPCondition", {"weight": 0.3, "end": 1.0})))
    torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-4)


def test_a_prompt_mixed_with_its_own_repetition_is_itself(model, path):
    repeated = path._replace(positive=[[SOURCE[0][0].repeat(1, 3, 1), {}]])
    edit = chain(("MDPCondition", {"weight": 0.5, "end": 1.0}))
    mixed = edited(model, repeated, SOURCE, NEGATIVE, cfg=CFG, edits=edit)
    wanted = edited(model, path, SOURCE, NEGATIVE, cfg=CFG)
    torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-4)


def test_a_longer_prompt_becomes_a_shorter_one_at_full_weight(model, path):
    long = tiny_models.conditioning(16, tokens=231, seed=7)
    edit = chain(("MDPCondition", {"weight": 1.0, "start": 0.0, "end": 1.0}))
    mixed = edited(model, path, long, NEGATIVE, cfg=CFG, edits=edit)
    wanted = edited(model, path, SOURCE, NEGATIVE, cfg=CFG)
    torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-4)


def by_hand(model: Any, path: Any, step: Callable[..., Tensor]) -> Tensor:
    """ComfyUI's own sampling machinery around `step(i, x, sigma, below, guided, source)`.

    `guided` and `source` are derivatives at x: of the target under guidance, of the source alone.
    """
    import comfy.samplers

    latents = model.model.process_latent_in(path.latents)

    def loop(network, noise, sigmas, extra_args, callback, disable):
        guider = network.inner_model
        x = latents[0]
        for i, (sigma, below) in enumerate(pairwise(sigmas)):
            conds = [guider.conds[name] for name in ("positive", "negative", "source")]
            positive, negative, source = (
                (x - denoised) / sigma
                for denoised in comfy.samplers.calc_cond_batch(
                    guider.inner_model, conds, x, sigma * x.new_ones(len(x)), guider.model_options
                )
            )
            guided = negative + CFG * (positive - negative)
            x = step(i, x, sigma, below, guided, source, latents)
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": TARGET, "negative": NEGATIVE, "source": SOURCE})
    sampler = comfy.samplers.KSAMPLER(loop)
    with torch.inference_mode():
        return guider.sample(torch.zeros_like(path.clean), path.clean, sampler, path.sigmas, seed=0)


def test_two_chained_edits_are_the_composition_of_their_formulas(model, path, sample):
    def step(i, x, sigma, below, guided, source, latents):
        w_eps = 0.8 * (1 - i / HALF) if i < HALF else 0.0  # linear, the first half
        w_x = 0.4 if i >= HALF else 0.0
        d_a = (latents[i + 1] - latents[i]) / (below - sigma)
        x = x + (below - sigma) * ((1 - w_eps) * guided + w_eps * d_a)
        return (1 - w_x) * x + w_x * latents[i + 1]

    edits = chain(
        ("MDPEpsilon", {"weight": 0.8, "curve": "linear", "start": 0.0, "end": 0.5}),
        ("MDPLatent", {"weight": 0.4, "start": 0.5, "end": 1.0}),
    )
    torch.testing.assert_close(sample(edits), by_hand(model, path, step), rtol=1e-4, atol=1e-4)


def test_guidance_and_mask_are_the_composition_of_their_formulas(model, path, sample):
    mask = torch.zeros(1, 8, 12)
    mask[:, 2:6, 3:9] = 1

    def step(i, x, sigma, below, guided, source, latents):
        w = 0.6 if i < HALF else 0.0
        x = x + (below - sigma) * ((1 - w) * guided + w * source)
        return mask * x + (1 - mask) * latents[i + 1]

    edits = chain(("MDPGuidance", {"weight": 0.6}), ("MaskBlend", {"mask": mask}))
    torch.testing.assert_close(sample(edits), by_hand(model, path, step), rtol=1e-4, atol=1e-4)


def test_a_chain_extended_twice_does_not_interfere(sample):
    first = chain(("MDPEpsilon", {"end": 0.3}))
    once = results("MDPLatent", edits=first, weight=0.5)[0]
    twice = results("MaskBlend", edits=first, mask=torch.zeros(1, 8, 12))[0]
    assert len(first) == 1
    assert [type(edit).__name__ for edit in once] == ["MDPEpsilon", "MDPLatent"]
    assert [type(edit).__name__ for edit in twice] == ["MDPEpsilon", "MaskBlend"]
    alone = sample(chain(("MDPEpsilon", {"end": 0.3}), ("MDPLatent", {"weight": 0.5})))
    assert torch.equal(sample(once), alone)


def test_the_edited_path_can_be_edited_further(model, path, sample, plain):
    prompts = {"positive": TARGET, "negative": NEGATIVE}
    output = call("Sampler", model=model, path=path, cfg=CFG, **prompts)
    _, source, edited_path, mask, report = output.args
    assert report == text(output)
    assert torch.equal(source["samples"], path.clean)
    assert torch.equal(mask, torch.ones_like(mask))  # nothing held a place back
    assert torch.equal(edited_path.clean, plain)
    whole = chain(("MDPEpsilon", {"start": 0.0, "end": 1.0}))
    again = edited(model, edited_path, SOURCE, NEGATIVE, cfg=CFG, edits=whole)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-4)


def test_the_sampler_says_when_almost_nothing_changed_and_which_knob_to_turn(model, path):
    whole = chain(("MDPEpsilon", {"start": 0.0, "end": 1.0}))
    prompts = {"positive": TARGET, "negative": NEGATIVE}
    told = text(call("Sampler", model=model, path=path, edits=whole, **prompts))
    assert "Almost nothing changed" in told and "lower the weight" in told
    told = text(call("Sampler", model=model, path=path, **prompts))
    assert "Almost nothing" not in told


def test_the_sampler_calls_the_sources_own_prompt_a_reconstruction(model, path):
    prompts = {"positive": SOURCE, "negative": NEGATIVE}
    told = text(call("Sampler", model=model, path=path, cfg=1.0, **prompts))
    assert told.startswith("Reconstructed")
    told = text(call("Sampler", model=model, path=path, cfg=30.0, **prompts))
    assert told.startswith("Not exact") and "Null-Text Inversion" in told


@pytest.mark.parametrize("edit", ALL)
def test_an_mdp_edit_without_weight_leaves_the_picture_and_says_so(model, path, plain, edit):
    nothing = chain((edit, {"weight": 0.0}))
    prompts = {"positive": TARGET, "negative": NEGATIVE}
    output = call("Sampler", model=model, path=path, cfg=CFG, edits=nothing, **prompts)
    assert "had no effect" in text(output)
    assert torch.equal(output.args[2].clean, plain)


def test_flow_edit_without_strength_says_what_to_raise(model, path):
    nothing = chain(("FlowEdit", {"strength": 0.0}))
    prompts = {"positive": TARGET, "negative": NEGATIVE}
    told = text(call("Sampler", model=model, path=path, edits=nothing, **prompts))
    assert "Almost nothing changed: raise strength of FlowEdit" in told
