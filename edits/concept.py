"""LEDITS++ (Brack et al., CVPR 2024, arXiv 2311.16711): guide towards a concept, or away from it.

A concept has a prompt of its own, and acts only where it belongs. The plain sum of several, with
masks of the guidance alone, is SEGA (Brack et al., NeurIPS 2023, arXiv 2301.12247).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from ..attention.align import Prompt
from ..attention.plan import Attention, Watch, marks
from ..core.denoiser import Condition, Query
from ..core.edit import Edit, Need, Step
from ..core.families import Traits
from ..core.path import Conditioning, Source

LAYOUT = 0.2
"""Before this fraction of the model's schedule the attention alone makes the mask: the authors'
timesteps above 800 of 1000."""


@dataclass(frozen=True, kw_only=True)
class Concept(Edit):
    """`d* = d + s M (d_c - d_0)`: c is the concept, 0 the negative prompt, M a mask of 0 and 1.

    Attributes:
        conditioning: the concept's prompt.
        scale: s; below 0 it removes the concept.
        threshold: how much of the picture each mask leaves out, 0 to 1.
        guided: whether to mask where the guidance `d_c - d_0` is weak.
        words: the concept's prompt, to mask where the attention to its words is weak; None is not
            to.
        warm_up, end: the window as fractions of the model's schedule, 0 is its noisy end.
        attention: what looks at the words, once it is on the device.
    """

    hint: ClassVar[str] = "raise the scale of Concept, or lower its threshold"
    keeps: ClassVar[str] = "raise threshold of Concept"

    conditioning: Conditioning
    scale: float = 5.0
    threshold: float = 0.9
    guided: bool = True
    words: Prompt | None = None
    warm_up: float = 0.0
    end: float = 1.0
    attention: Attention | None = None

    @property
    def needs(self) -> Need:
        return Need(0) if self.words is None else Need.ATTENTION

    @property
    def conditionings(self) -> Sequence[Conditioning]:
        return (self.conditioning,)

    def settled(self, traits: Traits) -> Self:
        if self.guided and not traits.blocks:
            return replace(self, words=None)  # the mask of the guidance is left
        return self

    def steps(self, source: Source) -> range:
        return source.window(self.warm_up, self.end)

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        if self.words is None:
            return self
        columns = [column for word in self.words.words for column in word.tokens]
        weights = marks(self.words, [columns]).to(device, dtype)
        watch = Watch(weights=weights, resolution=0)
        return replace(self, attention=Attention(target=self.words, watched=(watch,)))

    def queries(self, step: Step) -> Sequence[Query]:
        if not self._acts(step):
            return ()
        if step.denoiser.guides(step.cfg):  # the negative is asked anyway
            return [self._query(step)]
        return [self._query(step), Query(step.x, _empty(step))]

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        if not self._acts(step):
            return d
        uncond = step.uncond
        if uncond is None:
            uncond = step.answers[Query(step.x, _empty(step))]
        guidance = (uncond - step.answers[self._query(step)]) / step.sigma
        return d + self.scale * self._mask(step, guidance) * guidance

    def _acts(self, step: Step) -> bool:
        return self.scale != 0 and step.index in self.steps(step.source)

    def _query(self, step: Step) -> Query:
        return Query(step.x, step.prompts[id(self.conditioning)], self.attention)

    def _mask(self, step: Step, guidance: Tensor) -> Tensor | float:
        """Where the concept acts: 1, else 0 (B, 1, ...); both masks' intersection (eq. 12)."""
        mask: Tensor | float = 1.0
        if self.attention is not None:
            maps = smoothed(step.seen_now[self.attention.watched[0]])
            strong = highest(maps, self.threshold)
            mask = F.interpolate(strong, guidance.shape[2:], mode="nearest").to(guidance)
            if step.index not in step.source.window(LAYOUT, 1.0):
                return mask
        if self.guided:
            mask = mask * highest(guidance.abs().sum(dim=1, keepdim=True), self.threshold)
        return mask


def highest(values: Tensor, threshold: float) -> Tensor:
    """Where a map (B, 1, ...) is at least its own quantile `threshold`: 1, else 0."""
    limit = torch.quantile(values.flatten(1), threshold, dim=1)
    return (values >= limit.view(-1, *[1] * (values.ndim - 1))).to(values)


def smoothed(maps: Tensor) -> Tensor:
    """Maps (B, 1, ..., H, W), blurred with a Gaussian of variance 1/2 over 3 x 3 pixels."""
    row = torch.tensor([-1.0, 0.0, -1.0]).exp().to(maps)
    kernel = torch.outer(row, row) / row.sum() ** 2
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    frames = F.pad(maps.flatten(0, -3)[:, None], (1, 1, 1, 1), mode=mode)
    return F.conv2d(frames, kernel[None, None]).view_as(maps)


def _empty(step: Step) -> Condition:
    """The negative; or the prompt itself, whose estimate is there already, if the two are alike."""
    alike = step.denoiser.same(step.condition, step.negative)
    return step.condition if alike else step.negative
