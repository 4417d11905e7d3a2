"""The four MDP edits as nodes."""

from __future__ import annotations

from typing import ClassVar

from comfy_api.latest import io

from ..edits import mdp
from .curves import curve_input, told_curve, weight_of
from .support import (
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    fraction_input,
    known_before,
    names_itself,
    window_inputs,
)


class MDPNode(io.ComfyNode):
    """What the four have in common: only the edit and its words differ."""

    EDIT: ClassVar[type[mdp.MDP]]
    NAME: ClassVar[str]
    DESCRIPTION_TEXT: ClassVar[str]
    ALIASES: ClassVar[list[str]]

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"DiffusionPath_{cls.EDIT.__name__}",
            display_name=cls.NAME,
            category=f"{CATEGORY}/edits",
            description=cls.DESCRIPTION_TEXT,
            search_aliases=["MDP", "manipulate diffusion path", *cls.ALIASES],
            inputs=[
                fraction_input(
                    "weight",
                    cls.EDIT.weight,
                    "How much of the source to use from start to end. 1 = only the source, 0 = "
                    "none of it.",
                    label="source weight",
                ),
                io.Combo.Input(
                    "curve",
                    options=list(mdp.CURVES),
                    default="constant",
                    tooltip="How the weight changes from start to end: constant, or falling to "
                    "almost 0 linearly, as a cosine or exponentially.",
                    advanced=True,
                ),
                *window_inputs(
                    cls.EDIT.start,
                    cls.EDIT.end,
                    "Where the edit begins: 0 = full noise, 1 = clean picture. A little "
                    "above 0 lets the new prompt set colours and light.",
                    "Where the edit ends. Later keeps more of the source's layout; earlier "
                    "gives the new prompt more freedom.",
                ),
                edits_input(),
                curve_input("by which the source weight is multiplied"),
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
    def execute(cls, weight, curve, start, end, edits=(), weight_curve=None) -> io.NodeOutput:
        factor = weight_of(weight_curve, start, end)
        edit = cls.EDIT(weight=weight, curve=curve, start=start, end=end, weight_curve=factor)

        def used(x: float) -> float:
            falling = weight * mdp.curve_value(curve, (x - start) / (end - start))
            return falling * factor(x) if factor and start <= x < end else 0.0

        return io.NodeOutput((*edits, edit), ui=told_curve(cls, factor, used))


class MDPEpsilon(MDPNode):
    """Mix the predicted noise."""

    EDIT = mdp.MDPEpsilon
    NAME = "Keep Layout (MDP Epsilon)"
    DESCRIPTION_TEXT = (
        "Keeps the layout and changes objects: uses the source's predicted noise, which the path "
        "already holds, from start to end. The steps that use only the source need no model call."
    )
    ALIASES: ClassVar = ["MDP-eps", "noise mixing", "keep layout"]


class MDPCondition(MDPNode):
    """Mix the text conditions."""

    EDIT = mdp.MDPCondition
    NAME = "Mix Prompts: Mood, Style (MDP Condition)"
    DESCRIPTION_TEXT = (
        "Mixes the embeddings of the source prompt and the new prompt from start to end. Good for "
        "moods and attributes. Where a model cannot mix embeddings, it mixes predictions, with one "
        "more model call per step."
    )
    ALIASES: ClassVar = ["MDP-c", "style", "mood", "mix prompts", "prompt interpolation"]


class MDPLatent(MDPNode):
    """Mix the latents."""

    EDIT = mdp.MDPLatent
    NAME = "Hold Source (MDP Latent)"
    DESCRIPTION_TEXT = (
        "Mixes the source's latent into the edited one after each step from start to end. Stays "
        "close to the source: a weight of 0.05 to 0.3 over most of the schedule keeps the layout."
    )
    ALIASES: ClassVar = ["MDP-x", "latent mixing"]


class MDPGuidance(MDPNode):
    """Mix the guidance of the two prompts."""

    EDIT = mdp.MDPGuidance
    NAME = "Follow Both Prompts (MDP Guidance)"
    DESCRIPTION_TEXT = (
        "Mixes the predictions for both prompts on the edited latent, with one more model call per "
        "step from start to end. Stays less close to the source than MDP Epsilon."
    )
    ALIASES: ClassVar = ["MDP-beta", "guidance mixing", "double guidance"]
