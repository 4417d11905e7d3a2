"""What a network takes of the source's, and a background that is kept, as nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..attention.blocks import check_blocks
from ..edits import keep_background, source_features
from .support import (
    AUTO,
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    fraction_input,
    id_of,
    known_before,
    masks_of,
    names_itself,
    window_inputs,
)

TAKES = ("preset", *source_features.PARTS)
REFERENCES = ("source", "first picture")


def check_open_window(start: float, end: float) -> None:
    """Raise if a window whose ends may be left open holds no step."""
    for name, value in (("start", start), ("end", end)):
        if AUTO < value < 0:
            raise ValueError(f"{name} is {value:g}; use 0 to 1, or -1 for the preset's")
    if start >= 0 and end >= 0:
        check_window(start, end)


def open_fraction_input(name: str, tooltip: str) -> io.Input:
    """A fraction of the path that may be left to the preset."""
    return io.Float.Input(
        name,
        default=AUTO,
        min=AUTO,
        max=1.0,
        step=0.01,
        tooltip=f"{tooltip} -1 = the preset's.",
        advanced=True,
    )


class SourceFeatures(io.ComfyNode):
    """Let the network take attention or features of the source."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_SourceFeatures",
            display_name="Take from the Source (Source Features)",
            category=f"{CATEGORY}/attention",
            description="Lets blocks of the network use the source's attention or features. The "
            "presets are published methods: MasaCtrl for another pose, Plug-and-Play for the same "
            "layout, RF-Solver and Stable Flow for a faithful edit, StyleAligned for the same "
            "style.",
            search_aliases=[
                "MasaCtrl",
                "Plug-and-Play",
                "PnP",
                "RF-Solver",
                "Stable Flow",
                "StyleAligned",
                "style transfer",
                "reference attention",
                "attention injection",
            ],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(source_features.PRESETS),
                    default="MasaCtrl",
                    tooltip="The method. MasaCtrl: the look of the source, in another pose. "
                    "Plug-and-Play: the layout of the source. RF-Solver: a light hold on the "
                    "source. Stable Flow: very close to the source. StyleAligned: the style of "
                    "the source, with another content.",
                    display_name="method",
                ),
                io.Combo.Input(
                    "take",
                    options=list(TAKES),
                    default="preset",
                    tooltip="What is taken of the source's self-attention: q and k give the "
                    "layout, k and v the look, v a light hold. features: what the network has "
                    "computed itself. everything: the source's picture. preset = the method's.",
                    advanced=True,
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    tooltip='Which blocks of the network, such as "double 0-18", "output 3-8", '
                    '"60%-100%" or "all"; with commas between them. Empty = the method\'s.',
                    placeholder="60%-100%",
                    advanced=True,
                ),
                open_fraction_input("start", "Where it begins: 0 = full noise, 1 = clean picture."),
                open_fraction_input("end", "Where it ends. Later keeps more of the source."),
                fraction_input(
                    "weight",
                    1.0,
                    "How much of the result is the source's. Lower gives the new prompt more "
                    "freedom.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "reference",
                    options=list(REFERENCES),
                    default=REFERENCES[0],
                    tooltip="Whose attention is taken. source: the picture of the path. first "
                    "picture: the first one of the batch, so that all of a batch share its look; "
                    "it works in Record Path too.",
                    advanced=True,
                ),
                edits_input(),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, blocks, start, end, weight) -> None:
        check_blocks(blocks)
        check_open_window(start, end)
        if weight == 0:
            raise ValueError("weight is 0, which takes nothing of the source; raise it")

    @classmethod
    @names_itself
    def execute(
        cls, preset, take, blocks, start, end, weight, reference, edits=()
    ) -> io.NodeOutput:
        given = () if take == "preset" else (source_features.Taken(take),)
        edit = source_features.SourceFeatures(
            preset=preset,
            blocks=blocks,
            start=None if start == AUTO else start,
            end=None if end == AUTO else end,
            weight=weight,
            first=reference == REFERENCES[1],
            taken=given,
            told_at=id_of(cls),
        )
        return io.NodeOutput((*edits, edit))


class KeepBackground(io.ComfyNode):
    """Keep what is outside a mask, in the network and in the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_KeepBackground",
            display_name="Keep the Background (KV-Edit)",
            category=f"{CATEGORY}/attention",
            description="Changes the picture only inside a mask, as Mask Blend does, and lets "
            "what is new see the source's background while it is made, so that it fits in "
            "(KV-Edit). Outside the mask the result equals the source.",
            search_aliases=["KV-Edit", "inpainting", "keep background", "Mask Blend"],
            inputs=[
                io.Mask.Input(
                    "mask",
                    tooltip="White = edited, black = source. Same proportions as the picture. "
                    "One mask for all pictures, or one each; for a video, one for all "
                    "frames, or one each.",
                ),
                *window_inputs(
                    0.0,
                    1.0,
                    "Where it begins: 0 = full noise, 1 = clean picture.",
                    "Where it ends. Earlier lets the seam heal in the last steps.",
                    advanced=True,
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
    def execute(cls, mask, start, end, edits=()) -> io.NodeOutput:
        edit = keep_background.KeepBackground(mask=masks_of(mask), start=start, end=end)
        return io.NodeOutput((*edits, edit))
