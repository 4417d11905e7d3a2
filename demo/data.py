"""Pictures of the demo world as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .world import GRID, SIZE, Scene, Split, random_scene, render

SEED = 2026
CROP = 64


def scenes(seed: Sequence[int], split: Split, count: int, one_object: float = 0.5) -> list[Scene]:
    """`count` scenes of a split; a share `one_object` of them has one object."""
    rng = np.random.default_rng((SEED, *seed))
    return [random_scene(rng, split, 1 if rng.random() < one_object else 2) for _ in range(count)]


def pictures(some_scenes: Sequence[Scene]) -> Tensor:
    """Rendered scenes: float (N, 3, SIZE, SIZE) in [-1, 1]."""
    return to_tensor(np.stack([render(scene) for scene in some_scenes]))


def crops(some_scenes: Sequence[Scene], rng: np.random.Generator) -> Tensor:
    """A crop on the grid, near an object of each scene: float (N, 3, CROP, CROP) in [-1, 1]."""
    images = []
    for scene in some_scenes:
        centre = np.array(scene.objects[rng.integers(len(scene.objects))].centre)
        corner = centre - CROP // 2 + rng.integers(-CROP // 2, CROP // 2 + 1, 2)
        x, y = (corner // GRID * GRID).clip(0, SIZE - CROP)
        images.append(render(scene)[y : y + CROP, x : x + CROP])
    return to_tensor(np.stack(images))


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3)."""
    bytes_ = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return bytes_.permute(0, 2, 3, 1).cpu().numpy()
