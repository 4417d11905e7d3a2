"""Paint with words as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..edits import paint_with_words
from .prompts import encode
from .support import CATEGORY, edits_input, edits_output, masks_of, names_itself


class PaintWithWords(io.ComfyNode):
    """Say where in the picture a phrase belongs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PaintWithWords",
            display_name="Paint with Words",
            category=f"{CATEGORY}/attention",
            description="Draws a phrase of the prompt to the place that a mask paints for it. One "
            "node for each phrase; works while recording a path, and while editing one.",
            search_aliases=["eDiff-I", "paint-with-words", "layout", "regional prompt", "place"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the model that makes the picture."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The whole prompt, the same text as that of positive.",
                ),
                io.String.Input(
                    "phrase",
                    default="",
                    tooltip='The part of it that has a place, such as "a red apple".',
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="White where the phrase belongs; grey pulls less. Of the picture's "
                    "proportions; one for all pictures or one each.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.4,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How hard the phrase is drawn to its place; 0 is not at all. Too much "
                    "spoils the picture.",
                ),
                edits_input(),
            ],
            outputs=[edits_output()],
        )

    @classmethod
    @names_itself
    def execute(cls, clip, prompt, phrase, mask, strength, edits=()) -> io.NodeOutput:
        if not phrase.strip():
            raise ValueError("phrase is empty; write the part of the prompt that has a place")
        if not bool((mask > 0).any()):
            raise ValueError("the mask is empty; paint the place of the phrase white")
        _, words = encode(clip, prompt)
        edit = paint_with_words.PaintWithWords(
            prompt=words,
            columns=words.columns(phrase),
            mask=masks_of(mask),
            strength=strength,
        )
        return io.NodeOutput((*edits, edit))
