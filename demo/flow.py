"""The flow model: a small MM-DiT of Flux's kind, trained on the denoiser's text encoder."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

from . import FLOW_TOKENS, MODEL, data
from .denoiser import encoded
from .fit import DEVICE, WORK, checkpoint, fit
from .tokenizer import tokenize
from .world import caption

LATENTS = WORK / "flow_latents.pt"
"""Encoded pictures and the tokens of their captions; belongs to one autoencoder."""

PATCH = 2

_SCENES = 6
_PICTURES = 20_000
_ONE_OBJECT = 0.35
_STEPS = 5200
_LEARNING_RATE = 3e-3
_BATCH = 32
_NO_CAPTION = 0.1
_NO_PLACES = 0.3
_MEAN, _DEVIATION = 0.4, 1.2


class Flow(nn.Module):
    """The transformer with its latents unpacked and its text encoder, which is not trained."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self._text_encoder = [text_encoder.to(DEVICE).eval()]  # a list hides it from training

    def forward(self, latents: Tensor, sigmas: Tensor, tokens: Tensor) -> Tensor:
        """float (N, 4, H, W), float (N,) in 0..1, int (N, tokens) to a velocity (N, 4, H, W)."""
        with torch.no_grad():
            text = self._text_encoder[0](tokens)
        return velocity(
            self.transformer, latents, sigmas, text.last_hidden_state, text.pooler_output
        )


def build_transformer() -> FluxTransformer2DModel:
    """Three double blocks and five single ones; each begins as the identity.

    So did DiT's (Peebles and Xie 2023, arXiv 2212.09748, "adaLN-Zero"), for a faster training.
    """
    transformer = FluxTransformer2DModel(
        in_channels=4 * PATCH**2,
        num_layers=3,
        num_single_layers=5,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        axes_dims_rope=(16, 24, 24),
    )
    for name, weight in transformer.named_parameters():
        if ".linear." in name or name.startswith("proj_out"):
            nn.init.zeros_(weight)
    return transformer


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow without a shift, which pictures as small as these do not need."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def velocity(
    transformer: FluxTransformer2DModel,
    latents: Tensor,
    sigmas: Tensor,
    embedding: Tensor,
    pooled: Tensor,
) -> Tensor:
    """The transformer on latents (N, 4, H, W), in patches as Flux takes them."""
    rows, columns = (size // PATCH for size in latents.shape[-2:])
    image = torch.zeros(rows, columns, 3, device=latents.device)
    image[..., 1] = torch.arange(rows, device=latents.device)[:, None]
    image[..., 2] = torch.arange(columns, device=latents.device)
    output = transformer(
        F.pixel_unshuffle(latents, PATCH).flatten(2).mT,
        encoder_hidden_states=embedding,
        pooled_projections=pooled,
        timestep=sigmas,
        img_ids=image.flatten(0, 1),
        txt_ids=image.new_zeros(embedding.shape[1], 3),
    ).sample
    return F.pixel_shuffle(output.mT.unflatten(2, (rows, columns)), PATCH)


def train_flow(autoencoder: AutoencoderKL, more: int = 0) -> Flow:
    """Rectified flow (Liu et al. 2022, 2209.03003) on latents encoded once.

    A tenth of the captions is left empty for guidance, and three tenths do not say the places of
    two objects, which somebody may paint instead. Noise levels are logit-normal (Esser et al.
    2024, 2403.03206, section 3.1), centred towards the noisy end, where the layout is decided.
    """
    latents, tokens = encoded(autoencoder, LATENTS, _SCENES, _PICTURES, _ONE_OBJECT)
    scenes = data.scenes((_SCENES,), "train", _PICTURES, _ONE_OBJECT)
    unplaced = tokenize([caption(scene, places=False) for scene in scenes])
    tokens, unplaced = tokens[:, :FLOW_TOKENS], unplaced[:, :FLOW_TOKENS]
    empty = tokenize([""])[0, :FLOW_TOKENS].to(DEVICE)
    normal = torch.distributions.Normal(_MEAN, _DEVIATION)

    def loss(flow: Flow, step: int) -> Tensor:
        rng = np.random.default_rng((data.SEED, 7, step))
        chosen = torch.from_numpy(rng.choice(len(latents), _BATCH, replace=False))
        spread = torch.from_numpy((np.arange(_BATCH) + rng.random(_BATCH)) / _BATCH).float()
        sigmas = normal.icdf(spread.clamp(1e-4, 1 - 1e-4)).sigmoid().to(DEVICE)
        no_caption = torch.from_numpy(rng.random(_BATCH) < _NO_CAPTION).to(DEVICE)

        no_places = torch.from_numpy(rng.random(_BATCH) < _NO_PLACES)

        clean = latents[chosen].to(DEVICE)
        words = torch.where(no_places[:, None], unplaced[chosen], tokens[chosen]).to(DEVICE)
        words = torch.where(no_caption[:, None], empty, words)
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigmas[:, None, None, None])
        # On CPUs the fused attention's backward pass is slow.
        with sdpa_kernel(SDPBackend.MATH):
            predicted = flow(noisy, sigmas, words)
        return F.mse_loss(predicted.float(), noise - clean)

    torch.manual_seed(data.SEED)
    flow = Flow(CLIPTextModel.from_pretrained(MODEL / "text_encoder"))
    if more and not checkpoint("flow").exists():
        flow.transformer = FluxTransformer2DModel.from_pretrained(MODEL / "transformer")
    matrices = [
        weight
        for name, weight in flow.transformer.named_parameters()
        if weight.ndim == 2 and "blocks" in name and ".norm" not in name
    ]
    return fit("flow", flow, loss, _STEPS, _LEARNING_RATE, more, matrices)


def trained_so_far() -> FluxTransformer2DModel:
    """The transformer as it was at the last checkpoint."""
    transformer = build_transformer()
    state = torch.load(checkpoint("flow"), map_location="cpu")["average"]
    transformer.load_state_dict(
        {name.removeprefix("transformer."): value for name, value in state.items()}
    )
    return transformer.eval()
