"""The embedded demo model as a loader node."""

from __future__ import annotations

from comfy_api.latest import io

from ..inversion.path_file import shown
from .support import CATEGORY, names_itself


class DemoModel(io.ComfyNode):
    """Load the small model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_DemoModel",
            display_name="Model (Demo or Checkpoint)",
            category=f"{CATEGORY}/demo",
            description="Loads the small text-to-image model that ships with the pack: emoji on "
            "plain backgrounds, 128 x 128. Everything works on it without a download; swap it for "
            "Load Checkpoint to work on photographs.",
            search_aliases=["demo", "tiny model", "example checkpoint", "load checkpoint"],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=["unet", "flow"],
                    default="unet",
                    optional=True,
                    tooltip="unet: a small Stable Diffusion 1, on which every technique works. "
                    "flow: a small Flux (rectified flow).",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The denoiser: of SD 1.x's kind, or Flux's."
                ),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    @names_itself
    def execute(cls, kind="unet") -> io.NodeOutput:
        from ..demo.loader import KINDS, load_demo_model

        if kind not in KINDS:
            raise ValueError(f"there is no kind {shown(kind)}; choose one of {', '.join(KINDS)}")
        return io.NodeOutput(*load_demo_model(kind))
