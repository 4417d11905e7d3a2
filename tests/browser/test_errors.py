"""Error sentences and reports are seen on the node, in both renderers of ComfyUI's front end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from diffusion_path.tests.browser.test_drawings import workflow
from diffusion_path.tools.demo import OUTPUT
from diffusion_path.tools.host import Server

SCRIPT = Path(__file__).parent / "errors.mjs"


@pytest.mark.parametrize("renderer", ["classic", "nodes2"])
def test_an_error_is_seen_on_the_node_and_in_a_toast(server: Server, tmp_path: Path, renderer: str):
    OUTPUT.mkdir(exist_ok=True)
    nodes = workflow()
    nodes["7"]["inputs"]["words"] = "zebra: 1.5"
    (tmp_path / "workflow.json").write_text(json.dumps(nodes))
    command = ["node", str(SCRIPT), server.url, str(tmp_path / "workflow.json"), renderer]
    ran = subprocess.run(
        [*command, str(OUTPUT)], check=False, capture_output=True, text=True, timeout=500
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["errors"] == []

    refused = "start 0.7 is not before end 0.2, so there is no step between them"
    (toast,) = seen["refused"]["toasts"]
    assert "MDP Epsilon" in toast and refused in toast
    assert any(refused in text for text in seen["refused"]["onNodes"])

    failed = "positive is not the target prompt of Prompt-to-Prompt"
    (toast,) = seen["failed"]["toasts"]
    assert "Sampler" in toast and failed in toast
    assert any(failed in text for text in seen["failed"]["onNodes"])

    assert seen["ended"] == ["execution_error", "execution_success"]
    assert seen["left"] == {"toasts": [], "onNodes": []}
    assert seen["done"]["onNodes"]
    assert seen["reloaded"]["onNodes"] == seen["done"]["onNodes"]
