"""What an edit is: a frozen description that changes some of the things a step has."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from .denoiser import Condition, Denoiser, Patch, Query, Seen
from .diffusion import ddim_parts
from .families import Traits
from .path import Conditioning, DiffusionPath, Source

WeightCurve = Callable[[float], float]
"""A factor, 0 to 1, for an edit's weight at each fraction of the model's schedule, 0 is its noisy
end."""

Transition = tuple[float, float]
"""The noise levels that one step goes from and to. A higher one to go to is a jump back: noise is
added, and nothing is predicted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One step of the edited path, as edits see it.

    Attributes:
        source: the path, read in the model's own scale.
        denoiser: the model: to mix conditions, to guide.
        x: the edited latent before the step (B, C, ...).
        sigma, sigma_next: the noise levels before and after it.
        condition, negative: the target's, before any edit of them.
        cfg: the target's guidance scale.
        eta, added: how much of DDIM's noise this step has, and what it adds as such (B, C, ...).
        moved: the source's latent before the step, where it is not the path's own (B, C, ...).
        prompts: what ComfyUI has made of the edits' own prompts, by `id` of the CONDITIONING.
        answers: what the queries of all edits were answered (B, C, ...).
        cond, uncond: the target's estimates before any edit of them; None before there are any.
        seen: what patches have looked at, summed over the steps so far.
        seen_now: the same of this step alone.
    """

    source: Source
    denoiser: Denoiser
    x: Tensor
    sigma: float
    sigma_next: float
    condition: Condition = None
    negative: Condition = None
    cfg: float = 1.0
    eta: float = 0.0
    added: Tensor | None = None
    moved: Tensor | None = None
    prompts: Mapping[int, Condition] = field(default_factory=dict)
    answers: Mapping[Query, Tensor] = field(default_factory=dict)
    cond: Tensor | None = None
    uncond: Tensor | None = None
    seen: Seen = field(default_factory=dict)
    seen_now: Seen = field(default_factory=dict)

    def at(
        self,
        x: Tensor,
        sigma: float,
        sigma_next: float,
        eta: float = 0.0,
        added: Tensor | None = None,
    ) -> Step:
        """The step from `x` at one noise level to another; what was seen so far stays."""
        moved = replace(self, x=x, sigma=sigma, sigma_next=sigma_next, eta=eta, added=added)
        return replace(moved, moved=None, answers={}, cond=None, uncond=None, seen_now={})

    def shifted(self, by: Tensor) -> Step:
        """The step with the edited latent and the source's both moved (B, C, ...)."""
        return replace(self, x=self.x + by, moved=self.before + by)

    @property
    def parts(self) -> tuple[float, float, float]:
        """a, b, c of the step `x' = a x + b D + c noise` that is taken, DDIM's."""
        return ddim_parts(self.denoiser.mixing, self.sigma, self.sigma_next, self.eta)

    @property
    def index(self) -> int:
        """The number of the source's step that begins here, or that we are in."""
        return self.source.index(self.sigma)

    @property
    def before(self) -> Tensor:
        """The source's latent before the step (B, C, ...)."""
        return self.source.at(self.sigma) if self.moved is None else self.moved

    @property
    def after(self) -> Tensor:
        """The source's latent after the step (B, C, ...)."""
        return self.source.at(self.sigma_next)

    @property
    def derivative(self) -> Tensor:
        """The source's dx/dsigma over the step (B, C, ...); no network call."""
        return (self.after - self.before) / (self.sigma_next - self.sigma)

    def source_query(self) -> Query:
        """The source at its own latent, at guidance 1."""
        return Query(self.before, self.source.condition, is_source=True)


class Need(enum.Flag):
    """What an edit cannot do without; it is checked before anything is sampled."""

    PATH = enum.auto()
    """The source's latents, so that it cannot work while a path is recorded."""
    PROMPT = enum.auto()
    """The source's prompts."""
    ATTENTION = enum.auto()
    """A network whose attention can be changed."""
    GRADIENTS = enum.auto()
    """A network that gradients can go through."""


