"""The same edit with several values of its knobs, and the pictures on one labelled sheet."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any, cast

import torch
from comfy_api.latest import io

from ..core.edit import Edit, Edits
from ..edits.paint_with_words import PaintWithWords
from ..edits.prompt_to_prompt import PromptToPrompt, Reweight
from .pictures import labelled, sheet
from .support import (
    AUTO,
    CATEGORY,
    PathEdits,
    check_window,
    counted,
    known_before,
    names_itself,
    tell,
)

KNOBS: dict[str, tuple[float, float]] = {
    "weight": (0, 1),
    "start": (0, 1),
    "end": (0, 1),
    "strength": (0, 10),
    "threshold": (0, 1),
    "keep layout until": (0, 1),
    "keep shapes until": (0, 1),
    "factor of the words": (-100, 100),
    "scale": (-50, 50),
    "alpha": (0, 1),
    "omega": (0, 50),
    "eta": (0, 1),
    "source_cfg": (0, 100),
    "cfg": (0, 100),
}
"""What an edit, or for cfg the sampler, can be tried with, and the limits."""

UNTIL = {"keep layout until": "cross_replace", "keep shapes until": "self_replace"}
"""Ends of the two windows of Prompt-to-Prompt, by the fields that hold them."""

MOST = 100
"""The most pictures of one grid."""


def numbers(name: str, text: str) -> list[float]:
    """The numbers of a text box, with commas between them."""
    try:
        values = [float(one) for one in text.replace("\n", ",").split(",") if one.strip()]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise ValueError(f'{name} "{text}" are not all numbers; write them such as "0.3, 0.5, 0.7"')
    return values


def has(edit: Edit, knob: str) -> bool:
    """Whether an edit has a knob."""
    if knob == "factor of the words":
        return isinstance(edit, Reweight)
    return hasattr(edit, UNTIL.get(knob, knob))


def turned(edit: Edit, knob: str, value: float) -> Edit:
    """The edit with another value of a knob that it has."""
    if isinstance(edit, Reweight) and knob == "factor of the words":
        return replace(edit, scales=edit.scales.where(edit.scales == 1, value))
    if isinstance(edit, PromptToPrompt) and knob in UNTIL:
        start, _ = getattr(edit, UNTIL[knob])
        if value:
            begin = knob.replace("until", "from")
            check_window(start, value, (f'"{begin}"', f'"{knob}"'))
        window: dict[str, Any] = {UNTIL[knob]: (start, value)}
        return replace(edit, **window)
    changed: Any = replace(cast(Any, edit), **{knob: value})
    start, end = getattr(changed, "start", None), getattr(changed, "end", None)
    if knob in ("start", "end") and start is not None and end is not None:
        check_window(start, end)
    return changed


def with_knob(edits: Edits, knob: str, value: float) -> Edits:
    """The chain with another value of a knob, in the last of its edits that has it."""
    low, high = KNOBS[knob]
    if not low <= value <= high:
        raise ValueError(f"{knob} is {value:g}; use {low:g} to {high:g}")
    if knob == "cfg":
        return edits
    found = [edit for edit in edits if has(edit, knob)]
    if found:
        # the boxes of one Paint with Words are an edit for each phrase
        chosen = found if isinstance(found[-1], PaintWithWords) else found[-1:]
        same = [edit for edit in chosen if type(edit) is type(found[-1])]
        return tuple(
            turned(edit, knob, value) if any(edit is one for one in same) else edit
            for edit in edits
        )
    known = [one for one in KNOBS if one == "cfg" or any(has(edit, one) for edit in edits)]
    raise ValueError(f"no edit of the chain has {knob}; choose {', '.join(known)}")


class EditGrid(io.ComfyNode):
    """One chain of edits with several values of one or two knobs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_EditGrid",
            display_name="Try Several Values (Edit Grid)",
            category=CATEGORY,
            description="Makes a list of edits from one chain, with several values of one or two "
            "of its settings. The sampler then makes a picture with each; Contact Sheet shows them "
            "all.",
            search_aliases=["XY plot", "XY grid", "compare settings", "sweep", "parameter search"],
            inputs=[
                PathEdits.Input("edits", tooltip="The chain of edits to try."),
                io.Combo.Input(
                    "knob",
                    options=list(KNOBS),
                    default="end",
                    tooltip="Which setting to try, of the last edit in the chain that has it. For "
                    "cfg connect the output cfg to the sampler.",
                    display_name="setting",
                ),
                io.String.Input(
                    "values",
                    default="0.3, 0.5, 0.7",
                    tooltip="The values to try, separated by commas: the columns of the sheet.",
                ),
                io.Combo.Input(
                    "second_knob",
                    options=["none", *KNOBS],
                    default="none",
                    tooltip="Another setting to try with each of the values.",
                    display_name="second setting",
                ),
                io.String.Input(
                    "second_values",
                    default="",
                    tooltip="The values of the second setting, separated by commas: the rows of "
                    "the sheet.",
                    display_name="second values",
                ),
            ],
            outputs=[
                PathEdits.Output(
                    display_name="edits",
                    is_output_list=True,
                    tooltip="A chain for each picture. The sampler runs once for each.",
                ),
                io.Float.Output(
                    display_name="cfg",
                    is_output_list=True,
                    tooltip="The cfg of each picture; -1, which leaves it to the sampler, if cfg "
                    "is not tried.",
                ),
                io.String.Output(
                    display_name="labels",
                    is_output_list=True,
                    tooltip="What is different about each picture, for Contact Sheet.",
                ),
                io.Int.Output(
                    display_name="columns", tooltip="The number of values, for Contact Sheet."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, values, second_values) -> None:
        if not numbers("values", values):
            raise ValueError('values is empty; write some, such as "0.3, 0.5, 0.7"')
        pictures = len(numbers("values", values)) * max(
            1, len(numbers("second values", second_values))
        )
        if pictures > MOST:
            raise ValueError(f"that makes {pictures} pictures; use {MOST} at most")

    @classmethod
    @names_itself
    def execute(cls, edits, knob, values, second_knob, second_values) -> io.NodeOutput:
        columns, rows = numbers("values", values), numbers("second values", second_values)
        if second_knob == "none" and rows:
            raise ValueError("second values belong to no setting; choose a second setting")
        if second_knob != "none" and not rows:
            raise ValueError(f"second values is empty; write some for {second_knob}")
        if second_knob == knob:
            raise ValueError(f"both settings are {knob}; choose another second setting")
        down: list[float | None] = [*rows] or [None]
        chains, scales, labels = [], [], []
        for second, first in product(down, columns):
            tried = {knob: first} if second is None else {knob: first, second_knob: second}
            chain = edits
            for name, value in tried.items():
                chain = with_knob(chain, name, value)
            chains.append(chain)
            scales.append(tried.get("cfg", AUTO))
            labels.append(", ".join(f"{name} {value:g}" for name, value in tried.items()))
        return io.NodeOutput(chains, scales, labels, len(columns))


class ContactSheet(io.ComfyNode):
    """Pictures with labels on one sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_ContactSheet",
            display_name="Pictures with Labels (Contact Sheet)",
            category=CATEGORY,
            description="Puts a list of pictures on one sheet, each with its label below. Of a "
            "list of batches it makes a sheet for each picture of the batch.",
            search_aliases=["image grid", "XY plot", "compare images", "label", "overview"],
            inputs=[
                io.Image.Input(
                    "images", tooltip="Pictures of one size: a list of them, or a batch."
                ),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The labels: from Edit Grid, or one per line.",
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=MOST,
                    optional=True,
                    tooltip="Pictures per row. 0 = as many as make the sheet about square.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The sheet.")],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, images, labels=("",), columns=(0,)) -> io.NodeOutput:
        batches = [batch[..., :3].float().cpu() for batch in images]
        if len(batches) == 1:
            batches = [*batches[0].split(1)]
        if not batches or not len(batches[0]):
            raise ValueError("images holds no picture; connect at least one")
        sizes = {tuple(batch.shape) for batch in batches}
        if len(sizes) > 1:
            told = " and ".join(
                f"{batch} of {width} x {height}" for batch, height, width, _ in sorted(sizes)
            )
            raise ValueError(
                f"the pictures are of several sizes or numbers, {told}; connect pictures of one "
                "size"
            )
        texts = [line for text in labels for line in text.splitlines() or [""]]
        if len(texts) > len(batches):
            raise ValueError(
                f"there are {len(texts)} labels for {len(batches)} pictures; use as many"
            )
        texts += [""] * (len(batches) - len(texts))
        across = columns[0] or math.ceil(math.sqrt(len(batches)))
        pages = [
            sheet([labelled(*one) for one in zip(pictures, texts, strict=True)], across)
            for pictures in zip(*batches, strict=True)
        ]
        image = torch.stack(pages)
        return io.NodeOutput(image, ui=tell(cls, counted(len(batches), "picture"), image))
