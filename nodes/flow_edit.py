"""Nodes of the edits that follow a difference of predictions: FlowEdit, Uni-Edit, RF-Inversion."""

from __future__ import annotations

from comfy_api.latest import io

from ..edits import flow_edit, pull_to_source, uni_edit
from .support import (
    AUTO,
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    fraction_input,
    known_before,
    names_itself,
    settings_input,
    window_inputs,
)


class FlowEdit(io.ComfyNode):
    """Follow the difference between the target's prediction and the source's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_FlowEdit",
            display_name="Edit by Difference (FlowEdit)",
            category=f"{CATEGORY}/edits",
            description="Adds the difference between the predictions for the new prompt and for "
            "the source prompt. What both prompts share stays. The edit to start "
            "with, on a Straight Path, with any model.",
            search_aliases=["flow edit", "FlowAlign", "FlowSlider", "inversion free", "edit image"],
            inputs=[
                io.Float.Input(
                    "source_cfg",
                    default=AUTO,
                    min=AUTO,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG of the source prompt. -1 = use the value in settings. The "
                    "sampler's cfg is for the new prompt.",
                    advanced=True,
                    display_name="cfg of source prompt",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-5.0,
                    max=5.0,
                    step=0.05,
                    tooltip="Strength of the edit. 0 = no edit, 1 = normal, above 1 = exaggerated, "
                    "below 0 = the opposite. Values other than 1 add one model call per step.",
                ),
                io.Float.Input(
                    "anchor",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.001,
                    tooltip="FlowAlign: pulls every step back to the source by this fraction. The "
                    "paper uses 0.01, with the source prompt as the sampler's negative.",
                    advanced=True,
                    display_name="pull to source (anchor)",
                ),
                io.Float.Input(
                    "start",
                    default=AUTO,
                    min=AUTO,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the edit begins: 0 = full noise, 1 = clean picture. Higher "
                    "keeps more of the source and is faster. -1 = use the value in "
                    "settings.",
                ),
                fraction_input(
                    "end",
                    1.0,
                    "Where the edit ends. After it, the new prompt is sampled as usual. Lower it "
                    "to change the style.",
                    advanced=True,
                ),
                io.Int.Input(
                    "average",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Number of noise samples to average at every step. More is smoother "
                    "and multiplies the model calls.",
                    advanced=True,
                    display_name="noise samples (average)",
                ),
                settings_input(
                    flow_edit.FAMILIES,
                    "Model family whose values replace a -1 above.",
                ),
                edits_input(),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, source_cfg, start, end) -> None:
        check_window(start, end)
        for name, value in (("source_cfg", source_cfg), ("start", start)):
            if AUTO < value < 0:
                raise ValueError(f"{name} is {value}; use 0 or more, or -1 for that of settings")

    @classmethod
    @names_itself
    def execute(
        cls, source_cfg, strength, anchor, start, end, average, settings="auto", edits=()
    ) -> io.NodeOutput:
        edit = flow_edit.FlowEdit(
            source_cfg=None if source_cfg == AUTO else source_cfg,
            strength=strength,
            anchor=anchor,
            start=None if start == AUTO else start,
            end=end,
            average=average,
            settings=settings,
        )
        return io.NodeOutput((*edits, edit))


class UniEdit(io.ComfyNode):
    """Steer most where the two prompts differ most."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_UniEdit",
            display_name="Edit in Few Steps (Uni-Edit)",
            category=f"{CATEGORY}/edits",
            description="Adds the difference between the predictions for the two prompts, most "
            "where they differ most. Invert with solver uni and sample with cfg 1.",
            search_aliases=["UniEdit-Flow", "uni edit", "Uni-Inv", "flow edit", "edit image"],
            inputs=[
                fraction_input(
                    "alpha",
                    0.6,
                    "Fraction of the schedule to edit, counted from its clean end. 0.6 keeps "
                    "more of the source, 0.8 edits more.",
                    label="edited part (alpha)",
                ),
                io.Float.Input(
                    "omega",
                    default=5.0,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    tooltip="How strongly the difference between the two predictions is added.",
                    display_name="edit strength (omega)",
                ),
                edits_input(),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, alpha) -> None:
        if alpha == 0:
            raise ValueError("alpha is 0, and so no step is edited; use more, such as 0.6")

    @classmethod
    @names_itself
    def execute(cls, alpha, omega, edits=()) -> io.NodeOutput:
        return io.NodeOutput((*edits, uni_edit.UniEdit(alpha=alpha, omega=omega)))


class PullToSource(io.ComfyNode):
    """Head for the source's image in part."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PullToSource",
            display_name="Pull to Source (RF-Inversion)",
            category=f"{CATEGORY}/edits",
            description="RF-Inversion's controller: pulls the prediction toward the source image "
            "during a part of the path.",
            search_aliases=["RF-Inversion", "rf inversion", "fluxtapoz", "keep structure"],
            inputs=[
                fraction_input(
                    "eta",
                    0.9,
                    "Strength of the pull. 0 = none, 1 = straight to the source.",
                    label="pull (eta)",
                ),
                *window_inputs(
                    0.0,
                    0.25,
                    "Where the pull begins: 0 = full noise, 1 = clean picture.",
                    "Where the pull ends. Later keeps more of the source.",
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
    def execute(cls, eta, start, end, edits=()) -> io.NodeOutput:
        edit = pull_to_source.PullToSource(eta=eta, start=start, end=end)
        return io.NodeOutput((*edits, edit))
