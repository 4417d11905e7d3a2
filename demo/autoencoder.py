"""The KL autoencoder: 128x128 pictures to 4x16x16 latents, as in Stable Diffusion 1."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import MODEL, data
from .fit import DEVICE, checkpoint, fit

SCALING_FACTOR = 0.18215

_STEPS = 3100
_LEARNING_RATE = 1.5e-3
_CROPS_PER_STEP = 16
_PICTURES_PER_STEP = 4
_ONLY_PICTURES_AFTER = 0.8
_KL_WEIGHT = 1e-4


def build_autoencoder() -> AutoencoderKL:
    """Channels in multiples of 32, which ComfyUI's layers need; 8 groups per norm, not 32."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 96, 96),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=128,
        scaling_factor=SCALING_FACTOR,
    )


def train_autoencoder(more: int = 0) -> AutoencoderKL:
    """Train on crops, which is cheap, and on whole pictures, which is what will be encoded."""
    torch.manual_seed(data.SEED)
    go_on = more and not checkpoint("autoencoder").exists()
    autoencoder = load_autoencoder() if go_on else build_autoencoder()
    autoencoder = fit("autoencoder", autoencoder, _loss, _STEPS, _LEARNING_RATE, more)
    normalise_latents(autoencoder)
    autoencoder.save_pretrained(MODEL / "vae")
    return autoencoder


def load_autoencoder() -> AutoencoderKL:
    """The finished autoencoder, from `demo/model`."""
    return AutoencoderKL.from_pretrained(MODEL / "vae").to(DEVICE)


def _loss(autoencoder: AutoencoderKL, step: int) -> Tensor:
    """L1 and squared error of the reconstruction, and a little KL divergence per latent value."""
    if step % 4 == 0 or step > _ONLY_PICTURES_AFTER * _STEPS:
        images = data.pictures(data.scenes((0, step), "train", _PICTURES_PER_STEP))
    else:
        scenes = data.scenes((0, step), "train", _CROPS_PER_STEP)
        images = data.crops(scenes, np.random.default_rng((data.SEED, 1, step)))
    images = images.to(DEVICE)
    posterior = autoencoder.encode(images).latent_dist
    error = autoencoder.decode(posterior.sample()).sample - images
    divergence = posterior.kl().sum() / posterior.mean.numel()
    return error.abs().mean() + error.square().mean() + _KL_WEIGHT * divergence


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL) -> None:
    """Fold each latent channel's mean and deviation into the weights.

    Afterwards latents times SCALING_FACTOR have mean 0 and variance 1, so that Stable Diffusion 1's
    own latent format is the right one. Pictures through the autoencoder stay the same.
    """
    images = data.pictures(data.scenes((2,), "train", 512)).to(DEVICE)
    latents = torch.cat([autoencoder.encode(x).latent_dist.mean for x in images.split(32)])
    mean = latents.mean((0, 2, 3))
    scale = 1 / (SCALING_FACTOR * latents.std((0, 2, 3)))

    encode, decode = autoencoder.quant_conv, autoencoder.post_quant_conv
    encode.weight[:4] *= scale[:, None, None, None]
    encode.bias[:4] = (encode.bias[:4] - mean) * scale
    encode.bias[4:] += 2 * scale.log()
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight /= scale[None, :, None, None]
