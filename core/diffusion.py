"""The vocabulary of the diffusion ODE, in ComfyUI's coordinates.

`sigma` is the noise level, `D(x, sigma, c)` the denoiser's estimate of the clean latent
("denoised") under condition `c`, and `d = (x - D) / sigma` the derivative. One deterministic DDIM
step is one Euler step, `x' = x + (sigma' - sigma) * d`, whatever the model predicts; only how
signal and noise mix differs between the families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Progress = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its index, the denoised latent and the latent reached."""


def no_progress(step: int, denoised: Tensor, x: Tensor) -> None:
    """The `Progress` of a caller who does not want any."""


def as_it_is(latent: Tensor) -> Tensor:
    """The latent itself."""
    return latent


@dataclass(frozen=True)
class Mixing:
    """How clean latent and noise mix: `x = signal(sigma) * x0 + sigma * noise_scale * noise`.

    Attributes:
        flow: True for rectified-flow models (SD3, Flux: signal = 1 - sigma); False for the
            variance-exploding coordinates of EPS and V models (SD1.x, SD2.x, SDXL: signal = 1).
        sigma_data: standard deviation of the clean latents that an EPS or V model divides by.
        noise_scale: standard deviation of the noise at level 1; 8 for HiDream-O1, 1 for others.
    """

    flow: bool = False
    sigma_data: float = 1.0
    noise_scale: float = 1.0

    def signal(self, sigma: float) -> float:
        """The factor of the clean latent at `sigma`."""
        return 1.0 - sigma if self.flow else 1.0

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The clean latent `x0` with `noise` of unit variance, at `sigma`."""
        return self.signal(sigma) * x0 + sigma * self.noise_scale * noise

    def noise(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """The noise that `x` holds if `denoised` is its clean latent, of variance noise_scale^2.

        sigma > 0.
        """
        return (x - self.signal(sigma) * denoised) / sigma

    def rescale(self, x: Tensor, sigma: float, new_sigma: float) -> Tensor:
        """The latent that looks to the network at `new_sigma` as `x` does at `sigma`.

        EPS and V models divide their input by sqrt(sigma^2 + sigma_data^2); flow models do not.
        """
        if self.flow:
            return x
        return x * ((new_sigma**2 + self.sigma_data**2) / (sigma**2 + self.sigma_data**2)) ** 0.5

    def noisier(self, sigma: float, new_sigma: float) -> tuple[float, float]:
        """a, b of `x' = a x + b noise`, the latent at a higher level; for noise of variance 1."""
        kept = self.signal(new_sigma) / self.signal(sigma)
        return kept, self.noise_scale * (new_sigma**2 - (kept * sigma) ** 2) ** 0.5


HIGHEST = 14.6
"""The highest noise level of Stable Diffusion 1.x."""


def noise_level(sigma: float, flow: bool) -> float:
    """The noise of a level in parts of the signal, as it is said of models that are no flows."""
    if not flow:
        return sigma
    return min(sigma / max(1 - sigma, 1e-6), HIGHEST)


def derivative(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma = (x - D) / sigma: the predicted noise of EPS and V models, a flow's velocity."""
    return (x - denoised) / sigma


def ddim_parts(
    mixing: Mixing, sigma: float, sigma_next: float, eta: float = 0.0
) -> tuple[float, float, float]:
    """What a DDIM step (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16) is made of.

    With `eta` the part `eta * sigma' * sqrt(1 - r^2)` of the noise is drawn afresh, r being the
    ratio of the two noise-to-signal levels; the rest keeps the predicted direction.

    Returns:
        a, b, c of `x' = a x + b D + c noise`, for noise of unit variance.
    """
    if eta == 0 or sigma_next == 0:
        kept = sigma_next / sigma
        return kept, 1 - kept, 0.0
    signal, signal_next = mixing.signal(sigma), mixing.signal(sigma_next)
    ratio = sigma_next * signal / (sigma * signal_next)
    fresh = eta * sigma_next * (1 - ratio**2) ** 0.5
    kept = (sigma_next**2 - fresh**2) ** 0.5 / sigma
    return kept, signal_next - kept * signal, fresh * mixing.noise_scale
