"""Turning a workflow of the front end into one for the API, in Python."""

from __future__ import annotations

import pytest

from diffusion_path.tools.workflows import to_api

INFO = {
    "Source": {
        "name": "Source",
        "display_name": "A source",
        "input": {"required": {"image": [["a.png"], {"image_upload": True}]}},
    },
    "Sampler": {
        "name": "Sampler",
        "display_name": None,
        "input": {
            "required": {
                "picture": ["IMAGE"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {"default": 50}],
            },
            "optional": {"sigmas": ["SIGMAS"], "mode": ["COMBO", {"options": ["a", "b"]}]},
        },
    },
}


def workflow(sampler_values: list) -> dict:
    """A source and a sampler, as the front end saves them."""
    picture = {"name": "picture", "type": "IMAGE", "link": 7}
    return {
        "nodes": [
            {"id": 1, "type": "Source", "inputs": [], "widgets_values": ["a.png", "image"]},
            {"id": 2, "type": "Sampler", "inputs": [picture], "widgets_values": sampler_values},
            {"id": 3, "type": "MarkdownNote", "widgets_values": ["Read me"]},
        ],
        "links": [[7, 1, 0, 2, 0, "IMAGE"]],
    }


def test_widgets_take_their_values_in_order_and_links_name_their_origin():
    assert to_api(workflow([5, "fixed", 30, "b"]), INFO) == {
        "1": {
            "inputs": {"image": "a.png"},
            "class_type": "Source",
            "_meta": {"title": "A source"},
        },
        "2": {
            "inputs": {"seed": 5, "steps": 30, "mode": "b", "picture": ["1", 0]},
            "class_type": "Sampler",
            "_meta": {"title": "Sampler"},
        },
    }


def test_values_that_fit_no_widget_are_reported():
    with pytest.raises(ValueError, match="values without a widget"):
        to_api(workflow([5, "fixed", 30, "b", "extra"]), INFO)


def test_a_subgraph_is_unfolded_under_the_id_of_its_node():
    flat = workflow([5, "fixed", 30, "b"])
    source, sampler, _ = flat["nodes"]
    sampler["inputs"][0]["link"] = 1
    boxed = {
        "nodes": [source, {"id": 9, "type": "box", "inputs": [{"name": "in", "link": 7}]}],
        "links": [[7, 1, 0, 9, 0, "IMAGE"]],
        "definitions": {
            "subgraphs": [
                {
                    "id": "box",
                    "nodes": [sampler],
                    "links": [{"id": 1, "origin_id": -10, "origin_slot": 0}],
                    "outputs": [],
                }
            ]
        },
    }
    api = to_api(boxed, INFO)
    assert api.keys() == {"1", "9:2"}
    assert api["9:2"]["inputs"]["picture"] == ["1", 0]


def test_node_ids_that_the_front_end_would_change_are_reported():
    twice = workflow([5, "fixed", 30, "b"])
    twice["definitions"] = {
        "subgraphs": [{"id": "box", "nodes": [{"id": 1, "type": "Source"}], "links": []}]
    }
    twice["nodes"].append({"id": 4, "type": "box"})
    with pytest.raises(ValueError, match=r"\[1\] other ids"):
        to_api(twice, INFO)
