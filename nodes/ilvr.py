"""ILVR as a node."""

from __future__ import annotations

from comfy_api.latest import io

from ..edits import ilvr
from .support import (
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    known_before,
    names_itself,
    window_inputs,
)


class ILVR(io.ComfyNode):
    """Take the coarse structure from the source."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_ILVR",
            display_name="Keep Composition and Colours (ILVR)",
            category=f"{CATEGORY}/edits",
            description="Takes the coarse structure from the source after each step from start to "
            "end, and leaves the details to the new prompt.",
            search_aliases=["ILVR", "low pass", "low frequency", "composition", "blur", "tile"],
            inputs=[
                io.Int.Input(
                    "factor",
                    display_name="coarse size",
                    default=ilvr.ILVR.factor,
                    min=1,
                    max=64,
                    tooltip="What is larger than this comes from the source, in latent pixels of "
                    "8 picture pixels or so. Larger gives the new prompt more freedom; 1 keeps "
                    "everything.",
                ),
                *window_inputs(
                    ilvr.ILVR.start,
                    ilvr.ILVR.end,
                    "Where it begins: 0 = full noise, 1 = clean picture.",
                    "Where it ends. Later keeps more of the source; the paper's range is 0.8.",
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
    def execute(cls, factor, start, end, edits=()) -> io.NodeOutput:
        return io.NodeOutput((*edits, ilvr.ILVR(factor=factor, start=start, end=end)))
