"""ILVR (Choi et al., ICCV 2021, arXiv 2108.02938, algorithm 1): the coarse structure is the
source's, and the detail is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.edit import Edit, Step
from ..core.path import Source


def low_pass(x: Tensor, factor: int) -> Tensor:
    """`x` (B, C, ..., H, W) without what is finer than `factor` pixels: shrunk and enlarged again,
    by bicubic interpolation as in the authors' code."""
    height, width = x.shape[-2:]
    small = (max(height // factor, 1), max(width // factor, 1))
    if small == (height, width):
        return x
    planes = x.reshape(-1, 1, height, width)
    for size in (small, (height, width)):
        planes = F.interpolate(planes, size, mode="bicubic", antialias=True)
    return planes.view(x.shape)


@dataclass(frozen=True, kw_only=True)
class ILVR(Edit):
    """After each step of the window, `x* = phi(x_A) + x - phi(x)`, phi being the low-pass.

    The paper adds fresh noise to the source at each step. Here x_A is the path's latent, which has
    that noise already.

    Attributes:
        factor: the paper's N, in latent pixels: what is larger than this is the source's. 1 is
            everything.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
    """

    hint: ClassVar[str] = "raise the size or lower the end of ILVR"
    keeps: ClassVar[str] = "lower the size or raise the end of ILVR"

    factor: int = 4
    start: float = 0.0
    end: float = 0.5

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end)

    def latent(self, step: Step, x: Tensor) -> Tensor:
        if step.index not in self.steps(step.source):
            return x
        return x + low_pass(step.after - x, self.factor)
