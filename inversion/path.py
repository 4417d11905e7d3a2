"""The diffusion path: the latents that lead from noise to one image, and the file they go in."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .negative_prompt import Proximal

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: pairs of an embedding (B, tokens, width) and a dict of options."""


FILE_FORMAT = "diffusion_path"
FILE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class DiffusionPath:
    """A source image's way from noise to clean, to be replayed or edited.

    Attributes:
        sigmas: noise levels (N + 1,), strictly falling.
        latents: the source latent at each of them (N + 1, B, C, ...), float32, in the scale of a
            LATENT on a wire. The last one is the image.
        positive: the source prompt's conditioning.
        negative: the negative conditioning the path was made with; None at guidance 1.
        cfg: the guidance scale the path was made with.
        fingerprint: what a model must have in common with the one that made the path.
        null_embeddings: in place of the embedding of `negative`, one for each step (N or 1, B or
            1, tokens, width), with which guidance `cfg` leads back to the image: from null-text
            or negative-prompt inversion. None if the path has none.
        proximal: how to tame guidance on this path; None is not at all.
    """

    sigmas: Tensor
    latents: Tensor
    positive: Conditioning
    negative: Conditioning | None
    cfg: float
    fingerprint: dict[str, Any]
    null_embeddings: Tensor | None = None
    proximal: Proximal | None = None

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.sigmas) - 1

    @property
    def clean(self) -> Tensor:
        """The image's latent (B, C, ...)."""
        return self.latents[-1]

    def derivative(self, i: int) -> Tensor:
        """dx/dsigma of step `i` (B, C, ...), exact for whatever made the path; no network call."""
        return (self.latents[i + 1] - self.latents[i]) / (self.sigmas[i + 1] - self.sigmas[i])

    def denoised(self, i: int) -> Tensor:
        """The clean image (B, C, ...) that step `i` was heading for: D = x - sigma * d."""
        return self.latents[i] - self.sigmas[i] * self.derivative(i)

    def null_embedding(self, i: int) -> Tensor | None:
        """The embedding (B or 1, tokens, width) that takes the negative's place at step `i`."""
        if self.null_embeddings is None:
            return None
        return self.null_embeddings[min(i, len(self.null_embeddings) - 1)]

    def null_embeddings_from(self, first: int) -> Tensor | None:
        """The embeddings of the steps from `first` on."""
        if self.null_embeddings is None or len(self.null_embeddings) == 1:
            return self.null_embeddings
        return self.null_embeddings[first:]


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
    if path.null_embeddings is not None:
        tensors["null_embeddings"] = path.null_embeddings
    if path.proximal is not None:
        metadata["proximal"] = json.dumps(asdict(path.proximal))
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
            null_embeddings=tensors.get("null_embeddings"),
            proximal=(
                Proximal(**json.loads(metadata["proximal"])) if "proximal" in metadata else None
            ),
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file.name} is not a whole path file; save the path again") from None


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
