"""The embedded demo model as a loader node."""

from __future__ import annotations

from comfy_api.latest import io

from .support import CATEGORY


class DemoModel(io.ComfyNode):
    """Load the small model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_DemoModel",
            display_name="Diffusion Path Demo Model",
            category=f"{CATEGORY}/demo",
            description="Loads the small text-to-image model that ships with the pack: emoji on "
            "plain backgrounds, 128 x 128. Everything works on it without a download; swap it for "
            "Load Checkpoint to work on photographs.",
            search_aliases=["demo", "tiny model", "example checkpoint", "load checkpoint"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The denoiser, SD1.x's kind."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..demo.loader import load_demo_model

        return io.NodeOutput(*load_demo_model())
