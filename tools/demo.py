"""`make demo`: run every example workflow in a real ComfyUI and keep the pictures it makes."""

from __future__ import annotations

import json
import time

from .host import Server
from .serve import APP
from .setup import ROOT
from .thumbnails import contact_sheet, thumbnail
from .workflows import EXAMPLE_PICTURE, demos, twin_of

OUTPUT = ROOT / "demo-output"
SHEET = OUTPUT / "all-examples.png"
NOT_KEPT = (EXAMPLE_PICTURE, "ImageCompare")


def main() -> None:
    """Queue the API twin of each example for the demo model, and save its pictures."""
    OUTPUT.mkdir(exist_ok=True)
    thumbnails = []
    print("Starting ComfyUI with this pack ...", flush=True)
    with Server() as server:
        for workflow in map(twin_of, demos()):
            started = time.monotonic()
            api = json.loads(workflow.read_text())
            history = server.run(api, timeout=3600)
            pictures = [
                (f"{workflow.stem}-{node.replace(':', '-')}-{number}.png", picture)
                for node, images in server.images(history).items()
                if api[node]["class_type"] not in NOT_KEPT
                for number, picture in enumerate(images)
            ]
            for name, picture in pictures:
                (OUTPUT / name).write_bytes(picture)
            thumbnails.append(thumbnail(server, api, history, workflow.stem))
            seconds = time.monotonic() - started
            print(f"{workflow.stem}: {len(pictures)} pictures in {seconds:.0f} s", flush=True)
    contact_sheet(thumbnails).save(SHEET)
    print(f"The pictures are in {OUTPUT}, and all together in {SHEET}")
    print(f"Edit one yourself: run `make serve`, and open {APP}")


if __name__ == "__main__":
    main()
