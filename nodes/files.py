"""Nodes that keep paths in files, and show them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path as FilePath

import folder_paths
import torch
from comfy_api.latest import io

from ..inversion.path_file import load_path, save_path
from .support import CATEGORY, Path, names_itself, tell

EXAMPLE_INPUTS = FilePath(__file__).parent.parent / "example_workflows" / "inputs"
SUFFIX = ".safetensors"
OUTPUT = " [output]"
SAVED = "diffusion_path"


def saved_files() -> list[str]:
    """Path files by ComfyUI's annotated names: of the input folder, and of the output's own part.

    Only the folder that Save Path writes to by default is searched: an output folder can hold a
    hundred thousand pictures, and ComfyUI asks for this list at its start and with every prompt.
    """
    inputs = FilePath(folder_paths.get_input_directory())
    outputs = FilePath(folder_paths.get_output_directory())
    names = [file.name for file in inputs.glob(f"*{SUFFIX}")]
    saved = (outputs / SAVED).rglob(f"*{SUFFIX}")
    return sorted(names) + sorted(file.relative_to(outputs).as_posix() + OUTPUT for file in saved)


def inside(folder: str, name: str, meant: str) -> FilePath:
    """The file `name` in `folder`; a name that leads out of it is refused."""
    file = (FilePath(folder) / name).resolve()
    if not folder_paths.is_within_directory(folder, str(file)):
        raise ValueError(f"{name!r} lies outside ComfyUI's {meant} folder; use a name inside it")
    return file


def file_of(name: str) -> FilePath:
    """The file that an annotated name means."""
    if name.endswith(OUTPUT):
        folder = folder_paths.get_output_directory()
        return inside(folder, name.removesuffix(OUTPUT), "output")
    return inside(folder_paths.get_input_directory(), name, "input")


def copy_example_inputs() -> None:
    """Copy the example workflows' pictures, a few kB, into ComfyUI's input folder if missing.

    They go into the folder itself: what lies deeper, Load Image runs but marks as missing.
    """
    folder = FilePath(folder_paths.get_input_directory())
    try:
        for picture in EXAMPLE_INPUTS.glob("*.png"):
            if not (folder / picture.name).exists():
                part = shutil.copyfile(picture, folder / f"{picture.name}.part")
                part.replace(folder / picture.name)
    except OSError as error:
        logging.warning("ComfyUI-DiffusionPath: no example pictures in %s: %s", folder, error)


class SavePath(io.ComfyNode):
    """Keep a path for later."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_SavePath",
            display_name="Save Path",
            category=f"{CATEGORY}/path",
            description="Saves a path as a safetensors file in ComfyUI's output folder: invert "
            "once, edit on another day.",
            search_aliases=["save inversion", "store trajectory", "export path"],
            inputs=[
                Path.Input("path", tooltip="The path to save."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{SAVED}/path",
                    tooltip="Folder and name within ComfyUI's output folder; a number is added. "
                    f"Load Path lists what lies in {SAVED}.",
                ),
            ],
            outputs=[],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, path, filename_prefix) -> io.NodeOutput:
        output = folder_paths.get_output_directory()
        inside(output, filename_prefix, "output")
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, output
        )
        file = FilePath(folder) / f"{name}_{counter:05}_{SUFFIX}"
        save_path(path, file)
        return io.NodeOutput(ui=tell(cls, FilePath(subfolder, file.name).as_posix()))


class LoadPath(io.ComfyNode):
    """Go on with a saved path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_LoadPath",
            display_name="Load Path",
            category=f"{CATEGORY}/path",
            description="Loads a path that Save Path has written, from ComfyUI's input or output "
            "folder.",
            search_aliases=["load inversion", "open trajectory", "import path"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_files(),
                    tooltip="A path file of the input folder or, marked [output], of "
                    f"{SAVED} in the output folder.",
                ),
            ],
            outputs=[Path.Output(display_name="path", tooltip="The path, as it was saved.")],
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        try:
            if not file_of(file).is_file():
                return f"Load Path: there is no file {file!r}; save a path first."
        except ValueError as error:
            return f"Load Path: {error}."
        return True

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        state = file_of(file).stat()
        return f"{file}:{state.st_mtime_ns}:{state.st_size}"

    @classmethod
    @names_itself
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_path(file_of(file)))


class PathPreview(io.ComfyNode):
    """See how an image forms along its path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PathPreview",
            display_name="Path Preview",
            category=f"{CATEGORY}/path",
            description="Shows the clean image that a path was heading for at evenly spaced steps; "
            "the last frame is the image itself. Needs no network evaluation.",
            search_aliases=["show trajectory", "denoising steps", "path frames"],
            inputs=[
                Path.Input("path", tooltip="The path to look at."),
                io.Vae.Input("vae", tooltip="The VAE of the model that made the path."),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=1000,
                    tooltip="How many frames; no more than the path has steps.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The frames from noisy to clean, one image of the batch after another.",
                )
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, path, vae, frames) -> io.NodeOutput:
        count = min(frames, path.steps + 1)
        steps = torch.linspace(path.steps, 0, count).round().long().flip(0).tolist()
        latents = [path.denoised(i) if i < path.steps else path.clean for i in steps]
        images = vae.decode(torch.stack(latents, dim=1).flatten(0, 1))
        images = images.reshape(-1, *images.shape[-3:])
        return io.NodeOutput(images, ui=tell(cls, f"steps {steps} of {path.steps}", images))
