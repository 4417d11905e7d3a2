"""Prompt-to-prompt (Hertz et al., ICLR 2023, arXiv 2208.01626): edit by the attention maps.

Source and target are predicted side by side, and the target's maps become, for a part of the
steps, the source's: what is where stays, and what it is follows the new prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..attention.align import Alignment, Prompt, PromptPair
from ..attention.plan import Attention
from ..inversion.path import DiffusionPath
from ..samplers.schedules import window
from .base import Edit, Step

Window = tuple[float, float]
"""A part of the path from and to a fraction, 0 is its noisy end."""


@dataclass(frozen=True, kw_only=True)
class PromptToPrompt(Edit):
    """Inject the source's maps (algorithm 1): replacement and refinement, by the alignment.

    Attributes:
        alignment: which of the source's tokens each of the target's takes its map from.
        cross_replace: when the cross-attention's maps are injected.
        self_replace: when those of the self-attention are.
        words: other windows for the tokens of single words.
        self_limit: only self-attention maps up to this side are injected; the paper's code has
            16, that of null-text inversion 32.
    """

    hint: ClassVar[str] = "lower cross_replace or self_replace of Prompt-to-Prompt"
    uses_source: ClassVar[bool] = True

    pair: PromptPair
    alignment: Alignment
    cross_replace: Window = (0.0, 0.8)
    self_replace: Window = (0.0, 0.4)
    words: tuple[tuple[tuple[int, ...], Window], ...] = ()
    self_limit: int = 32

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        return self.pair.source, self.pair.target

    def steps(self, path: DiffusionPath) -> range:
        windows = [self.cross_replace, self.self_replace, *(part for _, part in self.words)]
        active = [part for part in (window(path.steps, *ends) for ends in windows) if part]
        if not active:
            return range(0)
        return range(min(part.start for part in active), max(part.stop for part in active))

    def attention(self, step: Step, attention: Attention) -> Attention:
        def now(ends: Window) -> bool:
            return step.index in window(step.path.steps, *ends)

        alpha = torch.full(self.alignment.new.shape, float(now(self.cross_replace)))
        for columns, ends in self.words:
            alpha[list(columns)] = float(now(ends))
        alpha[self.alignment.new] = 0.0
        attention = replace(
            attention,
            source=self.pair.source,
            target=self.pair.target,
            self_limit=self.self_limit if now(self.self_replace) else 0,
        )
        if not alpha.any():
            return attention
        return replace(attention, mapper=self.alignment.mapper * alpha, own=1 - alpha)


@dataclass(frozen=True, kw_only=True)
class Reweight(Edit):
    """Multiply words' maps (section 3.2, "attention re-weighting"), injected or their own.

    Attributes:
        scales: a factor for each of the target's tokens (T,); 1 changes nothing.
        start, end: the window as fractions of the path, 0 is its noisy end.
    """

    hint: ClassVar[str] = "move the factors of Reweight further away from 1"
    from_noise: ClassVar[bool] = True

    prompt: Prompt
    scales: torch.Tensor
    start: float = 0.0
    end: float = 1.0

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        return None, self.prompt

    def steps(self, path: DiffusionPath) -> range:
        return window(path.steps, self.start, self.end)

    def attention(self, step: Step, attention: Attention) -> Attention:
        if step.index not in self.steps(step.path) or bool((self.scales == 1).all()):
            return attention
        scale = self.scales if attention.scale is None else self.scales * attention.scale
        return replace(attention, target=self.prompt, scale=scale)


def scales(prompt: Prompt, words: Sequence[tuple[str, float]]) -> torch.Tensor:
    """The factor of each of a prompt's tokens (T,), from those of some of its words."""
    factors = torch.ones(len(prompt.tokens))
    for word, factor in words:
        factors[list(prompt.columns(word))] = factor
    return factors
