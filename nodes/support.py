"""What the nodes share: wire types, checks of what comes in, and what they tell the user."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from textwrap import shorten
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from server import PromptServer
from torch import Tensor

from ..attention.align import Prompt
from ..core.edit import Edits, Need
from ..core.masks import check_mask
from ..core.path import Conditioning, DiffusionPath, Source
from ..core.schedules import SPACINGS, spaced_sigmas, window
from ..edits.diffedit import MaskBlend
from ..host.conditions import is_of
from ..host.model import CLOSE, fingerprint, fits, highest_level, mixing_of, text_width, usual
from ..host.networks import attention_blocks
from ..samplers.walk import transitions_of

CATEGORY = "diffusion path"
Path = io.Custom("DIFFUSION_PATH")
PathEdits = io.Custom("DIFFUSION_PATH_EDITS")
Prompts = io.Custom("DIFFUSION_PATH_PROMPTS")

AUTO = -1.0
"""The value of a number that the model or the settings decide."""


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
    name: str,
    default: float,
    tooltip: str,
    advanced: bool | None = None,
    optional: bool = False,
    label: str | None = None,
) -> io.Input:
    """A slider from 0 to 1, such as a fraction of the path."""
    return io.Float.Input(
        name,
        display_name=label,
        display_mode=io.NumberDisplay.slider,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip=tooltip,
        advanced=advanced,
        optional=optional,
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
            f"{names[0]} {start:g} is not before {names[1]} {end:g}, so there is no step between "
            f"them; lower {names[0]} or raise {names[1]}"
        )


def seed_input(tooltip: str, advanced: bool | None = None, optional: bool = False) -> io.Input:
    """The seed of a node's random numbers."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=tooltip,
        advanced=advanced,
        optional=optional,
    )


def cfg_input(tooltip: str, default: float = AUTO, advanced: bool | None = None) -> io.Input:
    """A guidance scale; one that may be left to the model if that is its default."""
    return io.Float.Input(
        "cfg",
        default=default,
        min=min(default, 0.0),
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
        tooltip="Which noise levels the steps visit. leading, trailing and linspace are "
        "diffusers' spacings (the papers use leading); the others are ComfyUI's schedulers.",
        advanced=True,
    )


def auto_cfg(model: ModelPatcher, cfg: float, edits: Edits = ()) -> float:
    """A guidance scale; what suits the edits or else the model, if it was left open."""
    if AUTO < cfg < 0:
        raise ValueError(f"cfg is {cfg:g}; use 0 or more, or -1 for the value that suits the model")
    if cfg >= 0:
        return cfg
    suits = (edit.usual_cfg for edit in edits)
    return next((one for one in suits if one is not None), usual(model).cfg)


def steps_input(default: int = 0, published: str = "0 = as many as suit the model") -> io.Input:
    """How many steps a whole path has; a number that may be left to the model if that is 0."""
    return io.Int.Input(
        "steps",
        default=default,
        min=min(default, 1),
        max=999,
        tooltip=f"Steps from noise to picture. More is more accurate and slower; {published}.",
    )


def settings_input(families: Iterable[str], tooltip: str) -> io.Input:
    """The family of models whose settings to take where the user has left them open."""
    return io.Combo.Input(
        "settings",
        options=["auto", *families],
        default="auto",
        optional=True,
        tooltip=f"{tooltip} auto takes those of the model that is connected.",
    )


def sigmas_input() -> io.Input:
    """Noise levels from another node, in place of steps and spacing."""
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="Noise levels from a scheduler node, instead of steps and spacing.",
        advanced=True,
    )


def words(name: str) -> str:
    """A class's name as words: "PaintWithWords" is "Paint with Words"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    lowered = re.sub(r" (To|With) ", lambda word: word[0].lower(), spaced)
    return lowered.replace("Prompt to Prompt", "Prompt-to-Prompt").replace("H Space", "h-space")


def sentence(node: type[io.ComfyNode], error: ValueError) -> str:
    """What the user reads of an error: the node's name, and what it refused."""
    return f"{node.define_schema().display_name}: {error}."


