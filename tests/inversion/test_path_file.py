"""The path file: what goes in comes out, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.diffedit import MaskBlend
from diffusion_path.edits.null_text import NullText
from diffusion_path.edits.proximal import Proximal
from diffusion_path.inversion.path_file import FILE_VERSION, load_path, save_path
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import edited, results

VERSION_1 = Path(__file__).parent / "data" / "path_version_1.safetensors"
"""Negative-prompt inversion of two steps on `tiny_models.sd15`, saved before the fingerprint knew
of noise levels and proximal guidance of dilation."""

FINGERPRINT = {
    "model": "BaseModel",
    "latent format": "SD15",
    "latent channels": 4,
    "text width": 16,
    "flow": False,
    "highest noise level": 14.6,
    "sigma_data": 1.0,
    "noise scale": 1.0,
}


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
            "fingerprint": FINGERPRINT,
        }
        | changes
    )


def same(a: Any, b: Any) -> bool:
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


def refusal(file: Path) -> str:
    """What is said of a file that is no path: a single sentence, to which the node adds its end."""
    with pytest.raises(ValueError) as refused:
        load_path(file)
    message = str(refused.value)
    assert message.isprintable() and len(message) < 400, message
    assert not re.search(r"[.!?](?:\s|$)", message), message
    assert re.search(r"; (save|choose|update)", message), message
    assert file.name[:10] in message
    return message


def test_a_loaded_path_is_the_saved_one_bit_for_bit(tmp_path: Path):
    assert same(round_trip(a_path(), tmp_path), a_path())


def test_a_path_without_a_negative_has_none_after_loading(tmp_path: Path):
    path = a_path(negative=None, cfg=1.0)
    assert same(round_trip(path, tmp_path), path)


def test_the_edits_that_a_path_brings_survive(tmp_path: Path):
    own = NullText(embeddings=torch.randn(3, 2, 77, 16), cfg=7.5)
    proximal = Proximal(norm="l1", quantile=0.5, reconstruction=1.0, dilation=2)
    path = a_path(edits=(own, proximal, MaskBlend(mask=torch.rand(2, 6, 8))))
    assert same(round_trip(path, tmp_path), path)


@pytest.mark.parametrize("shape", [(4, 2, 4, 6), (4, 2, 4, 3, 6, 8)])
def test_paths_of_sounds_and_videos_can_be_saved(tmp_path: Path, shape: tuple):
    path = a_path(latents=torch.randn(shape))
    assert same(round_trip(path, tmp_path), path)


def test_pooled_vectors_areas_masks_and_timestep_ranges_survive(tmp_path: Path):
    positive = [
        *prompt(1, pooled_output=torch.randn(1, 1280), width=1024, height=768, crop_w=0),
        *prompt(2, area=(4, 8, 0, 0), strength=0.5, set_area_to_bounds=False),
        *prompt(3, area=("percentage", 0.5, 1.0, 0.0, 0.0), start_percent=0.2, end_percent=0.8),
        *prompt(4, mask=torch.rand(1, 64, 64), mask_strength=1.0, some_option=None),
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


@pytest.mark.parametrize("option", ["control", "hooks", "gligen"])
def test_a_prompt_that_a_file_cannot_hold_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, option: str
):
    path = a_path(positive=prompt(1, **{option: object()}))
    with pytest.raises(ValueError, match=f"holds '{option}', which a file cannot keep"):
        save_path(path, tmp_path / "path.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latents": torch.full((4, 2, 4, 6, 8), torch.nan)}, "'latents' holds NaN"),
        ({"negative": None}, "negative is missing"),
        ({"edits": (MaskBlend(mask=torch.ones(1, 6, 8), end=0.5),)}, "it brings MaskBlend"),
        ({"positive": prompt(1, note="x" * (1 << 20))}, "positive has .* at most"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_written(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ValueError, match=f"^the path is not whole: {said}"):
        save_path(a_path(**changes), tmp_path / "path.safetensors")
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


def test_a_link_that_waits_under_the_files_name_is_replaced_and_not_followed(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    file = tmp_path / "path.safetensors"
    file.symlink_to(tmp_path / "precious")
    save_path(a_path(), file)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not file.is_symlink() and same(load_path(file), a_path())


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such rights")
def test_a_saved_file_can_be_read_by_whoever_can_read_other_files(tmp_path: Path):
    save_path(a_path(), tmp_path / "path.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "path.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_loaded_path_stays_as_it_is_when_its_file_is_written_over(tmp_path: Path):
    loaded = round_trip(a_path(), tmp_path)
    file = tmp_path / "path.safetensors"
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert same(loaded, a_path())


def test_a_missing_file_is_named(tmp_path: Path):
    assert "there is no file 'gone.safetensors'" in refusal(tmp_path / "gone.safetensors")


def test_a_folder_or_a_pipe_in_a_files_place_is_no_file(tmp_path: Path):
    (tmp_path / "folder.safetensors").mkdir()
    assert "there is no file" in refusal(tmp_path / "folder.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        assert "there is no file" in refusal(tmp_path / "pipe.safetensors")


def test_a_name_that_no_file_can_have_is_shortened_and_refused(tmp_path: Path):
    assert "cannot be read" in refusal(tmp_path / ("long" * 1000))
    assert "there is no file" in refusal(tmp_path / "half a letter \ud800")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float):
    file = tmp_path / "path.safetensors"
    save_path(a_path(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept and kept < 1 else int(kept)])
    assert "'path.safetensors' is damaged" in refusal(file)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    save_file({"weight": torch.ones(3)}, tmp_path / "lora.safetensors")
    assert "holds no diffusion path" in refusal(tmp_path / "lora.safetensors")
    (tmp_path / "picture.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    assert "is damaged or is no safetensors" in refusal(tmp_path / "picture.safetensors")


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path: Path):
    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"latents": Hostile()}, tmp_path / "pickle.safetensors")
    with pytest.raises(ValueError, match=r"damaged or is no safetensors file"):
        load_path(tmp_path / "pickle.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path):
    file = tmp_path / "path.safetensors"
    header = json.dumps({"__metadata__": {"format": "diffusion_path"}}).encode()
    file.write_bytes(struct.pack("<Q", 1 << 40) + header)
    assert "is damaged" in refusal(file)


@pytest.mark.parametrize("kind", ["F8_E8M0", "F4", "F6_E2M3", "C64", "U64", "nonsense"])
def test_numbers_of_a_strange_kind_are_refused(tmp_path: Path, kind: str):
    file = tmp_path / "path.safetensors"
    told = {"format": "diffusion_path", "version": "1"}
    sigmas = {"dtype": kind, "shape": [8], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": told, "sigmas": sigmas}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refusal(file)


class Content:
    """What is in a file: tensors, and metadata as what its JSON says."""

    def __init__(self, file: Path) -> None:
        """Read a file."""
        with safe_open(file, framework="pt") as opened:
            self.tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            told = opened.metadata()
        self.texts = {name: told.pop(name) for name in ("format", "version")}
        self.told = {name: json.loads(text) for name, text in told.items()}

    def write(self, file: Path) -> Path:
        """Write it as a file."""
        texts = {name: json.dumps(value) for name, value in self.told.items()} | self.texts
        tensors = {name: tensor.clone().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, file, texts)
        return file

    def option(self, name: str, value: Any) -> None:
        """Set an option of the source prompt."""
        self.tensors.pop(f"positive.0.{name}", None)
        self.told["positive"][0].pop(name, None)
        if torch.is_tensor(value):
            self.tensors[f"positive.0.{name}"] = value
        else:
            self.told["positive"][0][name] = value


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


@pytest.fixture(scope="module")
def rich(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a path that has everything a path can have."""
    source = tiny_models.conditioning(16, tokens=4, seed=3, pooled=8)
    source[0][1] |= {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "width": 96}
    source[0][1] |= {"area": (8, 12, 0, 0), "mask": torch.ones(1, 8, 12), "mask_strength": 1.0}
    generator = torch.Generator().manual_seed(0)
    picture = {
        "samples": torch.randn(2, 4, 8, 12, generator=generator),
        "noise_mask": torch.ones(1, 1, 64, 96),
    }
    inputs = {"positive": source, "latent_image": picture, "steps": 2}
    path = results("DDIMInversion", model=model, **inputs)[0]
    path = results("NegativePromptInversion", path=path, proximal="l0")[0]
    file = tmp_path_factory.mktemp("rich") / "rich.safetensors"
    save_path(path, file)
    return file


