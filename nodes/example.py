"""The example workflows' pictures as a node, or a picture of the user's own in their place."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import comfy.model_management
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageOps

from ..inversion.path_file import shown
from .support import CATEGORY, names_itself

PICTURES = Path(__file__).parent.parent / "example_workflows" / "inputs"


@cache
def pictures() -> dict[str, Path]:
    """The pack's pictures by their names."""
    files = [file for kind in ("png", "webp") for file in PICTURES.glob(f"*.{kind}")]
    return {file.stem.replace("_", " "): file for file in sorted(files)}


def file_of(picture: str, photo: str) -> Path:
    """The photo's file where there is one, else the example picture's."""
    if photo:
        return Path(folder_paths.get_annotated_filepath(photo))
    return pictures()[picture]


def photos() -> list[str]:
    """The names of the pictures in ComfyUI's input folder."""
    files = [
        entry.name for entry in os.scandir(folder_paths.get_input_directory()) if entry.is_file()
    ]
    return sorted(folder_paths.filter_files_content_types(files, ["image"]))


class ExamplePicture(io.ComfyNode):
    """Load a picture that ships with the pack, or one of the user's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_ExamplePicture",
            display_name="Picture (Example or Yours)",
            category=f"{CATEGORY}/demo",
            description="Loads a picture of your own, or one of the small pictures that ship with "
            "the pack and suit the demo model.",
            search_aliases=["demo picture", "sample image", "test image", "load image"],
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=[*pictures()],
                    tooltip="A picture that ships with the pack, 128 x 128 for the demo model; "
                    "apple on a table is 768 x 576, for other models. No effect when "
                    "a photo is chosen.",
                ),
                io.Combo.Input(
                    "photo",
                    options=["", *photos()],
                    default="",
                    optional=True,
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip="A picture of your own, from ComfyUI's input folder, in place of the "
                    "example.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask that is painted into the picture; black if there is none.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, photo="") -> bool | str:
        if photo and not folder_paths.exists_annotated_filepath(photo):
            return f"Picture: there is no file {shown(photo)}; choose one from the list."
        return True

    @classmethod
    def fingerprint_inputs(cls, picture=None, photo=None) -> float:
        try:
            return file_of(str(picture), photo).stat().st_mtime
        except (OSError, ValueError, KeyError):  # not known yet, or gone
            return 0.0

    @classmethod
    @names_itself
    def execute(cls, picture, photo="") -> io.NodeOutput:
        if not photo and picture not in pictures():
            raise ValueError(f"there is no picture {shown(picture)}; choose one from the list")
        try:
            with Image.open(file_of(picture, photo)) as opened:
                upright = ImageOps.exif_transpose(opened).convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{shown(photo)} cannot be read as a picture; choose another file"
            ) from error
        pixels = torch.from_numpy(np.array(upright)).float()[None] / 255
        pixels = pixels.to(
            comfy.model_management.intermediate_device(),
            comfy.model_management.intermediate_dtype(),
        )
        image, mask = pixels[..., :3], 1 - pixels[..., 3]
        return io.NodeOutput(image, mask, ui=ui.PreviewImage(image, cls=cls))
