"""Local blend (Hertz et al., ICLR 2023, arXiv 2208.01626, section 3.2): change only some words.

Where the attention to the chosen words is low, in the source and in the target, the latent is the
source's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from ..attention.align import Prompt, PromptPair, changed
from ..attention.plan import Attention, Watch, marks, of
from ..core.denoiser import Query
from ..core.edit import Edit, Need, Step
from ..core.path import Source


@dataclass(frozen=True, kw_only=True)
class LocalBlend(Edit):
    """Keep the source where the words are not: `x* = x_A + m (x - x_A)` after each step.

    Attributes:
        source, target: what to watch of each side: the maps of the words to change and, if there
            is a second one, of the words to leave alone.
        threshold: of a map, in parts of its largest value: the words are where it is above.
        start: the fraction of the model's schedule from which to blend; the maps are summed from
            its noisy end.
    """

    hint: ClassVar[str] = "lower the threshold of Local Blend, or name more words"
    keeps: ClassVar[str] = "raise threshold of Local Blend"
    needs: ClassVar[Need] = Need.PATH | Need.PROMPT | Need.ATTENTION

    pair: PromptPair
    source: Watch
    target: Watch
    threshold: float = 0.3
    start: float = 0.2

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        return self.pair.source, self.pair.target

    def steps(self, source: Source) -> range:
        return source.window(self.start, 1.0)

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        sides = (self.source, self.target)
        there = [replace(side, weights=side.weights.to(device, dtype)) for side in sides]
        return replace(self, source=there[0], target=there[1])

    def queries(self, step: Step) -> Sequence[Query]:
        return [step.source_query()]

    def patch(self, step: Step, patch: Attention | None) -> Attention:
        attention = of(patch)
        return replace(
            attention,
            source=self.pair.source,
            target=self.pair.target,
            watched=(*attention.watched, self.source, self.target),
        )

    def latent(self, step: Step, x: Tensor) -> Tensor:
        mask = self.changes(step)
        return x if mask is None else torch.where(mask > 0, x, step.after)

    def changes(self, step: Step) -> Tensor | None:
        """Where the words are, in either of the two (B, 1, ..., H, W).

        None as long as one of the prompts has not been used, if it begins later.
        """
        source, target = step.seen.get(self.source), step.seen.get(self.target)
        if step.index not in self.steps(step.source) or source is None or target is None:
            return None
        size = step.x.shape[2:]
        words = self._places(source, size) | self._places(target, size)
        return (words[:, :1] & ~words[:, 1:].any(dim=1, keepdim=True)).to(step.x)

    def _places(self, maps: Tensor, size: tuple[int, ...]) -> Tensor:
        """Where each word is (B, n, ..., H, W); what is to change is made one map pixel wider."""
        frames = maps[:, :1].flatten(0, -3)
        wider = F.max_pool2d(frames[:, None], 3, stride=1, padding=1).view_as(maps[:, :1])
        maps = F.interpolate(torch.cat([wider, maps[:, 1:]], dim=1), size, mode="nearest")
        return maps > self.threshold * maps.amax(dim=tuple(range(2, maps.ndim)), keepdim=True)


def local_blend(
    pair: PromptPair,
    source_words: Sequence[str],
    target_words: Sequence[str],
    subtract_words: Sequence[str] = (),
    *,
    resolution: int = 0,
    threshold: float = 0.3,
    start: float = 0.2,
) -> LocalBlend:
    """The edit that changes only these words.

    Args:
        source_words, target_words: of the source's and of the target's prompt. One may be empty;
            if both are, they are the words that differ.
        subtract_words: of either prompt; where these are, nothing changes.
    Raises:
        ValueError: a prompt does not have a word, or no word differs.
    """
    if source_words or target_words:
        chosen = pair.source.columns(source_words), pair.target.columns(target_words)
    else:
        old, new = ([column for word in side for column in word.tokens] for side in changed(pair))
        chosen = tuple(old), tuple(new)
        if not old and not new:
            raise ValueError(
                "no word differs between the two prompts; name what may change in source_words or "
                "target_words"
            )

    def watch(prompt: Prompt, words: Sequence[int], source: bool) -> Watch:
        columns = [words]
        if subtract_words:
            known = [word for word in subtract_words if prompt.has(word)]
            columns.append(prompt.columns(known))
        return Watch(weights=marks(prompt, columns), resolution=resolution, source=source)

    for word in subtract_words:
        if not pair.source.has(word):
            pair.target.columns(word)
    return LocalBlend(
        pair=pair,
        source=watch(pair.source, chosen[0], source=True),
        target=watch(pair.target, chosen[1], source=False),
        threshold=threshold,
        start=start,
    )