def walked(model: Any, path: DiffusionPath) -> torch.Tensor:
    """The latent (B, C, H, W) of an edit that asks for the source's prompt too."""
    target, negative = (tiny_models.conditioning(16, tokens=4, seed=seed) for seed in (4, 5))
    for one in (target, negative):
        one[0][1]["pooled_output"] = torch.ones(1, 8)
    edits = results("MDPGuidance", weight=0.7)[0]
    return edited(model, path, target, negative, cfg=3.0, edits=edits)


def walks_or_is_refused(model: Any, path: DiffusionPath) -> bool:
    """Whether an edit of a path comes to an end; if not, a single sentence says why."""
    try:
        latent = walked(model, path)
    except ValueError as error:
        message = str(error)
        assert message.startswith("Edit Picture (Diffusion Path Sampler): "), message
        assert message.endswith("."), message
        assert len(re.findall(r"[.!?](?:\s|$)", message)) == 1, message
        return False
    assert bool(torch.isfinite(latent).all())
    return True


def test_a_path_with_everything_walks_after_loading(model: Any, rich: Path):
    assert walks_or_is_refused(model, load_path(rich))


def test_a_file_of_version_1_still_loads_and_walks(model: Any):
    path = load_path(VERSION_1)
    assert path.steps == 2 and path.latents.shape == (3, 1, 4, 8, 12) and path.cfg == 1
    torch.testing.assert_close(
        path.sigmas, torch.tensor([1.6237, 0.0413, 0.0292]), atol=1e-4, rtol=0
    )
    assert path.latents.sum() == pytest.approx(-131.319, abs=1e-3)
    own, proximal = path.edits
    assert same(own.embeddings, path.positive[0][0][None])
    assert proximal == Proximal(norm="l1", quantile=0.5, reconstruction=0.6)
    assert path.positive[0][1].keys() == {"pooled_output", "start_percent", "end_percent"}
    assert walks_or_is_refused(model, path)


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Content], None]:
    def corrupt(content: Content) -> None:
        content.tensors[name] = change(content.tensors[name])

    return corrupt


