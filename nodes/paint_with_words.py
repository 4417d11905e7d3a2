"""Paint with words as a node."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy.sd import CLIP
from comfy_api.latest import io
from torch import Tensor

from ..attention.align import Prompt
from ..core.path import Conditioning
from ..edits import paint_with_words
from ..host.conditions import prompt_in
from .prompts import encode
from .support import CATEGORY, edits_input, edits_output, masks_of, names_itself

GRID = 1000
"""Create Bounding Boxes counts in as many parts of the picture's width and height."""


def boxes_of(elements: Any) -> list[tuple[str, Tensor]]:
    """The phrase and the mask (1, 1000, 1000) of each box of ComfyUI's Create Bounding Boxes.

    A box has `bbox`, [top, left, bottom, right] in thousandths of the picture, and its phrase in
    `desc`; boxes for text in the picture can have it in `text` instead.
    """
    if not isinstance(elements, list) or not all(isinstance(one, dict) for one in elements):
        raise ValueError("elements holds no boxes; connect elements of Create Bounding Boxes")
    boxes = []
    for number, element in enumerate(elements, 1):
        phrase = str(element.get("desc") or element.get("text") or "").strip()
        if not phrase:
            raise ValueError(
                f"box {number} has no description; write there which words of the prompt belong in "
                "it"
            )
        sides = element.get("bbox")
        numbers = sides if isinstance(sides, list | tuple) else ()
        if len(numbers) != 4 or not all(
            isinstance(one, int | float) and math.isfinite(one) for one in numbers
        ):
            raise ValueError(f"box {number} has no four sides; draw it in Create Bounding Boxes")
        top, left, bottom, right = (round(min(max(one, 0), GRID)) for one in numbers)
        if top >= bottom or left >= right:
            raise ValueError(f"box {number}, {phrase}, has no area in the picture; draw it larger")
        mask = torch.zeros(1, GRID, GRID)
        mask[:, top:bottom, left:right] = 1
        boxes.append((phrase, mask))
    return boxes


def painted(
    prompt: Prompt, boxes: list[tuple[str, Tensor]], strength: float
) -> list[paint_with_words.PaintWithWords]:
    """An edit for each phrase that has boxes, and for all its boxes together."""
    if unknown := [f'"{phrase}"' for phrase, _ in boxes if not prompt.has(phrase)]:
        raise ValueError(
            f"the prompt has no {', '.join(dict.fromkeys(unknown))}; its words are "
            f"{', '.join(dict.fromkeys(word.text for word in prompt.words))}"
        )
    places: dict[tuple[int, ...], Tensor] = {}
    for phrase, mask in boxes:
        columns = prompt.columns(phrase)
        places[columns] = torch.maximum(mask, places.get(columns, mask))
    return [
        paint_with_words.PaintWithWords(
            prompt=prompt, columns=columns, mask=mask, strength=strength, stretched=True
        )
        for columns, mask in places.items()
    ]


def conditioning_of(
    clip: CLIP | None, prompt: str, positive: Conditioning | None
) -> tuple[Conditioning, Prompt]:
    """The prompt to paint with: the one of `positive`, or else the one that is written."""
    if positive is None:
        if clip is None:
            raise ValueError(
                "there is no CLIP; connect clip, or connect a prompt from Prompt Pair to positive"
            )
        return encode(clip, prompt)
    words = prompt_in(positive)
    if words is None:
        raise ValueError(
            "positive does not know its words; connect source or target of Prompt Pair, or write "
            "the prompt here and connect clip"
        )
    if prompt.strip() not in ("", words.text.strip()):
        raise ValueError("prompt and positive are two different prompts; empty prompt")
    return positive, words


class PaintWithWords(io.ComfyNode):
    """Say where in the picture phrases belong."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PaintWithWords",
            display_name="Paint with Words",
            category=f"{CATEGORY}/attention",
            description="Places phrases of the prompt in the picture: in boxes from Create "
            "Bounding Boxes, or in a mask. Works while generating (Record Path) and while editing.",
            search_aliases=["eDiff-I", "paint-with-words", "layout", "regional prompt", "place"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The CLIP of the model that makes the picture. Not needed with "
                    "positive.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The whole prompt. Leave it empty if positive is connected.",
                ),
                io.String.Input(
                    "phrase",
                    default="",
                    tooltip='The part of the prompt that belongs into the mask, such as "a red '
                    'apple". Boxes have their own.',
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the phrase belongs; grey pulls less. Of the picture's "
                    "proportions; one for all pictures or one each.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.4,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the phrases are pulled to their places. 0 = off. "
                    "Too much spoils the picture.",
                ),
                edits_input(),
                io.Array.Input(
                    "elements",
                    optional=True,
                    tooltip="Boxes from ComfyUI's Create Bounding Boxes. The description of each "
                    "box is the part of the prompt that belongs into it.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="A prompt from Prompt Pair, in place of clip and prompt: its source "
                    "while recording a path, its target while editing one.",
                ),
            ],
            outputs=[
                edits_output(),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The prompt, as CLIP Text Encode makes it: for Record Path or the "
                    "sampler.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(
        cls, prompt, phrase, strength, clip=None, mask=None, edits=(), elements=None, positive=None
    ) -> io.NodeOutput:
        if mask is not None and not phrase.strip():
            raise ValueError("phrase is empty; write the part of the prompt that has a place")
        if mask is None and phrase.strip():
            raise ValueError("phrase has no place; connect a mask, or use boxes and empty phrase")
        if mask is not None and not bool((mask > 0).any()):
            raise ValueError("the mask is empty; paint the place of the phrase white")
        boxes = [] if elements is None else boxes_of(elements)
        if mask is None and not boxes:
            raise ValueError(
                "no phrase has a place; draw boxes in Create Bounding Boxes, or connect a mask and "
                "write its phrase"
            )
        positive, words = conditioning_of(clip, prompt, positive)
        if mask is not None:
            edit = paint_with_words.PaintWithWords(
                prompt=words,
                columns=words.columns(phrase),
                mask=masks_of(mask),
                strength=strength,
            )
            edits = (*edits, edit)
        return io.NodeOutput((*edits, *painted(words, boxes, strength)), positive)
