"""Draws the glyphs of this folder from Noto Color Emoji: `python demo/glyphs/extract.py FONT`."""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

EMOJI = {
    "horse": "🐴", "zebra": "🦓", "cat": "🐱", "dog": "🐶", "fish": "🐟",
    "red_apple": "🍎", "green_apple": "🍏", "pear": "🍐", "strawberry": "🍓",
    "grapes": "🍇", "lemon": "🍋", "red_heart": "❤", "blue_heart": "💙",
    "green_heart": "💚", "yellow_heart": "💛", "star": "⭐", "car": "🚗", "bus": "🚌",
    "rocket": "🚀", "football": "⚽", "basketball": "🏀", "rose": "🌹", "cactus": "🌵",
    "sunflower": "🌻", "tree": "🌳", "mushroom": "🍄",
}  # fmt: skip

ONE_SHAPE = ("heart", "apple")  # cut by a common box, so that only the colour changes
STRIKE = 109  # the only size at which the font's bitmaps can be loaded
SIDE = 128


def draw(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The emoji on a transparent canvas with room to spare.

    Pillow blends the colours of soft edges with the canvas's black, which leaves them multiplied by
    their opacity: "RGBa" undoes that.
    """
    canvas = Image.new("RGBA", (2 * SIDE, 2 * SIDE))
    ImageDraw.Draw(canvas).text((32, 32), emoji, font=font, embedded_color=True)
    return Image.frombytes("RGBa", canvas.size, canvas.tobytes()).convert("RGBA")


def union_box(images: list[Image.Image]) -> tuple[int, int, int, int]:
    """The box around everything drawn in any of the images."""
    left, top, right, bottom = zip(*(image.getbbox() for image in images), strict=True)
    return min(left), min(top), max(right), max(bottom)


def cut(canvas: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The box centred in a square of SIDE pixels, its longer side filling it."""
    glyph = canvas.crop(box)
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    font = ImageFont.truetype(sys.argv[1], STRIKE)
    canvases = {name: draw(emoji, font) for name, emoji in EMOJI.items()}
    for name, canvas in canvases.items():
        shape = name.rpartition("_")[2]
        family = [c for n, c in canvases.items() if n.endswith(shape)]
        box = union_box(family if shape in ONE_SHAPE else [canvas])
        cut(canvas, box).save(Path(__file__).parent / f"{name}.png", optimize=True)
