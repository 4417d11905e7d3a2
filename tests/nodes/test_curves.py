"""A curve of ComfyUI's Curve Editor as the weight of an edit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.core.path import Source
from diffusion_path.core.schedules import window
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, network_calls, refused, results, text
from diffusion_path.tools.host import Server

STEPS, CFG = 8, 4.0
MDP = ("MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance")
APPLE, PEAR = "a red apple on a blue background", "a red pear on a blue background"
WHOLE: dict[str, dict[str, Any]] = {
    **{name: {"weight": 0.8, "start": 0.0, "end": 1.0} for name in MDP},
    "MaskBlend": {"start": 0.0, "end": 1.0},
    "PromptToPrompt": {"cross_replace": 1.0, "self_replace": 1.0, "word_overrides": "pear: 0-1"},
}
HALF: dict[str, dict[str, Any]] = {
    **{name: {"weight": 0.8, "start": 0.0, "end": 0.5} for name in MDP},
    "MaskBlend": {"start": 0.0, "end": 0.5},
    "PromptToPrompt": {"cross_replace": 0.5, "self_replace": 0.5, "word_overrides": "pear: 0-0.5"},
}
each_edit = pytest.mark.parametrize("name", [*WHOLE])


def curve(*points: tuple[float, float], interpolation: str = "monotone_cubic") -> Any:
    """What ComfyUI's own Curve Editor makes of points."""
    from comfy_extras.nodes_curve import CurveEditor

    return CurveEditor.execute({"points": points, "interpolation": interpolation}).args[0]


class Demo(NamedTuple):
    """The demo model, and a recorded picture of an apple."""

    model: Any
    prompts: Any
    target: list
    negative: list
    path: Any

    def edit(self, name: str, **inputs: Any) -> Any:
        given: dict[str, Any] = {}
        if name == "PromptToPrompt":
            given = {"prompts": self.prompts}
        if name == "MaskBlend":
            given = {"mask": torch.cat([torch.zeros(1, 128, 64), torch.ones(1, 128, 64)], dim=2)}
        return call(name, **given, **inputs)

    def sample(self, name: str, **inputs: Any) -> Tensor:
        (edits,) = self.edit(name, **inputs).args
        prompts = {"positive": self.target, "negative": self.negative}
        return edited(self.model, self.path, **prompts, cfg=CFG, edits=edits)


@pytest.fixture(scope="module")
def demo(comfy: Path) -> Demo:
    import nodes

    model, clip, _ = results("DemoModel")[:3]
    source, target, prompts = results(
        "PromptPair", clip=clip, source_prompt=APPLE, target_prompt=PEAR
    )
    with torch.inference_mode():
        (negative,) = nodes.CLIPTextEncode().encode(clip, "")
    given = {"positive": source, "negative": negative, "steps": STEPS, "cfg": CFG}
    size = {"samples": torch.zeros(1, 4, 16, 16)}
    path = results("RecordPath", model=model, latent_image=size, **given)[0]
    return Demo(model, prompts, target, negative, path)


@pytest.mark.parametrize("name", ["sd15", "flux_dev"])
def test_a_step_lies_in_a_window_if_its_fraction_does(comfy: Path, name: str):
    from diffusion_path.nodes.support import path_sigmas

    model = getattr(tiny_models, name)()
    percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    draw = random.Random(0)
    for spacing in ("leading", "trailing", "normal"):
        sigmas = path_sigmas(model, 20, spacing)
        path: Any = type("Path", (), {"sigmas": sigmas})
        source = Source(path, percent_to_sigma)
        fractions = [source.fraction(i) for i in range(20)]
        for _ in range(20):
            start, end = sorted((draw.random(), draw.random()))
            wanted = window(sigmas.tolist(), start, end, percent_to_sigma)
            assert [i for i, at in enumerate(fractions) if start <= at < end] == [*wanted]


@pytest.mark.parametrize("interpolation", ["monotone_cubic", "linear"])
@pytest.mark.parametrize("name", MDP)
def test_a_flat_curve_is_a_factor_of_the_weight(demo: Demo, name: str, interpolation: str):
    flat = curve((0, 0.5), (0.3, 0.5), (1, 0.5), interpolation=interpolation)
    half = demo.sample(name, **(WHOLE[name] | {"weight": 0.4}))
    assert torch.equal(demo.sample(name, **WHOLE[name], weight_curve=flat), half)


@each_edit
def test_a_curve_at_the_top_is_no_curve(demo: Demo, name: str):
    top = curve((0, 1), (0.7, 1), (1, 1))
    assert torch.equal(
        demo.sample(name, **HALF[name], weight_curve=top), demo.sample(name, **HALF[name])
    )


@each_edit
def test_a_curve_that_is_a_step_is_a_window(demo: Demo, name: str):
    step = curve((0, 1), (0.5, 1), (0.5 + 1e-6, 0), (1, 0), interpolation="linear")
    assert torch.equal(
        demo.sample(name, **WHOLE[name], weight_curve=step), demo.sample(name, **HALF[name])
    )


@each_edit
def test_a_curve_between_gives_a_picture_between(demo: Demo, name: str):
    half = demo.sample(name, **WHOLE[name], weight_curve=curve((0, 0.5), (1, 0.5)))
    full, none = (
        demo.sample(name, **WHOLE[name]),
        edited(demo.model, demo.path, demo.target, demo.negative, cfg=CFG),
    )
    assert not torch.equal(half, full) and not torch.equal(half, none)
    assert float((half - full).norm()) < float((none - full).norm())
    assert float((half - none).norm()) < float((none - full).norm())


