"""MDP (Wang et al., TMLR 2024, arXiv 2303.16765): manipulate one thing of each step in a window.

A is the source path with its prompt, B the edit; `w` is the weight of A, which is
`weight * curve`, and 0 outside the window. At w = 0 a step is left exactly as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..inversion.path import DiffusionPath
from ..samplers.diffusion import Condition
from ..samplers.schedules import window
from .base import Edit, Step

Curve = Literal["constant", "linear", "cosine", "exponential"]
CURVES: tuple[str, ...] = get_args(Curve)
DECAY = 5.0
"""The exponential curve falls to exp(-5), less than a hundredth, at the window's end."""


def curve_value(curve: Curve, u: float) -> float:
    """The curve at `u`, the part of the window that lies behind: 1 at u = 0, falling from there."""
    if curve == "linear":
        return 1.0 - u
    if curve == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * u))
    if curve == "exponential":
        return math.exp(-DECAY * u)
    return 1.0


@dataclass(frozen=True, kw_only=True)
class MDP(Edit):
    """What the four have in common: a weight per step.

    Attributes:
        weight: of the source, 0 (no edit of the path) to 1 (the source's own).
        curve: how the weight falls over the window.
        start, end: the window as fractions of the path, 0 is its noisy end.
    """

    hint: ClassVar[str] = "lower the weight or the end of the MDP edit"

    weight: float = 1.0
    curve: Curve = "constant"
    start: float = 0.0
    end: float = 0.5

    def steps(self, path: DiffusionPath) -> range:
        return window(path.steps, self.start, self.end)

    def w(self, step: Step) -> float:
        """The weight of the source at this step, 0 outside the window."""
        active = self.steps(step.path)
        if step.index not in active:
            return 0.0
        return self.weight * curve_value(self.curve, (step.index - active.start) / len(active))


@dataclass(frozen=True, kw_only=True)
class MDPEpsilon(MDP):
    """MDP-eps_t: `d* = (1 - w) d_B + w d_A`, with `d_A` read off the path; the authors' best.

    The default window is theirs: 25 of 50 steps, beginning 2 steps late. From the very first step
    on, weight 1 would only follow the source to the window's end, as a later start does.
    """

    start: float = 0.04
    end: float = 0.54

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        w = self.w(step)
        return torch.lerp(d, step.path.derivative(step.index), w) if w else d


@dataclass(frozen=True, kw_only=True)
class MDPCondition(MDP):
    """MDP-c: predict under `c* = (1 - w) c_B + w c_A`."""

    uses_source: ClassVar[bool] = True

    def condition(self, step: Step, condition: Condition) -> Condition:
        w = self.w(step)
        return step.mix(condition, step.source, w) if w else condition


@dataclass(frozen=True, kw_only=True)
class MDPLatent(MDP):
    """MDP-x_t: after the step, `x* = (1 - w) x_B + w x_A`.

    At weight 1 the window only follows the source to its end. The default, a fifth for longer,
    keeps the layout and lets the edit in (chosen on the demo world's tune split).
    """

    weight: float = 0.2
    end: float = 0.8

    def latent(self, step: Step, x: Tensor) -> Tensor:
        w = self.w(step)
        return torch.lerp(x, step.path.latents[step.index + 1], w) if w else x


@dataclass(frozen=True, kw_only=True)
class MDPGuidance(MDP):
    """MDP-beta: `d* = (1 - w) d_B + w d_A'`, where `d_A'` is predicted on the edited latent."""

    uses_source: ClassVar[bool] = True

    def needs_source_prediction(self, step: Step) -> bool:
        return self.w(step) != 0

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        w = self.w(step)
        if not w or step.source_prediction is None:
            return d
        return torch.lerp(d, step.source_prediction, w)
