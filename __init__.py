"""ComfyUI-DiffusionPath: training-free image editing by steering the diffusion path."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


NEEDED = "0.30.0"
"""The oldest ComfyUI that the pack runs on."""


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; imports late, so that the mathematics works without a host."""
    from comfy_api.latest import io

    if not hasattr(io, "Array"):  # the newest part of the interface that the nodes use
        raise ImportError(
            f"ComfyUI-DiffusionPath needs ComfyUI {NEEDED} or newer: update ComfyUI, then restart."
        )
    from .nodes import DiffusionPathExtension

    return DiffusionPathExtension()
