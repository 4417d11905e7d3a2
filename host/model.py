"""What is asked of a MODEL before anything runs: how it mixes noise in, what it is of kin to."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.diffusion import Mixing
from ..core.families import USUAL, Usual

UNSUPPORTED = ("IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM", "COSMOS_RFLOW")
"""ComfyUI's parametrisations whose latents are in other coordinates than `Mixing` knows."""

WHOLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types of weights that are not quantised."""

EXPERTS = "diffusion path experts"
"""The key of what else a MODEL is that several take turns in, and of what hands over to them."""

CLOSE = 1e-3
"""Levels of two schedules are the same up to this part of them."""


def mixing_of(model: ModelPatcher) -> Mixing:
    """How the model mixes signal and noise.

    Raises:
        ValueError: the model's sampling is of a kind that the path cannot be written in.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = [kind.__name__ for kind in type(sampling).__mro__]
    for kind in UNSUPPORTED:
        if kind in kinds:
            raise ValueError(
                f"the model samples in {kind} coordinates, which this pack does not support; "
                "use an EPS or V model (SD1.x, SD2.x, SDXL) or a flow model (SD3, Flux)"
            )
    scale = float(getattr(sampling, "noise_scale", 1.0))
    if isinstance(sampling, comfy.model_sampling.CONST):
        return Mixing(flow=True, noise_scale=scale)
    return Mixing(sigma_data=float(getattr(sampling, "sigma_data", 1.0)), noise_scale=scale)


def text_width(model: ModelPatcher) -> int | None:
    """How wide the text embeddings are that the model reads; None if its configuration hides it."""
    config = model.model.model_config.unet_config
    embedder = config.get("context_embedder_config") or {}
    widths = (
        config.get("context_dim"),  # SD1.x, SD2.x, SDXL
        config.get("context_in_dim"),  # Flux
        embedder.get("params", {}).get("in_features"),  # SD3
    )
    return next((width for width in widths if isinstance(width, int)), None)


def fingerprint(model: ModelPatcher) -> dict[str, Any]:
    """What two models must share for one to sample the other's path.

    Fine-tunes, merges and LoRAs of one family share it, so that a path made with one can be
    edited with another. What they predict may differ; the noise levels they know may not. Holds
    plain values only.
    """
    latent_format, mixing = model.get_model_object("latent_format"), mixing_of(model)
    return {
        "model": type(model.model).__name__,
        "latent format": type(latent_format).__name__,
        "latent channels": latent_format.latent_channels,
        "text width": text_width(model),
        "flow": mixing.flow,
        "highest noise level": highest_level(model),
        "sigma_data": mixing.sigma_data,
        "noise scale": mixing.noise_scale,
    }


def highest_level(model: ModelPatcher) -> float:
    """The highest noise level that the model's schedule has."""
    return float(model.get_model_object("model_sampling").sigma_max)


def family(model: ModelPatcher) -> str:
    """Which of `edits.flow_edit.FAMILIES` a model belongs to, as far as it says so itself."""
    kinds = {kind.__name__ for kind in type(model.model).__mro__}
    config = model.model.model_config
    distilled = config.unet_config.get("guidance_embed")
    families = {
        "demo flow": type(config).__name__ == "DemoFlux",
        "SDXL": "SDXL" in kinds,
        "SD3": "SD3" in kinds,
        "Chroma": "Chroma" in kinds,
        "Flux dev": type(model.model).__name__ == "Flux" and distilled,
        "Flux schnell": type(model.model).__name__ == "Flux" and not distilled,
        "Qwen-Image": "QwenImage" in kinds,
        "Z-Image": type(config).__name__.startswith("ZImage"),
        "Wan": "WAN21" in kinds,
    }
    known = (name for name, fits in families.items() if fits)
    return next(known, "other flow" if mixing_of(model).flow else "SD1.5")


def usual(model: ModelPatcher) -> Usual:
    """How many steps, and how much guidance, are usual for a model."""
    return USUAL[family(model)]


def fits(mine: Any, theirs: Any) -> bool:
    """Whether two values of a fingerprint are the same."""
    if isinstance(mine, float) and isinstance(theirs, (int, float)):
        return math.isclose(mine, theirs, rel_tol=CLOSE)
    return bool(mine == theirs)


def with_gradients(model: ModelPatcher, distilled: bool = False) -> ModelPatcher:
    """The model as one that gradients can go through.

    Args:
        distilled: whether a model that takes guidance as an input will do.
    Raises:
        ValueError: it is quantised, guidance-distilled or answers from a cache, or ComfyUI cannot
            load it as a whole.
    """
    instead = "use a node that needs no gradients, such as Negative-Prompt Inversion"
    if model.get_additional_models_with_key(EXPERTS):
        raise ValueError(
            "the model is two models that take turns, and gradients go through one only; connect "
            f"one of the two, or {instead}"
        )
    if not distilled and model.model.model_config.unet_config.get("guidance_embed"):
        raise ValueError(
            "the model is guidance-distilled: it takes guidance as an input and has no "
            "unconditional prediction to optimise; use a model with real guidance, such as SD1.5 "
            "or SDXL"
        )
    if "easycache" in model.model_options.get("transformer_options", {}):
        raise ValueError(
            "EasyCache or LazyCache is on the model, and what it takes from its cache has no "
            "gradients; connect the model without it"
        )
    for weight in model.model.diffusion_model.parameters():
        if weight.dtype not in WHOLE or type(weight.data) is not Tensor:
            raise ValueError(
                f"the model's weights are quantised ({str(weight.dtype).removeprefix('torch.')}), "
                f"and gradients need fp16, bf16 or fp32; load it in one of these, or {instead}"
            )
    if not model.is_dynamic():
        return model
    try:
        return model.get_non_dynamic_delegate()
    except RuntimeError:
        raise ValueError(
            "ComfyUI streams this model's weights from memory and cannot load it as a whole, as "
            f"gradients need it; start ComfyUI with --disable-dynamic-vram, or {instead}"
        ) from None
