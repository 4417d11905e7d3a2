"""Paint with words (eDiff-I, Balaji et al. 2022, arXiv 2211.01324, section 4.3): say what is where.

Each phrase is drawn to the places that are painted for it: there its tokens get more attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..attention.align import Prompt
from ..attention.plan import Attention, Painted, marks
from ..inversion.path import DiffusionPath
from .base import Edit, Step, check_mask


@dataclass(frozen=True, kw_only=True)
class PaintWithWords(Edit):
    """Add `w A` to the scores, `w = strength log(1 + sigma) max(Q K^T)`, A being the painted mask.

    The largest score is that of each head. The noise level fades it out towards the clean end,
    where the layout is long settled.

    Attributes:
        columns: the phrase's tokens.
        mask: where it belongs (1 or B, height, width), 0 to 1, of the picture's proportions.
        strength: the paper's w'.
    """

    hint: ClassVar[str] = "raise the strength of Paint with Words"
    from_noise: ClassVar[bool] = True

    prompt: Prompt
    columns: tuple[int, ...]
    mask: Tensor
    strength: float = 0.4

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        return None, self.prompt

    def check(self, path: DiffusionPath) -> None:
        check_mask(self.mask, path)

    def attention(self, step: Step, attention: Attention) -> Attention:
        sigma = float(step.path.sigmas[step.index])
        painted = Painted(
            tokens=marks(self.prompt, [self.columns])[:, 0],
            mask=self.mask,
            strength=self.strength * math.log(1 + sigma),
        )
        return replace(attention, target=self.prompt, painted=(*attention.painted, painted))
