"""A path's file: safetensors, with everything that is no tensor as JSON in its metadata."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.edit import Edit
from ..core.masks import check_mask
from ..core.path import Conditioning, DiffusionPath
from ..edits.diffedit import MaskBlend
from ..edits.null_text import NullText
from ..edits.proximal import NORMS, Proximal
from ..samplers.solvers import SOLVERS, STOCHASTIC

FILE_FORMAT = "diffusion_path"
FILE_VERSION = 1

LONGEST = 1 << 20
"""The most characters that a file's metadata may have under one name."""

ALMOST = 1e-3
"""How far a mask, which other nodes may have blurred or scaled, goes beyond 0 and 1 at most."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

PLAIN = (str, bool, int, float, type(None))
FRACTIONS = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent")
NUMBERS = (
    *("strength", "mask_strength", "guidance", "aesthetic_score", "noise_augmentation"),
    *("width", "height", "crop_w", "crop_h", "target_width", "target_height"),
)
TENSORS = (
    *("attention_mask", "cross_attn_controlnet", "denoise_mask"),
    *("concat_latent_image", "concat_mask", "concat_image"),
)
OBJECTS = (
    *("control", "hooks", "gligen", "model_conds", "cross_attn", "uuid"),
    *("timestep_start", "timestep_end", "latent_image", "latent_shapes"),
)
"""What options of a CONDITIONING have to be, by their names. OBJECTS live in ComfyUI only."""


def save_path(path: DiffusionPath, file: Path) -> None:
    """Write `path` as safetensors, whole or not at all. The directory must exist.

    Raises:
        ValueError: the path is not whole, or holds what a file cannot (a ControlNet, hooks).
    """
    tensors = {"sigmas": path.sigmas, "latents": path.latents}
    metadata = {
        "format": FILE_FORMAT,
        "version": str(FILE_VERSION),
        "cfg": json.dumps(path.cfg),
        "fingerprint": json.dumps(path.fingerprint),
    }
    if path.solver != "euler":
        metadata["solver"] = json.dumps(path.solver)
    if path.residuals is not None:
        tensors["residuals"] = path.residuals
    for edit in path.edits:
        if isinstance(edit, NullText):
            tensors["null_embeddings"] = edit.embeddings
        elif isinstance(edit, Proximal):
            metadata["proximal"] = json.dumps(asdict(edit))
        elif isinstance(edit, MaskBlend):
            tensors["mask"] = edit.mask
    for role in ("positive", "negative"):
        conditioning = getattr(path, role)
        if conditioning is not None:
            options = [
                _pack_options(dict(entry[1], embedding=entry[0]), f"{role}.{k}", tensors)
                for k, entry in enumerate(conditioning)
            ]
            metadata[role] = json.dumps(options)
    try:
        check_promises(path)
        for name, text in metadata.items():
            _check_length(name, text)
    except ValueError as error:
        raise ValueError(f"the path is not whole: {error}; make it again") from None
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    # A folder that is new and our own: no link can wait in it under the file's name.
    with tempfile.TemporaryDirectory(prefix=".", dir=file.parent) as folder:
        part = Path(folder) / "part"
        part.touch()
        mode = part.stat().st_mode  # as other files have it; safetensors lets only us read it
        save_file(tensors, part, metadata)
        part.chmod(mode)
        part.replace(file)


def _pack_options(options: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict:
    """The plain values of `options`; its tensors go to `tensors` under "prefix.name"."""
    plain = {}
    for name, value in options.items():
        if torch.is_tensor(value):
            tensors[f"{prefix}.{name}"] = value
            continue
        try:
            plain[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                f"the path's conditioning holds {name!r}, which a file cannot keep; "
                "make the path without it, or save the picture and the settings instead"
            ) from None
    return plain


def load_path(file: Path) -> DiffusionPath:
    """Read a path that `save_path` has written, and check all that a path promises.

    Raises:
        ValueError: the file is missing, truncated, of another kind, of a newer version, or holds
            what no path holds.
    """
    name = shown(file.name)
    try:
        if not file.is_file():
            raise ValueError(f"there is no file {name}; save a path first, or choose another")
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FILE_FORMAT:
                raise ValueError(f"{name} holds no diffusion path; choose a file from Save Path")
            # Copies: what is only mapped is lost when another program writes over the file.
            tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
    except OSError as error:
        raise ValueError(
            f"{name} cannot be read: {error.strerror or 'no reason is given'}; "
            "choose another file, or make this one readable"
        ) from None
    except (SafetensorError, AttributeError, RuntimeError, TypeError):
        raise ValueError(
            f"{name} is damaged or is no safetensors file; save the path again"
        ) from None
    version = metadata.get("version", "")
    if version != str(FILE_VERSION):
        raise ValueError(
            f"{name} has version {shown(version)} of the path format, this pack reads "
            f"{FILE_VERSION}; update ComfyUI-DiffusionPath"
        )
    try:
        path = _unpack(metadata, tensors)
        check_promises(path)
    except ValueError as error:
        raise ValueError(
            f"{name} is not a whole path file: {error}; save the path again, or choose another file"
        ) from None
    return path


def shown(text: str) -> str:
    """A text in quotes, without its middle if it is long, and all of it printable."""
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-17:]}")


def _unpack(metadata: dict[str, str], tensors: dict[str, Tensor]) -> DiffusionPath:
    """The path of a file, whose `tensors` are all used up."""
    cfg, fingerprint = _number("cfg", _parsed("cfg", metadata)), _parsed("fingerprint", metadata)
    edits: list[Edit] = []
    if "null_embeddings" in tensors:
        edits.append(NullText(embeddings=_floats("null_embeddings", tensors), cfg=cfg))
    if "proximal" in metadata:
        edits.append(_proximal(_parsed("proximal", metadata)))
    if "mask" in tensors:
        edits.append(MaskBlend(mask=_floats("mask", tensors)))
    path = DiffusionPath(
        sigmas=_floats("sigmas", tensors),
        latents=_floats("latents", tensors),
        positive=_unpack_conditioning("positive", metadata, tensors),
        negative=(
            _unpack_conditioning("negative", metadata, tensors) if "negative" in metadata else None
        ),
        cfg=cfg,
        fingerprint=fingerprint,
        edits=tuple(edits),
        solver=_parsed("solver", metadata) if "solver" in metadata else "euler",
        residuals=_floats("residuals", tensors) if "residuals" in tensors else None,
    )
    if tensors:
        raise ValueError(f"it holds {shown(min(tensors))}, which is no part of a path")
    return path


def _parsed(name: str, metadata: dict[str, str]) -> Any:
    """What the JSON under a name says."""
    if name not in metadata:
        raise ValueError(f"{name} is missing")
    _check_length(name, metadata[name])
    try:
        return json.loads(metadata[name])
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is no readable JSON") from None


def _check_length(name: str, text: str) -> None:
    if len(text) > LONGEST:
        raise ValueError(f"{name} has {len(text)} characters, and a file keeps {LONGEST} at most")


def _floats(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """Take a tensor of floating point numbers out of a file's, as float32."""
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    _check_dtype(name, tensors[name], FLOATS)
    return tensors.pop(name).float()


