"""The example workflows: both formats say the same, and each runs as it is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from diffusion_path.tools.host import Server
from diffusion_path.tools.workflows import TWINS, demos, examples, to_api, twin_of

each_example = pytest.mark.parametrize("example", examples(), ids=lambda path: path.stem)


def test_every_example_has_a_twin_and_every_twin_an_example():
    assert [path.name for path in examples()] == sorted(path.name for path in TWINS.glob("*.json"))


@each_example
def test_an_example_and_its_twin_say_the_same(example: Path, server: Server):
    converted = to_api(json.loads(example.read_text()), server.object_info())
    assert converted == json.loads(twin_of(example).read_text())


@each_example
def test_an_example_is_small_and_has_a_thumbnail(example: Path):
    assert len(json.loads(example.read_text())["nodes"]) <= 18
    assert example.with_suffix(".jpg").is_file()


@pytest.mark.parametrize("example", demos(), ids=lambda path: path.stem)
def test_an_example_runs_through_the_queue_and_makes_pictures(example: Path, server: Server):
    workflow = json.loads(twin_of(example).read_text())
    pictures = server.images(server.run(workflow))
    ends = {
        node
        for node, body in workflow.items()
        if body["class_type"] in ("SaveImage", "PreviewImage")
    }
    assert ends and ends <= pictures.keys()
    for picture in (picture for shown in pictures.values() for picture in shown):
        low, high = Image.open(io.BytesIO(picture)).convert("L").getextrema()
        assert low < high, "a picture of one colour"
