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
    """Labelled rows of uint8 pictures of one size, one column for each heading."""
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
    return page