def _proximal(fields: Any) -> Proximal:
    """Proximal guidance of its fields; files of the first weeks know no dilation."""
    known = ("norm", "quantile", "reconstruction")
    if not isinstance(fields, dict) or {*fields} - {"dilation"} != {*known}:
        raise ValueError(f"proximal is not of {', '.join(known)} and dilation")
    return Proximal(**fields)


def _unpack_conditioning(
    role: str, metadata: dict[str, str], tensors: dict[str, Tensor]
) -> Conditioning:
    conditioning, parts = [], _parsed(role, metadata)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{role} is no list of prompts")
    for k, options in enumerate(parts):
        prefix = f"{role}.{k}."
        for name in [name for name in tensors if name.startswith(prefix)]:
            option = name.removeprefix(prefix)
            if option in options:
                raise ValueError(f"{shown(name)} is there twice")
            options[option] = tensors.pop(name)
        if isinstance(options.get("area"), list):  # ComfyUI compares areas as tuples
            options["area"] = tuple(options["area"])
        conditioning.append([options.pop("embedding", None), options])
    return conditioning


def check_promises(path: DiffusionPath) -> None:
    """Raise ValueError, with no more than what is wrong, if a path is not what it should be."""
    _check_tensor("sigmas", path.sigmas, range(1, 2))
    if path.steps < 1:
        raise ValueError("sigmas holds one noise level, and a path has two or more")
    if not bool((path.sigmas[1:] < path.sigmas[:-1]).all()) or float(path.sigmas[-1]) < 0:
        raise ValueError("sigmas does not fall at every step, or below 0")
    _check_tensor("latents", path.latents, range(4, 7))
    if len(path.latents) != path.steps + 1:
        raise ValueError(
            f"there are {len(path.latents)} latents for {path.steps + 1} noise levels in sigmas"
        )
    if path.solver not in SOLVERS:
        raise ValueError(f"there is no solver {shown(str(path.solver))}")
    if path.residuals is not None:
        _check_tensor("residuals", path.residuals, range(4, 7))
        if path.residuals.shape != path.latents[:-1].shape or path.solver not in STOCHASTIC:
            raise ValueError("residuals do not belong to these latents and this solver")
    _number("cfg", path.cfg)
    _check_fingerprint(path.fingerprint, path.latents.shape[2])
    nulls = [edit for edit in path.edits if isinstance(edit, NullText)]
    if path.negative is None and (path.cfg != 1 or nulls):
        raise ValueError("negative is missing, which this path's guidance needs")
    width = path.fingerprint["text width"]
    for role in ("positive", "negative"):
        conditioning = getattr(path, role)
        if conditioning is not None:
            _check_conditioning(role, conditioning, path.latents, width)
    for edit in path.edits:
        if isinstance(edit, NullText):
            _check_null_embeddings(edit.embeddings, path, width)
        elif isinstance(edit, Proximal):
            _check_proximal(edit)
        elif isinstance(edit, MaskBlend) and (edit.start, edit.end) == (0, 1):
            _check_own_mask(edit.mask, path)
        else:
            raise ValueError(f"it brings {type(edit).__name__}, which a file cannot keep")