def names_itself(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Decorates `execute`: asks the node's own `known_before` check first, and shows what is
    refused on the node, and the node's name before it."""
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def named(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        try:
            check_numbers(kwargs)
            if check := getattr(cls.validate_inputs, "__wrapped__", None):
                given = signature.bind(cls, *args, **kwargs)
                given.apply_defaults()
                check(cls, **{name: given.arguments[name] for name in parameters(check)})
            return execute(cls, *args, **kwargs)
        except ValueError as error:
            show(id_of(cls), f"{error}.")
            raise ValueError(sentence(cls, error)) from error

    return named


def parameters(check: Callable[..., None]) -> Mapping[str, inspect.Parameter]:
    """The inputs that a check of a node reads."""
    found = dict(inspect.signature(check).parameters)
    del found["cls"]
    return found


TYPES: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,)}
"""What a widget's value is, by its io_type."""


def known_before(check: Callable[..., None]) -> Callable[..., bool | str]:
    """Decorates `validate_inputs`: what `check` raises is refused before anything runs.

    `check` names the inputs that it reads, with their defaults if they are optional. ComfyUI has
    no value of an input that another node feeds; `check` then waits for `execute`, and
    `names_itself`. ComfyUI does not look at the limits of the inputs that are named, so they are
    looked at here.
    """
    defaults = {name: one.default for name, one in parameters(check).items()}

    @functools.wraps(check)
    def validated(cls: type[io.ComfyNode], *args: Any, **given: Any) -> bool | str:
        values = defaults | dict(zip(defaults, args, strict=False)) | given
        widgets = [one for one in cls.define_schema().inputs if one.id in values]
        if not all(isinstance(values[one.id], TYPES[one.io_type]) for one in widgets):
            return True  # fed by a node, or missing or of another type, which ComfyUI says itself
        try:
            check_numbers(values)
            for one in widgets:
                check_limits(one, values[one.id])
            check(cls, **values)
        except ValueError as error:
            return sentence(cls, error)
        return True

    validated.__signature__ = inspect.signature(check)  # type: ignore[attr-defined]
    return validated


def check_limits(widget: io.Input, value: Any) -> None:
    """Raise if a number lies outside the limits of its widget."""
    low, high = getattr(widget, "min", None), getattr(widget, "max", None)
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"{widget.id} is {value:g}; use {low:g} to {high:g}")


def id_of(node: type[io.ComfyNode]) -> str:
    """The id of the node that runs; empty outside of a workflow."""
    return str(node.hidden.unique_id or "") if node.hidden is not None else ""


def show(node_id: str, text: str) -> None:
    """Show `text` on a node in the browser."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id:
        # Nodes 2.0 reads Markdown: two spaces before the end of a line keep it.
        server.send_progress_text(text.replace("\n", "  \n"), node_id)


def tell(
    node: type[io.ComfyNode],
    text: str,
    image: Tensor | None = None,
    figures: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Show `text`, and an IMAGE, on the node in the browser.

    Args:
        text: the verdict first; two lines of 45 characters fit on a node.
        figures: the same in figures, as JSON has them; no nan or inf.

    Returns:
        All of it for the API's history: `text`, `images`, and `report` with the figures.
    """
    logging.info("%s: %s", node.define_schema().display_name, text.replace("\n", " "))
    show(id_of(node), text)
    told = ui.PreviewText(text).as_dict()
    if figures is not None:
        told |= {"report": [dict(figures)]}
    return told if image is None else told | ui.PreviewImage(image, cls=node).as_dict()


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 step", "2 steps"."""
    return f"{number} {noun}" + "s" * (number != 1)


def cost(steps: int, evaluations: int) -> str:
    """What a node has done, in steps and calls of the model."""
    return f"{counted(steps, 'step')}, {counted(evaluations, 'model call')}"


def path_sigmas(
    model: ModelPatcher, steps: int, spacing: str, sigmas: Tensor | None = None
) -> Tensor:
    """The noise levels (N + 1,) of a whole path; `sigmas`, when given, take precedence."""
    sampling = model.get_model_object("model_sampling")
    flow = mixing_of(model).flow
    if sigmas is None and spacing in SPACINGS:
        return spaced_sigmas(sampling.sigmas, steps, spacing, flow)
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(sampling, spacing, steps)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas holds {sigmas.numel()} noise levels; a path needs two or more")
    if not bool(torch.isfinite(sigmas).all()):
        raise ValueError(
            "sigmas holds nan or inf, which is no noise level; take them from a scheduler of this "
            "model"
        )
    highest, last = highest_level(model) * (1 + CLOSE), float(sigmas[-1])
    if float(sigmas.max()) > highest or last < 0:
        raise ValueError(
            f"sigmas goes from {float(sigmas[0]):.4g} to {last:.4g}, and the model knows noise "
            f"levels from {highest_level(model):.4g} to 0; take them from a scheduler of this model"
        )
    if last > max(float(sampling.sigma_min) * (1 + CLOSE), 0.0 if not flow else 1e-2):
        raise ValueError(
            f"sigmas ends at noise level {last:.4g}, where the picture is not clean yet; "
            "use sigmas that end at 0"
        )
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ValueError(
            f"the noise levels do not fall at every step ({steps} steps, {spacing}); "
            "use fewer steps, another spacing, or sigmas that fall"
        )
    return sigmas.float().cpu()


