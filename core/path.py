"""The diffusion path: the latents that lead from noise to one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .denoiser import Condition
from .diffusion import as_it_is
from .schedules import fraction_of, window

if TYPE_CHECKING:
    from .edit import Edits

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: pairs of an embedding (B, tokens, width) and a dict of options."""


class DiffusionPath(NamedTuple):
    """A source image's way from noise to clean, to be replayed or edited.

    A tuple, because that is what ComfyUI's cache looks into to know how much memory it holds.

    Attributes:
        sigmas: noise levels (N + 1,), strictly falling.
        latents: the source latent at each of them (N + 1, B, C, ...), float32, in the scale of a
            LATENT on a wire, in ordinary memory. The last one is the image.
        positive: the source prompt's conditioning.
        negative: the negative conditioning the path was made with; None at guidance 1.
        cfg: the guidance scale the path was made with.
        fingerprint: what a model must have in common with the one that made the path.
        edits: what each walk along the path begins with, before the edits of its own.
        solver: how its steps are walked again, of `samplers.solvers.SOLVERS`.
        residuals: what DDPM's step from each latent but the last is short of the next one
            (N, B, C, ...), in the model's scale and in ordinary memory; None for paths that were
            made without noise.
    """

    sigmas: Tensor
    latents: Tensor
    positive: Conditioning
    negative: Conditioning | None
    cfg: float
    fingerprint: dict[str, Any]
    edits: Edits = ()
    solver: str = "euler"
    residuals: Tensor | None = None

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.sigmas) - 1

    @property
    def clean(self) -> Tensor:
        """The image's latent (B, C, ...)."""
        return self.latents[-1]

    def derivative(self, i: int) -> Tensor:
        """dx/dsigma of step `i` (B, C, ...), exact for whatever made the path; no network call."""
        return (self.latents[i + 1] - self.latents[i]) / (self.sigmas[i + 1] - self.sigmas[i])

    def denoised(self, i: int) -> Tensor:
        """The clean image (B, C, ...) that step `i` was heading for: D = x - sigma * d."""
        return self.latents[i] - self.sigmas[i] * self.derivative(i)


class Source:
    """A path as one walk reads it: in the model's own scale. Of its latents, those around a step
    and the image are on the device at most.

    Attributes:
        path: the path itself, in the scale of the wires.
        levels: its noise levels (N + 1) as numbers.
        condition, negative: its prompts; None where no edit needs them.
    """

    def __init__(
        self,
        path: DiffusionPath,
        percent_to_sigma: Callable[[float], float],
        latent_in: Callable[[Tensor], Tensor] = as_it_is,
        condition: Condition = None,
        negative: Condition = None,
    ) -> None:
        """Keep how latents come into the model's scale and to its device, and where its schedule's
        fractions lie."""
        self.path, self.condition, self.negative = path, condition, negative
        self.levels: list[float] = path.sigmas.tolist()
        self._percent_to_sigma, self._latent_in = percent_to_sigma, latent_in
        self._held: dict[int, Tensor] = {}
        self._between: tuple[float, Tensor] | None = None
        self._windows: dict[tuple[float, float], range] = {}
        self._fractions: dict[int, float] = {}

    def latent(self, i: int) -> Tensor:
        """The source's latent (B, C, ...) at level `i`."""
        if i not in self._held:
            clean = len(self.levels) - 1
            near = {j: one for j, one in self._held.items() if abs(j - i) == 1 or clean in (i, j)}
            self._held = {**near, i: self._latent_in(self.path.latents[i])}
        return self._held[i]

    def residual(self, sigma: float) -> Tensor:
        """What the source's own step from a noise level of the path is short of it (B, C, ...).

        Raises:
            ValueError: the path has no such level.
        """
        i, residuals = self.index(sigma), self.path.residuals
        if residuals is None or abs(self.levels[i] - sigma) > sigma * 1e-4:
            raise ValueError(
                f"the path has no noise for level {sigma:.4g}; sample it at its own noise levels"
            )
        return residuals[i].to(self.latent(i))

    def index(self, sigma: float) -> int:
        """The step that begins at a noise level, or within which it lies."""
        last = len(self.levels) - 2
        return max(0, min(last, sum(level >= sigma * (1 - 1e-6) for level in self.levels) - 1))

    def at(self, sigma: float) -> Tensor:
        """The source's latent (B, C, ...) at any noise level; between two of the path's, on the
        straight line that its step is."""
        i = self.index(sigma)
        before, after = self.levels[i], self.levels[i + 1]
        part = min(max((before - sigma) / (before - after), 0.0), 1.0)
        if part < 1e-6:
            return self.latent(i)
        if part > 1 - 1e-6:
            return self.latent(i + 1)
        if self._between is None or self._between[0] != sigma:
            self._between = sigma, torch.lerp(self.latent(i), self.latent(i + 1), part)
        return self._between[1]

    def window(self, start: float, end: float) -> range:
        """The steps in a part of the model's own schedule, 0 is its noisy end, 1 the clean one."""
        if (start, end) not in self._windows:
            self._windows[start, end] = window(self.levels, start, end, self._percent_to_sigma)
        return self._windows[start, end]

    def fraction(self, i: int) -> float:
        """Where step `i` begins on the model's own schedule, 0 is its noisy end."""
        if i not in self._fractions:
            self._fractions[i] = fraction_of(self.levels[i], self._percent_to_sigma)
        return self._fractions[i]
