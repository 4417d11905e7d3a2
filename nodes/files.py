"""Nodes that keep paths in files, and show them."""

from __future__ import annotations

import os
import time
import unicodedata
from pathlib import Path as FilePath

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.diffusion import Mixing
from ..core.path import DiffusionPath
from ..edits.flow_edit import is_independent
from ..inversion.path_file import load_path, save_path, shown
from .support import (
    CATEGORY,
    Path,
    known_before,
    names_itself,
    tell,
)

SUFFIX = ".safetensors"
OUTPUT = " [output]"
SAVED = "diffusion_path"
NONE = "no path saved yet"

TIMES = {"Y": "year", "m": "month", "d": "day", "H": "hour", "M": "minute", "S": "second"}
"""What may stand in a filename_prefix between percent signs."""

LONGEST = 255
"""Bytes that a file's name may have, on nearly every file system."""
LONGEST_OF_ALL = 3000
"""Letters that a name may have with the folders before it; systems know 4096 bytes at most."""
NUMBER = len(f"_00001_{SUFFIX}") + 4
"""Bytes that a saved file's name has beyond what the user wrote, up to a thousand million files."""


def saved_files() -> list[str]:
    """Path files by ComfyUI's annotated names: of the input folder, and of the output's own part.

    Only the folder that Save Path writes to by default is searched: an output folder can hold a
    hundred thousand pictures, and ComfyUI asks for this list at its start and with every prompt.
    """
    inputs = FilePath(folder_paths.get_input_directory())
    outputs = FilePath(folder_paths.get_output_directory())
    names = [file.name for file in inputs.glob(f"*{SUFFIX}")]
    saved = [  # os.walk minds no folder that goes while it looks
        FilePath(folder, name).relative_to(outputs).as_posix() + OUTPUT
        for folder, _, found in os.walk(outputs / SAVED)
        for name in found
        if name.endswith(SUFFIX)
    ]
    names = sorted(names) + sorted(saved)
    return [name for name in names if not wrong_letters(name)]


def wrong_letters(name: str) -> bool:
    """Whether a name has letters that no file's should: control characters, half characters."""
    return any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def inside(folder: str, name: str, meant: str) -> FilePath:
    """The file `name` in `folder`; a name that leads out of it, or is none, is refused."""
    if len(name) > LONGEST_OF_ALL:
        raise ValueError(f"{shown(name)} is too long for a file's name; use a shorter one")
    if wrong_letters(name):
        raise ValueError(
            f"{shown(name)} has control characters or broken letters in it; use another name"
        )
    parts = name.replace("\\", "/").split("/")
    if any(len(part.encode()) > LONGEST for part in parts):
        raise ValueError(f"{shown(name)} is too long for a file's name; use a shorter one")
    file = os.path.realpath(os.path.join(folder, name))  # noqa: PTH118
    if not folder_paths.is_within_directory(folder, file):
        raise ValueError(
            f"{shown(name)} lies outside ComfyUI's {meant} folder; use a name inside it"
        )
    return FilePath(file)


def file_of(name: str) -> FilePath:
    """The file that an annotated name means."""
    if not isinstance(name, str):
        raise ValueError(f"file is {shown(str(name))}, which is no name; choose one from the list")
    if name.endswith(OUTPUT):
        folder = folder_paths.get_output_directory()
        return inside(folder, name.removesuffix(OUTPUT), "output")
    return inside(folder_paths.get_input_directory(), name, "input")


def dated(prefix: str) -> str:
    """A prefix with the date and time in it, as ComfyUI's own nodes write them; no picture has a
    size here."""
    for code, name in TIMES.items():
        prefix = prefix.replace(f"%{name}%", time.strftime(f"%{code}"))
    return prefix.replace("%width%", "0").replace("%height%", "0")


def checked_prefix(prefix: str) -> str:
    """A folder and name to save under, in its shortest form; what cannot be one is refused."""
    prefix = dated(prefix)
    inside(folder_paths.get_output_directory(), prefix, "output")
    short = os.path.normpath(prefix)
    name = os.path.basename(short)  # noqa: PTH119
    if not name.strip(" ."):
        raise ValueError(f"filename_prefix {shown(prefix)} has no name in it; write one, as in cat")
    if len(name.encode()) + NUMBER > LONGEST:
        raise ValueError(
            f"filename_prefix {shown(prefix)} is too long for a file's name; use "
            f"{LONGEST - NUMBER} bytes at most"
        )
    return short


