"""The example workflows for real models, on small stand-ins of those under their true names."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusion_path.tools.host import ComfyUIError, Server, Workflow
from diffusion_path.tools.setup import ROOT
from diffusion_path.tools.workflows import examples, models_of, twin_of

EXAMPLES = [example for example in examples() if models_of(example)]
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
STAND_INS = ROOT / "tests" / "stand_ins"
SIZE, STEPS = 64, 4
FAMILIES = {
    "SD1.5": "SD1.5",
    "SDXL": "SDXL",
    "SD3.5": "SD3",
    "Flux": "Flux dev",
    "Qwen-Image": "Qwen-Image",
    "Z-Image": "Z-Image",
    "Wan": "Wan",
    "unCLIP_or_Redux": "Flux dev",
}
"""The family that the pack knows each example's model by."""
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "TripleCLIPLoader": "text_encoders",
    "CLIPVisionLoader": "clip_vision",
    "StyleModelLoader": "style_models",
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
    for kind in set(FOLDERS.values()):
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


@pytest.fixture
def files(folder: Path, example: Path) -> Iterator[None]:
    """The stand-ins of an example, for as long as it is tested."""
    write(folder, [model["name"] for model in models_of(example)])
    yield
    empty(folder)


def empty(folder: Path) -> None:
    """Take all models away."""
    for file in folder.glob("*/*.safetensors"):
        file.unlink()


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
        models, chosen = node["properties"]["models"], node["widgets_values"]
        files = [value for value in chosen if value.endswith(".safetensors")]
        assert files and [model["name"] for model in models] == files
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{model['name']}")
            assert model["directory"] == FOLDERS[node["type"]]


@each_example
def test_an_example_makes_a_picture_with_its_models(example: Path, files: None, models: Server):
    workflow = smaller(json.loads(twin_of(example).read_text()))
    history = models.run(workflow, timeout=1200)
    kinds = {body["class_type"]: node for node, body in workflow.items()}
    end = kinds.get("SaveImage") or kinds["PreviewImage"]
    for made in map(picture, models.images(history)[end]):
        assert max(made.size) == SIZE
        assert any(low < high for low, high in made.getextrema())
    if sampler := kinds.get("DiffusionPath_Sampler"):
        (figures,) = history["outputs"][sampler]["report"]
        assert 0 < figures["steps"] <= STEPS
        assert figures["moved"] > 0
    (path,) = history["outputs"][kinds["DiffusionPath_StraightPath"]]["text"]
    assert path.endswith(f"Settings of {FAMILIES[example.stem.partition('-')[2]]}")


def example_of(number: str) -> Path:
    """The example of a number."""
    return next(one for one in EXAMPLES if one.stem.startswith(f"{number}_"))


@pytest.mark.parametrize("example", [example_of("71")], ids=["71"])
def test_the_style_picture_alone_changes_the_picture(example: Path, files: None, models: Server):
    workflow = smaller(json.loads(twin_of(example).read_text()))
    kinds = {body["class_type"]: node for node, body in workflow.items()}
    for body in workflow.values():
        if body["class_type"] == "FluxGuidance":
            body["inputs"]["guidance"] = 3.5  # of both sides
    workflow[kinds["DiffusionPath_FlowEdit"]]["inputs"]["end"] = 1.0
    sampler = workflow[kinds["DiffusionPath_Sampler"]]["inputs"]
    moved = []
    for positive in (sampler["positive"], ["12", 0]):  # with the second picture, and without
        sampler["positive"] = positive
        history = models.run(workflow, timeout=1200)
        (figures,) = history["outputs"][kinds["DiffusionPath_Sampler"]]["report"]
        moved.append(figures["moved"])
    assert moved[0] > 1e-3
    assert moved[1] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("example", [example_of("72")], ids=["72"])
