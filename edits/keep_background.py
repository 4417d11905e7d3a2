"""Keep the background: KV-Edit (Zhu et al., ICCV 2025, arXiv 2502.17363), without inversion.

Outside a mask the picture's tokens are the source's for all others, and attend as the source's do;
so what changes inside fits to what is around it. The latent outside is the source's, as in DiffEdit
(Couairon et al., ICLR 2023, arXiv 2210.11427, step 3), which makes the background exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from typing_extensions import Self

from ..attention.plan import KEYS, OUTPUT, VALUES, Attention, Injection, of
from ..core.denoiser import Query
from ..core.edit import Need, Step
from ..core.path import Source
from .diffedit import MaskBlend


@dataclass(frozen=True, kw_only=True)
class KeepBackground(MaskBlend):
    """Blend with the source outside the mask, in the latent and in the attention.

    Attributes:
        injection: what is taken of the source outside, once it is on the device.
    """

    hint: ClassVar[str] = "make the mask of Keep Background larger"
    needs: ClassVar[Need] = Need.PATH | Need.PROMPT | Need.ATTENTION

    injection: Injection | None = field(default=None, repr=False)

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        prepared = super().prepare(source, device, dtype)
        injection = Injection(parts=(KEYS, VALUES, OUTPUT), outside=prepared.mask)
        return replace(prepared, injection=injection)

    def queries(self, step: Step) -> Sequence[Query]:
        return [step.source_query()] if step.index in self.steps(step.source) else ()

    def patch(self, step: Step, patch: Attention | None) -> Attention | None:
        if step.index not in self.steps(step.source):
            return patch
        assert self.injection is not None
        attention = of(patch)
        return replace(attention, injections=(*attention.injections, self.injection))
