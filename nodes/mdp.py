"""The four MDP edits as nodes."""

from __future__ import annotations

from typing import ClassVar

from comfy_api.latest import io

from ..edits import mdp
from .support import (
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    fraction_input,
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
                    "How much of the source to keep in the window: 1 all, 0 nothing.",
                ),
                io.Combo.Input(
                    "curve",
                    options=list(mdp.CURVES),
                    default="constant",
                    tooltip="How the weight falls over the window: constant, or down to almost 0 "
                    "along a line, a cosine or an exponential.",
                    advanced=True,
                ),
                *window_inputs(
                    cls.EDIT.start,
                    cls.EDIT.end,
                    "Where the window begins on the model's schedule; 0 is its noisy end. "
                    "A little above 0 lets the new prompt set colours and light.",
                    "Where the window ends. Later keeps more of the source's layout, earlier gives "
                    "the new prompt more freedom.",
                ),
                edits_input(),
            ],
            outputs=[edits_output()],
        )

    @classmethod
    @names_itself
    def execute(cls, weight, curve, start, end, edits=()) -> io.NodeOutput:
        check_window(start, end)
        edit = cls.EDIT(weight=weight, curve=curve, start=start, end=end)
        return io.NodeOutput((*edits, edit))


class MDPEpsilon(MDPNode):
    """Mix the predicted noise."""

    EDIT = mdp.MDPEpsilon
    NAME = "Keep Layout (MDP Epsilon)"
    DESCRIPTION_TEXT = (
        "Mixes the source's predicted noise, read off its path, into each step of the window. "
        "The authors' best: it keeps the layout and changes objects, at no further cost."
    )
    ALIASES: ClassVar = ["MDP-eps", "noise mixing", "keep layout"]


class MDPCondition(MDPNode):
    """Mix the text conditions."""

    EDIT = mdp.MDPCondition
    NAME = "Mix Prompts (MDP Condition)"
    DESCRIPTION_TEXT = (
        "Mixes the source prompt's embedding into the new prompt's for the steps of the window. "
        "The softest of the four: good for attributes and moods. Where a model cannot mix prompts "
        "it mixes predictions, at one network evaluation more for each of these steps."
    )
    ALIASES: ClassVar = ["MDP-c", "prompt interpolation", "prompt mixing"]


class MDPLatent(MDPNode):
    """Mix the latents."""

    EDIT = mdp.MDPLatent
    NAME = "Hold Source (MDP Latent)"
    DESCRIPTION_TEXT = (
        "Mixes the source's latent into the edited one after each step of the window. Holds the "
        "source tightly: small weights (0.05 to 0.3) over a long window already keep the layout."
    )
    ALIASES: ClassVar = ["MDP-x", "latent mixing"]


class MDPGuidance(MDPNode):
    """Mix the guidance of the two prompts."""

    EDIT = mdp.MDPGuidance
    NAME = "Follow Both Prompts (MDP Guidance)"
    DESCRIPTION_TEXT = (
        "Predicts under both prompts on the edited latent and mixes the two, at one more network "
        "evaluation for each step of the window. Drifts from the source more than MDP Epsilon does."
    )
    ALIASES: ClassVar = ["MDP-beta", "guidance mixing", "double guidance"]
