"""The example workflows' thumbnails, made by running them: square, with what was and what is."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .host import Server, Workflow
from .workflows import EXAMPLE_PICTURE, EXAMPLES, examples, models_of, twin_of

SIDE = 384
LABEL = 44
"""The height of the strip below a thumbnail's picture."""
LINE = 4
GRID = 24
"""In as many cells a side a change is looked for."""


def label_of(name: str) -> str:
    """The technique in an example's name, or what it does if it names none."""
    words = name.removesuffix(".app")[3:]
    return words.partition("-")[2].replace("_", " ") or action_of(name)


def action_of(name: str) -> str:
    """What an example does, by its name."""
    return name.removesuffix(".app")[3:].partition("-")[0].replace("_", " ")


def square(picture: Image.Image) -> Image.Image:
    """The middle of a picture, as large as a thumbnail."""
    return ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE))


def split(before: Image.Image, after: Image.Image) -> Image.Image:
    """What was above a diagonal, what is below; it goes where most has changed."""
    before, after = square(before), square(after)
    # Of small pictures, so that fine edges that have moved a little do not count.
    small = [
        np.asarray(one.resize((GRID, GRID), Image.Resampling.BOX), float) for one in (before, after)
    ]
    change = ((small[0] - small[1]) ** 2).sum(axis=-1)
    diagonal = np.add.outer(np.arange(GRID), np.arange(GRID))
    along = np.bincount(diagonal.ravel(), change.ravel())
    where = np.convolve(along, np.ones(GRID // 2), "same").argmax() if change.any() else GRID - 1
    edge = int(where + 1) * SIDE // GRID
    upper = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(upper).polygon([(0, 0), (edge, 0), (0, edge)], fill=255)
    both = Image.composite(before, after, upper)
    ImageDraw.Draw(both).line([(edge, 0), (0, edge)], fill="white", width=LINE)
    return both


def tiles(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in as many columns as rows, or one more."""
    columns = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    side = (SIDE - LABEL * (rows == columns) - LINE * (columns - 1)) // columns
    left, top = (SIDE - columns * (side + LINE)) // 2, (SIDE - LABEL - rows * (side + LINE)) // 2
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        tile = ImageOps.pad(picture.convert("RGB"), (side, side), color="white")
        sheet.paste(tile, (left + column * (side + LINE), top + row * (side + LINE)))
    return sheet


def framed(picture: Image.Image, inputs: dict[str, Any]) -> Image.Image:
    """A picture with the boxes that ComfyUI's Create Bounding Boxes holds, each in its colour."""
    picture = square(picture)
    draw = ImageDraw.Draw(picture)
    across, down = SIDE / inputs["width"], SIDE / inputs["height"]
    for box in inputs["editor_state"]["__value__"]:
        left, top = box["x"] * across, box["y"] * down
        right, bottom = left + box["width"] * across - 1, top + box["height"] * down - 1
        draw.rectangle([left, top, right, bottom], outline=box["metadata"]["palette"][0], width=6)
    return picture


def cells(grid: Image.Image, inputs: dict[str, Any]) -> list[Image.Image]:
    """The pictures that ComfyUI's Image Grid has put together."""
    width, height = (
        inputs["cell_width"] + inputs["padding"],
        inputs["cell_height"] + inputs["padding"],
    )
    return [
        grid.crop((x, y, x + inputs["cell_width"], y + inputs["cell_height"]))
        for y in range(0, grid.height - inputs["cell_height"] + 1, height)
        for x in range(0, grid.width - inputs["cell_width"] + 1, width)
    ]


def labelled(picture: Image.Image, *labels: str) -> Image.Image:
    """A picture with its labels over the lower edge, each in a strip of its own."""
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, SIDE - len(labels) * LABEL, SIDE, SIDE], fill=(24, 24, 27))
    for number, label in enumerate(reversed(labels)):
        size = LABEL * 7 // 10
        while (font := ImageFont.load_default(size)).getlength(label) > SIDE - 20:
            size -= 1
        draw.text((SIDE / 2, SIDE - (number + 0.5) * LABEL), label, "white", font, anchor="mm")
    return picture


def thumbnail(
    server: Server, workflow: Workflow, history: dict[str, Any], name: str
) -> Image.Image:
    """What an example has compared, or its grid's pictures, or what it loads and shows."""
    shown = {
        node: [Image.open(io.BytesIO(picture)) for picture in pictures]
        for node, pictures in server.images(history).items()
        if ":" not in node and workflow[node]["class_type"] != EXAMPLE_PICTURE
    }
    kinds = {body["class_type"]: node for node, body in workflow.items()}
    if boxes := kinds.get("CreateBoundingBoxes"):
        picture = framed(shown[kinds["SaveImage"]][0], workflow[boxes]["inputs"])
    elif compared := shown.get(kinds.get("ImageCompare", "")):
        picture = split(compared[0], compared[-1])
    elif sheets := shown.get(kinds.get("DiffusionPath_ContactSheet", "")):
        picture = tiles(sheets)
    elif grid := kinds.get("ImageGrid"):
        picture = tiles(cells(shown[kinds["SaveImage"]][0], workflow[grid]["inputs"]))
    else:
        picture = tiles([source(workflow), *(one for many in shown.values() for one in many)][:4])
    return labelled(picture, label_of(name))


def source(workflow: Workflow) -> Image.Image:
    """The pack's picture that a workflow loads."""
    nodes = (body for body in workflow.values() if body["class_type"] == EXAMPLE_PICTURE)
    return Image.open(
        EXAMPLES / "inputs" / f"{next(nodes)['inputs']['picture'].replace(' ', '_')}.png"
    )


def contact_sheet(pictures: list[Image.Image], columns: int = 6) -> Image.Image:
    """Thumbnails in rows, on white."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + 8), rows * (SIDE + 8)), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture, (4 + column * (SIDE + 8), 4 + row * (SIDE + 8)))
    return sheet


def main() -> None:
    """Write the thumbnail of every example, beside it."""
    with Server() as server:
        for example in examples():
            workflow = json.loads(twin_of(example).read_text())
            file = Path(f"{str(example).removesuffix('.json')}.jpg")
            if models_of(example):  # not run here: what goes in, and the name
                labels = action_of(example.stem), label_of(example.stem)
                made = labelled(square(source(workflow)), *labels)
            else:
                history = server.run(workflow, timeout=3600)
                made = thumbnail(server, workflow, history, example.stem)
            made.save(file, quality=90)
            print(f"{file.parent.name}/{file.name}", flush=True)


if __name__ == "__main__":
    main()
