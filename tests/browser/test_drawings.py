"""What the pack draws on its nodes (web/js), used with the mouse in a real browser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from diffusion_path.tools.demo import OUTPUT
from diffusion_path.tools.host import Server, Workflow

SCRIPT = Path(__file__).parent / "drawings.mjs"

NODES = {
    "1": ("DemoModel", {"kind": "unet"}),
    "2": ("ExamplePicture", {"picture": "horse"}),
    "3": (
        "PromptPair",
        {
            "clip": ["1", 1],
            "source_prompt": "a horse on a green background",
            "target_prompt": "a {zebra|zebra} on a green background",  # chosen when it runs
        },
    ),
    "5": (
        "DDIMInversion",
        {"model": ["1", 0], "positive": ["3", 0], "latent_image": ["4", 0], "steps": 4},
    ),
    "6": ("AttentionMaps", {"model": ["1", 0], "path": ["5", 0], "prompts": ["3", 2]}),
    "11": ("PromptToPrompt", {"prompts": ["3", 2]}),
    "7": ("Reweight", {"prompts": ["3", 2], "words": "Green background: 2", "edits": ["11", 0]}),
    "8": ("MDPEpsilon", {"edits": ["7", 0], "start": 0.0, "end": 0.6}),
    "9": (
        "Sampler",
        {
            "model": ["1", 0],
            "path": ["5", 0],
            "positive": ["3", 1],
            "negative": ["12", 0],
            "edits": ["8", 0],
        },
    ),
    "10": ("PathPreview", {"path": ["9", 2], "vae": ["1", 2], "frames": 4}),
}


def workflow() -> Workflow:
    """A small workflow with every node that is drawn on; what is not given has its default."""
    nodes = {
        number: {"class_type": f"DiffusionPath_{name}", "inputs": inputs}
        for number, (name, inputs) in NODES.items()
    }
    nodes["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}}
    nodes["6"]["inputs"]["vae"] = ["1", 2]
    nodes["12"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}}
    return nodes


def use(server: Server, renderer: str, folder: Path) -> dict:
    """What `drawings.mjs` has seen in a renderer."""
    OUTPUT.mkdir(exist_ok=True)
    file = folder / "drawings.json"
    file.write_text(json.dumps(workflow()))
    command = ["node", str(SCRIPT), server.url, str(file), renderer, str(OUTPUT)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["uncaught"] == []
    assert seen["error"] is None
    return seen


@pytest.mark.parametrize("renderer", ["classic", "nodes2"])
def test_words_sliders_and_bars_set_the_values_of_the_nodes(
    server: Server, tmp_path: Path, renderer: str
):
    seen = use(server, renderer, tmp_path)

    for links, slots, new_slots in seen["colours"]:
        assert links == slots == new_slots
        assert links
    assert len({links for links, *_ in seen["colours"]}) == 3
    assert seen["coloursInLight"] == seen["colours"]

    assert seen["typed"] == [["horse", "a", "background"], ["striped zebra"]]
    assert seen["told"] == [["horse"], ["zebra"]]

    phrase, zebra, green = seen["sliders"].split("\n")
    assert phrase == "Green background: 2"
    word, factor = zebra.split(": ")
    assert word == "zebra"
    assert 2.5 <= float(factor) <= 4
    assert green == "green: 2"
    assert seen["numbers"] == ["2", "1", factor, "1", "2", "1"]  # the phrase, a, zebra, on, ...

    assert len(seen["bars"]) == 4
    inputs = {number: node["inputs"] for number, node in seen["dragged"].items()}
    assert inputs["8"]["end"] == pytest.approx(0.25, abs=0.03)
    assert inputs["8"]["start"] == 0
    assert inputs["11"]["cross_start"] == pytest.approx(0.5, abs=0.03)
    assert inputs["11"]["cross_replace"] == pytest.approx(0.8)
    assert len(seen["frames"]) == 4
    assert all(seen["frames"])

    assert {"horse", "green", "background"} <= set(seen["words"])
    width, word = seen["large"]
    assert word == "horse"
    assert width > 400


def test_without_javascript_the_nodes_work_as_text(server: Server, tmp_path: Path):
    seen = use(server, "without", tmp_path)
    assert seen["drawings"] == 0
    assert any("horse → zebra" in sentence for sentence in seen["sentences"])
