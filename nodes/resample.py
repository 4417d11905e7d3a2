"""RePaint's resampling as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..edits import resample
from .support import (
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    known_before,
    names_itself,
    window_inputs,
)


class Resample(io.ComfyNode):
    """Fit what changes to what is kept, by going back into the noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        edit = resample.Resample
        return io.Schema(
            node_id="DiffusionPath_Resample",
            display_name="Fit In by Resampling (RePaint)",
            category=f"{CATEGORY}/edits",
            description="For edits inside a mask: goes back into the noise again and again while "
            "sampling, so that the new part and what is kept around it come to fit. Use it "
            "together with Mask Blend, Keep the Background, or a latent with a noise mask.",
            search_aliases=[
                "RePaint",
                "inpainting",
                "outpainting",
                "remove object",
                "harmonize",
                "seam",
                "time travel",
            ],
            inputs=[
                io.Int.Input(
                    "jump",
                    display_name="jump back by",
                    default=edit.jump,
                    min=1,
                    max=999,
                    tooltip="How many steps it goes back each time. Larger lets the new part "
                    "change more. The paper uses 10 of 250 steps.",
                ),
                io.Int.Input(
                    "resamplings",
                    display_name="passes",
                    default=edit.resamplings,
                    min=1,
                    max=100,
                    tooltip="How many times each stretch of steps is sampled. More fits better "
                    "and takes as many times longer. 1 = off. The paper uses 10.",
                ),
                *window_inputs(
                    edit.start,
                    edit.end,
                    "Where it begins: 0 = full noise, 1 = clean picture.",
                    "Where it ends. Earlier saves time; the last part of the schedule only adds "
                    "details.",
                ),
                edits_input(),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, start, end) -> None:
        check_window(start, end)

    @classmethod
    @names_itself
    def execute(cls, jump, resamplings, start, end, edits=()) -> io.NodeOutput:
        edit = resample.Resample(jump=jump, resamplings=resamplings, start=start, end=end)
        return io.NodeOutput((*edits, edit))
