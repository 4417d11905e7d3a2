"""What is known before running is refused by ComfyUI's own validation, in the node's sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from diffusion_path.tests.calls import node


def refusals(monkeypatch: pytest.MonkeyPatch, name: str, **inputs: Any) -> dict[str, str]:
    """What ComfyUI says of each input before it runs a node with its defaults and these inputs."""
    import execution
    import nodes as comfy_nodes

    cls = node(name)
    known = {one.id: one for one in cls.GET_SCHEMA().inputs}
    defaults = {key: one.default for key, one in known.items() if hasattr(one, "default")}
    defaults = {key: value for key, value in defaults.items() if value is not None}
    prompt = {"1": {"class_type": "Node", "inputs": defaults | inputs}}
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "Node", cls)
    _, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
    missing = ("required_input_missing", "value_not_in_list")  # wires, which this prompt has not
    return {
        error["extra_info"]["input_name"]: error["details"]
        for error in errors
        if error["type"] not in missing
    }


@pytest.mark.parametrize(
    ("name", "inputs", "said"),
    [
        ("MDPEpsilon", {"start": 0.7, "end": 0.2}, "start 0.7 is not before end 0.2"),
        ("MaskBlend", {"start": 1.0}, "start 1 is not before end 1"),
        ("Sampler", {"start": 1.0}, "start is 1, which leaves no step"),
        ("Guider", {"start": 1.0}, "start is 1, which leaves no step"),
        ("DiffEditMask", {"strength": 0.0}, "strength is 0"),
        ("DDIMInversion", {"strength": 0.0}, "strength is 0"),
        ("DDIMInversion", {"average": 2}, "fixed_point_iterations is 0"),
        ("Reweight", {"words": ""}, "words is empty"),
        ("Reweight", {"words": "snow"}, '"snow" is not a word and its value'),
        ("Reweight", {"words": "snow: 1000000"}, "use -100 to 100"),
        ("PromptToPrompt", {"word_overrides": "snow: 3"}, "is not a part of the path"),
        ("Concept", {"prompt": "", "clip": None}, "prompt is empty"),
        ("UniEdit", {"alpha": 0.0}, "alpha is 0"),
        ("LoadPath", {"file": "no path saved yet"}, "run Save Path, then press R"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_anything_runs(
    comfy: Path, monkeypatch: pytest.MonkeyPatch, name: str, inputs: dict, said: str
):
    told = refusals(monkeypatch, name, **inputs)
    assert any(said in sentence for sentence in told.values()), told
    shown = node(name).GET_SCHEMA().display_name
    assert all(f" - {shown}: " in sentence for sentence in told.values())


@pytest.mark.parametrize("name", ["MDPEpsilon", "Sampler", "DDIMInversion", "Reweight"])
def test_what_can_work_is_not_refused(comfy: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    words = {"words": "snow: 2"} if name == "Reweight" else {}
    assert refusals(monkeypatch, name, **words) == {}


def test_limits_hold_for_inputs_that_are_checked(comfy: Path, monkeypatch: pytest.MonkeyPatch):
    """ComfyUI leaves the limits of an input to the node whose check names it."""
    assert "start is -0.5; use 0 to 1" in refusals(monkeypatch, "MDPEpsilon", start=-0.5)["start"]


def test_a_value_of_another_type_is_left_to_comfyui(comfy: Path, monkeypatch: pytest.MonkeyPatch):
    told = refusals(monkeypatch, "MDPEpsilon", start="early")
    assert told == {"start": "start, early, could not convert string to float: 'early'"}


def test_an_input_that_a_node_feeds_waits_for_its_value(comfy: Path):
    check = node("MDPEpsilon").validate_inputs
    assert check(start=None, end=0.2) is True
    assert "is not before" in check(start=0.7, end=0.2)


def test_every_node_can_show_its_errors(comfy: Path):
    """It needs to know its number in the workflow."""
    from comfy_api.latest import io

    from diffusion_path.nodes import NODES

    assert all(io.Hidden.unique_id in cls.GET_SCHEMA().hidden for cls in NODES)


def test_no_seed_changes_by_itself(comfy: Path):
    from comfy_api.latest import io

    from diffusion_path.nodes import NODES

    seeds = [one for cls in NODES for one in cls.GET_SCHEMA().inputs if one.id == "seed"]
    assert seeds
    assert all(one.control_after_generate is io.ControlAfterGenerate.fixed for one in seeds)
