"""ComfyUI-DiffusionPath: training-free image editing by steering the diffusion path."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


NEEDED = "0.30.0"
"""The oldest ComfyUI that the pack runs on."""


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; imports late, so that the mathematics works without a host."""
    import inspect

    from comfy_api.latest import io

    if "search_aliases" not in inspect.signature(io.Schema).parameters:
        raise ImportError(
            f"ComfyUI-DiffusionPath needs ComfyUI {NEEDED} or newer: update ComfyUI, then restart."
        )
    from .nodes import DiffusionPathExtension

    return DiffusionPathExtension()
