"""FlowEdit (Kulikov et al., ICCV 2025, arXiv 2412.08629) and its relatives: follow a difference.

The target's step, and with it what the source's own step is short of its path. On a straight path
that is FlowEdit, on one with noise maps edit-friendly DDPM inversion (Huberman-Spiegelglas et al.,
CVPR 2024, arXiv 2304.06140), on an inverted one what direct inversion (Ju et al., ICLR 2024, arXiv
2310.01506) adds to a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from ..core.denoiser import Query
from ..core.diffusion import derivative
from ..core.edit import Edit, Need, Step
from ..core.families import Traits
from ..core.path import DiffusionPath, Source


class Settings(NamedTuple):
    """What is right for a family of models.

    Attributes:
        steps, spacing: of the path.
        start: the fraction of the schedule at which to begin.
        source_cfg, cfg: the guidance of the source and of the target.
    """

    steps: int
    spacing: str
    start: float
    source_cfg: float
    cfg: float


FAMILIES = {
    "SD1.5": Settings(47, "leading", 0.28, 1.0, 3.0),
    "SDXL": Settings(47, "leading", 0.28, 1.0, 3.0),
    "SD3": Settings(50, "simple", 0.34, 3.5, 13.5),
    "Flux dev": Settings(28, "simple", 0.14, 1.0, 1.0),
    "Flux schnell": Settings(8, "simple", 0.25, 1.0, 1.0),
    "Qwen-Image": Settings(30, "simple", 0.2, 2.5, 6.0),
    "Z-Image": Settings(12, "simple", 0.25, 1.0, 1.0),
    "Chroma": Settings(30, "simple", 0.2, 2.0, 6.0),
    "Wan": Settings(50, "simple", 0.3, 5.0, 13.5),
    "demo flow": Settings(28, "simple", 0.25, 1.0, 2.5),
    "other flow": Settings(28, "simple", 0.2, 2.0, 6.0),
}
"""Where the values come from stands in `web/docs/DiffusionPath_FlowEdit.md`."""

RELATED = 0.5
"""The correlation of the noise at two levels from which on it is one noise."""


@dataclass(frozen=True, kw_only=True)
class FlowEdit(Edit):
    """With S the source's estimate at its own latent, A at the edited one and T the target's:
    `x' = step(T) + path - step(S)`.

    With `strength` s T becomes `A + s (T - A)` (FlowSlider, arXiv 2604.02088); with `anchor` zeta
    the step ends by zeta (S - T) nearer to the source (FlowAlign, arXiv 2505.23145, eq. 15).

    Attributes:
        source_cfg: the guidance of S and A; None takes the family's.
        strength: of the edit; 0 is the source, 1 the target, below 0 the opposite.
        anchor: 0 is FlowEdit.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end. Before it
            the walk follows the source; after it, the target alone. None takes the family's.
        average: over how many noises each step is predicted.
        settings: the family, of `FAMILIES`; "auto" takes the model's.
    """

    keeps: ClassVar[str] = "raise start of FlowEdit"
    needs: ClassVar[Need] = Need.PATH | Need.PROMPT
    by_ddim: ClassVar[bool] = True

    source_cfg: float | None = None
    strength: float = 1.0
    anchor: float = 0.0
    start: float | None = None
    end: float = 1.0
    average: int = 1
    settings: str = "auto"

    def settled(self, traits: Traits) -> Self:
        settings = traits.family if self.settings == "auto" else self.settings
        theirs = FAMILIES[settings]
        return replace(
            self,
            settings=settings,
            source_cfg=theirs.source_cfg if self.source_cfg is None else self.source_cfg,
            start=theirs.start if self.start is None else self.start,
        )

    @property
    def hint(self) -> str:  # type: ignore[override]
        weak = abs(self.strength) < 1
        return f"{'raise strength' if weak else 'lower start'} of FlowEdit, or raise cfg"

    @property
    def usual_cfg(self) -> float | None:
        return FAMILIES[self.settings].cfg

    @property
    def follows(self) -> float:
        return self.start or 0.0

    def check(self, path: DiffusionPath) -> None:
        if path.solver == "sde-dpm++":
            raise ValueError(
                "FlowEdit needs steps that do not depend on earlier ones, but those of solver "
                "sde-dpm++ do; make the path with solver ddpm"
            )
        if self.average > 1 and (path.residuals is not None or not is_independent(path)):
            kind = "only one" if path.residuals is None else "noise of its own at each step"
            raise ValueError(
                f"FlowEdit averages {self.average} noise samples, but this path has {kind}; set "
                "average to 1, or take a Straight Path with fresh noise"
            )

    def steps(self, source: Source) -> range:
        return source.window(self.start or 0.0, self.end)

    def replaces(self, step: Step) -> bool:
        return step.index < self.steps(step.source).start

    def shifts(self, step: Step) -> Sequence[Tensor]:
        if self.average == 1 or step.index not in self.steps(step.source):
            return ()
        source, steps = step.source, len(step.source.levels) - 1
        others = [(step.index + k * steps // self.average) % steps for k in range(self.average)]
        mixing, clean = step.denoiser.mixing, source.latent(steps)
        noises = (
            mixing.noise(source.latent(i), clean, source.levels[i]) / mixing.noise_scale
            for i in others[1:]
        )
        return [mixing.noised(clean, noise, step.sigma) - step.before for noise in noises]

    def queries(self, step: Step) -> Sequence[Query]:
        if step.index not in self.steps(step.source):
            return ()
        asked = [step.source_query()]
        if self.strength != 1:
            asked.append(Query(step.x, step.source.condition))
        if self._is_guided(step):
            asked += [Query(query.x, self._negative(step)) for query in asked]
        return asked

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        active = self.steps(step.source)
        if step.index < active.start:
            return step.derivative
        if step.index not in active:
            return d
        source, target = self._estimate(step, step.before), step.x - step.sigma * d
        if self.strength != 1:
            target = torch.lerp(self._estimate(step, step.x), target, self.strength)
        kept, clean, _ = step.parts
        reached = kept * step.before + clean * source
        if step.added is not None:
            reached = reached + step.added
        short = step.after - reached + self.anchor * (source - target)
        return derivative(step.x, target + short / clean, step.sigma)

    def _estimate(self, step: Step, x: Tensor) -> Tensor:
        """The source's estimate at a latent, under its guidance."""
        query, negative = Query(x, step.source.condition), self._negative(step)
        cond = step.answers[query]
        if not self._is_guided(step):
            return cond
        uncond = step.answers[Query(x, negative)]
        return step.denoiser.guide(cond, uncond, self._scale, query, negative, step.sigma)

    def _is_guided(self, step: Step) -> bool:
        return self._scale != 1 and step.denoiser.guides(self._scale)

    @property
    def _scale(self) -> float:
        return 1.0 if self.source_cfg is None else self.source_cfg

    @staticmethod
    def _negative(step: Step) -> object:
        """The path's own, or else the target's."""
        own = step.source.negative
        return step.negative if own is None else own


def is_independent(path: DiffusionPath) -> bool:
    """Whether the noise of a path is another one at each level."""
    if path.steps < 2:
        return False
    flow, noises = bool(path.fingerprint.get("flow")), []
    for latent, sigma in zip(path.latents[:2], path.sigmas.tolist()[:2], strict=True):
        noise = (latent - (1 - sigma if flow else 1) * path.clean).flatten(2)
        noises.append((noise - noise.mean(dim=-1, keepdim=True)).flatten())
    return float(torch.cosine_similarity(noises[0], noises[1], dim=0)) < RELATED