@pytest.mark.parametrize("kind", ["cross_replace", "self_replace"])
def test_a_part_of_the_sources_attention_goes_from_none_to_all_of_it(demo: Demo, kind: str):
    on = {"cross_replace": 0.0, "self_replace": 0.0, "self_limit": 64, kind: 1.0}
    full = demo.sample("PromptToPrompt", **on)
    none = demo.sample("PromptToPrompt", **(on | {kind: 0.0}))
    parts = [
        demo.sample("PromptToPrompt", **on, weight_curve=curve((0, y), (1, y)))
        for y in (0.001, 0.5, 0.999)
    ]
    far = float((full - none).norm())
    assert float((parts[0] - none).norm()) < 0.01 * far > 0
    assert float((parts[2] - full).norm()) < 0.01 * far
    assert all(float((parts[1] - end).norm()) > 0.1 * far for end in (none, full))


def test_a_mask_under_a_flat_curve_is_that_much_paler(demo: Demo):
    flat = demo.sample("MaskBlend", weight_curve=curve((0, 0.25), (1, 0.25)))
    mask = torch.cat([torch.full((1, 128, 64), 0.75), torch.ones(1, 128, 64)], dim=2)
    paler = results("MaskBlend", mask=mask)[0]
    prompts = {"positive": demo.target, "negative": demo.negative}
    wanted = edited(demo.model, demo.path, **prompts, cfg=CFG, edits=paler)
    assert torch.equal(flat, wanted)


def test_the_samplers_mask_is_the_one_of_the_last_step(demo: Demo):
    falling = curve((0, 1), (0.5, 1), (0.6, 0.5), (1, 0.5), interpolation="linear")
    (edits,) = demo.edit("MaskBlend", weight_curve=falling).args
    given = {"positive": demo.target, "negative": demo.negative, "cfg": CFG, "edits": edits}
    mask = results("Sampler", model=demo.model, path=demo.path, **given)[3]
    assert mask.unique().tolist() == [0.5, 1.0]


def test_steps_of_full_weight_need_no_model_call(demo: Demo):
    top = curve((0, 1), (0.3, 1), (1, 1))
    with network_calls(demo.model) as asked:
        demo.sample("MDPEpsilon", weight=1.0, start=0.0, end=0.5, weight_curve=top)
    assert asked.evaluations == STEPS


@each_edit
def test_an_edit_with_a_curve_draws_it_and_one_without_says_nothing(demo: Demo, name: str):
    output = demo.edit(name, **HALF[name], weight_curve=curve((0, 1), (1, 0)))
    assert text(output).startswith("Weight over the path: up to ")
    assert len(output.ui["images"]) == 1
    assert demo.edit(name, **HALF[name]).ui is None


@each_edit
@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(0, 0), (0.5, 0), (0.6, 1), (1, 1)], "weight_curve is 0 between 0 and 0.5"),
        ([(0, 0), (1, 1.5)], "weight_curve leaves the range"),
        ([(0, -0.1), (1, 1)], "weight_curve leaves the range"),
        ([(0, float("nan")), (1, 1)], "weight_curve leaves the range"),
        ([], "weight_curve is 0"),
        ([1, 2], "weight_curve is no curve"),
        ("no curve", "weight_curve is no curve"),
        ({}, "weight_curve is no curve"),
    ],
)
def test_a_curve_that_cannot_be_a_weight_is_refused(demo: Demo, name: str, points: Any, said: str):
    given: dict[str, Any] = {"prompts": demo.prompts} if name == "PromptToPrompt" else {}
    given |= {"mask": torch.zeros(1, 8, 8)} if name == "MaskBlend" else {}
    refused(name, said, **given, **HALF[name], weight_curve=points)


def test_in_comfyui_the_curve_editor_feeds_the_edit(server: Server):
    def fed(node: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": node, "inputs": inputs}

    ours = "DiffusionPath_"
    walk: dict[str, Any] = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
    sampling = {"steps": 4, "cfg": 4.0, "seed": 0, "spacing": "leading", "latent_image": ["4", 0]}
    drawn = {"points": [[0, 1], [0.5, 0.2], [1, 0]], "interpolation": "monotone_cubic"}
    workflow = {
        "1": fed(f"{ours}DemoModel", kind="unet"),
        "2": fed("CLIPTextEncode", clip=["1", 1], text="a horse on a green background"),
        "3": fed("CLIPTextEncode", clip=["1", 1], text=""),
        "4": fed("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": fed(f"{ours}RecordPath", **walk, **sampling),
        "6": fed("CurveEditor", curve=drawn),
        "7": fed(f"{ours}MDPLatent", **HALF["MDPLatent"], curve="constant", weight_curve=["6", 0]),
        "8": fed(
            f"{ours}Sampler",
            **walk,
            path=["5", 0],
            cfg=4.0,
            start=0.0,
            eta=0.0,
            seed=0,
            edits=["7", 0],
        ),
        "9": fed("VAEDecode", samples=["8", 0], vae=["1", 2]),
        "10": fed("PreviewImage", images=["9", 0]),
    }
    pictures = server.images(server.run(workflow))
    assert len(pictures["7"]) == len(pictures["10"]) == 1
