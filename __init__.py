"""ComfyUI-DiffusionPath: training-free image editing by steering the diffusion path."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; imports late, so that the mathematics works without a host."""
    from .nodes import DiffusionPathExtension

    return DiffusionPathExtension()
