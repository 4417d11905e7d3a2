"""`make serve`: ComfyUI with this pack, for a browser on this machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .host import comfyui_path, has_accelerator
from .setup import PACK

FIRST = "01_edit_a_picture.app"
QUERY = f"/?template={FIRST}&source={PACK}&mode=linear"
APP = f"http://localhost:8188{QUERY}"
"""The address at which ComfyUI's front end opens the first template as an app."""

START = f"""
import logging, runpy

def heard(record):
    said = record.getMessage()
    if said.startswith("To see the GUI go to: "):
        record.msg, record.args = said + "\\nTo edit a picture: " + said.split()[-1] + {QUERY!r}, ()
    return "comfyui-workflow-templates is not installed" not in said

logging.getLogger().addFilter(heard)
runpy.run_path("main.py", run_name="__main__")
"""
"""ComfyUI's own start; where it tells its address, it tells the app's too. Its error about missing
templates is left out: `make setup` does not fetch those 350 MB, and the pack brings its own."""


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
    os.chdir(comfyui)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