def told(*place: Any, value: Any) -> Callable[[Content], None]:
    def corrupt(content: Content) -> None:
        inner: Any = content.told
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    return corrupt


def option(name: str, value: Any) -> Callable[[Content], None]:
    return lambda content: content.option(name, value)


def text(name: str, value: str) -> Callable[[Content], None]:
    return lambda content: content.texts.update({name: value})


def without(name: str) -> Callable[[Content], None]:
    return lambda content: (content.tensors.pop(name, None), content.told.pop(name, None))


def with_one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


CORRUPTIONS = {
    "no sigmas": without("sigmas"),
    "one sigma": tensor("sigmas", lambda one: one[:1]),
    "no sigma at all": tensor("sigmas", lambda one: one[:0]),
    "sigmas in a table": tensor("sigmas", lambda one: one[None]),
    "sigmas that rise": tensor("sigmas", lambda one: one.flip(0)),
    "two sigmas alike": tensor("sigmas", lambda one: one[[0, 1, 1]]),
    "a sigma that is NaN": tensor("sigmas", with_one(torch.nan)),
    "a sigma below 0": tensor("sigmas", with_one(-1.0)),
    "an infinite sigma": tensor("sigmas", lambda one: one + torch.tensor([torch.inf, 0, 0])),
    "whole sigmas": tensor("sigmas", lambda one: torch.tensor([3, 2, 1])),
    "sigmas that meet in float32": tensor(
        "sigmas", lambda one: torch.tensor([1 + 1e-12, 1, 0.5], dtype=torch.float64)
    ),
    "no latents": without("latents"),
    "a latent too few": tensor("latents", lambda one: one[1:]),
    "no pictures": tensor("latents", lambda one: one[:, :0]),
    "no pixels": tensor("latents", lambda one: one[..., :0]),
    "latents without places": tensor("latents", lambda one: one[..., 0, 0]),
    "latents of too many dimensions": tensor("latents", lambda one: one[..., None, None]),
    "complex latents": tensor("latents", lambda one: one.to(torch.complex64)),
    "float8 latents": tensor("latents", lambda one: one.to(torch.float8_e4m3fn)),
    "yes and no as latents": tensor("latents", lambda one: one > 0),
    "a latent that is NaN": tensor("latents", with_one(torch.nan)),
    "latents beyond float32": tensor("latents", lambda one: one.double() * 1e300),
    "other channels than its model": tensor("latents", lambda one: one[:, :, :3]),
    "no source prompt": without("positive"),
    "a source prompt of no part": told("positive", value=[]),
    "a source prompt that is a dict": told("positive", value={}),
    "a source prompt of numbers": told("positive", value=[1]),
    "no embedding": without("positive.0.embedding"),
    "an embedding that is a word": told("negative", 0, "embedding", value="cat"),
    "a flat embedding": tensor("positive.0.embedding", lambda one: one[0]),
    "an embedding of no token": tensor("positive.0.embedding", lambda one: one[:, :0]),
    "whole embeddings": tensor("positive.0.embedding", lambda one: one.long()),
    "an embedding with NaN": tensor("negative.0.embedding", with_one(torch.nan)),
    "an embedding of another width": tensor("positive.0.embedding", lambda one: one[..., :8]),
    "no negative for its embeddings": without("negative"),
    "an unreadable prompt": text("positive", "{"),
    "a prompt of brackets": text("positive", "[" * 100_000),
    "an endless prompt": text("positive", "[" + " " * (2 << 20) + "]"),
    "pooled vectors in a stack": tensor("positive.0.pooled_output", lambda one: one[None]),
    "a pooled number": option("pooled_output", 3),
    "an area of words": option("area", ["a", "b"]),
    "an area of three numbers": option("area", [1, 2, 3]),
    "an area of fractions": option("area", [0.5, 0.5, 0.0, 0.0]),
    "a video's area": option("area", [1, 8, 8, 0, 0, 0]),
    "an empty area": option("area", []),
    "an area outside": option("area", [8, 8, 8, 0]),
    "an area of no size": option("area", [0, 8, 0, 0]),
    "an area to the left": option("area", [8, 8, -1, 0]),
    "a part that is no part": option("area", ["percentage", 1.0, 1.0]),
    "a part outside": option("area", ["percentage", 0.5, 0.5, 1.0, 0.0]),
    "a part of words": option("area", ["percentage", "a", 1.0, 0.0, 0.0]),
    "an area that is a number": option("area", 5),
    "a strong word": option("strength", "strong"),
    "no strength": option("strength", None),
    "endless strength": option("strength", 1e400),
    "strength of NaN": option("strength", float("nan")),
    "strength of 400 digits": option("strength", 10**400),
    "a start beyond the end": option("start_percent", 1.5),
    "an end that is a word": option("end_percent", "late"),
    "an end that is true": option("end_percent", True),
    "a mask that is a word": option("mask", "mask"),
    "a mask of lines": option("mask", torch.ones(3)),
    "a mask of whole numbers": option("mask", torch.ones(1, 8, 12, dtype=torch.int32)),
    "a mask with NaN": tensor("positive.0.mask", with_one(torch.nan)),
    "a mask without pixels": option("mask", torch.ones(1, 0, 12)),
    "a mask_strength list": option("mask_strength", [1.0]),
    "a width that is a word": option("width", "wide"),
    "half a clip range": option("clip_start_percent", 0.5),
    "a control net": option("control", 5),
    "hooks": option("hooks", {"a": 1}),
    "gligen": option("gligen", ["position"]),
    "model_conds": option("model_conds", {"c_crossattn": 1}),
    "a complex option": option("something", torch.ones(2, dtype=torch.complex64)),
    "an empty option": option("something", torch.ones(0)),
    "no cfg": without("cfg"),
    "cfg in words": told("cfg", value="high"),
    "cfg of NaN": told("cfg", value=float("nan")),
    "endless cfg": told("cfg", value=float("inf")),
    "cfg in a list": told("cfg", value=[7.5]),
    "cfg of too many digits": text("cfg", "9" * 10_000),
    "no fingerprint": without("fingerprint"),
    "an empty fingerprint": told("fingerprint", value={}),
    "a fingerprint that is a list": told("fingerprint", value=[["model", "BaseModel"]]),
    "a deep fingerprint": told("fingerprint", "model", value={"name": "BaseModel"}),
    "more in the fingerprint": told("fingerprint", "more", value=[1]),
    "channels in words": told("fingerprint", "latent channels", value="four"),
    "a width below 0": told("fingerprint", "text width", value=-16),
    "flow in words": told("fingerprint", "flow", value="no"),
    "a highest level of NaN": told("fingerprint", "highest noise level", value=float("nan")),
    "null embeddings for more steps": tensor(
        "null_embeddings", lambda one: one.expand(3, -1, -1, -1)
    ),
    "null embeddings for more pictures": tensor(
        "null_embeddings", lambda one: one.expand(-1, 3, -1, -1)
    ),
    "null embeddings in three dimensions": tensor("null_embeddings", lambda one: one[0]),
    "null embeddings of another width": tensor("null_embeddings", lambda one: one[..., :8]),
    "null embeddings with NaN": tensor("null_embeddings", with_one(torch.nan)),
    "null embeddings of no token": tensor("null_embeddings", lambda one: one[:, :, :0]),
    "whole null embeddings": tensor("null_embeddings", lambda one: one.long()),
    "another norm": told("proximal", "norm", value="l2"),
    "a norm in a list": told("proximal", "norm", value=["l0"]),
    "a quantile above 1": told("proximal", "quantile", value=1.5),
    "a quantile in words": told("proximal", "quantile", value="most"),
    "a reconstruction below 0": told("proximal", "reconstruction", value=-0.5),
    "half a dilation": told("proximal", "dilation", value=0.5),
    "a dilation below 0": told("proximal", "dilation", value=-1),
    "a dilation past all": told("proximal", "dilation", value=10**6),
    "more of proximal": told("proximal", "more", value=1),
    "proximal in a list": told("proximal", value=["l0", 0.7, 0.6]),
    "no proximal at all": told("proximal", value=None),
    "an own mask that is flat": tensor("mask", lambda one: one[0]),
    "an own mask above 1": tensor("mask", with_one(2.0)),
    "an own mask below 0": tensor("mask", with_one(-1.0)),
    "an own mask with NaN": tensor("mask", with_one(torch.nan)),
    "an own mask for three pictures": tensor("mask", lambda one: one.expand(3, -1, -1)),
    "an own mask of other proportions": tensor("mask", lambda one: one[:, :, :64]),
    "an own mask of no pixel": tensor("mask", lambda one: one[:, :0]),
    "a whole own mask": tensor("mask", lambda one: one.long()),
    "a tensor too many": lambda content: content.tensors.update(more=torch.ones(2)),
    "a prompt's part too many": lambda content: content.tensors.update(
        {"positive.1.embedding": torch.ones(1, 4, 16)}
    ),
    "no version": text("version", ""),
    "a version in words": text("version", "one" * 1000),
    "the next version": text("version", str(FILE_VERSION + 1)),
    "another format": text("format", "lora"),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_file_with_one_thing_wrong_in_it_is_refused_in_one_sentence(
    rich: Path, tmp_path: Path, corruption: str
):
    content = Content(rich)
    CORRUPTIONS[corruption](content)
    refusal(content.write(tmp_path / "path.safetensors"))


def test_a_newer_version_is_refused_with_both_versions(rich: Path, tmp_path: Path):
    content = Content(rich)
    content.texts["version"] = str(FILE_VERSION + 1)
    said = refusal(content.write(tmp_path / "path.safetensors"))
    assert f"version '{FILE_VERSION + 1}'" in said and f"reads {FILE_VERSION}; update" in said


HARMLESS = {
    "half precision": tensor("latents", lambda one: one.half()),
    "double precision": tensor("sigmas", lambda one: one.double()),
    "a prompt in bfloat16": tensor("positive.0.embedding", lambda one: one.bfloat16()),
    "an area larger than the picture": option("area", [64, 64, 4, 4]),
    "a part of the picture": option("area", ["percentage", 0.5, 1.0, 0.5, 0.0]),
    "a mask without a batch": option("mask", torch.ones(16, 24)),
    "a part of the schedule": option("start_percent", 0.5),
    "no pooled vector": option("pooled_output", None),
    "no mask of tokens": option("attention_mask", None),
    "an option that nobody knows": option("something", {"deep": ["down", 1, None]}),
    "a tensor that nobody knows": option("something", torch.ones(2, 3)),
    "a note of somebody's": text("note", "[" * 1000),
    "embeddings for each step": tensor("null_embeddings", lambda one: one.repeat(2, 2, 1, 1)),
    "a mask that was scaled": tensor("mask", with_one(1.0001)),
    "no proximal": without("proximal"),
    "another prompt's length": tensor("negative.0.embedding", lambda one: one.repeat(1, 3, 1)),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_is_unusual_and_right_walks(model: Any, rich: Path, tmp_path: Path, change: str):
    content = Content(rich)
    HARMLESS[change](content)
    path = load_path(content.write(tmp_path / "path.safetensors"))
    assert path.latents.dtype == path.sigmas.dtype == torch.float32
    assert walks_or_is_refused(model, path)


OTHER_SHAPES = {
    "a video": lambda one: one[:, :, :, None],
    "a sound": lambda one: one[..., 0],
}


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_a_path_of_another_shape_than_the_model_s_is_refused_by_the_sampler(
    model: Any, rich: Path, tmp_path: Path, shape: str
):
    content = Content(rich)
    tensor("latents", OTHER_SHAPES[shape])(content)
    without("mask")(content)
    for role in ("positive", "negative"):
        told(role, value=[{}])(content)
        without(f"{role}.0.mask")(content)
    path = load_path(content.write(tmp_path / "path.safetensors"))
    assert not walks_or_is_refused(model, path)


STRANGE = [None, True, -1, 3, 0.5, 1e300, "l1", [], {"a": []}]
CHANGES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda one: one[:1],
    lambda one: one[..., :1],
    lambda one: one[..., :-1],
    lambda one: one[0],
    lambda one: one[None],
    lambda one: one.repeat(3, *[1] * (one.ndim - 1)),
    lambda one: one * 1e6,
    lambda one: one * 0,
    lambda one: -one,
    lambda one: one.transpose(0, -1),
]


def leaves(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Where in nested lists and dicts there is a value, inner ones and outer ones."""
    if place:
        yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        if isinstance(one, dict | list):
            yield from leaves(one, (*place, key))
        else:
            yield (*place, key)


def test_whatever_can_be_loaded_walks_or_is_refused_by_the_sampler_in_one_sentence(
    model: Any, rich: Path, tmp_path: Path
):
    whole = Content(rich)
    changes = [told(*place, value=value) for place in leaves(whole.told) for value in STRANGE]
    changes += [tensor(name, change) for name in whole.tensors for change in CHANGES]
    counts = {"walked": 0, "refused by the sampler": 0, "refused": 0}
    for change in changes:
        content = Content(rich)
        change(content)
        file = content.write(tmp_path / "path.safetensors")
        try:
            path = load_path(file)
        except ValueError:
            refusal(file)
            counts["refused"] += 1
            continue
        counts["walked" if walks_or_is_refused(model, path) else "refused by the sampler"] += 1
    assert counts["walked"] > 20 and counts["refused"] > 200, counts
