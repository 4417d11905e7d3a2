"""MDP (Wang et al., TMLR 2024, arXiv 2303.16765): manipulate one thing of each step in a window.

A is the source path with its prompt, B the edit; `w` is the weight of A, which is
`weight * curve * weight_curve`, and 0 outside the window. At w = 0 a step is left exactly as it
was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..core.denoiser import Condition, Query
from ..core.diffusion import derivative
from ..core.edit import Edit, Need, Step, WeightCurve
from ..core.path import Source

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
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
        weight_curve: a factor of the weight over that schedule; None is 1.
    """

    hint: ClassVar[str] = "lower the weight or the end of the MDP edit"
    keeps: ClassVar[str] = "raise weight or end of the MDP edit"

    weight: float = 1.0
    curve: Curve = "constant"
    start: float = 0.0
    end: float = 0.5
    weight_curve: WeightCurve | None = None

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end) if self.weight else range(0)

    def w(self, step: Step) -> float:
        """The weight of the source at this step, 0 outside the window."""
        active = self.steps(step.source)
        if step.index not in active:
            return 0.0
        w = self.weight * curve_value(self.curve, (step.index - active.start) / len(active))
        if self.weight_curve is not None:
            w *= self.weight_curve(step.source.fraction(step.index))
        return w


@dataclass(frozen=True, kw_only=True)
class MDPEpsilon(MDP):
    """MDP-eps_t: `d* = (1 - w) d_B + w d_A`, with `d_A` read off the path; the authors' best.

    The default window is theirs: 25 of 50 steps, beginning 2 steps late. From the very first step
    on, weight 1 would only follow the source to the window's end, as a later start does.
    """

    start: float = 0.04
    end: float = 0.54

    def replaces(self, step: Step) -> bool:
        return self.w(step) == 1.0

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        w = self.w(step)
        return torch.lerp(d, step.derivative, w) if w else d


@dataclass(frozen=True, kw_only=True)
class MDPCondition(MDP):
    """MDP-c: predict under `c* = (1 - w) c_B + w c_A`.

    Where a model's conditions cannot be mixed (embeddings of different lengths that the network
    reads jointly, regional prompts), the predictions under both are, for one evaluation more.
    """

    needs: ClassVar[Need] = Need.PATH | Need.PROMPT

    def _asks(self, step: Step) -> bool:
        """Whether the predictions have to be mixed in place of the conditions."""
        source = step.source.condition
        return 0 < self.w(step) < 1 and not step.denoiser.mixes(step.condition, source)

    def condition(self, step: Step, condition: Condition) -> Condition:
        w = self.w(step)
        if w == 1:
            return step.source.condition
        if w == 0 or self._asks(step):
            return condition
        return step.denoiser.mix(condition, step.source.condition, w)

    def queries(self, step: Step) -> Sequence[Query]:
        return [Query(step.x, step.source.condition)] if self._asks(step) else ()

    def guidance(self, step: Step, cond: Tensor, uncond: Tensor | None) -> tuple[Tensor, Any]:
        if self._asks(step):
            source = step.answers[Query(step.x, step.source.condition)]
            cond = torch.lerp(cond, source, self.w(step))
        return cond, uncond


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
        return torch.lerp(x, step.after, w) if w else x


@dataclass(frozen=True, kw_only=True)
class MDPGuidance(MDP):
    """MDP-beta: `d* = (1 - w) d_B + w d_A'`, where `d_A'` is predicted on the edited latent."""

    needs: ClassVar[Need] = Need.PATH | Need.PROMPT

    def queries(self, step: Step) -> Sequence[Query]:
        if not self.w(step):
            return ()
        asked = [Query(step.x, step.source.condition)]
        if self._is_guided(step):
            asked.append(Query(step.x, step.source.negative))
        return asked

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        w = self.w(step)
        if not w:
            return d
        source, cfg = Query(step.x, step.source.condition), step.source.path.cfg
        denoised = step.answers[source]
        if self._is_guided(step):
            negative = step.source.negative
            uncond = step.answers[Query(step.x, negative)]
            denoised = step.denoiser.guide(denoised, uncond, cfg, source, negative, step.sigma)
        return torch.lerp(d, derivative(step.x, denoised, step.sigma), w)

    @staticmethod
    def _is_guided(step: Step) -> bool:
        """Whether the path was made under guidance."""
        return step.source.negative is not None and step.source.path.cfg != 1
