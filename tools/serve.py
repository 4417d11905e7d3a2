"""`make serve`: ComfyUI with this pack, for a browser on this machine."""

from __future__ import annotations

import os
import shutil
import sys

from .host import comfyui_path, has_accelerator
from .workflows import INPUTS


def main() -> None:
    """Become ComfyUI, with the pictures that the example workflows load in its input folder."""
    comfyui = comfyui_path()
    for picture in INPUTS.glob("*.png"):
        shutil.copy(picture, comfyui / "input")
    command = [sys.executable, "main.py", *([] if has_accelerator() else ["--cpu"]), *sys.argv[1:]]
    os.chdir(comfyui)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
