"""The example workflows' thumbnails: what goes in and what comes out, made by running them."""

from __future__ import annotations

import io
import json

from PIL import Image

from .host import Server, Workflow
from .workflows import EXAMPLE_PICTURE, examples, twin_of

HEIGHT = 256
GAP = 6


def pictures_of(server: Server, workflow: Workflow) -> list[Image.Image]:
    """The pictures that a workflow loads, then those that it shows, from left to right; those of
    its Edit Report alone where it has one, for that shows the loaded picture too."""
    shown = server.images(server.run(workflow))
    given = [node for node in shown if workflow[node]["class_type"] == EXAMPLE_PICTURE]
    loaded: list[Image.Image] = [
        Image.open(io.BytesIO(picture)) for node in given for picture in shown.pop(node)
    ]
    shown = {node: pictures for node, pictures in shown.items() if ":" not in node}  # no subgraph's
    reports = {node for node in shown if "Report" in workflow[node]["class_type"]}
    made: list[Image.Image] = [
        Image.open(io.BytesIO(picture))
        for node in sorted(reports or shown, key=int)
        for picture in shown[node]
    ]
    return made if reports else loaded + made


def strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height side by side on white."""
    scaled = [
        picture.convert("RGB").resize(
            (round(picture.width * HEIGHT / picture.height), HEIGHT), Image.Resampling.LANCZOS
        )
        for picture in pictures
    ]
    width = sum(picture.width + GAP for picture in scaled) - GAP
    sheet = Image.new("RGB", (width, HEIGHT), "white")
    left = 0
    for picture in scaled:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def main() -> None:
    """Write the thumbnail of every example, beside it."""
    with Server() as server:
        for example in examples():
            workflow = json.loads(twin_of(example).read_text())
            thumbnail = example.with_suffix(".jpg")
            strip(pictures_of(server, workflow)).save(thumbnail, quality=92)
            print(f"{thumbnail.parent.name}/{thumbnail.name}")


if __name__ == "__main__":
    main()
