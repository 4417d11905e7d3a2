"""How a step gets from one noise level to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..core.diffusion import Mixing, ddim_parts, derivative

Noise = Callable[[Tensor, float, float], Tensor]
"""What to add as noise to a step (B, C, ...): given its latent, its level and the factor of fresh
noise of unit variance."""

LOWEST = 1e-3
"""The level at which a flow's clean end is read, where the estimate says nothing of the slope."""


class Ask(Protocol):
    """The clean estimate (B, C, ...) of a latent at a level, on the way to another."""

    def __call__(
        self,
        x: Tensor,
        sigma: float,
        sigma_next: float,
        eta: float = 0.0,
        added: Tensor | None = None,
        /,
    ) -> Tensor: ...


class Solver(Protocol):
    """One step of a walk. A solver may remember the steps before: each walk has its own."""

    def step(self, ask: Ask, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
        """The latent (B, C, ...) at `sigma_next`, from `x` at `sigma`; and the clean estimate."""
        ...

    def forget(self) -> None:
        """The next step does not go on from the last one."""
        ...


@dataclass
class DDIM:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16); without eta an Euler step.

    Attributes:
        mixing: how signal and noise mix.
        eta: 0 is DDIM, 1 is DDPM's noise.
        noise: where that comes from; needed with eta only.
    """

    mixing: Mixing
    eta: float = 0.0
    noise: Noise | None = None

    def step(self, ask: Ask, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
        if self.eta == 0 or self.noise is None:
            denoised = ask(x, sigma, sigma_next)
            return x + (sigma_next - sigma) * (x - denoised) / sigma, denoised
        kept, clean, fresh = ddim_parts(self.mixing, sigma, sigma_next, self.eta)
        added = self.noise(x, sigma, fresh)
        denoised = ask(x, sigma, sigma_next, self.eta, added)
        estimate = self.estimate(denoised, sigma, sigma_next)
        return kept * x + clean * estimate + added, denoised

    def forget(self) -> None:
        """It remembers nothing."""

    def estimate(self, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The clean estimate (B, C, ...) to step by."""
        return denoised


@dataclass
class SDEDPM(DDIM):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, appendix): DDPM's step, by a clean
    estimate that is extrapolated from the one before. One evaluation a step."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        """There is no step before."""
        self._last: tuple[Tensor, float] | None = None

    def forget(self) -> None:
        """The next step has none before it."""
        self._last = None

    def estimate(self, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
        before, part = self._before(sigma, sigma_next)
        self._last = denoised, sigma
        return denoised if before is None else denoised + part * (denoised - before)

    def denoised(self, estimate: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The clean estimate (B, C, ...) that `estimate` was made of, in place of asking for it."""
        before, part = self._before(sigma, sigma_next)
        denoised = estimate if before is None else (estimate + part * before) / (1 + part)
        self._last = denoised, sigma
        return denoised

    def _before(self, sigma: float, sigma_next: float) -> tuple[Tensor | None, float]:
        """The clean estimate of the step before, and what part of the change since to add; None if
        there is none to extrapolate from."""
        signal, signal_next = self.mixing.signal(sigma), self.mixing.signal(sigma_next)
        if self._last is None or sigma_next == 0 or signal == 0:
            return None, 0.0
        before, above = self._last
        if self.mixing.signal(above) == 0:
            return None, 0.0
        step = math.log(signal_next * sigma / (signal * sigma_next))
        step_before = math.log(signal * above / (self.mixing.signal(above) * sigma))
        return before, step / (2 * step_before)


class Midpoint:
    """The midpoint method, which RF-Solver's (Wang et al. 2024, arXiv 2411.04746, algorithm 1) is;
    two evaluations a step."""

    def step(self, ask: Ask, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
        return self._from(self._slope(ask, x, sigma, sigma_next), ask, x, sigma, sigma_next)[:2]

    def forget(self) -> None:
        """It remembers nothing."""

    @staticmethod
    def _slope(ask: Ask, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        level = max(sigma, LOWEST)
        return derivative(x, ask(x, level, sigma_next), level)

    @staticmethod
    def _from(
        slope: Tensor, ask: Ask, x: Tensor, sigma: float, sigma_next: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The step, its clean estimate and the slope in its middle, given that at its beginning."""
        middle = (sigma + sigma_next) / 2
        between = x + (middle - sigma) * slope
        denoised = ask(between, middle, sigma_next)
        slope = derivative(between, denoised, middle)
        return x + (sigma_next - sigma) * slope, denoised, slope


class Reuse(Midpoint):
    """FireFlow (Deng et al. 2024, arXiv 2412.07517, algorithm 1): the midpoint method, in which
    each step begins with the slope in the middle of the one before; one evaluation a step, and
    one more for the first."""

    def __init__(self) -> None:
        """There is no step before."""
        self._last: Tensor | None = None

    def step(self, ask: Ask, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, Tensor]:
        slope = self._slope(ask, x, sigma, sigma_next) if self._last is None else self._last
        x, denoised, self._last = self._from(slope, ask, x, sigma, sigma_next)
        return x, denoised

    def forget(self) -> None:
        """The next step has none before it."""
        self._last = None


STOCHASTIC = ("ddpm", "sde-dpm++")
"""The solvers of paths that keep noise of their own."""

SOLVERS = ("euler", "midpoint", "reuse", *STOCHASTIC)
"""How a path is walked again."""


def by_ddim(solver: str) -> str:
    """The solver whose steps are DDIM's, on the path of another one that adds no noise."""
    return "euler" if solver in ("midpoint", "reuse") else solver


def check_eta(has_noise: bool, eta: float) -> None:
    """Raise ValueError, in one sentence, if a path cannot be walked with that much noise.

    Args:
        has_noise: whether the path keeps noise of its own.
    """
    if has_noise and 0 < eta < 1:
        raise ValueError(
            f"eta is {eta:g}, but the noise of this path needs eta 1; set eta to 1, or to 0 "
            "to sample without its noise"
        )


def solver_of(name: str, mixing: Mixing, eta: float = 0.0, noise: Noise | None = None) -> Solver:
    """A solver for one walk, of `SOLVERS`; with eta it is one that adds noise."""
    name = by_ddim(name) if eta else name
    if name == "midpoint":
        return Midpoint()
    if name == "reuse":
        return Reuse()
    if name == "sde-dpm++" and eta:
        return SDEDPM(mixing, eta, noise)
    return DDIM(mixing, eta, noise)
