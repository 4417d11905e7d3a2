"""Writes trained networks to `demo/model`, in the layout that diffusers loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPTokenizer

from . import MODEL, data
from .autoencoder import SCALING_FACTOR
from .denoiser import Denoiser, build_scheduler
from .flow import build_scheduler as build_flow_scheduler
from .tokenizer import train_tokenizer

PREVIEW = MODEL / "preview.json"
"""ComfyUI's latent previews: how much of each channel goes into red, green and blue."""


def export_denoiser(denoiser: Denoiser, autoencoder: AutoencoderKL) -> None:
    """The whole pipeline, with the autoencoder that the denoiser was trained on."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text_encoder,
        tokenizer=train_tokenizer(),
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to("cpu").save_pretrained(MODEL)
    _save_tokenizer(pipeline.tokenizer, MODEL / "tokenizer")
    _rename_text_encoder(MODEL / "text_encoder" / "model.safetensors")
    # Half as large; the UNet's bits are also easier to compress, for the registry's archive.
    _halve(MODEL / "unet" / "diffusion_pytorch_model.safetensors", torch.bfloat16)
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        _halve(MODEL / f"{part}.safetensors", torch.float16)
    _save_preview(autoencoder)


def export_flow(transformer: FluxTransformer2DModel) -> None:
    """The flow model beside it, in half precision, which makes it half as large."""
    transformer.half().save_pretrained(MODEL / "transformer")
    build_flow_scheduler().save_pretrained(MODEL / "flow_scheduler")


def _save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """As `vocab.json` and `merges.txt`, which every version of transformers reads."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer.json").unlink()


def _rename_text_encoder(file: Path) -> None:
    """By the names of released CLIPs, which every version of transformers, and ComfyUI, reads."""
    weights = {f"text_model.{name}": value for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def _halve(file: Path, dtype: torch.dtype) -> None:
    """Store weights in half precision; the config still says in what they are computed with."""
    weights = {name: value.to(dtype) for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


@torch.no_grad()
def _save_preview(autoencoder: AutoencoderKL) -> None:
    """Fit, by least squares, the colour of every 8x8 pixels to its latent of unit variance."""
    images = data.pictures(data.scenes((8,), "train", 128))
    latents = autoencoder.encode(images).latent_dist.mean * SCALING_FACTOR
    channels = latents.movedim(1, -1).reshape(-1, 4)
    colours = F.avg_pool2d(images, 8).movedim(1, -1).reshape(-1, 3)
    ones = torch.ones(len(channels), 1)
    solution = torch.linalg.lstsq(torch.cat([channels, ones], dim=1), colours).solution
    factors = {"latent_rgb_factors": solution[:4], "latent_rgb_factors_bias": solution[4]}
    PREVIEW.write_text(json.dumps({k: v.tolist() for k, v in factors.items()}, indent=1) + "\n")
