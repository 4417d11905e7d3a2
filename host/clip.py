"""What ComfyUI's CLIP models see in a latent, with gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator

import comfy.model_management
import comfy.sd
import torch
import torch.nn.functional as F
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..core.edit import Step
from .gradients import norms_keep_copies, ordinary_weights

SMALLEST = 0.5
"""The side of the smallest cut-out, in parts of the picture's shorter side."""


class Eye:
    """A model's latents as CLIP sees them: decoded, cut out, embedded.

    Attributes:
        patchers: what has to be on the device.
    """

    def __init__(self, vae: comfy.sd.VAE, vision: ClipVisionModel, cutouts: int) -> None:
        """Keep the models.

        Args:
            cutouts: how many random squares of the picture to look at; 0 looks at the whole.
        Raises:
            ValueError: the vision model is of another kind.
        """
        if vision.model_type != "clip_vision_model":
            raise ValueError(
                f"clip_vision is a {vision.model_type}, which has no vector for a picture; load a "
                "CLIP Vision such as ViT-L"
            )
        self.vae, self.vision, self.cutouts = vae, vision, cutouts
        self.patchers = (vae.patcher, vision.patcher)

    @property
    def width(self) -> int:
        """Of a picture's vector."""
        return self.vision.config["projection_dim"]

    def features(self, latent: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """What CLIP makes of the pictures of a model's latents (B, C, H, W), with gradients.

        Args:
            step: where they are predicted; each has cut-outs of its own.
        Returns:
            Unit vectors (views, B, width), and all layers' tokens (views, B, layers, tokens,
            width) without CLIP's own.
        """
        networks = [self.vae.first_stage_model, self.vision.model]
        with ordinary_weights(networks), norms_keep_copies(self.vision.model):
            z = step.denoiser.model.process_latent_out(latent)  # type: ignore[attr-defined]
            z = z.to(self.vae.device, self.vae.vae_dtype)
            # What ComfyUI does to a decoded picture it does in place.
            picture = self.vae.process_output(self.vae.first_stage_model.decode(z).float().clone())
            seen = [self._embedded(view) for view in self._views(picture, step.index)]
        vectors, tokens = (torch.stack(one) for one in zip(*seen, strict=True))
        return vectors, tokens

    def of_picture(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The same of an IMAGE (B, H, W, 3) as a whole, without gradients: (B, width) and (B,
        layers, tokens, width)."""
        comfy.model_management.load_models_gpu([self.vision.patcher])
        picture = image[..., :3].movedim(-1, 1).to(self.vision.load_device, torch.float32)
        with torch.no_grad():
            return self._embedded(picture)

    def _views(self, picture: Tensor, number: int) -> Iterator[Tensor]:
        if not self.cutouts:
            yield picture
        generator = torch.Generator().manual_seed(number)
        height, width = picture.shape[-2:]
        for _ in range(self.cutouts):
            part, down, right = torch.rand(3, generator=generator).tolist()
            side = round(min(height, width) * (SMALLEST + (1 - SMALLEST) * part))
            top, left = round(down * (height - side)), round(right * (width - side))
            yield picture[..., top : top + side, left : left + side]

    def _embedded(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """After `comfy.clip_vision`, whose own preparation rounds and so has no gradient."""
        vision = self.vision
        size = (vision.image_size, vision.image_size)
        if picture.shape[-2:] != size:
            picture = F.interpolate(picture, size, mode="bicubic", antialias=True)
        mean, deviation = (
            picture.new_tensor(values)[:, None, None]
            for values in (vision.image_mean, vision.image_std)
        )
        pixels = ((picture - mean) / deviation).to(vision.load_device)
        _, layers, vector, _ = vision.model(pixel_values=pixels, intermediate_output="all")
        return F.normalize(vector.float(), dim=-1), layers[:, :, 1:].float()


def text_vector(clip: comfy.sd.CLIP, text: str, width: int) -> Tensor:
    """What a CLIP says of a text, as a unit vector (1, width) of the space it shares with pictures.

    Raises:
        ValueError: it has no text model for pictures' vectors of that width.
    """
    tokens = clip.tokenize(text)
    clip.cond_stage_model.reset_clip_options()
    clip.load_model(tokens)
    widths = []
    for name, part in tokens.items():
        encoder = getattr(clip.cond_stage_model, f"clip_{name}", None)
        projection = getattr(getattr(encoder, "transformer", None), "text_projection", None)
        if encoder is None or projection is None:
            continue
        widths.append(len(projection.weight))
        if widths[-1] != width:
            continue
        if torch.equal(projection.weight.float().cpu(), torch.eye(width)):
            raise ValueError(
                "this clip has no projection into the space of pictures (checkpoints of SD1.5 "
                "leave it out); load clip_l.safetensors with Load CLIP"
            )
        device = clip.patcher.load_device
        encoder.set_clip_options({"projected_pooled": True, "execution_device": device})
        _, pooled, *_ = encoder.encode_token_weights(part)
        clip.cond_stage_model.reset_clip_options()
        return F.normalize(pooled.float(), dim=-1)
    there = " and ".join(map(str, widths)) or "none"
    raise ValueError(
        f"clip_vision sees vectors {width} wide, and clip writes {there}; connect the CLIP Vision "
        "that was trained with one of its text encoders (ViT-L with clip_l, ViT-bigG with clip_g)"
    )


def distance(vectors: Tensor, wanted: Tensor) -> Tensor:
    """The spherical distance of unit vectors, squared and halved, 0 to pi^2 / 2: `2 arcsin^2(|a -
    b| / 2)`, as the published CLIP guidances have it (Crowson et al.)."""
    # The gradient of a norm at 0 is not a number.
    half = (vectors - wanted).square().sum(dim=-1).clamp(min=1e-12).sqrt() / 2
    return 2 * half.clamp(max=1 - 1e-6).arcsin().square()


def gram(tokens: Tensor) -> Tensor:
    """What of tokens (..., tokens, width) has no place: their second moments (..., width, width),
    of tokens of unit length."""
    tokens = F.normalize(tokens, dim=-1) * math.sqrt(tokens.shape[-1])
    return tokens.mT @ tokens / tokens.shape[-2]
