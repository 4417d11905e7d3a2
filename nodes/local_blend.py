"""Local blend as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention.words import word_list
from ..edits import local_blend
from .support import (
    CATEGORY,
    edits_input,
    edits_output,
    fraction_input,
    names_itself,
    prompts_input,
)


def resolution_input(advanced: bool | None = None) -> io.Input:
    """Which layers' attention maps to look at."""
    return io.Int.Input(
        "resolution",
        default=0,
        min=0,
        max=1024,
        tooltip="The shorter side of the attention maps to look at; 0 chooses it by the picture's "
        "size, 16 for 512 by 512. Larger ones are finer and less sure of what is what.",
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
            description="Keeps the source where the attention to the words that change is low: a "
            "mask that the prompts find by themselves, anew at each step.",
            search_aliases=["P2P", "prompt-to-prompt", "automatic mask", "keep background"],
            inputs=[
                prompts_input(),
                io.String.Input(
                    "source_words",
                    default="",
                    tooltip='Words of the source\'s prompt for what shall change, such as "horse"; '
                    "with commas between them.",
                ),
                io.String.Input(
                    "target_words",
                    default="",
                    tooltip='Words of the new prompt for what shall come, such as "zebra"; with '
                    "commas between them.",
                ),
                io.String.Input(
                    "subtract_words",
                    default="",
                    tooltip="Words of either prompt for what must stay as it is, even where the "
                    "other words are too.",
                ),
                fraction_input(
                    "threshold",
                    0.3,
                    "How strong the attention must be, in parts of its largest value, for "
                    "a place to change. Lower lets more of the picture change.",
                ),
                fraction_input(
                    "start",
                    0.2,
                    "Where blending begins; 0 is the noisy end of the path. Later gives "
                    "the attention more steps to settle, and the surroundings more freedom.",
                ),
                edits_input(),
                resolution_input(advanced=True),
            ],
            outputs=[edits_output()],
        )

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
        if not sources and not targets:
            raise ValueError("source_words and target_words are both empty; name what shall change")
        if threshold >= 1:
            raise ValueError("threshold is 1, and no attention is above it; lower it")
        if start >= 1:
            raise ValueError("start is 1, which leaves no step to blend after; lower it")
        edit = local_blend.local_blend(
            prompts,
            sources,
            targets,
            word_list(subtract_words),
            resolution=resolution,
            threshold=threshold,
            start=start,
        )
        return io.NodeOutput((*edits, edit))
