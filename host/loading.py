"""The installed models, loaded by ComfyUI's own loader nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import PurePath
from textwrap import shorten
from typing import Any, NamedTuple

import comfy.model_management
import folder_paths
import nodes as comfy_nodes
from comfy.model_patcher import ModelPatcher

from .model import family

Loaded = tuple[ModelPatcher, Any, Any]
"""MODEL, CLIP and VAE."""

SPLIT = "diffusion_models/"
"""What stands before the name of a model without a text encoder and a VAE of its own."""


class Companions(NamedTuple):
    """What a diffusion model needs beside it, by how the files' names begin.

    Attributes:
        encoders: the text encoders.
        kind: as ComfyUI's loader of text encoders calls the model.
        vae: the VAE.
    """

    encoders: tuple[str, ...]
    kind: str
    vae: str


FLUX = Companions(("t5xxl", "clip_l"), "flux", "ae.")
COMPANIONS = {
    "Flux dev": FLUX,
    "Flux schnell": FLUX,
    "Chroma": Companions(("t5xxl",), "chroma", "ae."),
    "Qwen-Image": Companions(("qwen_2.5_vl_7b",), "qwen_image", "qwen_image_vae"),
    "Z-Image": Companions(("qwen_3_4b",), "lumina2", "ae."),
    "Wan": Companions(("umt5_xxl",), "wan", "wan_2.1_vae"),
}
"""The files' names are those of Comfy-Org's repositories on Hugging Face."""

SIZES = {"SD1.5": 512, "Wan": 640}
"""The side of the pictures that a family was made for, where it is not 1024."""


def installed() -> list[str]:
    """The checkpoints, then the diffusion models that come in files of their own."""
    split = folder_paths.get_filename_list("diffusion_models")
    return [*folder_paths.get_filename_list("checkpoints"), *(SPLIT + name for name in split)]


def size_of(model: ModelPatcher) -> int:
    """The side, in pixels, of the square pictures that a model was made for."""
    return SIZES.get(family(model), 1024)


def load(name: str) -> Loaded:
    """MODEL, CLIP and VAE of one of `installed`.

    Raises:
        ValueError: a part of it is missing.
    """
    if name.startswith(SPLIT):
        return load_split(name.removeprefix(SPLIT))
    model, clip, vae = opened(name, comfy_nodes.CheckpointLoaderSimple().load_checkpoint, name)
    missing = ["text encoder"] * (clip is None) + ["VAE"] * (vae.first_stage_model is None)
    if missing:
        raise ValueError(
            f"{name} holds no {' and no '.join(missing)}; choose a checkpoint that holds all "
            "three parts, or put the file in models/diffusion_models and choose it there"
        )
    return model, clip, vae


def load_split(name: str) -> Loaded:
    """A diffusion model, with the text encoders and the VAE that its family needs."""
    (model,) = opened(name, comfy_nodes.UNETLoader().load_unet, name, "default")
    theirs = COMPANIONS.get(family(model))
    if theirs is None:
        raise ValueError(
            f"{name} is a {type(model.model).__name__} model, and which text encoder and VAE it "
            "needs is not known here; use Load Diffusion Model, Load CLIP and Load VAE"
        )
    found = [file("text_encoders", start, name) for start in theirs.encoders]
    ours = file("vae", theirs.vae, name)
    logging.info("%s takes %s and %s", name, ", ".join(found), ours)
    loader = comfy_nodes.CLIPLoader if len(found) == 1 else comfy_nodes.DualCLIPLoader
    (clip,) = opened(", ".join(found), loader().load_clip, *found, theirs.kind)
    (vae,) = opened(ours, comfy_nodes.VAELoader().load_vae, ours)
    return model, clip, vae


def file(folder: str, start: str, model: str) -> str:
    """The first file of a folder whose name, without subfolders, begins so."""
    for name in folder_paths.get_filename_list(folder):
        if PurePath(name.replace("\\", "/")).name.startswith(start):
            return name
    raise ValueError(
        f"{model} needs a file {start.rstrip('.')}... in models/{folder}, and there is none; "
        "download it, or use ComfyUI's own loaders"
    )


def opened(name: str, load: Callable[..., Any], *given: str) -> Any:
    """What a loader makes of a file; with its error in one sentence."""
    try:
        return load(*given)
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except Exception as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"ComfyUI cannot load {name} ({shorten(told, 200)}); choose another file, or download "
            "it again"
        ) from error
