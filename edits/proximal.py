"""Proximal guidance (ProxEdit, Han et al., WACV 2024, arXiv 2306.05414, section 3.3).

On a path with the source prompt as its negative (negative-prompt inversion, Miyake et al. 2023,
arXiv 2305.16807), guidance pulls where the two prompts differ. What is small of it is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.edit import Edit, Step
from ..core.path import Source

Norm = Literal["l0", "l1"]
NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True, kw_only=True)
class Proximal(Edit):
    """Drop the small parts of the guidance, and keep the source where they are.

    Attributes:
        norm: "l0" drops the small parts of the guidance, "l1" also shrinks the large ones.
        quantile: the part of it that counts as small, 0 to 1. As in the authors' code it is counted
            over source and target, and the source's guidance is 0: 0.7 is 0.4 of the target's.
        reconstruction: from this fraction of the schedule on (0 is its noisy end), what guidance
            leaves alone becomes the source; 1 is never. The paper's t < 400 is 0.6.
        dilation: by how many latent pixels what guidance changes is made wider there.
    """

    hint: ClassVar[str] = "lower quantile of Negative-Prompt Inversion"
    keeps: ClassVar[str] = "raise quantile of Negative-Prompt Inversion"

    norm: Norm = "l0"
    quantile: float = 0.7
    reconstruction: float = 0.6
    dilation: int = 1

    def guidance(self, step: Step, cond: Tensor, uncond: Tensor | None) -> tuple[Tensor, Any]:
        if uncond is None:
            return cond, uncond
        delta = cond - uncond
        threshold = self._threshold(delta)
        large = delta.abs() > threshold
        if self.norm == "l1":
            delta = delta.sign() * (delta.abs() - threshold)
        return uncond + torch.where(large, delta, 0), uncond

    def latent(self, step: Step, x: Tensor) -> Tensor:
        if step.cond is None or step.uncond is None or step.index not in self.steps(step.source):
            return x
        delta = step.cond - step.uncond
        changes = (delta.abs() > self._threshold(delta)).to(x).flatten(0, -4)
        if self.dilation:
            side = 2 * self.dilation + 1
            changes = F.max_pool2d(changes, side, stride=1, padding=self.dilation)
        return torch.where(changes.view(x.shape) > 0, x, step.after)

    def steps(self, source: Source) -> range:
        """The steps after which the source is put back."""
        return source.window(self.reconstruction, 1.0)

    def _threshold(self, delta: Tensor) -> Tensor:
        """The size below which a picture's guidance is small (B, 1, ...)."""
        size = delta.abs().flatten(1)
        size = torch.cat([torch.zeros_like(size), size], dim=1).sort(dim=1).values
        place = self.quantile * (size.shape[1] - 1)
        low = int(place)
        high = min(low + 1, size.shape[1] - 1)
        threshold = torch.lerp(size[:, low], size[:, high], place - low)
        return threshold.view(-1, *[1] * (delta.ndim - 1))
