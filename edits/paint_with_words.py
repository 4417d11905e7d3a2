"""Paint with words (eDiff-I, Balaji et al. 2022, arXiv 2211.01324, section 4.3): say what is where.

Each phrase is drawn to the places that are painted for it: there its tokens get more attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ..attention.align import Prompt
from ..attention.plan import Attention, Painted, marks, of
from ..core.diffusion import noise_level
from ..core.edit import Edit, Need, Step
from ..core.masks import latent_masks
from ..core.path import Source


@dataclass(frozen=True, kw_only=True)
class PaintWithWords(Edit):
    """Add `w A` to the scores, `w = strength log(1 + sigma) max(Q K^T)`, A being the painted mask.

    The largest score is that of each head. The noise level fades it out towards the clean end,
    where the layout is long settled.

    Attributes:
        columns: the phrase's tokens.
        mask: where it belongs (1 or B, height, width), 0 to 1, of the picture's proportions.
        strength: the paper's w'.
        stretched: whether the mask is stretched over the picture, whatever its proportions.
        painted: the phrase and its mask on the device, once they are.
    """

    hint: ClassVar[str] = "raise the strength of Paint with Words"
    needs: ClassVar[Need] = Need.ATTENTION

    prompt: Prompt
    columns: tuple[int, ...]
    mask: Tensor
    strength: float = 0.4
    stretched: bool = False
    painted: Painted | None = None

    @property
    def masks(self) -> Sequence[Tensor]:
        return () if self.stretched else (self.mask,)

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        return None, self.prompt

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        tokens = marks(self.prompt, [self.columns])[:, 0].to(device, dtype)
        mask, shape = self.mask.to(device, torch.float32), source.path.clean.shape
        # Of a video's masks there may be one for each frame.
        mask = latent_masks(mask, shape) if len(shape) > 4 else mask[:, None]
        return replace(self, painted=Painted(tokens=tokens, mask=mask))

    def patch(self, step: Step, patch: Attention | None) -> Attention:
        assert self.painted is not None
        level = noise_level(step.sigma, step.source.path.fingerprint.get("flow", False))
        attention, strength = of(patch), self.strength * math.log(1 + level)
        added = (*attention.painted, (self.painted, strength))
        return replace(attention, target=self.prompt, painted=added)