def check_sampled(latents: Tensor) -> Tensor:
    """The latents that a model has made, if they are numbers."""
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            "the model's predictions became NaN or infinite; lower cfg, or run the model in "
            "another precision (--bf16-unet, --fp32-unet)"
        )
    return latents


def downscale_ratio(model: ModelPatcher) -> int:
    """How many pixels of the picture a latent's pixel is wide."""
    return model.get_model_object("latent_format").spacial_downscale_ratio


def frame_ratio(model: ModelPatcher) -> int:
    """How many frames of a video one of its latent's holds; the first one holds one."""
    return model.get_model_object("latent_format").temporal_downscale_ratio


def first_step(model: ModelPatcher, sigmas: Tensor, fraction: float, name: str, advice: str) -> int:
    """The first step of a path in the part of the schedule from `fraction` on.

    Raises:
        ValueError: there is none because of `name`; the sentence ends with the `advice`.
    """
    percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    steps = window(sigmas.tolist(), fraction, 1.0, percent_to_sigma)
    if not steps:
        raise ValueError(f"{name} leaves no step of {len(sigmas) - 1}; {advice}")
    return steps.start


def check_numbers(inputs: Mapping[str, Any]) -> None:
    """Raise if an input is no number, which ComfyUI lets pass from the API; or a mask holds one."""
    for name, value in inputs.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, which is no number; use one within its limits")
        if name == "mask" and torch.is_tensor(value) and not bool(torch.isfinite(value).all()):
            found = "nan" if bool(value.isnan().any()) else "inf"
            raise ValueError(
                f"{name} holds {found}, which is no shade of grey; connect a mask of 0 to 1"
            )


def masks_of(mask: Tensor) -> Tensor:
    """A MASK, or a latent's noise mask, as masks (masks, height, width) of 0 to 1.

    Raises:
        ValueError: it has no pixel.
    """
    height, width = mask.shape[-2:]
    if not mask.numel():
        raise ValueError(
            f"the mask is {width} x {height}, which has no pixel; connect one of the picture's size"
        )
    return mask.reshape(-1, height, width).clamp(0, 1)


MASKED = "The latent's mask limits every edit of it"


def own_mask(latent: dict[str, Any]) -> tuple[MaskBlend, ...]:
    """The edit that a latent's own mask is, for the path that is made of it."""
    mask = latent.get("noise_mask")
    return () if mask is None else (MaskBlend(mask=masks_of(mask)),)


def check_latent(model: ModelPatcher, latent: dict[str, Any], empty: bool = False) -> Tensor:
    """The samples (B, C, ...) of a LATENT as ComfyUI hands them to a model, if it can work on them.

    Args:
        empty: whether an empty latent (all zeros) will do.
    """
    samples = comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    latent_format = model.get_model_object("latent_format")
    if getattr(samples, "is_nested", False):
        raise ValueError("latent_image holds several latents in one; connect an image's latent")
    wanted, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
    if not samples.numel():
        raise ValueError("latent_image holds no picture; give at least one")
    if samples.ndim != dimensions + 2:
        raise ValueError(
            f"latent_image has {samples.ndim} dimensions, and the model works on "
            f"{dimensions + 2}; encode the picture with this model's own VAE"
        )
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
        vectors = [one for one in (embedding, options.get("pooled_output")) if one is not None]
        if not all(bool(torch.isfinite(one).all()) for one in vectors):
            raise ValueError(
                f"{name} holds NaN or infinite values; look for a weight in the prompt that is no "
                "number, or run the text encoder in fp32 (--fp32-text-enc)"
            )


def check_guidance(model: ModelPatcher, cfg: float, negative: Conditioning | None) -> None:
    """Raise if guidance of a source has no negative, or one for another model family."""
    if cfg == 1:
        return
    if negative is None:
        raise ValueError(f"cfg is {cfg} but negative is not connected; connect it or use 1")
    check_conditioning(model, negative, "negative")


