"""Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807), and its proximal guidance.

With the source prompt itself as the negative, guidance pulls the source nowhere: its path leads
back without any optimisation. What is left is to hold an edit to what it has to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = Literal["l0", "l1"]
NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True, kw_only=True)
class Proximal:
    """Proximal guidance (ProxEdit, Han et al., WACV 2024, arXiv 2306.05414, section 3.3).

    Attributes:
        norm: "l0" drops the small parts of the guidance, "l1" also shrinks the large ones.
        quantile: the part of it that counts as small, 0 to 1.
        reconstruction: from this fraction of the path on (0 is its noisy end), what guidance
            leaves alone becomes the source; 1 is never. The paper's t < 400 is 0.6.
    """

    norm: Norm = "l0"
    quantile: float = 0.7
    reconstruction: float = 0.6

    def __call__(
        self, cond: Tensor, uncond: Tensor, clean: Tensor, part: float
    ) -> tuple[Tensor, Tensor]:
        """The two estimates to guide with, in place of `cond` and `uncond` (B, C, ...).

        Args:
            clean: the source's clean latent (B, C, ...).
            part: how much of the path lies behind, 0 to 1.
        """
        delta = cond - uncond
        size = delta.abs().float()
        shape = (-1, *[1] * (delta.ndim - 1))
        threshold = size.flatten(1).quantile(self.quantile, dim=1).view(shape)
        large = size > threshold
        if self.norm == "l1":
            delta = delta.sign() * (size - threshold).to(delta)
        cond = uncond + torch.where(large, delta, 0)
        if part < self.reconstruction - 1e-6:
            return cond, uncond
        changes = F.max_pool2d(large.flatten(0, -4).to(size), 3, stride=1, padding=1) > 0
        changes = changes.view(large.shape)
        return torch.where(changes, cond, clean), torch.where(changes, uncond, clean)
