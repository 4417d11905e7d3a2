"""A sheet of pictures: what the figures of a table stand for."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_LABEL = 170
_HEADING = 64


def sheet(headings: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Image.Image:
    """Labelled rows of uint8 pictures of one size, one column for each heading; in 256 colours,
    which a third of the bytes is enough for."""
    side = len(rows[0][1][0])
    size = (_LABEL + (side + _GAP) * len(headings), _HEADING + (side + _GAP) * len(rows))
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.truetype(findfont("DejaVu Sans"), 10)
    for column, heading in enumerate(headings):
        x = _LABEL + column * (side + _GAP)
        draw.text((x, 2), fill(heading, 22), "black", font)
    for row, (label, pictures) in enumerate(rows):
        y = _HEADING + row * (side + _GAP)
        draw.text((4, y + side // 3), fill(label, 26), "black", font)
        for column, picture in enumerate(pictures):
            page.paste(Image.fromarray(picture), (_LABEL + column * (side + _GAP), y))
    return page.quantize(256, dither=Image.Dither.NONE)


def cut(page: Image.Image, row: int, columns: int, side: int) -> np.ndarray | None:
    """The pictures (columns, side, side, 3) of a row of a sheet; None if it has no such row."""
    y = _HEADING + row * (side + _GAP)
    lefts = [_LABEL + column * (side + _GAP) for column in range(columns)]
    if y + side > page.height or lefts[-1] + side > page.width:
        return None
    colours = page.convert("RGB")
    return np.stack([np.asarray(colours.crop((x, y, x + side, y + side))) for x in lefts])
