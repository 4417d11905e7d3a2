"""Uni-Edit (Jiao et al., ICLR 2026, arXiv 2504.13109, algorithm 2): steer where the prompts differ.

Both prompts are asked at the edited latent, without guidance. Where they differ most the target is
followed, elsewhere the source; and their difference is added, most where it is largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.denoiser import Query
from ..core.diffusion import derivative
from ..core.edit import Edit, Need, Step
from ..core.path import Source


@dataclass(frozen=True, kw_only=True)
class UniEdit(Edit):
    """`d = m d_B + (1 - m) d_A + omega (1 + m) (d_B - d_A)`, m being the size of the difference.

    m is the channels' mean of `|d_B - d_A|`, scaled to 0..1 over each picture, as the authors' code
    for Flux has it, which takes the mean over patches of 2 x 2 too. Their code for diffusers leaves
    the signs in.

    Attributes:
        alpha: the part of the model's schedule, from its clean end, that is edited; before it the
            walk follows the source. 0.6 keeps more, 0.8 edits more.
        omega: how much of the difference is added.
    """

    hint: ClassVar[str] = "raise alpha or omega of Uni-Edit"
    keeps: ClassVar[str] = "lower alpha of Uni-Edit"
    needs: ClassVar[Need] = Need.PATH | Need.PROMPT

    alpha: float = 0.6
    omega: float = 5.0

    @property
    def usual_cfg(self) -> float | None:
        return 1.0

    @property
    def follows(self) -> float:
        return 1 - self.alpha

    def steps(self, source: Source) -> range:
        return source.window(1 - self.alpha, 1.0)

    def replaces(self, step: Step) -> bool:
        return step.index not in self.steps(step.source)

    def queries(self, step: Step) -> Sequence[Query]:
        return () if self.replaces(step) else [Query(step.x, step.source.condition)]

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        if self.replaces(step):
            return step.derivative
        source = step.answers[Query(step.x, step.source.condition)]
        away = d - derivative(step.x, source, step.sigma)
        size = away.abs().mean(dim=1, keepdim=True)
        flat = size.flatten(1)
        shape = (-1, *[1] * (size.ndim - 1))
        low, high = flat.amin(dim=1).view(shape), flat.amax(dim=1).view(shape)
        m = (size - low) / (high - low).clamp(min=1e-12)
        return d + (m - 1 + self.omega * (1 + m)) * away
