"""`make serve`: ComfyUI with this pack, for a browser on this machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .host import comfyui_path, has_accelerator
from .setup import PACK

FIRST = "01_edit_a_picture.app"
APP = f"http://localhost:8188/?template={FIRST}&source={PACK}&mode=linear"
"""The address at which ComfyUI's front end opens the first template as an app."""

START = """
import logging, runpy
missing = "comfyui-workflow-templates is not installed"
logging.getLogger().addFilter(lambda record: missing not in record.getMessage())
runpy.run_path("main.py", run_name="__main__")
"""
"""ComfyUI's own start, without an error about its templates: `make setup` leaves them out, for they
are 350 MB, and the pack brings its own."""


def skip_welcome(comfyui: Path) -> None:
    """Tell the front end that this is no first visit, which begins with ComfyUI's own templates: it
    would say that there are none."""
    file = comfyui / "user" / "default" / "comfy.settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({"Comfy.TutorialCompleted": True} | settings, indent=4))


def main() -> None:
    """Become ComfyUI."""
    comfyui = comfyui_path()
    skip_welcome(comfyui)
    on_cpu = [] if has_accelerator() else ["--cpu"]
    command = [sys.executable, "-c", START, *on_cpu, *sys.argv[1:]]
    print(f"When ComfyUI is ready, open the app: {APP}", flush=True)
    os.chdir(comfyui)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