class SavePath(io.ComfyNode):
    """Keep a path for later."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_SavePath",
            display_name="Save Path",
            category=f"{CATEGORY}/path",
            description="Saves a path as a safetensors file in ComfyUI's output folder. Invert "
            "once and edit later.",
            search_aliases=["save inversion", "store trajectory", "export path"],
            inputs=[
                Path.Input("path", tooltip="The path to save."),
                io.String.Input(
                    "filename_prefix",
                    display_name="file name",
                    default=f"{SAVED}/path",
                    tooltip="Folder and name within ComfyUI's output folder; a number is added. "
                    f"Load Path lists what lies in {SAVED}. %year%, %month%, %day%, %hour%, "
                    "%minute% and %second% are the time.",
                ),
            ],
            outputs=[],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, filename_prefix) -> None:
        checked_prefix(filename_prefix)

    @classmethod
    @names_itself
    def execute(cls, path, filename_prefix) -> io.NodeOutput:
        prefix, output = checked_prefix(filename_prefix), folder_paths.get_output_directory()
        try:
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
            file = FilePath(folder) / f"{name}_{counter:05}_{SUFFIX}"
            save_path(path, file)
        except OSError as error:
            raise ValueError(
                f"nothing can be written to {shown(prefix)}: {error.strerror}; free the place, or "
                "use another filename_prefix"
            ) from None
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
                    options=saved_files() or [NONE],
                    tooltip="A path file of the input folder or, marked [output], of "
                    f"{SAVED} in the output folder.",
                ),
            ],
            outputs=[Path.Output(display_name="path", tooltip="The path, as it was saved.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        if file is None:  # it comes from another node, or ComfyUI says itself that it is missing
            return True
        if file == NONE:
            return "Load Path: no path is saved yet; run Save Path, then press R."
        try:
            if not os.path.isfile(file_of(file)):  # noqa: PTH113
                return f"Load Path: there is no file {shown(file)}; save a path first."
        except ValueError as error:
            return f"Load Path: {error}."
        return True

    @classmethod
    def fingerprint_inputs(cls, file) -> str | float:
        try:
            state = file_of(file).stat()
        except (OSError, ValueError):  # not known yet, or gone
            return float("nan")
        return f"{file}:{state.st_mtime_ns}:{state.st_size}"

    @classmethod
    @names_itself
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_path(file_of(file)))


def noisy_frame(path: DiffusionPath, i: int) -> Tensor:
    """The noisy latent (B, C, ...) at a level, of the variance of an image's."""
    sigma = float(path.sigmas[i])
    mixing = Mixing(
        flow=bool(path.fingerprint.get("flow")),
        sigma_data=float(path.fingerprint.get("sigma_data", 1.0)),
    )
    return mixing.rescale(path.latents[i], sigma, 0.0)


class PathPreview(io.ComfyNode):
    """See how an image forms along its path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PathPreview",
            display_name="Path Preview",
            category=f"{CATEGORY}/path",
            description="Shows how a picture forms along its path: the clean picture that the "
            "model predicts at evenly spaced steps. The last frame is the picture "
            "itself. On a Straight Path with fresh noise it shows the noisy picture. "
            "Needs no model call.",
            search_aliases=["show trajectory", "denoising steps", "path frames"],
            inputs=[
                Path.Input("path", tooltip="The path to show."),
                io.Vae.Input("vae", tooltip="The VAE of the model that made the path."),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=1000,
                    tooltip="How many frames; at most one more than the path has steps.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The frames from noisy to clean, one image of the batch after another. "
                    "Of a video each is the whole video, and the node shows its first image.",
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
        frame = noisy_frame if is_independent(path) else DiffusionPath.denoised
        latents = [frame(path, i) if i < path.steps else path.clean for i in steps]
        images = vae.decode(torch.stack(latents, dim=1).flatten(0, 1))
        videos = images.reshape(count * len(path.clean), -1, *images.shape[-3:])
        text = f"Steps {', '.join(map(str, steps))} of {path.steps}"
        return io.NodeOutput(videos.flatten(0, 1), ui=tell(cls, text, videos[:, 0]))
