"""Saving and loading a path through ComfyUI's folders."""

from __future__ import annotations

import asyncio
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, node, refused, results, text

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


@pytest.mark.parametrize(
    ("family", "width", "pooled", "channels"),
    [("sd15", 16, None, 4), ("sd2_v", 24, None, 4), ("sdxl", 16, 1280, 4), ("sd3", 32, 2048, 16)],
)
@pytest.mark.parametrize("inversion", ["NullTextInversion", "NegativePromptInversion"])
def test_a_path_with_its_own_negative_is_the_same_after_loading_in_every_family(
    comfy, output: Path, inversion: str, family: str, width: int, pooled: int, channels: int
):
    tiny = getattr(tiny_models, family)()
    prompt, empty = (tiny_models.conditioning(width, 8, pooled, seed) for seed in (1, 2))
    picture = {"samples": torch.randn(2, channels, 8, 8), "noise_mask": torch.rand(1, 1, 64, 64)}
    inputs = {"model": tiny, "positive": prompt, "latent_image": picture, "steps": 3}
    source = results("DDIMInversion", strength=0.9, **inputs)[0]
    more: dict = {"proximal": "l1"}
    if inversion == "NullTextInversion":
        more = {"model": tiny, "negative": empty, "inner_steps": 2, "cfg": 3.0}
    made = results(inversion, path=source, **more)[0]
    (loaded,) = results("LoadPath", file=text(call("SavePath", path=made)) + " [output]")
    assert [type(edit) for edit in loaded.edits] == [type(edit) for edit in made.edits]
    assert torch.equal(loaded.edits[0].embeddings, made.edits[0].embeddings)
    assert loaded.edits[0].cfg == made.cfg and loaded.fingerprint == made.fingerprint
    inputs = {"cfg": 3.0, "start": 0.5}
    assert torch.equal(
        edited(tiny, loaded, prompt, empty, **inputs), edited(tiny, made, prompt, empty, **inputs)
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
    with pytest.raises(ValueError, match=r"^Load Path: there is no file 'gone\.safetensors'"):
        call("LoadPath", file="gone.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a path", b"\x00" * 4096])
