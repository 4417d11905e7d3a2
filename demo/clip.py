"""The demo world's CLIP (Radford et al. 2021, arXiv 2103.00020): texts and pictures in one space.

Its text tower is the denoiser's text encoder, which stays as it is, behind a projection of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import MODEL, data
from .fit import DEVICE, fit
from .judge import all_splits, round_trips, spoil
from .tokenizer import tokenize
from .world import SIZE, caption

IMAGE_ENCODER = MODEL / "image_encoder"
TEXT_PROJECTION = IMAGE_ENCODER / "text_projection.safetensors"

WIDTH = 128

_LAYERS = 5
_HEADS = 4
_PATCH = 16
_STEPS = 1000
_LEARNING_RATE = 1e-3
_BATCH = 96
_ROUND_TRIPS = 1000
_HIGHEST_SCALE = 50.0


class Clip(nn.Module):
    """A vision transformer and two projections; the text encoder is not trained."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.vision = build_vision()
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        self._text_encoder = [text_encoder.to(DEVICE).eval()]  # a list hides it from training

    def images(self, images: Tensor) -> Tensor:
        """float (N, 3, SIZE, SIZE) in [-1, 1] to unit vectors (N, WIDTH)."""
        return F.normalize(self.vision(images).image_embeds, dim=1)

    def texts(self, tokens: Tensor) -> Tensor:
        """int (N, tokens) to unit vectors (N, WIDTH)."""
        with torch.no_grad():
            pooled = self._text_encoder[0](tokens).pooler_output
        return F.normalize(self.text_projection(pooled), dim=1)


def build_vision() -> CLIPVisionModelWithProjection:
    """A vision transformer for pictures of the demo world, which sees them as [-1, 1]."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            image_size=SIZE,
            patch_size=_PATCH,
            hidden_act="quick_gelu",
            initializer_range=0.02,
        )
    )


def train_clip(autoencoder: AutoencoderKL, more: int = 0) -> Clip:
    """Contrastive training on renders and on what the autoencoder makes of them, spoilt a little.

    It has to know every combination, as the judge: those held out from the models included.
    """
    seen_scenes = all_splits((11,), _ROUND_TRIPS)
    seen = round_trips(autoencoder.to(DEVICE), data.pictures(seen_scenes))

    def loss(clip: Clip, step: int) -> Tensor:
        rng = np.random.default_rng((data.SEED, 12, step))
        chosen = rng.choice(_ROUND_TRIPS, _BATCH // 2, replace=False)
        scenes = all_splits((13, step), _BATCH // 2)
        images = torch.cat([data.pictures(scenes), seen[chosen]])
        captions = [caption(scene) for scene in [*scenes, *(seen_scenes[i] for i in chosen)]]
        one_of = {text: number for number, text in enumerate(dict.fromkeys(captions))}
        which = torch.tensor([one_of[text] for text in captions]).to(DEVICE)
        texts = clip.texts(tokenize(list(one_of)).to(DEVICE))
        found = clip.images(spoil(images, rng).to(DEVICE))
        scores = clip.scale.exp().clamp(max=_HIGHEST_SCALE) * found.float() @ texts.float().T
        of_texts = torch.stack([(which == i).float() for i in range(len(one_of))])
        of_texts = of_texts / of_texts.sum(dim=1, keepdim=True)
        return F.cross_entropy(scores, which) + F.cross_entropy(scores.T, of_texts)

    torch.manual_seed(data.SEED)
    clip = Clip(CLIPTextModel.from_pretrained(MODEL / "text_encoder"))
    return fit("clip", clip, loss, _STEPS, _LEARNING_RATE, more)


def export_clip(clip: Clip) -> None:
    """The image encoder in half precision, as transformers and ComfyUI name its weights."""
    clip.vision.half().save_pretrained(IMAGE_ENCODER)
    file = IMAGE_ENCODER / "model.safetensors"
    weights = load_file(file)
    if not any(name.startswith("vision_model.") for name in weights):
        weights = {
            name if name.startswith("visual_projection") else f"vision_model.{name}": value
            for name, value in weights.items()
        }
        save_file(weights, file, {"format": "pt"})
    save_file({"weight": clip.text_projection.weight.detach().half()}, TEXT_PROJECTION)
