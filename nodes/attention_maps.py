"""A node that shows where in a picture the words of its prompt are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..attention.align import Prompt, PromptPair
from ..attention.maps import attention_maps
from ..attention.words import word_list
from ..core.path import DiffusionPath, Source
from ..core.schedules import window
from ..host.conditions import prompt_in
from ..host.denoiser import ComfyDenoiser
from ..host.guider import run
from .local_blend import resolution_input
from .pictures import labelled_map
from .support import (
    CATEGORY,
    Path,
    Prompts,
    check_attention,
    check_grouping,
    check_path,
    check_sampled,
    check_whole,
    check_window,
    counted,
    known_before,
    names_itself,
    shown,
    tell,
    uses,
    window_inputs,
)


def prompt_of(path: DiffusionPath, prompts: PromptPair | None = None) -> Prompt:
    """The one of two prompts that a path was made with, or the one that the path itself knows."""
    if prompts is None:
        own = prompt_in(path.positive)
        if own is None:
            raise ValueError(
                "the path does not know the words of its prompt; make it with a prompt from Prompt "
                "Pair, or connect that Prompt Pair to prompts"
            )
        check_whole(uses(path.positive, own), "the path's prompt")
        return own
    for prompt in (prompts.source, prompts.target):
        if used := uses(path.positive, prompt):
            check_whole(used, "the path's prompt")
            return prompt
    raise ValueError(
        f'the path was made with neither "{shown(prompts.source)}" nor '
        f'"{shown(prompts.target)}"; connect the Prompt Pair that it was made with'
    )


def frames_of(maps: Tensor, count: int, size: Sequence[int]) -> Tensor:
    """Maps (B, n, ..., h, w) for each of `count` pictures, or frames of videos, in their size
    (count, n, H, W), of which the largest value of each word's is 1."""
    videos = maps.reshape(*maps.shape[:2], -1, *maps.shape[-2:])
    frames = F.interpolate(videos, (count // len(maps), *videos.shape[-2:]), mode="nearest")
    large = F.interpolate(frames.transpose(1, 2).flatten(0, 1), tuple(size), mode="bilinear")
    of_videos = large.unflatten(0, (len(maps), -1))
    peaks = of_videos.amax(dim=(1, 3, 4), keepdim=True).clamp(min=1e-12)
    return (of_videos / peaks).flatten(0, 1)


def every_word(prompt: Prompt) -> list[str]:
    """The words of a prompt, each once, without punctuation."""
    found: dict[str, str] = {}
    for word in prompt.words:
        if any(map(str.isalnum, word.text)):
            found.setdefault(word.text.casefold(), word.text)
    if not found:
        raise ValueError("the path's prompt has no words to look at; use a path made with some")
    return list(found.values())


class AttentionMaps(io.ComfyNode):
    """See where the words of a prompt are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_AttentionMaps",
            display_name="Where the Words Are (Attention Maps)",
            category=f"{CATEGORY}/attention",
            description="Shows for each word of a path's prompt where in the picture the model "
            "sees it, and gives these attention maps as masks.",
            search_aliases=[
                "DAAM",
                "heat map",
                "cross attention",
                "mask from prompt",
                "text to mask",
                "segment by text",
                "P2P",
                "explain",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that made the path, or a fine-tune of it."
                ),
                Path.Input("path", tooltip="The path of the picture."),
                Prompts.Input(
                    "prompts",
                    optional=True,
                    tooltip="Only needed if the path was made with a prompt from another node than "
                    "Prompt Pair: a Prompt Pair with that prompt as one of its two.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of the model that made the path."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases to show, separated by commas. Empty = every word "
                    "of the prompt.",
                    placeholder="horse, meadow",
                ),
                resolution_input(),
                *window_inputs(
                    0.0,
                    1.0,
                    "Where to begin looking; 0 is the noisy end of the path, where the layout is "
                    "settled.",
                    "Where to stop looking. Earlier shows the layout, later the details too.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="A heat map over the picture for each word, dark to bright; all words "
                    "of the first picture, then of the second.",
                ),
                io.Mask.Output(
                    display_name="maps",
                    tooltip="The maps in the picture's size and the same order, each from 0 to 1.",
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, start=0.0, end=1.0) -> None:
        check_window(start, end)

    @classmethod
    @names_itself
    def execute(
        cls, model, path, vae, words, resolution, prompts=None, start=0.0, end=1.0
    ) -> io.NodeOutput:
        check_attention(model, "the maps are of", "one of the models that the README names")
        check_grouping(model, "Attention Maps")
        check_path(model, path)
        prompt = prompt_of(path, prompts)
        shown_words = word_list(words) or every_word(prompt)
        columns = [prompt.columns(word) for word in shown_words]
        percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
        steps = window(path.sigmas.tolist(), start, end, percent_to_sigma)
        if not steps:
            raise ValueError(
                f"none of the path's {path.steps} steps begins between start {start} and end {end}"
                "; move them apart"
            )

        def look(denoiser: ComfyDenoiser, conditions, progress):
            source = Source(
                path, denoiser.percent_to_sigma, denoiser.latent_in, conditions["positive"]
            )
            maps = attention_maps(
                denoiser,
                source,
                prompt,
                columns,
                resolution=resolution,
                steps=steps,
                progress=progress,
            )
            return check_sampled(maps.cpu()), denoiser.evaluations

        maps, evaluations = run(
            model, {"positive": path.positive}, path.clean, path.sigmas, look, steps=len(steps)
        )
        pictures = vae.decode(path.clean)
        pictures = pictures.reshape(-1, *pictures.shape[-3:])
        size = f"{maps.shape[-1]} x {maps.shape[-2]}"
        maps = frames_of(maps, len(pictures), pictures.shape[1:3])
        images = torch.stack(
            [
                labelled_map(picture, heat, word)
                for picture, heats in zip(pictures, maps, strict=True)
                for heat, word in zip(heats, shown_words, strict=True)
            ]
        )
        text = (
            f"{counted(len(steps), 'step')}, {counted(evaluations, 'model call')}; maps of {size}"
        )
        told = tell(cls, text, images, figures={"words": shown_words})
        return io.NodeOutput(images, maps.flatten(0, 1), ui=told)
