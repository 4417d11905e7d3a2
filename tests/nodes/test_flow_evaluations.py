"""What straight paths, noise maps and edits along them cost, counted at the network itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, network_calls, results, text

BATCH, STEPS = 2, 10
SOURCE, TARGET, NEGATIVE = (tiny_models.conditioning(16, seed=seed) for seed in range(3))


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


def cost(name: str, model: Any, **inputs: Any) -> float:
    """The evaluations of a node, which must be what it reports."""
    with network_calls(model, BATCH) as calls:
        output = call(name, model=model, **inputs)
    reported = re.search(r"(\d+|no) model call", text(output))
    assert reported, text(output)
    assert int(reported[1].replace("no", "0")) == calls.evaluations, text(output)
    return calls.evaluations


def path(name: str, model: Any, **inputs: Any) -> Any:
    given = {"positive": SOURCE, "latent_image": tiny_models.picture("sd15", BATCH)}
    return results(name, model=model, **given, **inputs)[0]


def sampling(model: Any, walked: Any, edits: tuple = (), **inputs: Any) -> float:
    inputs = {"positive": TARGET, "negative": NEGATIVE} | inputs
    return cost("Sampler", model, path=walked, edits=edits, **inputs)


def test_a_straight_path_asks_no_network(model):
    picture = tiny_models.picture("sd15", BATCH)
    assert cost("StraightPath", model, positive=SOURCE, latent_image=picture) == 0


def test_ddpm_inversion_takes_two_evaluations_a_step_and_one_without_guidance(model):
    given = {"positive": SOURCE, "latent_image": tiny_models.picture("sd15", BATCH), "steps": STEPS}
    for solver in ("ddpm", "sde-dpm++"):
        given["solver"] = solver
        assert cost("DDPMInversion", model, negative=NEGATIVE, **given) == 2 * STEPS
        assert cost("DDPMInversion", model, cfg=1.0, **given) == STEPS


@pytest.mark.parametrize(
    ("solver", "there", "back"),
    [("euler", 10, 10), ("uni", 11, 10), ("midpoint", 20, 20), ("reuse", 11, 11)],
)
def test_an_inversion_by_a_solver_costs_so_many_each_way(model, solver, there, back):
    picture = tiny_models.picture("sd15", BATCH)
    given = {"positive": SOURCE, "latent_image": picture, "steps": STEPS, "solver": solver}
    assert cost("DDIMInversion", model, **given) == there
    walked = results("DDIMInversion", model=model, **given)[0]
    assert sampling(model, walked, cfg=1.0) == back


@pytest.mark.parametrize("solver", ["midpoint", "reuse"])
def test_flow_edit_and_fresh_noise_take_ddims_steps_on_any_path(model, solver):
    inverted = path("DDIMInversion", model, steps=STEPS, solver=solver)
    edits = results("FlowEdit", start=0.0, source_cfg=2.0)[0]
    same = {"positive": SOURCE, "negative": NEGATIVE}
    assert sampling(model, inverted, edits) == 4 * STEPS - 1
    latent, _, edited, *_ = results(
        "Sampler", model=model, path=inverted, edits=edits, cfg=2.0, **same
    )
    torch.testing.assert_close(latent["samples"], inverted.clean, rtol=0, atol=1e-4)
    assert edited.solver == "euler"
    assert sampling(model, inverted, eta=1.0) == 2 * STEPS
    noisy = results("Sampler", model=model, path=inverted, eta=1.0, **same)[2]
    assert noisy.solver == "euler"
    assert results("Sampler", model=model, path=inverted, **same)[2].solver == solver


def test_an_inversion_straight_to_the_noise_asks_no_network(model):
    given = {"positive": SOURCE, "latent_image": tiny_models.picture("sd15", BATCH), "steps": STEPS}
    assert cost("DDIMInversion", model, gamma=1.0, **given) == 0


def test_flow_edit_as_it_is_takes_three_evaluations_of_the_last_35_of_47_steps(model):
    straight = path("StraightPath", model)
    assert straight.steps == 47
    assert sampling(model, straight, results("FlowEdit")[0]) == 35 * 3


@pytest.mark.parametrize(
    ("given", "wanted", "shared"),
    [
        ({}, 3, 0),
        ({"source_cfg": 3.0}, 4, 1),
        ({"strength": 0.5}, 4, 1),
        ({"average": 2}, 6, 0),
        ({"anchor": 0.01}, 3, 0),
    ],
)
def test_flow_edit_takes_so_many_evaluations_a_step(model, given, wanted, shared):
    """At the first step, where the edited latent is the source's, it asks less."""
    edits = results("FlowEdit", start=0.0, **given)[0]
    straight = path("StraightPath", model, steps=STEPS)
    assert sampling(model, straight, edits) == wanted * STEPS - shared


def test_flow_edit_without_guidance_takes_two_evaluations_a_step(model):
    edits = results("FlowEdit", start=0.0)[0]
    straight = path("StraightPath", model, steps=STEPS)
    assert sampling(model, straight, edits, cfg=1.0) == 2 * STEPS


def test_flow_align_takes_three_evaluations_a_step(model):
    edits = results("FlowEdit", start=0.0, source_cfg=1.0, anchor=0.01)[0]
    straight = path("StraightPath", model, steps=STEPS)
    assert sampling(model, straight, edits, negative=SOURCE) == 3 * STEPS


def test_a_mask_costs_flow_edit_nothing(model):
    edits = results("FlowEdit", start=0.0)[0]
    edits = results("MaskBlend", mask=torch.ones(1, 64, 96), edits=edits)[0]
    assert sampling(model, path("StraightPath", model, steps=STEPS), edits) == 3 * STEPS


def test_uni_edit_takes_two_evaluations_for_each_step_of_its_part(model):
    inverted = path("DDIMInversion", model, steps=STEPS, solver="uni")
    assert sampling(model, inverted, results("UniEdit")[0], cfg=1.0) == 6 * 2


def test_pulling_to_the_source_saves_the_steps_that_it_decides_alone(model):
    inverted = path("DDIMInversion", model, steps=STEPS)
    for eta, wanted in ((0.5, STEPS), (1.0, STEPS - 3)):
        edits = results("PullToSource", eta=eta, end=0.3)[0]
        assert sampling(model, inverted, edits) == 2 * wanted


def test_prompt_to_prompt_and_flow_edit_share_the_sources_evaluation(comfy: Path):
    """Of a path of the demo model, for the words that it needs."""
    from diffusion_path.demo.loader import load_demo_model

    with torch.inference_mode():
        demo, clip, _ = load_demo_model()
    prompts = {"source_prompt": "a red apple", "target_prompt": "a green apple"}
    source, target, pair = results("PromptPair", clip=clip, **prompts)
    empty, *_ = results("PromptPair", clip=clip, source_prompt="", target_prompt="")
    picture = {"samples": torch.ones(BATCH, 4, 16, 16)}
    straight = results("StraightPath", model=demo, positive=source, latent_image=picture)[0]
    edits = results("FlowEdit")[0]
    given = {"positive": target, "negative": empty}
    alone = sampling(demo, straight, edits, **given)
    assert alone == 35 * 3
    both = results("PromptToPrompt", prompts=pair, edits=edits)[0]
    assert sampling(demo, straight, both, **given) == alone
