"""What the nodes share: wire types, checks of what comes in, and what they tell the user."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from server import PromptServer
from torch import Tensor

from ..attention.align import Prompt
from ..attention.control import attention_layers
from ..edits.base import Edit, Edits
from ..inversion.path import Conditioning, DiffusionPath
from ..samplers.denoiser import fingerprint, is_of, mixing_of, text_width
from ..samplers.schedules import SPACINGS, kept_steps, spaced_sigmas

CATEGORY = "diffusion path"
Path = io.Custom("DIFFUSION_PATH")
PathEdits = io.Custom("DIFFUSION_PATH_EDITS")
Prompts = io.Custom("DIFFUSION_PATH_PROMPTS")


def edits_input() -> io.Input:
    """The optional chain that an edit node makes longer."""
    return PathEdits.Input(
        "edits",
        optional=True,
        tooltip="Edits to apply before this one. Leave empty to start a chain.",
    )


def edits_output() -> io.Output:
    """The chain with this node's edit at its end."""
    return PathEdits.Output(
        display_name="edits",
        tooltip="The chain with this edit at its end: connect it to the next edit or the sampler.",
    )


def fraction_input(
    name: str, default: float, tooltip: str, advanced: bool | None = None
) -> io.Input:
    """A number from 0 to 1, such as a fraction of the path."""
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, advanced=advanced
    )


def prompts_input() -> io.Input:
    """The source's and the edit's prompt, their words aligned."""
    return Prompts.Input("prompts", tooltip="Both prompts, from Prompt Pair.")


def window_inputs(
    start: float, end: float, where: str, until: str, advanced: bool | None = None
) -> list[io.Input]:
    """The part of the path that an edit works in: the defaults, and what the two ends do."""
    return [
        fraction_input("start", start, where, advanced),
        fraction_input("end", end, until, advanced),
    ]


def check_window(start: float, end: float, names: tuple[str, str] = ("start", "end")) -> None:
    """Raise if a window holds no step."""
    if start >= end:
        raise ValueError(
            f"{names[0]} {start} is not before {names[1]} {end}; the window holds no step"
        )


def seed_input(tooltip: str, advanced: bool | None = None) -> io.Input:
    """The seed of a node's random numbers."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip=tooltip,
        advanced=advanced,
    )


def cfg_input(tooltip: str, default: float = 7.5, advanced: bool | None = None) -> io.Input:
    """A guidance scale."""
    return io.Float.Input(
        "cfg",
        default=default,
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip=tooltip,
        advanced=advanced,
    )


def spacing_input() -> io.Input:
    """Where on the noise levels the steps of a path lie."""
    return io.Combo.Input(
        "spacing",
        options=[*SPACINGS, *comfy.samplers.SCHEDULER_NAMES],
        default="leading",
        tooltip="Where the steps lie on the model's noise levels. leading, trailing and linspace "
        "are diffusers' (leading is what the papers use); the others are ComfyUI's schedulers.",
        advanced=True,
    )


def steps_input() -> io.Input:
    """How many steps a whole path has."""
    return io.Int.Input(
        "steps",
        default=50,
        min=1,
        max=999,
        tooltip="Steps of a whole path from noise to image. More are finer and slower; the papers "
        "use 50.",
    )


def sigmas_input() -> io.Input:
    """Noise levels from another node, in place of steps and spacing."""
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="Noise levels from a scheduler node, in place of steps and spacing.",
        advanced=True,
    )


def words(name: str) -> str:
    """A class's name as words: "PromptToPrompt" is "Prompt to Prompt"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.sub(r" (To|With) ", lambda word: word[0].lower(), spaced)


