"""The blueprints: their files say what this ComfyUI's nodes say of themselves."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from diffusion_path.tools.host import Server
from diffusion_path.tools.setup import ROOT
from diffusion_path.tools.workflows import is_widget, widgets_of

BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
TITLE = 30  # the height of a node's title, above its position
OUTSIDE_IN, OUTSIDE_OUT = -10, -20

each_blueprint = pytest.mark.parametrize("file", BLUEPRINTS, ids=lambda path: path.stem)


def opened(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The node that stands for a blueprint, and its subgraph."""
    workflow = json.loads(file.read_text(encoding="utf-8"))
    (place,), (inside,) = workflow["nodes"], workflow["definitions"]["subgraphs"]
    return place, inside


def declared(info: dict[str, Any]) -> dict[str, list[Any]]:
    """A node's inputs by name, each with its type and settings."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def test_there_are_blueprints():
    assert BLUEPRINTS


@each_blueprint
def test_a_blueprint_is_one_node_with_the_inputs_and_outputs_of_its_subgraph(file: Path):
    place, inside = opened(file)
    assert place["type"] == inside["id"]
    assert place["title"] == inside["name"] == file.stem
    assert inside["description"].endswith(".")
    for side in ("inputs", "outputs"):
        ours = [(slot["name"], slot["label"], slot["type"]) for slot in inside[side]]
        assert [(slot["name"], slot["label"], slot["type"]) for slot in place[side]] == ours
    assert place["outputs"][-1]["name"] in ("report", "path")
    widgets = [slot for slot in place["inputs"] if "widget" in slot]
    assert len(place["widgets_values"]) == len(widgets)


@each_blueprint
def test_the_nodes_in_a_blueprint_have_the_inputs_and_values_of_their_schema(
    file: Path, server: Server
):
    known = server.object_info()
    for node in opened(file)[1]["nodes"]:
        info = known[node["type"]]
        inputs, values = declared(info), iter(node["widgets_values"])
        # Inputs and outputs that a node got later come last.
        assert {slot["name"] for slot in node["inputs"]} <= inputs.keys()
        outputs = [(slot["name"], slot["type"]) for slot in node["outputs"]]
        names = zip(info["output_name"], info["output"], strict=True)
        assert outputs == list(names)[: len(outputs)]
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        sockets = {name for name in info["input"]["required"] if not is_widget(inputs[name][0])}
        assert sockets <= linked, f"{node['type']} lacks {sockets - linked}"
        for name, default in widgets_of(info, values):
            fits(next(values, default), *inputs[name])
        assert list(values) == [], f"{node['type']} has values without a widget"


def fits(value: Any, datatype: Any, settings: dict[str, Any]) -> None:
    """Assert that a widget can have this value."""
    if isinstance(datatype, list) or datatype == "COMBO":
        assert value in (settings["options"] if datatype == "COMBO" else datatype)
    elif datatype in ("INT", "FLOAT"):
        assert settings["min"] <= value <= settings["max"]
    else:
        assert isinstance(value, str)


@each_blueprint
def test_the_wires_in_a_blueprint_have_two_ends_of_one_type(file: Path):
    _, inside = opened(file)
    nodes = {node["id"]: node for node in inside["nodes"]}
    for link in inside["links"]:
        outer, inner = link["origin_id"] == OUTSIDE_IN, link["target_id"] == OUTSIDE_OUT
        origin = (inside["inputs"] if outer else nodes[link["origin_id"]]["outputs"])[
            link["origin_slot"]
        ]
        target = (inside["outputs"] if inner else nodes[link["target_id"]]["inputs"])[
            link["target_slot"]
        ]
        assert link["id"] in origin["linkIds" if outer else "links"]
        assert target["linkIds"] == [link["id"]] if inner else target["link"] == link["id"]
        assert origin["type"] == target["type"] == link["type"]
    ends = [slot["link"] for node in nodes.values() for slot in node["inputs"]]
    ends += [link for slot in inside["outputs"] for link in slot["linkIds"]]
    assert sorted(link for link in ends if link) == [link["id"] for link in inside["links"]]


@each_blueprint
def test_no_two_nodes_in_a_blueprint_overlap(file: Path):
    boxes = [(node["type"], *node["pos"], *node["size"]) for node in opened(file)[1]["nodes"]]
    for (one, x, y, width, height), (other, left, top, across, down) in combinations(boxes, 2):
        apart = (
            x + width <= left
            or left + across <= x
            or y + height <= top - TITLE
            or top + down <= y - TITLE
        )
        assert apart, f"{one} and {other}"
