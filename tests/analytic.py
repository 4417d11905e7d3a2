"""A denoiser whose every answer is known in closed form: the data are Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_path.core.denoiser import Answers, Query, distinct
from diffusion_path.core.diffusion import Mixing
from diffusion_path.core.edit import Edits, Step
from diffusion_path.core.path import DiffusionPath, Source
from diffusion_path.inversion.ddim import ddim_inversion
from diffusion_path.samplers.prediction import predict
from diffusion_path.samplers.solvers import solver_of
from diffusion_path.samplers.walk import transitions_of, walk


class Gaussian(NamedTuple):
    """A condition: clean latents are `N(mean, scale^2 I)`."""

    mean: Tensor
    scale: float


class GaussianDenoiser:
    """The `Denoiser` that is right for Gaussian data.

    With a the signal's factor at sigma and v = a^2 s^2 + sigma^2 the variance of x there,
    D = mu + a s^2 (x - a mu) / v, and the ODE carries x - a mu along in proportion to sqrt(v).
    """

    def __init__(self, flow: bool = False) -> None:
        self.mixing = Mixing(flow=flow)
        self.evaluations = 0

    def predict(self, queries: Sequence[Query], sigma: float) -> Answers:
        """It has no attention to change."""
        self.evaluations += len(distinct(queries))
        return Answers([self.denoised(query.x, sigma, query.condition) for query in queries])

    def guides(self, scale: float) -> bool:
        return scale != 1

    def guide(
        self,
        cond: Tensor,
        uncond: Tensor | None,
        scale: float,
        query: Query,
        negative: Gaussian,
        sigma: float,
    ) -> Tensor:
        return cond if uncond is None else uncond + scale * (cond - uncond)

    def percent_to_sigma(self, percent: float) -> float:
        """As `levels` falls."""
        if self.mixing.flow:
            return 0.96 * (1 - percent)
        return float(10 ** (1 - 2.5 * percent))

    def same(self, a: Gaussian, b: Gaussian) -> bool:
        return a is b

    def mixes(self, a: Gaussian, b: Gaussian) -> bool:
        return True

    def mix(self, a: Gaussian, b: Gaussian, weight: float) -> Gaussian:
        return Gaussian(
            (1 - weight) * a.mean + weight * b.mean, (1 - weight) * a.scale + weight * b.scale
        )

    def source(self, path: DiffusionPath, condition: Any = None, negative: Any = None) -> Source:
        """A path as a walk reads it."""
        return Source(path, self.percent_to_sigma, condition=condition, negative=negative)

    def embedding(self, condition: Gaussian) -> Tensor:
        """The mean: as many tokens as it has numbers, each of width 1."""
        return condition.mean.flatten(1)[..., None]

    def with_embedding(self, condition: Gaussian, embedding: Tensor) -> Gaussian:
        return Gaussian(embedding.view(-1, *condition.mean.shape[1:]), condition.scale)

    def differentiable(self) -> AbstractContextManager[None]:
        return nullcontext()

    def variance(self, sigma: float, condition: Gaussian) -> float:
        """The variance of x at `sigma`."""
        return (self.mixing.signal(sigma) * condition.scale) ** 2 + sigma**2

    def denoised(self, x: Tensor, sigma: float, condition: Gaussian) -> Tensor:
        """D(x, sigma)."""
        signal = self.mixing.signal(sigma)
        gain = signal * condition.scale**2 / self.variance(sigma, condition)
        return condition.mean + gain * (x - signal * condition.mean)

    def exact(self, x: Tensor, sigma: float, sigmas: Tensor, condition: Gaussian) -> Tensor:
        """The ODE's solution through `x` at `sigma`, at each of `sigmas` (N + 1, B, C, ...)."""
        away = x - self.mixing.signal(sigma) * condition.mean
        spread = self.variance(sigma, condition)
        return torch.stack(
            [
                self.mixing.signal(level) * condition.mean
                + away * (self.variance(level, condition) / spread) ** 0.5
                for level in sigmas.tolist()
            ]
        )


def levels(steps: int, flow: bool) -> Tensor:
    """Noise levels that fall evenly: in their logarithm, or down to 0 for a flow."""
    if flow:
        return torch.linspace(0.96, 0.0, steps + 1, dtype=torch.float64)
    return torch.logspace(1, -1.5, steps + 1, dtype=torch.float64)


def condition(seed: int, scale: float = 0.5) -> Gaussian:
    """A condition with a random mean."""
    generator = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(1, 4, 6, 8, generator=generator, dtype=torch.float64), scale)


def picture(seed: int = 0, batch: int = 2) -> Tensor:
    """A clean latent (B, 4, 6, 8) in double precision."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(batch, 4, 6, 8, generator=generator, dtype=torch.float64)


def inverted(
    denoiser: GaussianDenoiser, steps: int = 10, fixed_point_iterations: int = 0
) -> DiffusionPath:
    """The path of `picture()` under `condition(0)`."""
    sigmas, source = levels(steps, denoiser.mixing.flow), condition(0)
    latents = ddim_inversion(
        denoiser,
        picture(),
        sigmas,
        source,
        fixed_point_iterations=fixed_point_iterations,
    )
    return DiffusionPath(
        sigmas=sigmas, latents=latents, positive=[], negative=None, cfg=1.0, fingerprint={}
    )


def sampled(
    denoiser: GaussianDenoiser,
    path: DiffusionPath,
    positive: Gaussian,
    negative: Gaussian | None = None,
    *,
    source: Gaussian | None = None,
    source_negative: Gaussian | None = None,
    cfg: float = 7.5,
    edits: Edits = (),
    first: int = 0,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    progress: Any = lambda *_: None,
) -> Tensor:
    """The latents (N + 1, B, C, ...) of a walk along a path under another condition."""
    along = denoiser.source(path, source or condition(0), source_negative)
    edits = tuple(
        edit.prepare(along, torch.device("cpu"), torch.float64) for edit in (*path.edits, *edits)
    )
    step = Step(
        source=along,
        denoiser=denoiser,
        x=along.latent(first),
        sigma=along.levels[first],
        sigma_next=along.levels[first + 1],
        condition=positive,
        negative=negative,
        cfg=cfg,
        prompts={id(one): one for edit in edits for one in edit.conditionings},
    )
    latents: list[Tensor] = []

    def noise(x: Tensor, sigma: float, factor: float) -> Tensor:
        if path.residuals is not None:
            return along.residual(sigma)
        return factor * fresh(generator, x)

    walk(
        lambda step: predict(step, edits),
        step,
        transitions_of(edits, along, along.levels[first:]),
        solver_of(path.solver, denoiser.mixing, eta, noise),
        edits,
        latents.append,
        progress,
        noise,
    )
    return torch.stack(latents)


def recorded(
    denoiser: GaussianDenoiser,
    x: Tensor,
    sigmas: Tensor,
    positive: Gaussian,
    negative: Gaussian | None = None,
    cfg: float = 1.0,
    **options: Any,
) -> Tensor:
    """The latents (N + 1, B, C, ...) that noise `x` at `sigmas[0]` goes through."""
    path = DiffusionPath(
        sigmas=sigmas, latents=x[None], positive=[], negative=None, cfg=1.0, fingerprint={}
    )
    return sampled(denoiser, path, positive, negative, cfg=cfg, **options)


def fresh(generator: torch.Generator | None, x: Tensor) -> Tensor:
    """Noise like `x`."""
    return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
