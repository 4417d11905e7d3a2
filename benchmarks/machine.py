"""When, with what and where figures were made: the line that stands with a table of results."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path


def write_page(file: Path, text: str) -> None:
    """Write a page of results, with `stamp` below them."""
    file.write_text(f"{text.rstrip()}\n\n{stamp()}\n")


def stamp() -> str:
    """Date, versions and machine, in a sentence."""
    from ..tools.host import comfyui_path

    comfyui = (comfyui_path() / "comfyui_version.py").read_text().split('"')[-2]
    return (
        f"Written on {datetime.date.today()} with ComfyUI {comfyui}, PyTorch {version('torch')} "
        f"and Python {platform.python_version()}, {machine()}."
    )


def machine() -> str:
    """What this runs on: "on AMD EPYC, 2 cores, 24 GiB, no graphics card"."""
    import psutil
    import torch

    cores, memory = psutil.cpu_count(), round(psutil.virtual_memory().total / 2**30)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no graphics card"
    return f"on {processor()}, {cores} cores, {memory} GiB, {card}"


def processor() -> str:
    """The processor's name, as Linux knows it, or else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
