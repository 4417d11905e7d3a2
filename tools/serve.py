"""`make serve`: ComfyUI with this pack, for a browser on this machine."""

from __future__ import annotations

import os
import sys

from .host import comfyui_path, has_accelerator


def main() -> None:
    """Become ComfyUI."""
    comfyui = comfyui_path()
    command = [sys.executable, "main.py", *([] if has_accelerator() else ["--cpu"]), *sys.argv[1:]]
    os.chdir(comfyui)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
