"""A path's file: safetensors, with everything that is no tensor as JSON in its metadata."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.edit import Edit
from ..core.path import Conditioning, DiffusionPath
from ..edits.diffedit import MaskBlend
from ..edits.null_text import NullText
from ..edits.proximal import Proximal

FILE_FORMAT = "diffusion_path"
FILE_VERSION = 1


def save_path(path: DiffusionPath, file: Path) -> None:
    """Write `path` as safetensors, whole or not at all. The directory must exist.

    Raises:
        ValueError: the conditioning holds something that a file cannot (a ControlNet, hooks).
    """
    tensors = {"sigmas": path.sigmas, "latents": path.latents}
    metadata = {
        "format": FILE_FORMAT,
        "version": str(FILE_VERSION),
        "cfg": json.dumps(path.cfg),
        "fingerprint": json.dumps(path.fingerprint),
    }
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
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(tensors, temporary, metadata)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _pack_options(options: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict:
    """The plain values of `options`; its tensors go to `tensors` under "prefix.name"."""
    plain = {}
    for name, value in options.items():
        if torch.is_tensor(value):
            tensors[f"{prefix}.{name}"] = value
            continue
        try:
            plain[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            raise ValueError(
                f"the path's conditioning holds {name!r}, which a file cannot keep; "
                "make the path without it, or save the picture and the settings instead"
            ) from None
    return plain


def load_path(file: Path) -> DiffusionPath:
    """Read a path that `save_path` has written.

    Raises:
        ValueError: the file is missing, truncated, of another kind, or of a newer version.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file.name}; save a path first, or choose another")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:
        raise ValueError(
            f"{file.name} is damaged or is no safetensors file; save the path again"
        ) from None
    if metadata.get("format") != FILE_FORMAT:
        raise ValueError(f"{file.name} holds no diffusion path; choose a file from Save Path")
    version = metadata.get("version", "")
    if version != str(FILE_VERSION):
        raise ValueError(
            f"{file.name} has version {version} of the path format, this pack reads "
            f"{FILE_VERSION}; update ComfyUI-DiffusionPath"
        )
    try:
        return DiffusionPath(
            sigmas=tensors["sigmas"],
            latents=tensors["latents"],
            positive=_unpack_conditioning("positive", metadata, tensors),
            negative=(
                _unpack_conditioning("negative", metadata, tensors)
                if "negative" in metadata
                else None
            ),
            cfg=float(json.loads(metadata["cfg"])),
            fingerprint=dict(json.loads(metadata["fingerprint"])),
            edits=_edits(metadata, tensors),
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file.name} is not a whole path file; save the path again") from None


def _edits(metadata: dict[str, str], tensors: dict[str, Tensor]) -> tuple[Edit, ...]:
    edits: list[Edit] = []
    if "null_embeddings" in tensors:
        cfg = float(json.loads(metadata["cfg"]))
        edits.append(NullText(embeddings=tensors["null_embeddings"], cfg=cfg))
    if "proximal" in metadata:
        edits.append(Proximal(**json.loads(metadata["proximal"])))
    if "mask" in tensors:
        edits.append(MaskBlend(mask=tensors["mask"]))
    return tuple(edits)


def _unpack_conditioning(
    role: str, metadata: dict[str, str], tensors: dict[str, Tensor]
) -> Conditioning:
    conditioning = []
    for k, options in enumerate(json.loads(metadata[role])):
        prefix = f"{role}.{k}."
        options |= {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        if "area" in options:  # ComfyUI compares areas as tuples, and JSON knows lists only
            options["area"] = tuple(options["area"])
        conditioning.append([options.pop("embedding"), options])
    return conditioning
