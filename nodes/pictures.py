"""Pictures that nodes show: heat maps and comparisons."""

from __future__ import annotations

import torch
from torch import Tensor

HEAT = ((0.0, 0.0, 0.1), (0.3, 0.05, 0.4), (0.75, 0.2, 0.35), (0.98, 0.55, 0.1), (1.0, 1.0, 0.75))
"""Dark blue over red and orange to pale yellow: brightness rises evenly, also in print."""


def heat_colours(heat: Tensor) -> Tensor:
    """A heat map (B, H, W) of 0 to 1 as an IMAGE (B, H, W, 3)."""
    table = torch.tensor(HEAT)
    place = heat.clamp(0, 1) * (len(HEAT) - 1)
    low = place.floor().long().clamp(max=len(HEAT) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[..., None])


def side_by_side(*images: Tensor) -> Tensor:
    """IMAGEs (B, H, W, 3) of one size next to each other, with a thin white line between."""
    line = torch.ones_like(images[0][:, :, :2])
    pieces = [piece for image in images for piece in (line, image)][1:]
    return torch.cat(pieces, dim=2)
