"""The registry's icon and banner, docs/icon.png and docs/banner.png, drawn from the demo world.

    python -P -m diffusion_path.tools.artwork

Both show what the pack does: the path from a picture up to noise and down to another picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..demo.world import GLYPHS
from .setup import ROOT

DOCS = ROOT / "docs"
ICON = 400
"""Side of the icon; the registry takes 400 x 400 at most."""
BANNER = (1680, 720)
"""Size of the banner, 21:9 as the registry asks."""

OVER = 2
"""Everything is drawn this much larger and made smaller at the end, for smooth edges."""
SKY = (150, 200, 250)
NIGHT, DUSK = (16, 24, 48), (44, 62, 118)
WHITE, PALE = (255, 255, 255), (188, 206, 240)


def glyph(name: str, side: int) -> Image.Image:
    """One of the demo world's emoji, RGBA."""
    return Image.open(GLYPHS / f"{name}.png").resize((side, side), Image.Resampling.LANCZOS)


def noisy(picture: Image.Image, noise: np.ndarray, amount: float) -> Image.Image:
    """An RGB picture at the noise level `amount` from 0 to 1, as a flow model mixes it."""
    grain = np.asarray(
        Image.fromarray(noise).resize(picture.size, Image.Resampling.NEAREST), dtype=float
    )
    mixed = (1 - amount) * np.asarray(picture, dtype=float) + amount * grain
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def grain(cells: int, seed: int) -> np.ndarray:
    """Coloured noise of `cells` by `cells` squares, uint8."""
    drawn = np.random.default_rng(seed).normal(128, 64, (cells, cells, 3))
    return drawn.clip(0, 255).astype(np.uint8)


def card(name: str, side: int, amount: float) -> Image.Image:
    """An emoji on the sky at a noise level, with round corners, RGBA."""
    picture = Image.new("RGB", (side, side), SKY)
    emoji = glyph(name, side * 3 // 4)
    picture.paste(emoji, (side // 8, side // 8), emoji)
    picture = noisy(picture, grain(24, seed=4), amount)
    rounded = Image.new("L", picture.size)
    ImageDraw.Draw(rounded).rounded_rectangle((0, 0, side - 1, side - 1), side // 8, fill=255)
    picture.putalpha(rounded)
    return picture


def night(width: int, height: int) -> Image.Image:
    """The background, from dark to less dark along the diagonal."""
    across = np.add.outer(np.linspace(0, 1, height), np.linspace(0, 1, width))[..., None] / 2
    return Image.fromarray(((1 - across) * NIGHT + across * DUSK).astype(np.uint8))


def arc(
    canvas: Image.Image, stations: list[tuple[str, float]], side: int, left: int, top: int,
    width: int, height: int,
) -> None:  # fmt: skip
    """Draw cards along half an ellipse that spans their centres, and the path that joins them."""
    angles = np.linspace(np.pi, 0, 61)
    curve = [
        (left + width / 2 + width / 2 * np.cos(angle), top + height - height * np.sin(angle))
        for angle in angles
    ]
    draw = ImageDraw.Draw(canvas)
    draw.line(curve, fill=WHITE, width=side // 14, joint="curve")
    for (name, amount), angle in zip(
        stations, np.linspace(0, len(curve) - 1, len(stations)).round(), strict=True
    ):
        x, y = curve[int(angle)]
        one = card(name, side, amount)
        canvas.paste(one, (round(x - side / 2), round(y - side / 2)), one)


def icon() -> Image.Image:
    """Apple, noise, strawberry."""
    side = ICON * OVER
    canvas = night(side, side)
    card_side = side * 3 // 8
    margin = side // 12 + card_side // 2
    stations = [("red_apple", 0.0), ("red_apple", 1.0), ("strawberry", 0.0)]
    arc(canvas, stations, card_side, margin, margin, side - 2 * margin, side - 2 * margin)
    rounded = Image.new("L", canvas.size)
    ImageDraw.Draw(rounded).rounded_rectangle((0, 0, side - 1, side - 1), side // 7, fill=255)
    canvas.putalpha(rounded)
    return canvas.resize((ICON, ICON), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The name, what the pack does, and the path of an edit."""
    width, height = (OVER * one for one in BANNER)
    canvas = night(width, height)
    draw = ImageDraw.Draw(canvas)
    unit = height // 36
    text(draw, "DiffusionPath", (3 * unit, 9 * unit), 5 * unit, WHITE)
    text(draw, "Edit a picture", (3 * unit, 18 * unit), 2.6 * unit, PALE)
    text(draw, "by changing its description", (3 * unit, 22 * unit), 2.6 * unit, PALE)
    up, down = (0.0, 0.5, 1.0), (0.5, 0.0)
    stations = [("red_apple", level) for level in up] + [("strawberry", level) for level in down]
    arc(canvas, stations, 10 * unit, 45 * unit, 9 * unit, 31 * unit, 18 * unit)
    return canvas.resize(BANNER, Image.Resampling.LANCZOS)


def text(
    draw: ImageDraw.ImageDraw, words: str, at: tuple[float, float], size: float,
    colour: tuple[int, int, int],
) -> None:  # fmt: skip
    """Write a line in the font that Pillow brings."""
    draw.text(at, words, colour, ImageFont.load_default(size))


def main() -> None:
    """Draw both."""
    save(icon(), DOCS / "icon.png")
    save(banner(), DOCS / "banner.png")


def save(picture: Image.Image, file: Path) -> None:
    """Write a PNG that says nothing but its pixels."""
    picture.save(file, optimize=True)
    print(f"{file}: {picture.width} x {picture.height}, {file.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
