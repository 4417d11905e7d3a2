"""What a technique costs: model calls, counted at the network itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, network_calls, results, text

BATCH, STEPS = 2, 6
SOURCE, TARGET, NEGATIVE = (tiny_models.conditioning(16, seed=seed) for seed in range(3))


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


@pytest.fixture(scope="module")
def picture() -> dict[str, torch.Tensor]:
    return {"samples": torch.randn(BATCH, 4, 8, 12, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def inverted(model: Any, picture: dict) -> Any:
    inputs = {"model": model, "positive": SOURCE, "latent_image": picture, "steps": STEPS}
    return results("DDIMInversion", **inputs)[0]


@pytest.fixture(scope="module")
def recorded(model: Any, picture: dict) -> Any:
    size = {"samples": torch.zeros_like(picture["samples"])}
    return results(
        "RecordPath",
        model=model,
        positive=SOURCE,
        negative=NEGATIVE,
        latent_image=size,
        steps=STEPS,
    )[0]


def cost(name: str, model: Any, **inputs: Any) -> float:
    """The evaluations of a node, which must be what it reports."""
    with network_calls(model, BATCH) as calls:
        output = call(name, model=model, **inputs)
    reported = re.search(r"(\d+) model calls?", text(output))
    assert reported and int(reported[1]) == calls.evaluations, text(output)
    return calls.evaluations


def sampling_cost(
    model: Any, path: Any, *edit_names: str, given: dict | None = None, **inputs: Any
) -> float:
    """The evaluations of the sampler with edits in the whole path, which are `given` as inputs."""
    edits: tuple = ()
    for name in edit_names:
        window = (
            {"mask": torch.ones(1, 8, 12)} if name == "MaskBlend" else {"end": 1.0, **(given or {})}
        )
        edits = results(name, edits=edits, **window)[0]
    inputs = {"positive": TARGET, "negative": NEGATIVE} | inputs
    return cost("Sampler", model, path=path, edits=edits, **inputs)


@pytest.mark.parametrize("iterations", [0, 3])
def test_inversion_takes_one_evaluation_a_step_and_one_for_each_repeat(model, picture, iterations):
    inputs = {"positive": SOURCE, "latent_image": picture, "steps": STEPS}
    inputs["fixed_point_iterations"] = iterations
    assert cost("DDIMInversion", model, **inputs) == (1 + iterations) * STEPS


def test_a_partial_inversion_takes_only_its_steps(model, picture):
    inputs = {"positive": SOURCE, "latent_image": picture, "steps": 10, "strength": 0.7}
    assert cost("DDIMInversion", model, **inputs) == 7


def test_inversion_under_guidance_takes_two_evaluations_a_step(model, picture):
    inputs = {"positive": SOURCE, "latent_image": picture, "steps": STEPS}
    assert cost("DDIMInversion", model, cfg=2.0, negative=NEGATIVE, **inputs) == 2 * STEPS


def test_recording_takes_two_evaluations_a_step_and_one_without_guidance(model, picture):
    inputs = {"positive": SOURCE, "negative": NEGATIVE, "latent_image": picture, "steps": STEPS}
    assert cost("RecordPath", model, **inputs) == 2 * STEPS
    assert cost("RecordPath", model, cfg=1.0, **inputs) == STEPS


def test_sampling_without_an_edit_takes_two_evaluations_a_step(model, inverted):
    assert sampling_cost(model, inverted) == 2 * STEPS
    assert sampling_cost(model, inverted, cfg=1.0) == STEPS


def test_a_negative_that_equals_the_positive_is_evaluated_as_well(model, inverted):
    """Something on the model may tell one from the other."""
    assert sampling_cost(model, inverted, negative=TARGET) == 2 * STEPS


@pytest.mark.parametrize("edit", ["MDPEpsilon", "MDPCondition", "MDPLatent", "MaskBlend"])
def test_these_edits_cost_nothing_more(model, inverted, edit: str):
    part = {} if edit == "MaskBlend" else {"weight": 0.7}
    assert sampling_cost(model, inverted, edit, given=part) == 2 * STEPS


def test_what_an_edit_replaces_by_the_source_is_not_predicted(model, inverted):
    """The first two of six steps begin in the first half of the model's schedule."""
    whole = {"weight": 1.0, "start": 0.0}
    assert sampling_cost(model, inverted, "MDPEpsilon", given=whole) == 0
    half = {**whole, "end": 0.5}
    assert sampling_cost(model, inverted, "MDPEpsilon", given=half) == 2 * (STEPS - 2)
    assert sampling_cost(model, inverted, "MDPLatent", given=whole) == 2 * STEPS


