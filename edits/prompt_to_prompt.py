"""Prompt-to-prompt (Hertz et al., ICLR 2023, arXiv 2208.01626): edit by the attention maps.

Source and target are predicted side by side, and the target's maps become, for a part of the
steps, the source's: what is where stays, and what it is follows the new prompt. Where text and
picture share one attention, the picture's queries and keys are the source's instead (arXiv
2508.07519, ICCV 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from typing_extensions import Self

from ..attention.align import Alignment, Prompt, PromptPair
from ..attention.blocks import chosen
from ..attention.plan import KEYS, QUERIES, Attention, Injection, marks, of
from ..core.denoiser import Query
from ..core.edit import Edit, Need, Step, WeightCurve
from ..core.families import Block, Traits
from ..core.path import Source

Window = tuple[float, float]
"""A part of the model's schedule from and to a fraction, 0 is its noisy end."""

JOINT, AFTER = 0.2, 0.05
"""Up to where a joint attention's queries and keys are injected, the paper's; and how much further
than where the walk begins, if that is later (chosen on the tune split, with FlowEdit)."""

JOINT_BLOCKS = {"Flux schnell": "0-37"}
"""In which blocks, by the family; all in others. The paper's, for models of few steps."""


@dataclass(frozen=True, kw_only=True)
class PromptToPrompt(Edit):
    """Inject the source's maps (algorithm 1): replacement and refinement, by the alignment.

    Attributes:
        alignment: which of the source's tokens each of the target's takes its map from.
        cross_replace: when the cross-attention's maps are injected.
        self_replace: when those of the self-attention are.
        words: other windows for the tokens of single words.
        self_limit: self-attention maps up to this side, in a picture of 512 x 512, are injected;
            the paper's code has 16, that of null-text inversion 32.
        weight_curve: how much of what is injected is the source's, over the schedule; the rest is
            the target's own. None is all.
        joint_replace: up to where a joint attention's queries and keys are injected; None takes
            `JOINT`, or `AFTER` more than where the walk begins.
        joint_blocks: in which blocks, as `attention.blocks.chosen` reads them; "" takes the
            family's.
        joint: those blocks, if the model's attention is joint; None if it is not.
        plans: what is injected, by that weight and the windows that are open, on the device once it
            is.
    """

    needs: ClassVar[Need] = Need.PATH | Need.PROMPT | Need.ATTENTION

    pair: PromptPair
    alignment: Alignment
    cross_replace: Window = (0.0, 0.8)
    self_replace: Window = (0.0, 0.4)
    words: tuple[tuple[tuple[int, ...], Window], ...] = ()
    self_limit: int = 32
    weight_curve: WeightCurve | None = None
    joint_replace: float | None = None
    joint_blocks: str = ""
    joint: frozenset[Block] | None = None
    plans: dict[tuple[float, ...], Attention] = field(default_factory=dict, repr=False)
    told_at: str = ""

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        return self.pair.source, self.pair.target

    @property
    def hint(self) -> str:  # type: ignore[override]
        if self.joint is not None:
            return 'lower "keep both until" of Prompt-to-Prompt'
        return 'lower "keep layout until" or "keep shapes until" of Prompt-to-Prompt'

    @property
    def keeps(self) -> str:  # type: ignore[override]
        knob = "shapes" if self.joint is None else "both"
        return f'raise "keep {knob} until" of Prompt-to-Prompt'

    def settled(self, traits: Traits) -> Self:
        if not traits.joint:
            return self
        end = self.joint_replace
        if end is None:
            end = max(JOINT, traits.begins + AFTER)
        blocks = self.joint_blocks or JOINT_BLOCKS.get(traits.family, "")
        return replace(self, joint_replace=end, joint=chosen(blocks, traits.blocks))

    @property
    def note(self) -> str:
        if self.joint is None:
            return ""
        return (
            f"Prompt-to-Prompt: the source's queries and keys in {len(self.joint)} blocks, until "
            f"{self.joint_replace:.2g}"
        )

    @property
    def windows(self) -> list[Window]:
        """Of the cross-attention, of the self-attention, and of single words; or of the joint
        attention."""
        if self.joint is not None:
            return [(0.0, self.joint_replace or 0.0)]
        return [self.cross_replace, self.self_replace, *(ends for _, ends in self.words)]

    def steps(self, source: Source) -> range:
        active = [part for part in (source.window(*ends) for ends in self.windows) if part]
        if not active:
            return range(0)
        return range(min(part.start for part in active), max(part.stop for part in active))

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        needed = {self._now(source, i) for i in range(source.path.steps)}
        return replace(self, plans={now: self._plan(device, dtype, *now) for now in needed})

    def queries(self, step: Step) -> Sequence[Query]:
        return [step.source_query()] if self.plan(step).needs_source else ()

    def patch(self, step: Step, patch: Attention | None) -> Attention | None:
        plan = self.plan(step)
        if not plan:
            return patch
        attention = of(patch)
        return replace(
            attention,
            source=self.pair.source,
            target=self.pair.target,
            injections=(*attention.injections, *plan.injections),
            mapper=plan.mapper,
            own=plan.own,
            self_limit=plan.self_limit,
            self_weight=plan.self_weight,
        )

    def plan(self, step: Step) -> Attention:
        """What is injected at a step."""
        return self.plans[self._now(step.source, step.index)]

    def _now(self, source: Source, index: int) -> tuple[float, ...]:
        """The weight of each of the windows at a step of the path, 0 where it is not open."""
        curve = self.weight_curve
        weight = 1.0 if curve is None else curve(source.fraction(index))
        return tuple(weight * (index in source.window(*ends)) for ends in self.windows)

    def _plan(
        self, device: torch.device, dtype: torch.dtype, cross: float, *others: float
    ) -> Attention:
        if self.joint is not None:
            both = Injection(parts=(QUERIES, KEYS), blocks=self.joint, weight=cross)
            return Attention(injections=(both,) if cross else ())
        own_self, *words = others
        alpha = torch.full(self.alignment.new.shape, cross)
        for (columns, _), weight in zip(self.words, words, strict=True):
            alpha[list(columns)] = weight
        alpha[self.alignment.new] = 0.0
        injected = Attention(self_limit=self.self_limit if own_self else 0, self_weight=own_self)
        if not alpha.any():
            return injected
        own = (1 - alpha).to(device, dtype) if bool((alpha < 1).any()) else None
        return replace(injected, mapper=(self.alignment.mapper * alpha).to(device, dtype), own=own)


