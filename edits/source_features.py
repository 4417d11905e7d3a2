"""Source features: what some blocks of the target's network take of the source's.

One edit for a family of methods, which differ in what is taken, where and when: MasaCtrl (Cao et
al., ICCV 2023, arXiv 2304.08465), Plug-and-Play (Tumanyan et al., CVPR 2023, arXiv 2211.12572),
RF-Solver-Edit (Wang et al. 2024, arXiv 2411.04746), Stable Flow (Avrahami et al., CVPR 2025, arXiv
2411.14430) and StyleAligned (Hertz et al., CVPR 2024, arXiv 2312.02133).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from typing_extensions import Self

from ..attention.blocks import chosen
from ..attention.plan import FEATURES, KEYS, OUTPUT, QUERIES, VALUES, Attention, Injection, of
from ..core.denoiser import Query
from ..core.edit import Edit, Need, Step
from ..core.families import Block, Traits
from ..core.path import Source


class Taken(NamedTuple):
    """What is taken, where and when.

    Attributes:
        parts: of `PARTS`.
        blocks: as `attention.blocks.chosen` reads them.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
        beside: whether the source's keys and values stand beside the target's own.
        aligned: whether queries and keys get the source's mean and deviation.
    """

    parts: str
    blocks: str = ""
    start: float = 0.0
    end: float = 1.0
    beside: bool = False
    aligned: bool = False


PARTS = {
    "q and k": (QUERIES, KEYS),
    "k and v": (KEYS, VALUES),
    "v": (VALUES,),
    "q, k and v": (QUERIES, KEYS, VALUES),
    "features": (FEATURES,),
    "everything": (OUTPUT, FEATURES),
}
"""What can be taken. The features are what a UNet's residual blocks add; in a transformer, which
has none, the outputs of its attention."""

PRESETS: dict[str, tuple[tuple[Taken, ...], tuple[Taken, ...]]] = {
    "MasaCtrl": ((Taken("k and v", "63%-100%", 0.08),),) * 2,
    "Plug-and-Play": (
        (
            Taken("features", "output 12%", 0.0, 0.8),
            Taken("q and k", "output 12%-100%", 0.0, 0.5),
        ),
        (Taken("features", "33%", 0.0, 0.8), Taken("q and k", "33%-100%", 0.0, 0.5)),
    ),
    "RF-Solver": ((Taken("v", "69%-100%", 0.0, 0.2),),) * 2,
    "Stable Flow": ((Taken("k and v", "0%, 2%, 30%, 32%, 44%, 50%, 93%, 95%, 99%"),),) * 2,
    "StyleAligned": ((Taken("k and v", beside=True, aligned=True),),) * 2,
}
"""Each method for UNets and for transformers. Percentages of the blocks are the papers' numbers in
the networks that they have: Stable Flow's are double 0, 1, 17, 18 and single 6, 9, 34, 35, 37 of
Flux, MasaCtrl's from the tenth of Stable Diffusion's sixteen layers on."""

CUSTOM = "custom"


@dataclass(frozen=True, kw_only=True)
class SourceFeatures(Edit):
    """Take of the source what `taken` says; with a preset, what its method takes in the model.

    Attributes:
        preset: of `PRESETS`, or `CUSTOM` for what `taken` has already.
        blocks: other blocks than the preset's; "" leaves them.
        start, end: another window than the preset's; None leaves it.
        weight: how much of the result is the source's.
        first: whether to take it from the batch's first picture, in place of the source.
        taken: what, where and when.
        injections: the same for the model, with the window of each.
    """

    keeps: ClassVar[str] = "raise end of Source Features"
    hint: ClassVar[str] = "lower end of Source Features"

    preset: str = "MasaCtrl"
    blocks: str = ""
    start: float | None = None
    end: float | None = None
    weight: float = 1.0
    first: bool = False
    taken: tuple[Taken, ...] = ()
    injections: tuple[tuple[Injection, float, float], ...] = ()
    told_at: str = ""

    @property
    def needs(self) -> Need:
        path = Need(0) if self.first else Need.PATH | Need.PROMPT
        return path | Need.ATTENTION

    def settled(self, traits: Traits) -> Self:
        unet = any(name == "output" for name, _ in traits.blocks)
        taken = self.taken or PRESETS[self.preset][0 if unet else 1]
        found = []
        for one in taken:
            parts = PARTS[one.parts]
            if not unet and FEATURES in parts:
                parts = (OUTPUT,)
            injection = Injection(
                parts=parts,
                blocks=chosen(self.blocks or one.blocks, traits.blocks),
                weight=self.weight,
                beside=one.beside,
                aligned=one.aligned,
                first=self.first,
            )
            start = one.start if self.start is None else self.start
            end = one.end if self.end is None else self.end
            found.append((injection, start, end))
        return replace(self, injections=tuple(found))

    @property
    def note(self) -> str:
        blocks: set[Block] = set().union(*(one.blocks or () for one, *_ in self.injections))
        windows = {f"{start:g} to {end:g}" for _, start, end in self.injections}
        return f"Source Features: {len(blocks)} blocks, {' and '.join(sorted(windows))}"

    def steps(self, source: Source) -> range:
        active = [part for _, *ends in self.injections if (part := source.window(*ends))]
        if not active:
            return range(0)
        return range(min(part.start for part in active), max(part.stop for part in active))

    def queries(self, step: Step) -> Sequence[Query]:
        return [step.source_query()] if self._now(step) and not self.first else ()

    def patch(self, step: Step, patch: Attention | None) -> Attention | None:
        now = self._now(step)
        if not now:
            return patch
        attention = of(patch)
        return replace(attention, injections=(*attention.injections, *now))

    def _now(self, step: Step) -> tuple[Injection, ...]:
        """What is taken at a step."""
        return tuple(
            injection
            for injection, *ends in self.injections
            if step.index in step.source.window(*ends)
        )