def test_t5_and_clip_each_change_the_picture(example: Path, files: None, models: Server):
    workflow = smaller(json.loads(twin_of(example).read_text()))
    kinds = {body["class_type"]: node for node, body in workflow.items()}
    source, target = (
        body["inputs"] for body in workflow.values() if body["class_type"] == "CLIPTextEncodeSD3"
    )
    new, moved = dict(target), []
    for changed in ((), ("clip_l",), ("clip_g",), ("t5xxl",)):
        target.update(source | {text: new[text] for text in changed})
        history = models.run(workflow, timeout=1200)
        (figures,) = history["outputs"][kinds["DiffusionPath_Sampler"]]["report"]
        moved.append(figures["moved"])
    assert len(set(moved)) == 4, moved


def loaded_by_our_node(example: str, checkpoint: str) -> Workflow:
    """An example's workflow whose models come from Model (Demo or Checkpoint), and its `size` as a
    picture of that size."""
    file = next(one for one in EXAMPLES if one.stem.endswith(example))
    workflow = smaller(json.loads(twin_of(file).read_text()))
    outputs = {"CheckpointLoaderSimple": None, "UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
    loaders = {
        node: outputs[body["class_type"]]
        for node, body in workflow.items()
        if body["class_type"] in outputs
    }
    for node in loaders:
        del workflow[node]
    for body in workflow.values():
        for name, value in body["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                slot = loaders[value[0]]
                body["inputs"][name] = ["ours", value[1] if slot is None else slot]
    given = {"checkpoint": checkpoint}
    workflow["ours"] = {"class_type": "DiffusionPath_DemoModel", "inputs": given}
    size = ["ours", 3]
    given = {"width": size, "height": size, "batch_size": 1, "color": 0}
    workflow["plain"] = {"class_type": "EmptyImage", "inputs": given}
    given = {"images": ["plain", 0]}
    workflow["shown"] = {"class_type": "PreviewImage", "inputs": given}
    return workflow


@pytest.mark.parametrize(
    ("example", "folder_of", "size"),
    [("-SD1.5", "", 512), ("-Z-Image", "diffusion_models/", 1024)],
)
def test_our_own_node_loads_an_installed_model(
    folder: Path, models: Server, example: str, folder_of: str, size: int
):
    file = next(one for one in EXAMPLES if one.stem.endswith(example))
    names = [model["name"] for model in models_of(file)]
    write(folder, names)
    workflow = loaded_by_our_node(example, folder_of + names[0])
    pictures = models.images(models.run(workflow, timeout=1200))
    empty(folder)
    assert picture(pictures["shown"][0]).size == (size, size)
    made = next(node for node, body in workflow.items() if body["class_type"] == "SaveImage")
    assert max(picture(pictures[made][0]).size) == SIZE


def refused(models: Server, checkpoint: str) -> str:
    """What our node says to a file."""
    with pytest.raises(ComfyUIError) as refusal:
        models.run(loaded_by_our_node("-Z-Image", checkpoint))
    return str(refusal.value)


def test_a_missing_text_encoder_is_named(folder: Path, models: Server):
    write(folder, ["qwen_image_fp8_e4m3fn.safetensors"])
    said = refused(models, "diffusion_models/qwen_image_fp8_e4m3fn.safetensors")
    empty(folder)
    assert "needs a file qwen_2.5_vl_7b... in models/text_encoders, and there is none" in said


def test_a_checkpoint_without_text_encoder_and_vae_is_refused(folder: Path, models: Server):
    name = "wan2.1_t2v_1.3B_fp16.safetensors"
    write(folder, [name])
    (folder / "diffusion_models" / name).rename(folder / "checkpoints" / name)
    said = refused(models, name)
    empty(folder)
    assert f"{name} holds no text encoder and no VAE; choose a checkpoint" in said


def test_a_file_that_is_no_model_is_refused_in_one_sentence(folder: Path, models: Server):
    save_file({"a": torch.zeros(1)}, folder / "checkpoints" / "other.safetensors")
    said = refused(models, "other.safetensors")
    empty(folder)
    assert "ComfyUI cannot load other.safetensors" in said
    assert "choose another file, or download it again." in said
