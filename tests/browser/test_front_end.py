"""ComfyUI's own front end, in a real browser, with this pack's workflows."""

from __future__ import annotations

import io
import json
import subprocess
import urllib.request
from pathlib import Path

from PIL import Image

from diffusion_path.tools.demo import OUTPUT
from diffusion_path.tools.host import Server
from diffusion_path.tools.workflows import (
    EXAMPLE_PICTURE,
    EXAMPLES,
    examples,
    front_end_to_api,
    twin_of,
)

RUN_WORKFLOW = Path(__file__).parent / "run_workflow.mjs"


def drop_and_run(server: Server, workflow: Path, screenshot: Path) -> dict:
    """Drop a workflow file on the canvas and press Run; the pictures shown, and all errors."""
    command = ["node", str(RUN_WORKFLOW), server.url, str(workflow), str(screenshot)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_dropped_example_shows_its_edited_picture_and_no_error(server: Server):
    OUTPUT.mkdir(exist_ok=True)
    shown = drop_and_run(
        server, EXAMPLES / "17_keep_the_layout-MDP_Epsilon.json", OUTPUT / "browser.png"
    )
    assert shown["errors"] == []
    assert shown["pictures"]
    for address in (address for pictures in shown["pictures"].values() for address in pictures):
        with urllib.request.urlopen(address) as picture:
            low, high = Image.open(io.BytesIO(picture.read())).convert("L").getextrema()
        assert low < high, "a picture of one colour"


def test_the_front_end_exports_every_example_as_its_twin(server: Server):
    exported = front_end_to_api(server, examples())
    twins = {example: json.loads(twin_of(example).read_text()) for example in examples()}
    assert exported == twins


def test_an_error_in_a_workflow_is_seen_by_the_test_itself(server: Server, tmp_path: Path):
    workflow = json.loads((EXAMPLES / "17_keep_the_layout-MDP_Epsilon.json").read_text())
    (load,) = (node for node in workflow["nodes"] if node["type"] == EXAMPLE_PICTURE)
    load["widgets_values"][0] = "no such picture"
    (tmp_path / "broken.json").write_text(json.dumps(workflow))
    shown = drop_and_run(server, tmp_path / "broken.json", tmp_path / "broken.png")
    assert shown["pictures"] == {}
    assert shown["errors"]
