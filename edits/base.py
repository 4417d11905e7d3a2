"""What an edit is: a frozen description that changes some of the four things a step has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..attention.align import Prompt
from ..attention.plan import Attention, Seen
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
        seen: the attention maps that edits watch, summed over the steps so far.
    """

    index: int
    path: DiffusionPath
    source: Condition
    mix: Callable[[Condition, Condition, float], Condition]
    source_prediction: Tensor | None = None
    seen: Seen = field(default_factory=dict)


class Edit:
    """Override only the hooks that the technique needs. Subclasses are frozen dataclasses.

    Attributes:
        hint: which knob to turn when the edit has changed almost nothing.
        uses_source: whether it reads `step.source` or asks for the source's prediction or maps.
        from_noise: whether it reads nothing of the source, so that a path can be recorded with it.
    """

    hint: ClassVar[str] = ""
    uses_source: ClassVar[bool] = False
    from_noise: ClassVar[bool] = False

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        """The source's and the target's prompt, if it counts their tokens; else None."""
        return None, None

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

    def attention(self, step: Step, attention: Attention) -> Attention:
        """What to change in the attention of the prediction, in place of `attention`."""
        return attention

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        """The derivative to follow, in place of the guided one `d` (B, C, ...)."""
        return d

    def latent(self, step: Step, x: Tensor) -> Tensor:
        """The latent to go on with, in place of `x` (B, C, ...), which the step has reached."""
        return x

    def changes(self, step: Step) -> Tensor | None:
        """Where this edit lets the image change (B or 1, 1, ...), 0 to 1; None is everywhere."""
        return None


Edits = tuple[Edit, ...]
"""A chain of edits: applied in order, never changed in place."""


def check_mask(mask: Tensor, path: DiffusionPath) -> None:
    """Raise if a mask (masks, height, width) is not one for each image, or of other proportions."""
    masks, (height, width) = len(mask), mask.shape[-2:]
    batch, (rows, columns) = path.clean.shape[0], path.clean.shape[-2:]
    if masks not in (1, batch):
        raise ValueError(f"the mask holds {masks} masks for {batch} images; give 1 or {batch}")
    if abs(height * columns - width * rows) > max(height, width):
        raise ValueError(
            f"the mask is {width} x {height}, which has not the proportions of the path's "
            f"{columns} x {rows} latent; make the mask from the same picture"
        )
