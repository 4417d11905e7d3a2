"""What was saved from the first version on runs forever: node ids and inputs are a promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_path.tools.host import Server
from diffusion_path.tools.setup import ROOT

SAVED = sorted((Path(__file__).parent / "first_release").glob("*.json"))
PICTURES = ROOT / "example_workflows" / "inputs"
FEW = {"steps": 3, "maps": 1, "inner_steps": 1, "frames": 2}


@pytest.mark.parametrize("saved", SAVED, ids=lambda path: path.stem)
def test_a_workflow_of_the_first_version_runs_as_it_was_saved(saved: Path, server: Server):
    workflow = json.loads(saved.read_text())
    for body in workflow.values():
        inputs = body["inputs"]
        inputs.update({name: few for name, few in FEW.items() if name in inputs})
        if body["class_type"] == "LoadImage":
            picture = PICTURES / inputs["image"].removeprefix("diffusion_path_")
            server.upload(picture, inputs["image"])
    assert server.images(server.run(workflow))


def test_none_of_them_is_lost():
    assert len(SAVED) == 19