def _check_dtype(name: str, tensor: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    if not torch.is_tensor(tensor):
        raise ValueError(f"{shown(name)} is no tensor")
    if tensor.dtype not in dtypes:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{shown(name)} holds {kind} numbers, which it cannot")
    if not tensor.numel():
        raise ValueError(f"{shown(name)} is empty")


def _check_tensor(name: str, tensor: Any, dimensions: range) -> None:
    """Raise if something is no tensor of finite fractions with as many dimensions."""
    _check_dtype(name, tensor, FLOATS)
    if tensor.ndim not in dimensions:
        few, many = dimensions[0], dimensions[-1]
        wanted = str(few) if few == many else f"{few} to {many}"
        raise ValueError(f"{shown(name)} has {tensor.ndim} dimensions in place of {wanted}")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise ValueError(f"{shown(name)} holds NaN or infinite values")


def _is_number(value: Any, low: float = -1e9, high: float = 1e9) -> bool:
    """Whether something is a number between two others; NaN is between none."""
    return type(value) in (int, float) and low <= value <= high


def _number(name: str, value: Any, low: float = -1e9, high: float = 1e9) -> float:
    if not _is_number(value, low, high):
        raise ValueError(f"{shown(name)} is {shown(str(value))} in place of a number")
    return float(value)


def _check_fingerprint(fingerprint: Any, channels: int) -> None:
    """Raise if a fingerprint lacks something, or is of a model with other channels.

    Files of the first weeks have only the first five.
    """

    def is_size(value: Any) -> bool:
        return type(value) is int and value > 0

    kinds: dict[str, Callable[[Any], bool]] = {
        "model": lambda value: isinstance(value, str),
        "latent format": lambda value: isinstance(value, str),
        "latent channels": lambda value: is_size(value) and value == channels,
        "text width": lambda value: value is None or is_size(value),
        "flow": lambda value: isinstance(value, bool),
        "highest noise level": lambda value: _is_number(value, 0),
        "sigma_data": lambda value: _is_number(value, 0),
        "noise scale": lambda value: _is_number(value, 0),
    }
    if not isinstance(fingerprint, dict):
        raise ValueError("fingerprint is not what a model is known by")
    for name, fits in kinds.items():
        if name not in fingerprint and name in (*kinds,)[:5]:
            raise ValueError(f"the {name} of its model is missing")
        if name in fingerprint and not fits(fingerprint[name]):
            raise ValueError(f"its model's {name} is {shown(str(fingerprint[name]))}")
    for name, value in fingerprint.items():
        if not isinstance(value, PLAIN):
            raise ValueError(f"{shown(name)} of its model is no plain value")


def _check_conditioning(
    role: str, conditioning: Conditioning, latents: Tensor, width: int | None
) -> None:
    """Raise if a CONDITIONING has no part, or one that ComfyUI cannot work with."""
    if not conditioning:
        raise ValueError(f"{role} holds no prompt")
    for k, (embedding, options) in enumerate(conditioning):
        name = f"{role}.{k}.embedding"
        _check_tensor(name, embedding, range(3, 4))
        if width is not None and embedding.shape[-1] != width:
            raise ValueError(
                f"{shown(name)} is {embedding.shape[-1]} wide, and its model reads {width}"
            )
        for option, value in options.items():
            _check_option(f"{role}.{k}.{option}", option, value, latents)
        if ("clip_start_percent" in options) != ("clip_end_percent" in options):
            raise ValueError(f"{role} has one of clip_start_percent and clip_end_percent only")


def _check_option(name: str, option: str, value: Any, latents: Tensor) -> None:
    """Raise if an option of a CONDITIONING is not of its kind; latents are (N + 1, B, C, ...)."""
    places = latents.ndim - 3
    if value is None and option in (*TENSORS, "pooled_output"):
        return  # as if it was not there: a text encoder without a pooled vector says so
    if option in OBJECTS:
        raise ValueError(f"{shown(name)} is nothing that a file can keep")
    if option == "area":
        _check_area(name, value, latents.shape[3:])
    elif option == "pooled_output":
        _check_tensor(name, value, range(2, 3))
    elif option == "mask":
        _check_tensor(name, value, range(max(places, 1), places + 2))
        masks = 1 if value.ndim == places else min(len(value), latents.shape[1])
        if latents.shape[1] % masks:
            raise ValueError(f"{shown(name)} holds {masks} masks for {latents.shape[1]} images")
    elif option in FRACTIONS:
        _number(name, value, 0, 1)
    elif option in NUMBERS:
        _number(name, value)
    elif torch.is_tensor(value) or option in TENSORS:
        _check_dtype(name, value, (*FLOATS, *COUNTS))


def _check_area(name: str, area: Any, sizes: torch.Size) -> None:
    """Raise if a part of the picture, as ComfyUI reads it, is not in the picture."""
    numbers = area if isinstance(area, tuple) else ()
    part = numbers[:1] == ("percentage",)
    numbers = numbers[part:]
    half, wrong = len(numbers) // 2, ValueError(f"{shown(name)} is no part of the picture")
    if len(numbers) % 2 or not half or (half < len(sizes) if part else half > len(sizes)):
        raise wrong
    if not all(_is_number(one, 0) and (part or type(one) is int) for one in numbers):
        raise wrong
    last = min(half, len(sizes))  # without the first dimensions it is all of them
    for d in range(last):
        place = d + len(sizes) - last
        size, offset = numbers[d], numbers[half + d]
        if part:
            size = max(1, round(size * sizes[place]))
            offset = round(offset * sizes[place])
        if size < 1 or offset >= sizes[place]:
            raise wrong


def _check_null_embeddings(embeddings: Tensor, path: DiffusionPath, width: int | None) -> None:
    """Raise if null-text embeddings are not (N or 1, B or 1, tokens, width)."""
    _check_tensor("null_embeddings", embeddings, range(4, 5))
    steps, batch, _, wide = embeddings.shape
    if steps not in (1, path.steps) or batch not in (1, path.latents.shape[1]):
        raise ValueError(
            f"null_embeddings is for {steps} steps of {batch} images, and the path has "
            f"{path.steps} of {path.latents.shape[1]}"
        )
    if width is not None and wide != width:
        raise ValueError(f"null_embeddings is {wide} wide, and its model reads {width}")


def _check_proximal(edit: Proximal) -> None:
    if not isinstance(edit.norm, str) or edit.norm not in NORMS:
        raise ValueError(f"proximal's norm is {shown(str(edit.norm))}, which is unknown")
    _number("proximal's quantile", edit.quantile, 0, 1)
    _number("proximal's reconstruction", edit.reconstruction, 0, 1)
    if type(edit.dilation) is not int or not 0 <= edit.dilation <= 32:
        raise ValueError(f"proximal's dilation is {shown(str(edit.dilation))}")


def _check_own_mask(mask: Tensor, path: DiffusionPath) -> None:
    _check_tensor("mask", mask, range(3, 4))
    if float(mask.min()) < -ALMOST or float(mask.max()) > 1 + ALMOST:
        raise ValueError("mask is not between 0 and 1")
    try:
        check_mask(mask, path)
    except ValueError as error:
        raise ValueError(str(error).partition(";")[0]) from None
