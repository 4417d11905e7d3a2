"""What an edit is: a frozen description that changes some of the four things a step has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..inversion.path import DiffusionPath
from ..samplers.diffusion import Condition


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the edited path, as edits see it.

    Attributes:
        index: the step's number on the source path, 0 at its noisy end.
        path: the source path, in the model's own scale and on its device.
        source: the source prompt's condition; None unless an edit `uses_source`.
        mix: mixes two conditions a, b, weight to `(1 - weight) * a + weight * b`.
        source_prediction: the derivative that the source prompt and guidance predict at the
            *edited* latent (B, C, ...); None unless an edit `needs_source_prediction`.
    """

    index: int
    path: DiffusionPath
    source: Condition
    mix: Callable[[Condition, Condition, float], Condition]
    source_prediction: Tensor | None = None


class Edit:
    """Override only the hooks that the technique needs. Subclasses are frozen dataclasses.

    Attributes:
        hint: which knob to turn when the edit has changed almost nothing.
        uses_source: whether it reads `step.source` or asks for the source's prediction.
    """

    hint: ClassVar[str] = ""
    uses_source: ClassVar[bool] = False

    def steps(self, path: DiffusionPath) -> range:
        """The steps of `path` that this edit touches."""
        return range(path.steps)

    def check(self, path: DiffusionPath) -> None:
        """Raise ValueError, in one sentence, if this edit cannot work on `path`."""

    def needs_source_prediction(self, step: Step) -> bool:
        """Whether `step.source_prediction` must be there; it costs a network evaluation more."""
        return False

    def condition(self, step: Step, condition: Condition) -> Condition:
        """The condition to predict under, in place of `condition`."""
        return condition

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        """The derivative to follow, in place of the guided one `d` (B, C, ...)."""
        return d

    def latent(self, step: Step, x: Tensor) -> Tensor:
        """The latent to go on with, in place of `x` (B, C, ...), which the step has reached."""
        return x


Edits = tuple[Edit, ...]
"""A chain of edits: applied in order, never changed in place."""