def names_itself(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Decorates `execute`: what a ValueError says is preceded by the node's display name."""

    @functools.wraps(execute)
    def named(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        try:
            return execute(cls, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{cls.define_schema().display_name}: {error}.") from error

    return named


def tell(node: type[io.ComfyNode], text: str, image: Tensor | None = None) -> dict[str, Any]:
    """Show `text`, and an IMAGE, on the node in the browser; returns both for the API's history."""
    logging.info("%s: %s", node.define_schema().display_name, text)
    server = getattr(PromptServer, "instance", None)
    if server is not None and node.hidden is not None and node.hidden.unique_id:
        server.send_progress_text(text, node.hidden.unique_id)
    shown = ui.PreviewText(text).as_dict()
    return shown if image is None else shown | ui.PreviewImage(image, cls=node).as_dict()


def path_sigmas(
    model: ModelPatcher, steps: int, spacing: str, sigmas: Tensor | None = None
) -> Tensor:
    """The noise levels (N + 1,) of a whole path; `sigmas`, when given, take precedence."""
    sampling = model.get_model_object("model_sampling")
    if sigmas is None and spacing in SPACINGS:
        return spaced_sigmas(sampling.sigmas, steps, spacing, mixing_of(model).flow)
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(sampling, spacing, steps)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas holds {sigmas.numel()} noise levels; a path needs two or more")
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ValueError(
            f"the noise levels do not fall at every step ({steps} steps, {spacing}); "
            "use fewer steps, another spacing, or sigmas that fall"
        )
    return sigmas.float().cpu()


def downscale_ratio(model: ModelPatcher) -> int:
    """How many pixels of the picture a latent's pixel is wide."""
    return model.get_model_object("latent_format").spacial_downscale_ratio


def last_steps(steps: int, fraction: float, name: str) -> int:
    """How many steps the clean `fraction` of `steps` has; at least one, or a clear error."""
    kept = kept_steps(steps, fraction)
    if kept < 1:
        raise ValueError(f"{name} leaves no step of {steps}; change it or raise steps")
    return kept


def check_latent(model: ModelPatcher, latent: dict[str, Any], empty: bool = False) -> Tensor:
    """The samples (B, C, ...) of a LATENT, if `model` can work on them.

    Args:
        empty: whether an empty latent (all zeros) will do.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError("latent_image holds several latents in one; connect an image's latent")
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != wanted:
        raise ValueError(
            f"latent_image has {samples.shape[1]} channels, the model works on {wanted}; "
            "encode the picture with this model's own VAE"
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(
            "latent_image holds NaN or infinite values; encode the picture again, "
            "with the VAE in fp32 if it overflows (--fp32-vae)"
        )
    if not empty and not bool(samples.any()):
        raise ValueError("latent_image is empty; connect a picture through VAE Encode")
    return samples


def check_conditioning(model: ModelPatcher, conditioning: Conditioning, name: str) -> None:
    """Raise if `conditioning` is missing or was made for a model of another family."""
    if not conditioning:
        raise ValueError(f"{name} holds no prompt; connect the output of CLIP Text Encode")
    width = text_width(model)
    pooled = isinstance(model.model.model_config.unet_config.get("adm_in_channels"), int)
    for embedding, options in conditioning:
        if width is not None and embedding.shape[-1] != width:
            raise ValueError(
                f"{name} was encoded {embedding.shape[-1]} wide, for another model family; this "
                f"model reads {width}: encode the prompt with the CLIP of the same checkpoint"
            )
        if pooled and "pooled_output" not in options:
            raise ValueError(
                f"{name} has no pooled vector, which this model needs; "
                "encode the prompt with the CLIP of the same checkpoint"
            )


def check_path(model: ModelPatcher, path: DiffusionPath) -> None:
    """Raise if `path` was made by a model of another kind than `model`."""
    mine = fingerprint(model)
    for name, value in path.fingerprint.items():
        if mine.get(name) != value:
            raise ValueError(
                f"the path was made by a model whose {name} is {value}, but this model's is "
                f"{mine.get(name)}; invert or record the picture again with this model"
            )


def check_cross_attention(model: ModelPatcher, needs: str, instead: str) -> None:
    """Raise, with what needs it and what to use instead, if a model has no cross-attention."""
    if not attention_layers(model.model.diffusion_model):
        raise ValueError(
            f"{needs} cross-attention, and {type(model.model).__name__} has none; use {instead}"
        )


def check_attention(
    model: ModelPatcher,
    edits: Edits,
    positive: Conditioning,
    source: Conditioning | None = None,
) -> None:
    """Raise if edits change an attention that the model has not, or under prompts not theirs.

    Args:
        positive: what is predicted under.
        source: the path's own prompt; None while a path is recorded.
    """
    width = text_width(model)
    first: dict[str, Prompt] = {}
    for edit in edits:
        name = words(type(edit).__name__)
        if type(edit).attention is Edit.attention:
            continue
        check_cross_attention(
            model,
            f"{name} changes",
            "MDP Epsilon, MDP Latent, or DiffEdit Mask with Mask Blend, which work with it",
        )
        of_source, of_target = edit.prompts
        for prompt, conditioning, role, output in (
            (of_target, positive, "positive", "target"),
            (of_source, source, "the path's prompt", "source"),
        ):
            if prompt is None or conditioning is None:
                continue
            if width is not None and prompt.embedding.shape[-1] != width:
                raise ValueError(
                    f"the prompt of {name} was encoded {prompt.embedding.shape[-1]} wide, for "
                    f"another model family; this model reads {width}: encode it with the CLIP of "
                    "the same checkpoint"
                )
            used = uses(conditioning, prompt)
            if not used:
                raise ValueError(
                    f'{role} is not the {output} prompt of {name}, "{shown(prompt)}"; connect the '
                    f"{output} of its Prompt Pair there, or write the same prompt in both places"
                )
            check_whole(used, role)
            # One prediction has its tokens counted one way, whoever asks.
            if not is_of(prompt.embedding, first.setdefault(output, prompt)):
                raise ValueError(
                    f'{name} has the {output} prompt "{shown(prompt)}", and an edit before it '
                    f'"{shown(first[output])}"; give all edits of the attention in a chain the '
                    "same prompts"
                )


def uses(conditioning: Conditioning, prompt: Prompt) -> list[dict[str, Any]]:
    """The options of those parts of a CONDITIONING that are a prompt's."""
    return [options for embedding, options in conditioning if is_of(embedding, prompt)]


def check_whole(used: list[dict[str, Any]], role: str) -> None:
    """Raise if a prompt is for an area only: there the network sees a picture of its own."""
    if any("area" in options or options.get("set_area_to_bounds") for options in used):
        raise ValueError(
            f"{role} is set to an area, and its attention is then not that of the whole picture; "
            "use Conditioning (Set Mask) in place of Conditioning (Set Area), with set_cond_area "
            "default"
        )


def shown(prompt: Prompt) -> str:
    """A prompt's text, cut short, on one line."""
    return shorten(prompt.text, 60, placeholder=" ...")