class Edit:
    """Override only the hooks that the technique needs. Subclasses are frozen dataclasses.

    Attributes:
        hint: which knob to turn when the edit has changed almost nothing.
        keeps: which knob to turn when little of the source is left.
        by_ddim: whether it computes with DDIM's steps, which then are taken on any path.
        told_at: where the user is to read its `note`: the id of its node; else empty.
    """

    hint: ClassVar[str] = ""
    keeps: ClassVar[str] = ""
    by_ddim: ClassVar[bool] = False
    told_at: str = ""

    @property
    def needs(self) -> Need:
        """What it cannot do without."""
        return Need.PATH

    @property
    def prompts(self) -> tuple[Any, Any]:
        """The source's and the target's prompt, if it counts their tokens; else None."""
        return None, None

    @property
    def conditionings(self) -> Sequence[Conditioning]:
        """Prompts of its own, which `Step.prompts` has."""
        return ()

    @property
    def follows(self) -> float:
        """Up to which fraction of the model's schedule, 0 is its noisy end, the walk is to follow
        the source, and so may begin there."""
        return 0.0

    @property
    def masks(self) -> Sequence[Tensor]:
        """The masks (masks, height, width) that must fit the picture."""
        return ()

    @property
    def models(self) -> Sequence[Any]:
        """What of the host's has to be loaded beside the model."""
        return ()

    @property
    def note(self) -> str:
        """What the settled edit does, where that depends on the model; else empty."""
        return ""

    @property
    def usual_cfg(self) -> float | None:
        """The target's guidance that suits the settled edit; None is the model's own."""
        return None

    def settled(self, traits: Traits) -> Self:
        """The edit with what was left to the model decided."""
        return self

    def check(self, path: DiffusionPath) -> None:
        """Raise ValueError, in one sentence, if this edit cannot work on `path`."""

    def steps(self, source: Source) -> range:
        """The steps of the path that this edit touches."""
        return range(len(source.levels) - 1)

    def transitions(
        self, source: Source, transitions: Sequence[Transition]
    ) -> Sequence[Transition]:
        """The steps to take in place of these, asked once per walk.

        Raises:
            ValueError: in one sentence, these are not steps that it can work with.
        """
        return transitions

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        """The edit with what it needs on the device, made once per walk.

        Args:
            device, dtype: of the network's activations.
        """
        return self

    def replaces(self, step: Step) -> bool:
        """Whether `prediction` reads nothing of what the target predicts at this step, which then
        need not be predicted."""
        return False

    def shifts(self, step: Step) -> Sequence[Tensor]:
        """By what to move the edited latent and the source's (B, C, ...), for further predictions
        of the step; what is followed is the mean of all."""
        return ()

    def queries(self, step: Step) -> Sequence[Query]:
        """What to ask beyond the target's prediction; each costs a network evaluation."""
        return ()

    def condition(self, step: Step, condition: Condition) -> Condition:
        """The condition to predict under, in place of `condition`."""
        return condition

    def negative(self, step: Step, negative: Condition) -> Condition:
        """The negative condition, in place of `negative`."""
        return negative

    def patch(self, step: Step, patch: Patch) -> Patch:
        """What to change inside the network of the target's prediction, in place of `patch`."""
        return patch

    def guidance(self, step: Step, cond: Tensor, uncond: Tensor | None) -> tuple[Tensor, Any]:
        """The two estimates (B, C, ...) to guide with; the second is None at guidance 1."""
        return cond, uncond

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        """The derivative to follow, in place of the guided one `d` (B, C, ...)."""
        return d

    def latent(self, step: Step, x: Tensor) -> Tensor:
        """The latent to go on with, in place of `x` (B, C, ...), which the step has reached."""
        return x

    def changes(self, step: Step) -> Tensor | None:
        """Where this edit lets the image change (B or 1, 1, ...), 0 to 1; None is everywhere."""
        return None


Edits = tuple[Edit, ...]
"""A chain of edits: applied in order, never changed in place."""
