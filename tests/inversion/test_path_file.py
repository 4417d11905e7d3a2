"""The path file: what goes in comes out, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.diffedit import MaskBlend
from diffusion_path.edits.null_text import NullText
from diffusion_path.edits.proximal import Proximal
from diffusion_path.inversion.path_file import FILE_VERSION, load_path, save_path


def prompt(seed: int, **options) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 77, 16, generator=generator), options]]


def a_path(**changes) -> DiffusionPath:
    latents = torch.randn(4, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    return DiffusionPath(
        **{
            "sigmas": torch.tensor([14.6, 3.0, 0.5, 0.03]),
            "latents": latents,
            "positive": prompt(1),
            "negative": prompt(2),
            "cfg": 7.5,
            "fingerprint": {"model": "BaseModel", "latent channels": 4, "flow": False},
        }
        | changes
    )


def same(a: object, b: object) -> bool:
    """Equal in value, in type and bit for bit, however deep."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def round_trip(path: DiffusionPath, folder: Path) -> DiffusionPath:
    save_path(path, folder / "path.safetensors")
    return load_path(folder / "path.safetensors")


def test_a_loaded_path_is_the_saved_one_bit_for_bit(tmp_path: Path):
    assert same(round_trip(a_path(), tmp_path), a_path())


def test_a_path_without_a_negative_has_none_after_loading(tmp_path: Path):
    path = a_path(negative=None, cfg=1.0)
    assert same(round_trip(path, tmp_path), path)


def test_pooled_vectors_areas_masks_and_timestep_ranges_survive(tmp_path: Path):
    positive = [
        *prompt(1, pooled_output=torch.randn(1, 1280), width=1024, height=768, crop_w=0),
        *prompt(2, area=(4, 8, 0, 0), strength=0.5, set_area_to_bounds=False),
        *prompt(3, area=("percentage", 0.5, 1.0, 0.0, 0.0), start_percent=0.2, end_percent=0.8),
        *prompt(4, mask=torch.rand(1, 64, 64), mask_strength=1.0, clip_end_percent=None),
        *prompt(5, attention_mask=torch.ones(1, 77, dtype=torch.int64)),
    ]
    path = a_path(positive=positive * 3)  # more than ten entries: "1." is a prefix of "11." too
    assert same(round_trip(path, tmp_path), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_of_a_prompt_is_kept(tmp_path: Path, dtype: torch.dtype):
    path = a_path(positive=[[torch.randn(1, 77, 16).to(dtype), {}]])
    assert same(round_trip(path, tmp_path), path)


def test_one_prompt_in_both_roles_and_views_of_larger_tensors_can_be_saved(tmp_path: Path):
    both = prompt(1)
    large = a_path()
    path = a_path(positive=both, negative=both, latents=large.latents[1:], sigmas=large.sigmas[1:])
    assert same(round_trip(path, tmp_path), path)
    strided = a_path(latents=torch.randn(4, 2, 6, 8, 4).movedim(-1, 2))
    assert same(round_trip(strided, tmp_path), strided)


def test_a_path_made_in_inference_mode_can_be_saved(tmp_path: Path):
    with torch.inference_mode():
        path = a_path()
    assert same(round_trip(path, tmp_path), path)


@pytest.mark.parametrize(
    "own",
    [
        (NullText(embeddings=torch.randn(3, 2, 77, 16), cfg=7.5),),
        (
            NullText(embeddings=torch.randn(1, 1, 77, 16), cfg=7.5),
            Proximal(norm="l1", quantile=0.6),
        ),
        (MaskBlend(mask=torch.rand(1, 64, 96)),),
        (
            NullText(embeddings=torch.randn(3, 2, 77, 16), cfg=7.5),
            MaskBlend(mask=torch.ones(2, 6, 8)),
        ),
    ],
    ids=["null text", "proximal", "mask", "null text and mask"],
)
def test_the_edits_that_a_path_begins_with_survive(tmp_path: Path, own: tuple):
    path = a_path(edits=own)
    assert same(round_trip(path, tmp_path), path)
    assert not same(round_trip(path, tmp_path), a_path())


@pytest.mark.parametrize("option", ["control", "hooks", "gligen"])
def test_a_prompt_that_a_file_cannot_hold_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, option: str
):
    path = a_path(positive=prompt(1, **{option: object()}))
    with pytest.raises(ValueError, match=f"holds '{option}', which a file cannot keep"):
        save_path(path, tmp_path / "path.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "path.safetensors"
    save_path(a_path(), file)
    before = file.read_bytes()

    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_path(a_path(cfg=3.0), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no file gone\.safetensors; save a path first"):
        load_path(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float):
    file = tmp_path / "path.safetensors"
    save_path(a_path(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept and kept < 1 else int(kept)])
    with pytest.raises(ValueError, match=r"path\.safetensors is damaged"):
        load_path(file)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    save_file({"weight": torch.ones(3)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"lora\.safetensors holds no diffusion path"):
        load_path(tmp_path / "lora.safetensors")
    (tmp_path / "picture.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    with pytest.raises(ValueError, match=r"picture\.safetensors is damaged or is no safetensors"):
        load_path(tmp_path / "picture.safetensors")


def rewritten(file: Path, drop: str | None = None, **metadata: str) -> Path:
    """The file with other metadata, or without one of its tensors."""
    with safe_open(file, framework="pt") as opened:
        kept = {name: opened.get_tensor(name) for name in opened.keys() if name != drop}  # noqa: SIM118
        told = {key: text for key, text in opened.metadata().items() if key != drop}
    save_file(kept, file, told | metadata)
    return file


def test_a_file_from_a_newer_version_is_refused_with_both_versions(tmp_path: Path):
    file = tmp_path / "path.safetensors"
    save_path(a_path(), file)
    rewritten(file, version=str(FILE_VERSION + 1))
    with pytest.raises(
        ValueError, match=f"version {FILE_VERSION + 1} .* reads {FILE_VERSION}; update"
    ):
        load_path(file)


@pytest.mark.parametrize("part", ["sigmas", "latents", "positive.0.embedding", "positive", "cfg"])
def test_a_file_that_lacks_a_part_is_refused(tmp_path: Path, part: str):
    file = tmp_path / "path.safetensors"
    save_path(a_path(), file)
    rewritten(file, drop=part)
    with pytest.raises(ValueError, match=r"path\.safetensors is not a whole path file"):
        load_path(file)


@pytest.mark.parametrize("text", ["{", "null", "[1]", '"text"', "7"])
@pytest.mark.parametrize("part", ["positive", "fingerprint"])
def test_a_file_with_nonsense_in_it_is_refused(tmp_path: Path, part: str, text: str):
    file = tmp_path / "path.safetensors"
    save_path(a_path(), file)
    rewritten(file, **{part: text})
    with pytest.raises(ValueError, match=r"path\.safetensors is not a whole path file"):
        load_path(file)


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path):
    file = tmp_path / "path.safetensors"
    header = json.dumps({"__metadata__": {"format": "diffusion_path"}}).encode()
    file.write_bytes(struct.pack("<Q", 1 << 40) + header)
    with pytest.raises(ValueError, match="is damaged"):
        load_path(file)
