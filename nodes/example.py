"""The example workflows' pictures as a node: nothing is put into anybody's input folder."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..inversion.path_file import shown
from .support import CATEGORY, names_itself

PICTURES = Path(__file__).parent.parent / "example_workflows" / "inputs"


def pictures() -> list[str]:
    """The names of the pack's pictures."""
    return sorted(file.stem.replace("_", " ") for file in PICTURES.glob("*.png"))


class ExamplePicture(io.ComfyNode):
    """Load a picture that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_ExamplePicture",
            display_name="Example Picture",
            category=f"{CATEGORY}/demo",
            description="Loads one of the small pictures that ship with the pack, made for the "
            "Diffusion Path Demo Model. Swap it for Load Image to work on a picture of your own.",
            search_aliases=["demo picture", "sample image", "test image", "load image"],
            inputs=[
                io.Combo.Input(
                    "picture", options=pictures(), tooltip="Which picture; all are 128 x 128."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask that is painted into masked football; black for the others.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, picture) -> io.NodeOutput:
        if picture not in pictures():
            raise ValueError(f"there is no picture {shown(picture)}; choose one from the list")
        opened = Image.open(PICTURES / f"{picture.replace(' ', '_')}.png")
        pixels = torch.from_numpy(np.array(opened.convert("RGBA"))).float()[None] / 255
        pixels = pixels.to(
            comfy.model_management.intermediate_device(),
            comfy.model_management.intermediate_dtype(),
        )
        image, mask = pixels[..., :3], 1 - pixels[..., 3]
        return io.NodeOutput(image, mask, ui=ui.PreviewImage(image, cls=cls))
