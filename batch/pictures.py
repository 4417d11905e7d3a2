"""Pictures as files' bytes: those that people give, and a sheet of what was made of them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .storage import shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""Pillow knows more, some by the help of other programs."""

SIDE, LABEL, COLUMNS = 160, 20, 4
"""Of a contact sheet, in pixels; each of its columns holds two pictures."""

MOST = 48
"""Rows on a contact sheet."""


def upright(data: bytes) -> Image.Image:
    """The first picture of a file, turned as its camera says, as RGB, or RGBA where it is clear.

    Raises:
        ValueError: it is no picture, in a sentence.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            picture = ImageOps.exif_transpose(opened)
            clear = "A" in picture.getbands() or "transparency" in picture.info
            return picture.convert("RGBA" if clear else "RGB")
    except Image.DecompressionBombError:
        raise ValueError("it has too many pixels; make it smaller") from None
    except Exception as error:  # Pillow's readers raise what they like on broken files
        kind = ", ".join(FORMATS)
        raise ValueError(f"it is no whole picture ({kind})") from error


def png(picture: Image.Image) -> bytes:
    """A picture as a file, packed lightly: it is read once."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def contact_sheet(cells: Sequence[tuple[bytes | None, bytes, str]]) -> bytes:
    """A JPEG with the source, where there is one, and the result of each row, and its label."""
    columns = min(COLUMNS, len(cells))
    width, height = 2 * SIDE + 8, SIDE + LABEL
    sheet = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for number, (source, result, label) in enumerate(cells):
        down, across = divmod(number, columns)
        left, top = across * width, down * height
        for place, data in enumerate((source, result)):
            if data is not None:
                tile = ImageOps.pad(upright(data).convert("RGB"), (SIDE, SIDE), color="white")
                sheet.paste(tile, (left + place * SIDE, top))
        label = shown(label, 100)
        while font.getlength(label) > 2 * SIDE:
            label = label[:-1]
        draw.text((left + 2, top + SIDE + 2), label, "black", font)
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    return file.getvalue()
