"""The templates in ComfyUI's own front end, in both renderers: nothing lies over anything else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import pytest

from diffusion_path.tools.demo import OUTPUT
from diffusion_path.tools.host import Server
from diffusion_path.tools.layout import Box, Measured, measure
from diffusion_path.tools.setup import PACK, ROOT
from diffusion_path.tools.workflows import demos, examples, front_end_to_api, models_of

RENDERERS = ("classic", "nodes2")
DIALOG = Path(__file__).parent / "templates.mjs"
SAVED = Path(__file__).parent / "saved"
FIRST = Path(__file__).parent.parent / "integration" / "first_release"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that remembers each run, so that the second renderer's costs nothing."""
    with Server("--cache-lru", "1000") as running:
        yield running


@pytest.fixture(scope="module")
def measured(server: Server) -> Measured:
    """All templates in each renderer: opened, and run with few steps where the models are here."""
    ran = measure(server, demos())
    opened = measure(server, [file for file in examples() if models_of(file)], steps=0)
    return {renderer: ran[renderer] | opened[renderer] for renderer in RENDERERS}


def last(found: dict[str, dict[str, Box]]) -> Iterable[tuple[str, Box]]:
    """The boxes of a template's nodes after its run, or as it was opened."""
    return found.get("ran", found["opened"]).items()


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes have more in common than an edge."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right = min(one[0] + one[2], other[0] + other[2])
    bottom = min(one[1] + one[3], other[1] + other[3])
    return right - left > 1 and bottom - top > 1


def test_the_templates_dialog_has_them_in_order_under_a_readable_name(server: Server):
    OUTPUT.mkdir(exist_ok=True)
    said = json.loads((ROOT / "locales" / "en" / "main.json").read_text())
    category = said["templateWorkflows"]["category"][PACK]
    command = ["node", str(DIALOG), server.url, category, str(OUTPUT / "templates.png")]
    names = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    wanted = [example.stem for example in examples()]
    assert len(names) > 10  # the others come when one scrolls
    assert names == wanted[: len(names)]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_each_template_runs_in_the_front_end(measured: Measured, renderer: str):
    errors = {file: found.get("error") for file, found in measured[renderer].items()}
    failed = {file: error for file, error in errors.items() if error}
    assert failed == {}
    assert len(measured[renderer]) == len(examples())


@pytest.mark.parametrize("state", ["opened", "ran"])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_no_node_of_a_template_lies_over_another(measured: Measured, renderer: str, state: str):
    over = [
        f"{Path(file).stem}: nodes {one} and {other}"
        for file, found in measured[renderer].items()
        for (one, first), (other, second) in combinations(found.get(state, {}).items(), 2)
        if overlap(first, second)
    ]
    assert over == []


def test_each_template_has_a_note_and_its_nodes_lie_in_groups(measured: Measured):
    for file in examples():
        workflow = json.loads(file.read_text())
        notes = {node["id"] for node in workflow["nodes"] if node["type"] == "MarkdownNote"}
        assert len(notes) == 1, file.stem
        frames = [group["bounding"] for group in workflow["groups"]]
        assert all(group["color"] for group in workflow["groups"])
        for renderer in RENDERERS:
            for node, (x, y, width, height) in last(measured[renderer][str(file)]):
                inside = [
                    left <= x
                    and top <= y
                    and x + width <= left + wide + 1
                    and y + height <= top + high + 1
                    for left, top, wide, high in frames
                ]
                assert sum(inside) == (int(node) not in notes), f"{file.stem}: node {node}"
                if int(node) in notes:
                    box = (x, y, width, height)
                    assert not any(overlap(box, frame) for frame in frames), file.stem


def test_a_workflow_saved_with_the_first_version_still_opens(server: Server):
    saved = sorted(SAVED.glob("*.json"))
    exported = front_end_to_api(server, saved)
    for file in saved:
        then = json.loads((FIRST / file.name).read_text())
        now = exported[file]
        assert now.keys() == then.keys()
        for node, body in then.items():
            assert now[node]["class_type"] == body["class_type"]
            kept = {name: now[node]["inputs"].get(name) for name in body["inputs"]}
            assert kept == body["inputs"], f"{file.stem}: node {node}"