def test_what_a_later_edit_asks_for_is_predicted_even_where_another_replaces_it(model, inverted):
    chain = ("MDPEpsilon", "MDPGuidance")
    assert sampling_cost(model, inverted, *chain, given={"weight": 1.0}) == 3 * STEPS


def test_a_whole_chain_of_them_costs_nothing_more(model, inverted):
    chain = ("MDPCondition", "MDPEpsilon", "MDPLatent", "MaskBlend")
    assert sampling_cost(model, inverted, *chain, given={"weight": 0.7}) == 2 * STEPS


def test_guidance_mixing_costs_one_evaluation_more_a_step(model, inverted):
    assert sampling_cost(model, inverted, "MDPGuidance") == 3 * STEPS


def test_guidance_mixing_on_a_recorded_path_shares_an_equal_negative(model, recorded):
    copy = [[NEGATIVE[0][0].clone(), dict(NEGATIVE[0][1])]]
    assert sampling_cost(model, recorded, "MDPGuidance", negative=copy) == 3 * STEPS
    other = tiny_models.conditioning(16, seed=9)
    assert sampling_cost(model, recorded, "MDPGuidance", negative=other) == 4 * STEPS


def test_a_later_start_takes_only_the_steps_that_are_left(model, inverted):
    """The last four of six steps begin in the second half of the model's schedule."""
    assert sampling_cost(model, inverted, "MDPLatent", start=0.5) == 2 * (STEPS - 2)


@pytest.mark.parametrize("method", ["noise", "x0"])
def test_a_mask_takes_two_evaluations_a_map(model, picture, method: str):
    inputs = {"source": SOURCE, "target": TARGET, "latent_image": picture, "maps": 3}
    assert cost("DiffEditMask", model, method=method, **inputs) == 2 * 3


def test_a_mask_by_denoising_takes_two_evaluations_for_each_step_of_each_map(model, picture):
    inputs = {"source": SOURCE, "target": TARGET, "latent_image": picture, "maps": 2}
    assert cost("DiffEditMask", model, method="denoise", strength=0.1, **inputs) == 2 * 2 * 5


def test_evaluations_of_one_latent_share_one_network_call(model, inverted, picture):
    with network_calls(model, BATCH) as calls:
        call("Sampler", model=model, path=inverted, positive=TARGET, negative=NEGATIVE)
    assert calls.calls == STEPS
    edits = results("MDPGuidance", end=1.0)[0]
    with network_calls(model, BATCH) as calls:
        inputs = {"path": inverted, "positive": TARGET, "negative": NEGATIVE}
        call("Sampler", model=model, edits=edits, **inputs)
    assert calls.calls == STEPS
    with network_calls(model, BATCH) as calls:
        inputs = {"source": SOURCE, "target": TARGET, "latent_image": picture}
        call("DiffEditMask", model=model, maps=3, **inputs)
    assert calls.calls == 3


@pytest.mark.parametrize("name", ["PathPreview", "SavePath"])
def test_looking_at_a_path_and_saving_it_take_no_evaluation(model, inverted, name: str):
    class Decoder:  # a VAE as far as the preview asks
        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            return latent[:, :3].movedim(1, -1)

    with network_calls(model) as calls:
        call(name, path=inverted, **({"vae": Decoder()} if name == "PathPreview" else {}))
    assert calls.calls == 0
