"""The example workflows for real models, on small stand-ins of those under their true names."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from diffusion_path.tools.host import Server, Workflow
from diffusion_path.tools.setup import ROOT
from diffusion_path.tools.workflows import examples, models_of, twin_of

EXAMPLES = [example for example in examples() if models_of(example)]
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
STAND_INS = ROOT / "tests" / "stand_ins"
SIZE, STEPS = 64, 4
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
}


def write(folder: Path, names: list[str]) -> None:
    """Write stand-ins, in a process of its own: there ComfyUI's classes are made small."""
    command = [sys.executable, "-P", "-m", "diffusion_path.tests.stand_ins.files", str(folder)]
    subprocess.run([*command, *names], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, empty, and the custom node that makes ComfyUI's classes small."""
    folder = tmp_path_factory.mktemp("models")
    nodes = folder / "custom_nodes"
    nodes.mkdir()
    (nodes / "small.py").write_text((STAND_INS / "small.py").read_text())
    for kind in ("checkpoints", "diffusion_models", "text_encoders", "vae"):
        (folder / kind).mkdir()
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[Server]:
    """A server that looks for models there."""
    kinds = "".join(f"    {one.name}: {one.name}\n" for one in sorted(folder.iterdir()))
    paths = folder / "paths.yaml"
    paths.write_text(f"stand_ins:\n    base_path: {folder}\n{kinds}")
    with Server("--extra-model-paths-config", str(paths)) as running:
        yield running


def with_files(folder: Path, example: Path) -> Iterator[None]:
    """The stand-ins of an example are there for as long as it is asked."""
    names = [model["name"] for model in models_of(example)]
    write(folder, names)
    yield
    for name in names:
        next(folder.glob(f"*/{name}")).unlink()


@pytest.fixture
def files(folder: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    yield from with_files(folder, request.getfixturevalue("example"))


def smaller(workflow: Workflow) -> Workflow:
    """The workflow with a small picture and few steps; all else as it is."""
    for node in workflow.values():
        if node["class_type"] == "ImageScaleToMaxDimension":
            node["inputs"]["largest_size"] = SIZE
        if node["class_type"] == "DiffusionPath_StraightPath":
            node["inputs"]["steps"] = STEPS
    return workflow


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@each_example
def test_an_example_says_where_its_models_are(example: Path):
    nodes = json.loads(example.read_text())["nodes"]
    loaders = [node for node in nodes if node["type"] in FOLDERS]
    assert loaders
    for node in loaders:
        (model,), chosen = node["properties"]["models"], node["widgets_values"][0]
        assert model["name"] == chosen
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith(f"/{chosen}")
        assert model["directory"] == FOLDERS[node["type"]]


@each_example
def test_an_example_edits_a_picture_with_its_models(example: Path, files: None, models: Server):
    workflow = smaller(json.loads(twin_of(example).read_text()))
    history = models.run(workflow, timeout=1200)
    kinds = {body["class_type"]: node for node, body in workflow.items()}
    (saved,) = models.images(history)[kinds["SaveImage"]]
    made = picture(saved)
    assert max(made.size) == SIZE
    assert any(low < high for low, high in made.getextrema())
    (figures,) = history["outputs"][kinds["DiffusionPath_Sampler"]]["report"]
    assert 0 < figures["steps"] <= STEPS
    assert figures["moved"] > 0
