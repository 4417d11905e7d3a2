"""The embedded demo model, or an installed one, as a loader node."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.loading import installed, load, size_of
from ..inversion.path_file import shown
from .support import CATEGORY, names_itself

DEMO = "demo (ships with the pack)"
DEMO_SIZE = 128


class DemoModel(io.ComfyNode):
    """Load the small model that ships with the pack, or an installed one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_DemoModel",
            display_name="Model (Demo or Checkpoint)",
            category=f"{CATEGORY}/demo",
            description="Loads a model with its text encoder and VAE: the small demo model, which "
            "needs no download, or an installed checkpoint. Connect size to a resize node, and "
            "any photograph fits the model.",
            search_aliases=["demo", "tiny model", "example checkpoint", "load checkpoint"],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=["unet", "flow"],
                    default="unet",
                    optional=True,
                    tooltip="unet: a small Stable Diffusion 1, on which every technique works. "
                    "flow: a small Flux (rectified flow). No effect when a checkpoint is chosen.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[DEMO, *installed()],
                    default=DEMO,
                    optional=True,
                    tooltip="The model to load: the demo model, a file of models/checkpoints, or "
                    "one of models/diffusion_models, whose text encoder and VAE are then found by "
                    "their usual file names. Press R after you have added a file.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
                io.Int.Output(
                    display_name="size",
                    tooltip="The picture size in pixels that the model was made for: 128 for the "
                    "demo model, 512 for SD1.5, 640 for Wan, 1024 for SDXL and later. Connect it "
                    "to the largest_size of Scale Image to Max Dimension.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, kind="unet", checkpoint=DEMO) -> io.NodeOutput:
        from ..demo.loader import KINDS, load_demo_model

        if checkpoint != DEMO:
            if checkpoint not in installed():
                raise ValueError(
                    f"there is no model {shown(checkpoint)} in models/checkpoints or "
                    "models/diffusion_models; choose one from the list"
                )
            model, clip, vae = load(checkpoint)
            return io.NodeOutput(model, clip, vae, size_of(model))
        if kind not in KINDS:
            raise ValueError(f"there is no kind {shown(kind)}; choose one of {', '.join(KINDS)}")
        return io.NodeOutput(*load_demo_model(kind), DEMO_SIZE)


class DemoCLIPVision(io.ComfyNode):
    """Load the small CLIP vision model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_DemoCLIPVision",
            display_name="CLIP Vision (Demo)",
            category=f"{CATEGORY}/demo",
            description="Loads the demo's CLIP vision model, which sees pictures in the same space "
            "as the demo's text encoder sees texts. For other models take Load CLIP Vision.",
            search_aliases=["demo", "CLIP", "image encoder"],
            inputs=[],
            outputs=[
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="For CLIP Guidance and CLIP Vision Encode."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls) -> io.NodeOutput:
        from ..demo.loader import load_clip_vision

        return io.NodeOutput(load_clip_vision())
