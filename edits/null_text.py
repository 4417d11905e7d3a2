"""Null-text embeddings (Mokady et al., CVPR 2023, arXiv 2211.09794) as an edit of the negative.

`inversion/null_text.py` finds them; negative-prompt inversion takes the source prompt's own.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.edit import Edit, Need, Step


class Found(NamedTuple):
    """What null-text inversion has found; a tuple, so that ComfyUI's cache sees how large it is.

    Attributes:
        embeddings: one for each step of the path (N or 1, B or 1, tokens, width).
        cfg: the CFG with which they reproduce the source; 1 is any.
    """

    embeddings: Tensor
    cfg: float = 1.0


class NullText(Found, Edit):
    """Give the negative another embedding, in all its parts."""

    needs: ClassVar[Need] = Need.PATH

    def negative(self, step: Step, negative: Condition) -> Condition:
        number = min(step.index, len(self.embeddings) - 1)
        embedding = self.embeddings[number].to(step.x.device, torch.float32)
        return step.denoiser.with_embedding(negative, embedding)

    def after(self, first: int) -> NullText:
        """The embeddings of the steps from `first` on."""
        if len(self.embeddings) == 1:
            return self
        return self._replace(embeddings=self.embeddings[first:])