@dataclass(frozen=True, kw_only=True)
class Reweight(Edit):
    """Multiply words' maps (section 3.2, "attention re-weighting"), injected or their own.

    Attributes:
        scales: a factor for each of the target's tokens (T,); 1 changes nothing.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
    """

    hint: ClassVar[str] = "move the factors of Reweight further away from 1"
    keeps: ClassVar[str] = "move the factors of Reweight nearer to 1"
    needs: ClassVar[Need] = Need.ATTENTION

    prompt: Prompt
    scales: torch.Tensor
    start: float = 0.0
    end: float = 1.0

    @property
    def prompts(self) -> tuple[Prompt | None, Prompt | None]:
        return None, self.prompt

    def settled(self, traits: Traits) -> Self:
        if traits.joint and bool((self.scales < 0).any()):
            raise ValueError(
                "a factor of Reweight is below 0, which the attention of this model cannot have; "
                "use 0 or more"
            )
        return self

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end)

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        if bool((self.scales == 1).all()):
            return replace(self, end=self.start)  # nothing to do at any step
        return replace(self, scales=self.scales.to(device, dtype))

    def patch(self, step: Step, patch: Attention | None) -> Attention | None:
        if step.index not in self.steps(step.source):
            return patch
        attention = of(patch)
        scale = self.scales if attention.scale is None else self.scales * attention.scale
        return replace(attention, target=self.prompt, scale=scale)


def scales(prompt: Prompt, words: Sequence[tuple[str, float]]) -> torch.Tensor:
    """The factor of each of a prompt's tokens (T,), from those of some of its words."""
    chosen_columns = [prompt.columns(word, everywhere=True) for word, _ in words]
    factors = torch.ones(len(marks(prompt, chosen_columns)))
    for columns, (_, factor) in zip(chosen_columns, words, strict=True):
        factors[list(columns)] = factor
    return factors
