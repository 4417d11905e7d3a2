"""Local blend as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention.align import changed
from ..attention.words import word_list
from ..edits import local_blend
from .support import (
    CATEGORY,
    edits_input,
    edits_output,
    fraction_input,
    known_before,
    names_itself,
    prompts_input,
    tell,
)


def resolution_input(advanced: bool | None = None) -> io.Input:
    """Which layers' attention maps to look at."""
    return io.Int.Input(
        "resolution",
        display_name="map size",
        default=0,
        min=0,
        max=1024,
        tooltip="Size of the attention maps (shorter side). 0 = by the picture's size: 16 for "
        "512 x 512. Larger maps are finer and less reliable.",
        advanced=advanced,
    )


class LocalBlend(io.ComfyNode):
    """Change only where some words are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_LocalBlend",
            display_name="Change Only at Words (Local Blend)",
            category=f"{CATEGORY}/attention",
            description="Changes the picture only where the model sees the given words. The mask "
            "is found from the attention and updated at every step.",
            search_aliases=[
                "P2P",
                "prompt-to-prompt",
                "mask from prompt",
                "text to mask",
                "segment by text",
                "keep background",
            ],
            inputs=[
                prompts_input(),
                io.String.Input(
                    "source_words",
                    default="",
                    tooltip='Words of the source\'s prompt for what shall change, such as "horse"; '
                    "with commas between them. Leave both lists empty for the words that differ "
                    "between the two prompts.",
                    display_name="words in the source",
                ),
                io.String.Input(
                    "target_words",
                    default="",
                    tooltip='Words of the new prompt for what shall come, such as "zebra"; with '
                    "commas between them.",
                    display_name="words in the result",
                ),
                io.String.Input(
                    "subtract_words",
                    default="",
                    tooltip="Words of either prompt for what must stay as it is, even where the "
                    "other words are too.",
                    display_name="words to protect",
                ),
                fraction_input(
                    "threshold",
                    0.3,
                    "Attention threshold relative to the map's maximum. Lower = larger mask.",
                ),
                fraction_input(
                    "start",
                    0.2,
                    "Where blending begins: 0 = full noise, 1 = clean picture. Later gives the "
                    "attention more steps to settle, and the surroundings more freedom.",
                ),
                edits_input(),
                resolution_input(advanced=True),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, threshold, start) -> None:
        if threshold >= 1:
            raise ValueError("threshold is 1, and no attention is above it; lower it")
        if start >= 1:
            raise ValueError("start is 1, which leaves no step to blend after; lower it")

    @classmethod
    @names_itself
    def execute(
        cls,
        prompts,
        source_words,
        target_words,
        subtract_words,
        threshold,
        start,
        edits=(),
        resolution=0,
    ) -> io.NodeOutput:
        sources, targets = word_list(source_words), word_list(target_words)
        edit = local_blend.local_blend(
            prompts,
            sources,
            targets,
            word_list(subtract_words),
            resolution=resolution,
            threshold=threshold,
            start=start,
        )
        if sources or targets:
            return io.NodeOutput((*edits, edit))
        old, new = (" ".join(word.text for word in side) or "–" for side in changed(prompts))
        return io.NodeOutput((*edits, edit), ui=tell(cls, f"Words that change: {old} → {new}"))
