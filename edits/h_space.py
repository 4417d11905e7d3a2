"""h-space: the output of a UNet's middle block, where a shift changes what the picture means.

Asyrp (Kwon et al., ICLR 2023, arXiv 2210.10960) trains the shift. Here it is the difference that
another prompt makes there, or a direction of `directions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ..attention.plan import Attention, Bottleneck
from ..core.denoiser import Query
from ..core.edit import Edit, Need, Step
from ..core.families import Traits
from ..core.path import Conditioning, DiffusionPath, Source
from .directions import Directions, check_unet


@dataclass(frozen=True, kw_only=True)
class HSpace(Edit):
    """`h* = h + scale * (h_towards - h_base)`, or `h + scale * PC`, in the predicted picture alone.

    Asyrp's step takes the shifted prediction for the picture P_t and the plain one for the
    direction D_t to x_t: `x' = s' D* + kept (x - s D)`, s and s' being the signal's factors and
    `kept` what stays of the noise. DDIM's step is `x' = kept x + clean D` with `clean = s' - kept
    s`. So the estimate that makes it the same is `D + s' / clean (D* - D)`: the change of the
    picture, as many times as its part of the step is smaller than the whole.

    Attributes:
        towards: the prompt to head for; None is not to.
        base: the prompt that it is compared with; None is the target's.
        directions: in which to go beside that; None is nowhere.
        number: of the component, from 0.
        scale: how far.
        symmetric: whether the direction to x_t is shifted too.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
        reads: the queries that keep h for it: their prompts, and what keeps it.
        patches: what shifts h, by the step of the path.
    """

    hint: ClassVar[str] = "raise scale or end of h-space"
    keeps: ClassVar[str] = "lower scale or raise start of h-space"
    by_ddim: ClassVar[bool] = True

    towards: Conditioning | None = None
    base: Conditioning | None = None
    directions: Directions | None = None
    number: int = 0
    scale: float = 1.0
    symmetric: bool = False
    start: float = 0.0
    end: float = 1.0
    reads: tuple[tuple[Conditioning, Attention], ...] = ()
    patches: tuple[Attention, ...] = ()

    @property
    def needs(self) -> Need:
        return Need.ATTENTION

    @property
    def conditionings(self) -> Sequence[Conditioning]:
        return tuple(one for one in (self.towards, self.base) if one is not None)

    def settled(self, traits: Traits) -> Self:
        check_unet(traits)
        return self

    def check(self, path: DiffusionPath) -> None:
        if self.directions is not None:
            self.directions.check(path)

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end)

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        names = {id(one): object() for one in self.conditionings}
        reads = tuple(
            (one, Attention(bottleneck=Bottleneck(kept=names[id(one)])))
            for one in self.conditionings
        )

        def patch(sigma: float) -> Attention:
            added = self.directions and self.scale * self.directions.at(self.number, sigma)
            bottleneck = Bottleneck(
                towards=names.get(id(self.towards)),
                base=names.get(id(self.base)),
                scale=self.scale,
                added=added,
            )
            return Attention(bottleneck=bottleneck)

        levels = source.levels[:-1]
        patches = tuple(map(patch, levels)) if self.directions else (patch(0),) * len(levels)
        return replace(self, reads=reads, patches=patches)

    def queries(self, step: Step) -> Sequence[Query]:
        if not self._acts(step):
            return ()
        reads = [Query(step.x, step.prompts[id(one)], patch) for one, patch in self.reads]
        return [*reads, self._shifted(step), Query(step.x, step.condition)]

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        if not self._acts(step):
            return d
        plain = step.answers[Query(step.x, step.condition)]
        change = step.answers[self._shifted(step)] - plain
        if not self.symmetric:
            _, clean, _ = step.parts
            change = change * (step.denoiser.mixing.signal(step.sigma_next) / clean)
        return d - change / step.sigma

    def _acts(self, step: Step) -> bool:
        return self.scale != 0 and step.index in self.steps(step.source)

    def _shifted(self, step: Step) -> Query:
        return Query(step.x, step.condition, self.patches[step.index])
