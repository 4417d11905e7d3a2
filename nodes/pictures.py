"""Pictures that nodes show: heat maps and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HEAT = ((0.0, 0.0, 0.1), (0.3, 0.05, 0.4), (0.75, 0.2, 0.35), (0.98, 0.55, 0.1), (1.0, 1.0, 0.75))
"""Dark blue over red and orange to pale yellow: brightness rises evenly, also in print."""

LEGIBLE = 256
"""The smallest side, in pixels, of a picture with a word under it,"""

LARGEST = 1024
"""unless its largest would be longer than this."""


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


def labelled(image: Tensor, text: str) -> Tensor:
    """An image (H, W, 3) with a text below it (H', W', 3).

    Small images are enlarged, so that the text can be read.
    """
    sides = image.shape[:2]
    factor = max(1, min(math.ceil(LEGIBLE / min(sides)), LARGEST // max(sides)))
    page = image.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
    width = page.shape[1]
    size = max(14, width // 14)
    strip = Image.new("RGB", (width, 2 * size), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size)
    while draw.textlength(text, font) > max(width - 8, 8) and size > 10:
        size -= 1
        font = ImageFont.load_default(size)
    draw.text((width / 2, strip.height / 2), text, "black", font, anchor="mm")
    label = torch.from_numpy(np.asarray(strip).astype(np.float32) / 255)
    return torch.cat([page, label])


def labelled_map(image: Tensor, heat: Tensor, word: str) -> Tensor:
    """A heat map (H, W) of 0 to 1 over an image (H, W, 3), and below it the word (H', W', 3)."""
    grey = image[..., :3].cpu().mean(dim=-1, keepdim=True)  # its colours would be read as heat
    page = torch.lerp(grey, heat_colours(heat[None])[0], 0.7).clamp(0, 1)
    return labelled(page, word)


def sheet(images: Sequence[Tensor], columns: int, gap: int = 6) -> Tensor:
    """Images (H, W, 3) of one size in rows of so many, on white (H', W', 3)."""
    height, width = images[0].shape[:2]
    rows = math.ceil(len(images) / columns)
    page = torch.ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def loss_plot(before: Sequence[float], after: Sequence[float], limits: Sequence[float]) -> Tensor:
    """The error of each step before and after its optimisation, as an IMAGE (1, H, W, 3).

    Errors are in powers of ten, the limit below which a step is done is grey.
    """
    width, height, left, top, bottom = 640, 360, 56, 40, 32
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    powers = [math.log10(max(value, 1e-12)) for value in (*before, *after, *limits)]
    low, high = math.floor(min(powers)), max(math.ceil(max(powers)), math.floor(min(powers)) + 1)

    def place(i: int, value: float) -> tuple[float, float]:
        share = (math.log10(max(value, 1e-12)) - low) / (high - low)
        across = (i + 0.5) / len(before)
        return (
            left + across * (width - left - 16),
            height - bottom - share * (height - top - bottom),
        )

    for power in range(low, high + 1):
        y = place(0, 10.0**power)[1]
        draw.line((left, y, width - 16, y), "#dddddd")
        draw.text((8, y - 6), f"1e{power:d}", "black")
    for i in range(0, len(before), max(1, len(before) // 10)):
        draw.text((place(i, 1)[0] - 3, height - bottom + 8), str(i), "black")
    draw.text((width - 40, height - 14), "step", "black")
    lines = {
        "limit": (limits, "#999999"),
        "before": (before, "#d95f02"),
        "after": (after, "#1b6ca8"),
    }
    for number, (name, (values, colour)) in enumerate(lines.items()):
        points = [place(i, value) for i, value in enumerate(values)]
        draw.line(points, colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        draw.text((left + 90 * number, 12), name, colour)
    draw.text((left + 300, 12), "mean squared error of each step", "black")
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255)[None]


def curve_plot(values: Sequence[float]) -> Tensor:
    """A weight, 0 to 1, over the path from noise to picture, as an IMAGE (1, H, W, 3)."""
    width, height, left, right, top, bottom = 320, 160, 28, 12, 12, 28
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)

    def place(across: float, value: float) -> tuple[float, float]:
        y = height - bottom - value * (height - top - bottom)
        return left + across * (width - left - right), y

    for value in (0.0, 0.5, 1.0):
        draw.line((place(0, value), place(1, value)), "#dddddd")
        draw.text((left - 6, place(0, value)[1]), f"{value:g}", "black", anchor="rm")
    points = [place(i / (len(values) - 1), value) for i, value in enumerate(values)]
    draw.polygon([place(0, 0), *points, place(1, 0)], "#d7e6f2")
    draw.line(points, "#1b6ca8", width=2)
    draw.text((left, height - bottom / 2), "noise", "black", anchor="lm")
    draw.text((width - right, height - bottom / 2), "picture", "black", anchor="rm")
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255)[None]