def test_a_damaged_file_is_refused_in_one_sentence(output: Path, content: bytes):
    (output / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        call("LoadPath", file="bad.safetensors [output]")
    message = str(refusal.value)
    assert message.startswith("Load Path: 'bad.safetensors' is damaged") and message.endswith(".")


def test_a_prompt_with_a_controlnet_is_refused_by_name_and_writes_nothing(model, output: Path):
    from comfy.controlnet import ControlBase

    path = invert(model, SOURCE)
    path.positive.append([SOURCE[0][0], {"control": ControlBase()}])
    with pytest.raises(ValueError, match=r"^Save Path: .* holds 'control'"):
        call("SavePath", path=path)
    assert files(output) == []
    path.positive.pop()


BAD_PREFIXES = {
    "cat\0": "control characters",
    "cat\n": "control characters",
    "half a letter \ud800": "broken letters",
    "": "has no name",
    "...": "has no name",
    "cats/ .": "has no name",
    "cats/..": "has no name",
    "c" * 300: "too long",
    "c" * 5000: "too long",
    "\N{CAT FACE}" * 60: "too long",
    "cats" * 70 + "/cat": "too long",
    "../outside/cat": "outside ComfyUI's output folder",
}


@pytest.mark.parametrize("prefix", BAD_PREFIXES)
def test_a_name_that_no_file_can_have_is_refused_before_and_when_it_runs(path, output, prefix):
    said = node("SavePath").validate_inputs(prefix)
    refused("SavePath", BAD_PREFIXES[prefix], path=path, filename_prefix=prefix)
    assert BAD_PREFIXES[prefix] in said and said.startswith("Save Path: ") and len(said) < 300
    assert files(output.parent) == []


def test_a_name_from_another_node_is_checked_when_it_runs(comfy):
    assert node("SavePath").validate_inputs(None) is True


def test_the_longest_name_there_is_can_be_saved_and_loaded(path, output: Path):
    longest = "c" * 232
    saved = text(call("SavePath", path=path, filename_prefix=f"cats/{longest}"))
    assert node("SavePath").validate_inputs(longest) is True
    assert "too long" in node("SavePath").validate_inputs(longest + "c")
    assert torch.equal(results("LoadPath", file=f"{saved} [output]")[0].latents, path.latents)


def test_the_prefix_may_hold_the_date_and_the_time(path, output: Path):
    saved = text(call("SavePath", path=path, filename_prefix="%year%/cat-%month%-%day%"))
    assert re.fullmatch(r"20\d\d/cat-\d\d-\d\d_00001_\.safetensors", saved)
    assert files(output) == [saved]


@pytest.mark.parametrize("prefix", ["cats/", "dogs/../cats", "./cats/."])
def test_nothing_is_overwritten_however_a_name_is_written(path, output: Path, prefix: str):
    for number in (1, 2):
        saved = text(call("SavePath", path=path, filename_prefix=prefix))
        assert saved == f"cats_0000{number}_.safetensors"
    assert len(files(output)) == 2


def test_a_file_in_a_folders_place_is_refused_in_one_sentence(path, output: Path):
    (output / "cats").touch()
    refused(
        "SavePath", "nothing can be written to 'cats/cat'", path=path, filename_prefix="cats/cat"
    )


def test_a_date_that_a_link_leads_out_of_the_output_folder_is_refused(path, output: Path):
    import time

    (output / time.strftime("%Y")).symlink_to(output.parent / "outside", target_is_directory=True)
    refused("SavePath", "outside ComfyUI's output", path=path, filename_prefix="%year%/cat")
    assert files(output.parent) == []


BAD_FILES = {
    "c" * 5000: "too long",
    "loop.safetensors": "there is no file",
    "cat\0.safetensors": "control characters",
    "\ud800 [output]": "broken letters",
    "..": "outside ComfyUI's input folder",
    ".. [output]": "outside ComfyUI's output folder",
    "": "there is no file",
    " [output]": "there is no file",
    "folder.safetensors": "there is no file",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_name_that_is_no_path_file_is_refused_before_and_when_it_runs(comfy, output, name):
    inputs = output.parent / "in"
    (inputs / "loop.safetensors").symlink_to("loop.safetensors")
    (inputs / "folder.safetensors").mkdir()
    said = node("LoadPath").validate_inputs(name)
    assert BAD_FILES[name] in said and said.startswith("Load Path: ") and len(said) < 300
    refused("LoadPath", BAD_FILES[name], file=name)
    node("LoadPath").fingerprint_inputs(name)


@pytest.mark.parametrize("letters", [6000, 100_000])
def test_a_name_of_thousands_of_folders_is_refused_before_and_when_it_runs(
    path, output: Path, letters: int
):
    name = "c/" * (letters // 2)
    for act, inputs in (("LoadPath", {"file": name}), ("SavePath", {"filename_prefix": name})):
        assert "too long" in node(act).validate_inputs(name)
        refused(act, "too long", **inputs, **({"path": path} if act == "SavePath" else {}))
    assert math.isnan(node("LoadPath").fingerprint_inputs(name))
    assert files(output.parent) == []


@pytest.mark.parametrize("value", [5, True, {"file": "cat"}, ["cat"]])
def test_what_is_no_name_at_all_is_refused_when_the_workflow_is_queued(comfy, output, value):
    assert "is no name" in node("LoadPath").validate_inputs(value)
    assert math.isnan(node("LoadPath").fingerprint_inputs(value))


def test_a_file_that_another_node_names_is_checked_when_it_runs(comfy):
    assert node("LoadPath").validate_inputs(None) is True
    assert node("LoadPath").validate_inputs() is True
    assert math.isnan(node("LoadPath").fingerprint_inputs(None))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no names of arbitrary bytes")
def test_a_file_whose_name_cannot_be_shown_is_not_offered(comfy, output: Path):
    inputs = output.parent / "in"
    try:
        (inputs / "\udcff.safetensors").touch()
    except OSError:
        pytest.skip("this file system has no names of arbitrary bytes")
    (inputs / "good.safetensors").touch()
    assert node("LoadPath").define_schema().inputs[0].options == ["good.safetensors"]


def test_a_file_that_must_not_be_read_is_refused_in_one_sentence(comfy, output, monkeypatch):
    from diffusion_path.inversion import path_file

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (output / "cat.safetensors").touch()
    monkeypatch.setattr(path_file, "safe_open", forbidden)  # root may read everything
    refused("LoadPath", "cannot be read: Permission denied", file="cat.safetensors [output]")


def test_the_memory_of_a_path_is_seen_by_comfyuis_cache(path):
    from comfy_execution.caching import (
        RAM_CACHE_DEFAULT_RAM_USAGE,
        CacheKeySetInputSignature,
        RAMPressureCache,
    )
    from execution import CacheEntry

    cache = RAMPressureCache(CacheKeySetInputSignature)
    cache.cache["path"] = CacheEntry(ui={}, outputs=[[path]])
    cache.used_generation["path"] = cache.timestamps["path"] = 0
    cache.children["path"] = []
    tensors = (path.sigmas, path.latents, path.positive[0][0])
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    freed = cache.ram_release(target=1 << 62, free_active=True)
    assert freed - RAM_CACHE_DEFAULT_RAM_USAGE == size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is one device only")
def test_a_path_whose_prompt_is_on_the_graphics_card_is_loaded_into_ordinary_memory(path, output):
    there = [[embedding.cuda(), options] for embedding, options in path.positive]
    saved = text(call("SavePath", path=path._replace(positive=there)))
    (loaded,) = results("LoadPath", file=f"{saved} [output]")
    assert torch.equal(loaded.positive[0][0], path.positive[0][0])


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("horse.png", (128, 128)),
        ("masked_football.png", (128, 128)),
        ("painted_places.png", (128, 128)),
        ("apple_on_a_table.webp", (576, 768)),
        ("masked_apple.webp", (576, 768)),
    ],
)
def test_an_example_picture_is_what_load_image_would_load(
    comfy, output: Path, file: str, size: tuple[int, int]
):
    import shutil

    from nodes import LoadImage

    from diffusion_path.nodes.example import PICTURES

    shutil.copy(PICTURES / file, output.parent / "in" / file)
    theirs, their_mask = LoadImage().load_image(file)
    image, mask = results("ExamplePicture", picture=Path(file).stem.replace("_", " "))
    assert image.shape == (1, *size, 3) and mask.shape == (1, *size)
    lossy = file.endswith(".webp")  # FFmpeg reads it for ComfyUI, and rounds otherwise
    assert float((image - theirs).abs().mean()) <= (0.006 if lossy else 0)
    if mask.any():
        assert torch.allclose(mask, their_mask, rtol=0, atol=1 / 255 if lossy else 0)
    else:
        assert not their_mask.any()
    assert mask.any() == file.startswith("masked")


def test_a_photo_takes_the_examples_place_and_stands_upright(comfy, output: Path):
    from nodes import LoadImage
    from PIL import Image

    folder = output.parent / "in"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8)
    photo = Image.fromarray(pixels)
    turned = photo.getexif()
    turned[0x0112] = 6  # a camera held upright
    photo.save(folder / "photo.png", exif=turned)
    theirs, _ = LoadImage().load_image("photo.png")
    image, mask = results("ExamplePicture", picture="horse", photo="photo.png")
    assert image.shape == (1, 64, 40, 3)
    assert torch.equal(image, theirs)
    assert not mask.any() and mask.shape == (1, 64, 40)


