"""The blueprints in ComfyUI's own front end: found, placed, wired and run."""

from __future__ import annotations

import io
import json
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_path.tools.demo import OUTPUT
from diffusion_path.tools.host import Server
from diffusion_path.tools.setup import ROOT
from diffusion_path.tools.workflows import front_end_to_api

SCRIPT = Path(__file__).parent / "blueprint.mjs"
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))

HORSE, ZEBRA = "a horse on a green background", "a zebra on a green background"
APPLE, BALL = "a red apple on the left", "a football on the right"
VALUES = {
    "shows": HORSE,
    "should_show": ZEBRA,
    "prompt": f"{APPLE} and {BALL} on a white background",
    "width": 128,
    "height": 128,
    "steps": 10,
}
BOXES = [
    {"x": x, "y": 16, "width": 64, "height": 96, "metadata": {"type": "obj", "desc": desc}}
    for x, desc in ((0, APPLE), (64, BALL))
]
GIVEN: dict[str, tuple[str, list[Any], list[str]]] = {
    "model": ("DiffusionPath_DemoModel", ["unet"], ["MODEL", "CLIP", "VAE"]),
    "picture": ("DiffusionPath_ExamplePicture", ["horse"], ["IMAGE", "MASK"]),
    "boxes": ("CreateBoundingBoxes", [128, 128, BOXES], ["IMAGE", "BOUNDING_BOX", "ARRAY"]),
}
SHOWN = {"IMAGE": ("PreviewImage", "images"), "STRING": ("PreviewAny", "source")}


def node(number: int, kind: str, values: list[Any], inputs: list, outputs: list[str]) -> dict:
    """A node of a workflow file, below the one before."""
    slots = [{"name": datatype, "type": datatype, "links": []} for datatype in outputs]
    place = {"pos": [0, 400 * number], "size": [300, 300], "flags": {}, "mode": 0, "order": 0}
    node = {"id": number, "type": kind, "inputs": inputs, "outputs": slots, "properties": {}}
    return node | place | {"widgets_values": values}


def placed(blueprint: Path) -> dict[str, Any]:
    """A workflow with a blueprint, what it needs before it, and all that it gives shown."""
    workflow = json.loads(blueprint.read_text(encoding="utf-8"))
    (place,) = nodes = workflow["nodes"]
    widgets = [slot["name"] for slot in place["inputs"] if "widget" in slot]
    values = zip(widgets, place["widgets_values"], strict=True)
    place["widgets_values"] = [VALUES.get(name, value) for name, value in values]
    links = workflow["links"]

    def link(origin: dict, slot: int, target: dict, name: str) -> None:
        number = next(n for n, one in enumerate(target["inputs"]) if one["name"] == name)
        datatype = target["inputs"][number]["type"]
        target["inputs"][number]["link"] = len(links) + 1
        links.append([len(links) + 1, origin["id"], slot, target["id"], number, datatype])

    for kind, values, outputs in GIVEN.values():
        wanted = [one for one in place["inputs"] if "widget" not in one and one["type"] in outputs]
        if wanted:
            nodes.append(node(len(nodes) + 1, kind, values, [], outputs))
        for one in wanted:
            link(nodes[-1], outputs.index(one["type"]), place, one["name"])
    for slot, output in enumerate(place["outputs"]):
        if output["type"] in SHOWN:
            kind, name = SHOWN[output["type"]]
            inputs = [{"name": name, "type": output["type"], "link": None}]
            nodes.append(node(len(nodes) + 1, kind, [], inputs, []))
            link(place, slot, nodes[-1], name)
    return workflow


def test_every_blueprint_runs(server: Server, tmp_path: Path):
    files = [tmp_path / blueprint.name for blueprint in BLUEPRINTS]
    for blueprint, file in zip(BLUEPRINTS, files, strict=True):
        file.write_text(json.dumps(placed(blueprint)), encoding="utf-8")
    for file, workflow in front_end_to_api(server, files).items():
        history = server.run(workflow)
        outputs = {workflow[key]["class_type"]: key for key in workflow if ":" not in key}
        (picture,) = server.images(history)[outputs["PreviewImage"]]
        shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float)
        assert shown.std() > 5, f"{file.stem}: a picture of one colour"
        if "PreviewAny" in outputs:
            (report,) = history["outputs"][outputs["PreviewAny"]]["text"]
            assert "model calls" in report


@pytest.mark.parametrize("vue", ["false", "true"], ids=["classic", "nodes2"])
def test_a_blueprint_is_found_placed_wired_and_run(server: Server, vue: str):
    OUTPUT.mkdir(exist_ok=True)
    screenshot = OUTPUT / f"blueprint-{vue}.png"
    command = ["node", str(SCRIPT), server.url, vue, "edit image", str(screenshot)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["errors"] == []
    assert seen["title"].startswith("Edit a Picture")
    assert (seen["nodes"], seen["wires"]) == (4, 6)
    (compared,) = (one for one in seen["outputs"].values() if "b_images" in one)
    before, after = (picture(server, *compared[side]) for side in ("a_images", "b_images"))
    assert before.shape == after.shape
    assert np.abs(before - after).mean() > 5, "nothing was edited"
    assert np.abs(before - after)[:16].mean() < 5, "the background is another"


def picture(server: Server, image: dict[str, str]) -> np.ndarray:
    """A picture (H, W, 3) that ComfyUI has shown."""
    with urllib.request.urlopen(f"{server.url}/view?{urllib.parse.urlencode(image)}") as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), dtype=float)
