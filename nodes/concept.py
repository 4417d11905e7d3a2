"""Concepts as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..edits import concept
from .prompts import encode
from .support import (
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    fraction_input,
    known_before,
    names_itself,
    tell,
)

MASKS = ("auto", "attention", "guidance", "none")


class Concept(io.ComfyNode):
    """Add something to a picture, or take it away."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Concept",
            display_name="Add or Remove (Concept, LEDITS++)",
            category=f"{CATEGORY}/edits",
            description="Adds something to the picture, or removes it, and finds the place by "
            "itself. Use one node per concept. It needs no prompt for the whole "
            "picture.",
            search_aliases=["LEDITS++", "LEDITS", "SEGA", "semantic guidance", "add", "remove"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the model that you will edit with."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip='What to add or remove, alone: "glasses", not "a man with glasses".',
                ),
                io.Float.Input(
                    "scale",
                    default=5.0,
                    min=-50.0,
                    max=50.0,
                    step=0.1,
                    tooltip="How strongly the concept is added. A negative value removes it.",
                    display_name="strength (scale)",
                ),
                fraction_input(
                    "threshold",
                    0.9,
                    "Fraction of the picture that stays outside the mask: about 0.95 for a "
                    "detail, 0.75 for something large, 0 for the whole picture.",
                ),
                fraction_input(
                    "warm_up",
                    0.0,
                    "Where the concept begins to act: 0 = full noise, 1 = clean picture. Later "
                    "keeps more of the layout.",
                    label="start (warm-up)",
                ),
                fraction_input(
                    "end",
                    1.0,
                    "Where the concept stops acting: 0 = full noise, 1 = clean picture.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "mask",
                    options=list(MASKS),
                    default="auto",
                    tooltip="Where the concept may act. attention: where the model sees its "
                    "words. guidance: where it changes the prediction most. auto: both, "
                    "or guidance alone on models whose attention is not known. none: "
                    "everywhere.",
                    advanced=True,
                    display_name="limit to",
                ),
                edits_input(),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @known_before
    def validate_inputs(cls, prompt, scale, warm_up, end) -> None:
        check_window(warm_up, end, ("warm_up", "end"))
        if not prompt.strip():
            raise ValueError("prompt is empty; write what to add to the picture, or to remove")
        if scale == 0:
            raise ValueError("scale is 0, which changes nothing; use 5 to add, or -5 to remove")

    @classmethod
    @names_itself
    def execute(cls, clip, prompt, scale, threshold, warm_up, end, mask, edits=()) -> io.NodeOutput:
        try:
            conditioning, words = encode(clip, prompt)
        except ValueError as error:
            if clip is None:
                raise
            if mask == "attention":
                raise ValueError(f"{error}, or set mask to guidance") from error
            conditioning, words = clip.encode_from_tokens_scheduled(clip.tokenize(prompt)), None
        edit = concept.Concept(
            conditioning=conditioning,
            scale=scale,
            threshold=threshold,
            guided=mask in ("auto", "guidance"),
            words=words if mask in ("auto", "attention") else None,
            warm_up=warm_up,
            end=end,
        )
        limits = ["attention"] * (edit.words is not None) + ["guidance"] * edit.guided
        text = f"Limited by {' and '.join(limits)}" if limits else "Not limited to a place"
        return io.NodeOutput((*edits, edit), ui=tell(cls, text))