def test_a_photo_that_is_none_is_refused(comfy, output: Path):
    (output.parent / "in" / "text.png").write_text("no picture")
    refused("ExamplePicture", "text.png", "choose another", picture="horse", photo="text.png")
    assert "no file" in node("ExamplePicture").validate_inputs(photo="gone.png")
    assert node("ExamplePicture").validate_inputs(photo="text.png") is True


def test_every_picture_of_the_pack_is_offered_and_no_other_is_loaded(comfy):
    from diffusion_path.nodes.example import PICTURES

    offered = node("ExamplePicture").GET_SCHEMA().inputs[0].options
    kept = [file.stem for file in PICTURES.iterdir() if file.suffix in (".png", ".webp")]
    assert [name.replace(" ", "_") for name in offered] == sorted(kept)
    for name in ("../mdp_epsilon", "zebra", ""):
        refused("ExamplePicture", "there is no picture", "choose one", picture=name)


def test_nothing_is_put_into_the_input_folder_at_start(comfy, output: Path):
    from diffusion_path.nodes import DiffusionPathExtension

    asyncio.run(DiffusionPathExtension().on_load())
    assert files(output.parent / "in") == []


@pytest.mark.parametrize("name", ["../outside/cat.png", "{root}/outside/cat.png", "..\\cat.png"])
def test_a_photo_from_outside_comfyuis_folders_is_not_loaded(comfy, output: Path, name: str):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(output.parent / "outside" / "cat.png")
    name = name.format(root=output.parent)
    assert "there is no file" in node("ExamplePicture").validate_inputs(photo=name)
    refused("ExamplePicture", "choose another", picture="horse", photo=name)


def test_a_photo_that_would_fill_the_memory_is_refused(comfy, output: Path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # 10 GB of pixels
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (output.parent / "in" / "bomb.png").write_bytes(bomb)
    refused("ExamplePicture", "bomb.png", "choose another", picture="horse", photo="bomb.png")