def check_path(model: ModelPatcher, path: DiffusionPath) -> None:
    """Raise if `path` was made by a model of another kind than `model`."""
    mine = fingerprint(model)
    for name, value in path.fingerprint.items():
        if name not in mine or not fits(mine[name], value):
            raise ValueError(
                f"the path was made by a model whose {name} is {value}, but this model's is "
                f"{mine.get(name)}; invert or record the picture again with this model"
            )
    dimensions = model.get_model_object("latent_format").latent_dimensions
    if path.clean.ndim != dimensions + 2:
        raise ValueError(
            f"the path's latents have {path.clean.ndim} dimensions, and this model works on "
            f"{dimensions + 2}; invert or record the picture again with this model"
        )
    if float(path.sigmas[0]) > highest_level(model) * (1 + CLOSE):
        raise ValueError(
            f"the path begins at noise level {float(path.sigmas[0]):.4g}, and this model's highest "
            f"is {highest_level(model):.4g}; invert or record the picture again with this model"
        )


def check_attention(model: ModelPatcher, needs: str, instead: str) -> None:
    """Raise, with what needs it and what to use instead, if a model's attention is not known."""
    network = model.model.diffusion_model
    if not attention_blocks(network):
        raise ValueError(
            f"{needs} attention, and that of {type(network).__name__} is not known; use {instead}"
        )


def check_edits(
    model: ModelPatcher, edits: Edits, path: DiffusionPath, positive: Conditioning, recorded: bool
) -> None:
    """Raise if an edit lacks what it needs: of the path, of the model, of the prompts.

    Args:
        positive: what is predicted under.
        recorded: whether the path is only about to be made.
    """
    first: dict[str, Prompt] = {}
    for edit in edits:
        name = words(type(edit).__name__)
        if recorded and (Need.PATH | Need.PROMPT) & edit.needs:
            raise ValueError(
                f"{name} edits a path that is there already; connect it to the Diffusion Path "
                "Sampler"
            )
        edit.check(path)
        for mask in edit.masks:
            check_mask(mask, path, frame_ratio(model))
        for conditioning in edit.conditionings:
            check_conditioning(model, conditioning, f"the prompt of {name}")
        if Need.ATTENTION not in edit.needs:
            continue
        check_attention(
            model,
            f"{name} changes",
            "MDP Epsilon, MDP Latent, or DiffEdit Mask with Mask Blend, which work with it",
        )
        check_grouping(model, name)
        of_source, of_target = edit.prompts
        check_prompt(model, name, of_target, positive, ("positive", "target"), first)
        if not recorded:
            roles = ("the path's prompt", "source")
            check_prompt(model, name, of_source, path.positive, roles, first)


def check_steps(model: ModelPatcher, edits: Edits, path: DiffusionPath, first: int = 0) -> None:
    """Raise if an edit takes steps of its own and cannot work with those of a path, from `first`
    on."""
    source = Source(path, model.get_model_object("model_sampling").percent_to_sigma)
    transitions_of(edits, source, source.levels[first:])


def check_grouping(model: ModelPatcher, name: str) -> None:
    """Raise if the network does not see a picture's attention as a whole."""
    grouped = {
        "context_handler": "a context window",
        "multigpu_clones": "more than one graphics card",
    }
    for option, what in grouped.items():
        if option in model.model_options or (
            option == "multigpu_clones" and model.get_additional_models_with_key("multigpu")
        ):
            raise ValueError(
                f"{name} changes attention, and the model runs in {what}, where no part sees the "
                "whole; connect the model without it"
            )


def check_prompt(
    model: ModelPatcher,
    name: str,
    prompt: Prompt | None,
    conditioning: Conditioning,
    roles: tuple[str, str],
    first: dict[str, Prompt],
) -> None:
    """Raise if a conditioning is not an edit's prompt, or other edits' prompt is another.

    Args:
        name: the edit's.
        roles: what the conditioning is called, and the prompt.
        first: the prompts of the edits before, by role.
    """
    if prompt is None:
        return
    width, (role, output) = text_width(model), roles
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
    if not is_of(prompt.embedding, {}, first.setdefault(output, prompt)):
        raise ValueError(
            f'{name} has the {output} prompt "{shown(prompt)}", and an edit before it '
            f'"{shown(first[output])}"; give all edits of the attention in a chain the '
            "same prompts"
        )


def uses(conditioning: Conditioning, prompt: Prompt) -> list[dict[str, Any]]:
    """The options of those parts of a CONDITIONING that are a prompt's."""
    return [options for embedding, options in conditioning if is_of(embedding, options, prompt)]


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
