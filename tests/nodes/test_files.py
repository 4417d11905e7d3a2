"""Saving and loading a path through ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, node, results, text

SOURCE, TARGET, NEGATIVE = (tiny_models.conditioning(16, seed=seed) for seed in range(3))


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


def invert(model: Any, positive: list) -> Any:
    picture = {"samples": torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))}
    return results("DDIMInversion", model=model, positive=positive, latent_image=picture, steps=4)[
        0
    ]


@pytest.fixture(scope="module")
def path(model: Any) -> Any:
    return invert(model, SOURCE)


@pytest.fixture
def output(tmp_path: Path, comfy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder, empty, beside a folder that is none of its business."""
    import folder_paths

    for name, folder in (("output", "out"), ("input", "in")):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / folder))
    (tmp_path / "outside").mkdir()
    return tmp_path / "out"


def files(folder: Path) -> list[str]:
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    )


def test_a_saved_and_loaded_path_edits_to_the_same_bits(model, path, output: Path):
    saved = text(call("SavePath", path=path))
    assert files(output) == [saved]
    (loaded,) = results("LoadPath", file=f"{saved} [output]")
    for edit in ("MDPEpsilon", "MDPCondition", "MDPGuidance"):
        inputs = {"edits": results(edit, weight=0.7)[0], "cfg": 3.0}
        assert torch.equal(
            edited(model, loaded, TARGET, NEGATIVE, **inputs),
            edited(model, path, TARGET, NEGATIVE, **inputs),
        )


def test_a_path_of_a_regional_prompt_edits_to_the_same_bits_after_loading(model, output: Path):
    left, right = tiny_models.conditioning(16, seed=5), tiny_models.conditioning(16, seed=6)
    left[0][1] |= {"area": (8, 6, 0, 0), "strength": 1.0, "start_percent": 0.1}
    right[0][1] |= {"area": ("percentage", 1.0, 0.5, 0.0, 0.5), "strength": 1.0}
    regional = [*left, *right, *SOURCE]
    path = invert(model, regional)
    (loaded,) = results("LoadPath", file=text(call("SavePath", path=path)) + " [output]")
    edits = results("MDPGuidance", weight=0.7)[0]
    assert torch.equal(
        edited(model, loaded, regional, NEGATIVE, cfg=3.0, edits=edits),
        edited(model, path, regional, NEGATIVE, cfg=3.0, edits=edits),
    )


def test_a_second_path_of_the_same_name_gets_the_next_number(path, output: Path):
    first, second = (text(call("SavePath", path=path, filename_prefix="cat")) for _ in range(2))
    assert files(output) == [first, second] == ["cat_00001_.safetensors", "cat_00002_.safetensors"]


def test_a_path_in_the_input_folder_can_be_loaded(path, output: Path):
    name = text(call("SavePath", path=path, filename_prefix="cat"))
    (output / name).rename(output.parent / "in" / "mine.safetensors")
    (loaded,) = results("LoadPath", file="mine.safetensors")
    assert torch.equal(loaded.latents, path.latents)
    assert node("LoadPath").validate_inputs("mine.safetensors") is True


def test_saved_paths_are_offered_for_loading(path, output: Path):
    (output.parent / "in" / "mine.safetensors").touch()
    name = text(call("SavePath", path=path, filename_prefix="diffusion_path/cats/cat"))
    elsewhere = text(call("SavePath", path=path, filename_prefix="cat"))
    offered = node("LoadPath").define_schema().inputs[0].options
    assert name == "diffusion_path/cats/cat_00001_.safetensors"
    assert offered == ["mine.safetensors", f"{name} [output]"]
    assert node("LoadPath").validate_inputs(f"{elsewhere} [output]") is True


def test_a_file_that_was_written_again_is_loaded_again(path, output: Path):
    name = text(call("SavePath", path=path)) + " [output]"
    before = node("LoadPath").fingerprint_inputs(name)
    assert node("LoadPath").fingerprint_inputs(name) == before
    file = output / name.removesuffix(" [output]")
    file.write_bytes(file.read_bytes() + b" ")
    assert node("LoadPath").fingerprint_inputs(name) != before


@pytest.mark.parametrize("name", ["../outside/cat", "cats/../../outside/cat", "{root}/outside/cat"])
def test_saving_outside_the_output_folder_is_refused_and_writes_nothing(path, output, name: str):
    with pytest.raises(ValueError, match=r"^Save Path: .*outside ComfyUI's output folder"):
        call("SavePath", path=path, filename_prefix=name.format(root=output.parent))
    assert files(output.parent) == []


def test_saving_through_a_link_out_of_the_output_folder_is_refused(path, output: Path):
    (output / "link").symlink_to(output.parent / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match=r"^Save Path: .*outside ComfyUI's output folder"):
        call("SavePath", path=path, filename_prefix="link/cat")
    assert files(output.parent) == []


@pytest.mark.parametrize(
    "name",
    [
        "../outside/cat.safetensors",
        "../outside/cat.safetensors [output]",
        "{root}/outside/cat.safetensors",
        "link/cat.safetensors [output]",
        "link.safetensors [output]",
    ],
)
def test_loading_from_outside_comfyuis_folders_is_refused(path, output: Path, name: str):
    saved = text(call("SavePath", path=path))
    outside = output.parent / "outside"
    (output / saved).rename(outside / "cat.safetensors")
    (output / "link").symlink_to(outside, target_is_directory=True)
    (output / "link.safetensors").symlink_to(outside / "cat.safetensors")
    name = name.format(root=output.parent)
    with pytest.raises(ValueError, match=r"^Load Path: .* lies outside ComfyUI's"):
        call("LoadPath", file=name)
    assert "lies outside" in node("LoadPath").validate_inputs(name)


def test_a_missing_file_is_refused_when_the_workflow_is_queued_and_when_it_runs(output: Path):
    assert "there is no file 'gone.safetensors'" in node("LoadPath").validate_inputs(
        "gone.safetensors"
    )
    with pytest.raises(ValueError, match=r"^Load Path: there is no file gone\.safetensors"):
        call("LoadPath", file="gone.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a path", b"\x00" * 4096])
def test_a_damaged_file_is_refused_in_one_sentence(output: Path, content: bytes):
    (output / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        call("LoadPath", file="bad.safetensors [output]")
    message = str(refusal.value)
    assert message.startswith("Load Path: bad.safetensors is damaged") and message.endswith(".")


def test_a_prompt_with_a_controlnet_is_refused_by_name_and_writes_nothing(model, output: Path):
    from comfy.controlnet import ControlBase

    path = invert(model, SOURCE)
    path.positive.append([SOURCE[0][0], {"control": ControlBase()}])
    with pytest.raises(ValueError, match=r"^Save Path: .* holds 'control'"):
        call("SavePath", path=path)
    assert files(output) == []
    path.positive.pop()
