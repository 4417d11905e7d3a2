"""The denoiser: a small UNet of Stable Diffusion 1's kind, trained with its text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from . import MODEL, data
from .autoencoder import SCALING_FACTOR
from .fit import BFLOAT16, DEVICE, WORK, checkpoint, fit
from .tokenizer import LENGTH, tokenize, train_tokenizer
from .world import caption

LATENTS = WORK / "latents.pt"
"""Encoded pictures and the tokens of their captions; belongs to one autoencoder."""

_PICTURES = 10_000
_ONE_OBJECT = 0.4
_STEPS = 8200
_LEARNING_RATE = 1e-3
_BATCH = 32
_NO_CAPTION = 0.1
_SNR_RANGE = (0.1, 5.0)
_TEXT_WIDTH = 128
_HEAD_WIDTH = 32


class Denoiser(nn.Module):
    """The UNet and the text encoder as one network: noisy latents and tokens to noise."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder()

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """float (N, 4, H, W), int (N,), int (N, LENGTH) to float (N, 4, H, W)."""
        return self.unet(latents, timesteps, self.text_encoder(tokens)[0]).sample


def build_unet() -> UNet2DConditionModel:
    """Self- and cross-attention at 16x16 and 8x8, by heads of one width as ComfyUI wants them."""
    channels = (64, 128)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=tuple(width // _HEAD_WIDTH for width in channels),  # counts of heads
    )


def build_text_encoder() -> CLIPTextModel:
    """CLIP's text transformer, two layers of it."""
    tokenizer = train_tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=4 * _TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=_TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise: 1000 scaled-linear steps, eps-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_denoiser(autoencoder: AutoencoderKL, more: int = 0) -> Denoiser:
    """Train on latents encoded once, with a tenth of the captions left empty for guidance."""
    latents, tokens = encoded(autoencoder, LATENTS, 4, _PICTURES, _ONE_OBJECT)
    empty = tokenize([""])[0].to(DEVICE)
    alphas = build_scheduler().alphas_cumprod.to(DEVICE)

    def loss(denoiser: Denoiser, step: int) -> Tensor:
        """The squared error of the noise, weighted by min-SNR (Hang et al. 2023, 2303.09556).

        The noisy end, where background and layout are decided, counts more than it does there: its
        errors are small as noise but large as pictures, and unseen the background follows the noise
        rather than the words.
        """
        rng = np.random.default_rng((data.SEED, 3, step))
        chosen = torch.from_numpy(rng.choice(len(latents), _BATCH, replace=False))
        spread = (np.arange(_BATCH) + rng.random(_BATCH)) / _BATCH
        timesteps = torch.from_numpy((spread * len(alphas)).astype(np.int64)).to(DEVICE)
        no_caption = torch.from_numpy(rng.random(_BATCH) < _NO_CAPTION).to(DEVICE)

        clean = latents[chosen].to(DEVICE)
        words = torch.where(no_caption[:, None], empty, tokens[chosen].to(DEVICE))
        alpha = alphas[timesteps][:, None, None, None]
        noise = torch.randn_like(clean)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        error = (denoiser(noisy, timesteps, words).float() - noise).square().mean((1, 2, 3))
        snr = (alpha / (1 - alpha)).flatten()
        return (error * snr.clamp(*_SNR_RANGE) / snr).mean()

    torch.manual_seed(data.SEED)
    denoiser = Denoiser()
    if more and not checkpoint("denoiser").exists():
        denoiser.unet = UNet2DConditionModel.from_pretrained(MODEL / "unet")
        denoiser.text_encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder")
    # On CPUs the fused attention's backward pass is slow: without it a step takes a third less.
    denoiser.unet.set_attn_processor(AttnProcessor())
    denoiser.text_encoder.set_attn_implementation("eager")
    return fit("denoiser", denoiser, loss, _STEPS, _LEARNING_RATE, more)


def trained_so_far() -> Denoiser:
    """The denoiser as it was at the last checkpoint."""
    denoiser = Denoiser()
    denoiser.load_state_dict(torch.load(checkpoint("denoiser"), map_location="cpu")["average"])
    return denoiser.eval()


@torch.no_grad()
def encoded(
    autoencoder: AutoencoderKL, file: Path, seed: int, pictures: int, one_object: float
) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 16, 16) of unit variance and tokens (N, LENGTH); kept in a file.

    Args:
        seed: of the scenes; a share `one_object` of them has one object.
    """
    if not file.exists():
        autoencoder = autoencoder.to(DEVICE)
        scenes = data.scenes((seed,), "train", pictures, one_object)
        batches = []
        for first in range(0, pictures, 50):
            images = data.pictures(scenes[first : first + 50]).to(DEVICE)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=BFLOAT16):
                batches.append(autoencoder.encode(images).latent_dist.mean.float().cpu())
            print(f"latents: {first + 50}/{pictures}", end="\r", flush=True)
        latents = torch.cat(batches) * SCALING_FACTOR
        file.parent.mkdir(exist_ok=True)
        torch.save((latents, tokenize([caption(scene) for scene in scenes])), file)
    return torch.load(file)
