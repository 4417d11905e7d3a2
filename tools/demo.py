"""`make demo`: run every example workflow in a real ComfyUI and keep the pictures it makes."""

from __future__ import annotations

import json
import time

from .host import Server
from .setup import ROOT
from .workflows import EXAMPLE_PICTURE, TWINS

OUTPUT = ROOT / "demo-output"


def main() -> None:
    """Queue the API twin of each example, one after the other, and save its pictures."""
    OUTPUT.mkdir(exist_ok=True)
    print("Starting ComfyUI with this pack ...", flush=True)
    with Server() as server:
        for workflow in sorted(TWINS.glob("*.json")):
            started = time.monotonic()
            api = json.loads(workflow.read_text())
            history = server.run(api, timeout=3600)
            pictures = [
                (f"{workflow.stem}-{node}-{number}.png", picture)
                for node, images in server.images(history).items()
                if api[node]["class_type"] != EXAMPLE_PICTURE
                for number, picture in enumerate(images)
            ]
            for name, picture in pictures:
                (OUTPUT / name).write_bytes(picture)
            seconds = time.monotonic() - started
            print(f"{workflow.stem}: {len(pictures)} pictures in {seconds:.0f} s", flush=True)
    print(f"The pictures are in {OUTPUT}")


if __name__ == "__main__":
    main()
