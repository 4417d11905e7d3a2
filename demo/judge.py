"""A small classifier that says what is in a picture: it scores generated and edited pictures."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from . import MODEL, data
from .autoencoder import SCALING_FACTOR
from .fit import DEVICE, fit
from .world import BACKGROUNDS, OBJECTS, SIZE, SPLITS, Scene

Verdict = tuple[str, tuple[str, ...]]
"""The background, and the names of the objects, left before right; "" and () where unsure."""

WEIGHTS = MODEL / "judge.safetensors"

_NOTHING = len(OBJECTS)
_ANSWERS = (len(BACKGROUNDS), *(len(OBJECTS) + 1,) * 3)
_WIDTHS = (24, 48, 64, 96, 96)
_STEPS = 1400
_LEARNING_RATE = 2e-3
_BATCH = 48
_EMPTY = 2
_ROUND_TRIPS = 1500


class Judge(nn.Module):
    """Four answers: the background, and the object standing alone, on the left, on the right."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(width_in, width, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, width), nn.SiLU()]
        side = SIZE // 2 ** len(_WIDTHS)
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(_WIDTHS[-1] * side**2, sum(_ANSWERS))
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """float (N, 3, SIZE, SIZE) in [-1, 1] to the logits of each answer."""
        return self.layers(images).split(_ANSWERS, dim=1)

    @classmethod
    def load(cls) -> Judge:
        judge = cls()
        judge.load_state_dict(load_file(WEIGHTS))
        return judge.eval()

    @torch.no_grad()
    def verdict(self, images: np.ndarray) -> list[Verdict]:
        """What uint8 pictures (N, SIZE, SIZE, 3) show."""
        answers = [F.softmax(logits, dim=1).max(dim=1) for logits in self(data.to_tensor(images))]
        sure = torch.stack([answer.values for answer in answers], dim=1) > 0.5
        choice = torch.stack([answer.indices for answer in answers], dim=1)
        return [_verdict(*row) for row in choice.where(sure, -1).tolist()]

    def confirms(self, image: np.ndarray, scene: Scene) -> bool:
        """Whether a uint8 picture (SIZE, SIZE, 3) shows this background and just these objects."""
        return self.verdict(image[None])[0] == truth(scene)


def truth(scene: Scene) -> Verdict:
    """The right verdict on a scene."""
    return scene.background, tuple(item.name for item in scene.objects)


def _verdict(background: int, alone: int, left: int, right: int) -> Verdict:
    """One object alone or one on either side; -1 stands for an unsure answer."""
    where = BACKGROUNDS[background] if background >= 0 else ""
    if alone == _NOTHING and min(left, right) >= 0 and max(left, right) < _NOTHING:
        return where, (OBJECTS[left], OBJECTS[right])
    if 0 <= alone < _NOTHING and left == right == _NOTHING:
        return where, (OBJECTS[alone],)
    return where, ()


def train_judge(autoencoder: AutoencoderKL, more: int = 0) -> Judge:
    """Train on renders and on what the autoencoder makes of them, both spoilt a little.

    A judge has to know every combination, those included that the denoiser never sees: otherwise it
    takes them for likelier ones (it did, for one held-out render in eleven).
    """
    seen_scenes = all_splits((5,), _ROUND_TRIPS)
    seen = round_trips(autoencoder.to(DEVICE), data.pictures(seen_scenes))

    def loss(judge: Judge, step: int) -> Tensor:
        rng = np.random.default_rng((data.SEED, 6, step))
        scenes = all_splits((7, step), _BATCH // 2 - _EMPTY)
        scenes += [Scene((), str(background)) for background in rng.choice(BACKGROUNDS, _EMPTY)]
        chosen = rng.choice(_ROUND_TRIPS, _BATCH // 2, replace=False)
        images = torch.cat([data.pictures(scenes), seen[chosen]])
        targets = torch.tensor([_answers(s) for s in scenes + [seen_scenes[i] for i in chosen]])
        logits = judge(spoil(images, rng).to(DEVICE))
        pairs = zip(logits, targets.to(DEVICE).unbind(1), strict=True)
        return torch.stack([F.cross_entropy(x.float(), y) for x, y in pairs]).sum()

    torch.manual_seed(data.SEED)
    judge = fit("judge", Judge(), loss, _STEPS, _LEARNING_RATE, more)
    save_file(judge.state_dict(), WEIGHTS)
    return judge


def all_splits(seed: tuple[int, ...], count: int) -> list[Scene]:
    """As many scenes of every split."""
    each = [data.scenes((*seed, i), split, -(-count // 3)) for i, split in enumerate(SPLITS)]
    return [scene for scenes in zip(*each, strict=True) for scene in scenes][:count]


def _answers(scene: Scene) -> list[int]:
    """The background's number, and those of the objects alone, on the left, on the right."""
    names = [OBJECTS.index(item.name) for item in scene.objects]
    places = [_NOTHING, *names] if len(names) == 2 else [*names, _NOTHING, _NOTHING, _NOTHING]
    return [BACKGROUNDS.index(scene.background), *places[:3]]


@torch.no_grad()
def round_trips(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures decoded from their slightly noisy latents, as a denoiser would leave them."""
    torch.manual_seed(data.SEED)
    decoded = []
    for some in images.split(50):
        latents = autoencoder.encode(some.to(DEVICE)).latent_dist.mean
        noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1, device=DEVICE)
        latents = latents + 0.3 / SCALING_FACTOR * noise
        decoded.append(autoencoder.decode(latents).sample.clamp(-1, 1).cpu())
    return torch.cat(decoded)


def spoil(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Fade, blur and add noise, each picture by its own random amounts."""
    contrast, blur, grain = torch.from_numpy(rng.random((3, len(images), 1, 1, 1))).float()
    mean = images.mean((2, 3), keepdim=True)
    images = mean + (images - mean) * (0.75 + 0.3 * contrast)
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    images = images.lerp(blurred, blur)
    return images + 0.15 * grain * torch.randn_like(images)
