"""The vocabulary of the diffusion ODE, in ComfyUI's coordinates.

`sigma` is the noise level, `D(x, sigma, c)` the denoiser's estimate of the clean latent
("denoised") under condition `c`, and `d = (x - D) / sigma` the derivative. One deterministic DDIM
step is one Euler step, `x' = x + (sigma' - sigma) * d`, whatever the model predicts; only how
signal and noise mix differs between the families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..attention.plan import UNCHANGED, Attention, Seen

Condition = Any
"""What a denoiser is conditioned on. Opaque here: only the denoiser knows what is inside."""

Progress = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its index, the denoised latent and the latent reached."""


Adjust = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Changes the conditional and the unconditional estimate before guidance puts them together."""


def no_progress(step: int, denoised: Tensor, x: Tensor) -> None:
    """The `Progress` of a caller who does not want any."""


@dataclass(frozen=True)
class Mixing:
    """How clean latent and noise mix: `x = signal(sigma) * x0 + sigma * noise`.

    Attributes:
        flow: True for rectified-flow models (SD3, Flux: signal = 1 - sigma); False for the
            variance-exploding coordinates of EPS and V models (SD1.x, SD2.x, SDXL: signal = 1).
        sigma_data: standard deviation of the clean latents that an EPS or V model divides by.
    """

    flow: bool = False
    sigma_data: float = 1.0

    def signal(self, sigma: float) -> float:
        """The factor of the clean latent at `sigma`."""
        return 1.0 - sigma if self.flow else 1.0

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The clean latent `x0` with `noise` of unit variance, at `sigma`."""
        return self.signal(sigma) * x0 + sigma * noise

    def noise(self, x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
        """The unit-variance noise that `x` holds if `denoised` is its clean latent. sigma > 0."""
        return (x - self.signal(sigma) * denoised) / sigma

    def rescale(self, x: Tensor, sigma: float, new_sigma: float) -> Tensor:
        """The latent that looks to the network at `new_sigma` as `x` does at `sigma`.

        EPS and V models divide their input by sqrt(sigma^2 + sigma_data^2); flow models do not.
        """
        if self.flow:
            return x
        return x * ((new_sigma**2 + self.sigma_data**2) / (sigma**2 + self.sigma_data**2)) ** 0.5


class Guided(NamedTuple):
    """A prediction under guidance, and what came with it.

    Attributes:
        denoised: the estimate (B, C, ...).
        also: the plain estimates under the other conditions that were asked for.
        seen: the attention maps that were watched.
    """

    denoised: Tensor
    also: Sequence[Tensor] = ()
    seen: Seen = MappingProxyType({})


class Denoiser(Protocol):
    """A model as the mathematics sees it: D(x, sigma, c), with guidance and its own mixing.

    Attributes:
        mixing: how signal and noise mix for this model.
        evaluations: network evaluations so far; one is one latent batch under one condition.
    """

    mixing: Mixing
    evaluations: int

    def __call__(self, x: Tensor, sigma: float, conditions: Sequence[Condition]) -> list[Tensor]:
        """The denoised estimate of `x` (B, C, ...) at `sigma` under each of `conditions`.

        Conditions that are the same object are evaluated once. All share one network call when
        memory allows.
        """
        ...

    def guided(
        self,
        x: Tensor,
        sigma: float,
        condition: Condition,
        negative: Condition,
        scale: float,
        also: Sequence[Condition] = (),
        adjust: Adjust | None = None,
        attention: Attention = UNCHANGED,
        source: tuple[Condition, Tensor] | None = None,
    ) -> Guided:
        """The estimate under classifier-free guidance, and the plain ones under each of `also`.

        `negative` is not evaluated at scale 1. The conditions of `also` share the network call.
        `adjust` comes before the guidance, if there is any.

        Args:
            attention: what to change in the attention of the prediction under `condition`.
            source: the source's condition and its latent (B, C, ...) at `sigma`; predicted as well,
                for its attention, if `attention` needs it.
        """
        ...

    def mix(self, a: Condition, b: Condition, weight: float) -> Condition:
        """The condition `(1 - weight) * a + weight * b`."""
        ...

    def embedding(self, condition: Condition) -> Tensor:
        """The text embedding of a condition (B or 1, tokens, width), float32."""
        ...

    def with_embedding(self, condition: Condition, embedding: Tensor) -> Condition:
        """The condition with another embedding; all else in it stays as it is."""
        ...

    def differentiable(self) -> AbstractContextManager[None]:
        """Inside, and where gradients are enabled, estimates carry them back to the embeddings.

        What is made inside is ordinary, also under inference mode; afterwards nothing is left.
        """
        ...


def derivative(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma = (x - D) / sigma: the predicted noise of EPS and V models, a flow's velocity."""
    return (x - denoised) / sigma


def guidance(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6)."""
    return uncond + scale * (cond - uncond)
