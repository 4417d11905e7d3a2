"""How a step gets from one noise level to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..core.diffusion import Mixing

Noise = Callable[[Tensor], Tensor]
"""Fresh noise of unit variance like a latent, on its device."""


class Solver(Protocol):
    """One step of a walk."""

    def step(
        self, mixing: Mixing, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float
    ) -> Tensor:
        """The latent (B, C, ...) at `sigma_next`, from `x` at `sigma` and its clean estimate."""
        ...


@dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16); without eta an Euler step.

    With `eta` the part `eta * sigma' * sqrt(1 - r^2)` of the noise is drawn afresh, r being the
    ratio of the two noise-to-signal levels; the rest keeps the predicted direction.

    Attributes:
        eta: 0 is DDIM, 1 is DDPM's noise.
        noise: where fresh noise comes from; needed with eta only.
    """

    eta: float = 0.0
    noise: Noise | None = None

    def step(
        self, mixing: Mixing, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float
    ) -> Tensor:
        if self.eta == 0 or sigma_next == 0 or self.noise is None:
            return x + (sigma_next - sigma) * (x - denoised) / sigma
        signal, signal_next = mixing.signal(sigma), mixing.signal(sigma_next)
        ratio = sigma_next * signal / (sigma * signal_next)
        fresh = self.eta * sigma_next * (1 - ratio**2) ** 0.5
        kept = (sigma_next**2 - fresh**2) ** 0.5
        noise = mixing.noise_scale * self.noise(x)
        return signal_next * denoised + kept * mixing.noise(x, denoised, sigma) + fresh * noise
