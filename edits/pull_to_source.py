"""RF-Inversion's controlled reverse ODE (Rout et al., ICLR 2025, arXiv 2410.10792, eq. 15)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.edit import Edit, Step
from ..core.path import Source


@dataclass(frozen=True, kw_only=True)
class PullToSource(Edit):
    """`d* = (1 - eta) d + eta (x - x_0) / (sigma - sigma_N)`: head for the source's image in part.

    sigma_N is the level of the image, 0 for a flow, as in the paper.

    Attributes:
        eta: how much; 0 is not at all, 1 goes straight to the source.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
    """

    hint: ClassVar[str] = "lower eta or end of Pull to Source"
    keeps: ClassVar[str] = "raise end of Pull to Source"

    eta: float = 0.9
    start: float = 0.0
    end: float = 0.25

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end)

    def replaces(self, step: Step) -> bool:
        return self.eta == 1 and step.index in self.steps(step.source)

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        if step.index not in self.steps(step.source):
            return d
        last = step.source.levels[-1]
        if step.sigma <= last:  # a sampler of ComfyUI's may ask where its last step ends
            return d
        return torch.lerp(d, (step.x - step.source.at(last)) / (step.sigma - last), self.eta)
