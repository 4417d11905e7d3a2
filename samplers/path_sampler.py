"""The path sampler: walk a source path again, under another prompt, with every edit of a chain."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor

from ..edits.base import Edits, Step
from ..inversion.path import DiffusionPath
from .diffusion import Condition, Denoiser, Mixing, Progress, derivative, guidance, no_progress


def sample_path(
    denoiser: Denoiser,
    path: DiffusionPath,
    condition: Condition,
    negative: Condition,
    source: Condition,
    source_negative: Condition,
    *,
    cfg: float = 7.5,
    edits: Edits = (),
    first: int = 0,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    progress: Progress = no_progress,
) -> Tensor:
    """Sample under `condition` from the path's latent at step `first`, applying the edits.

    Args:
        path: the source path, in the model's own scale and on its device.
        condition, negative: the target's; `cfg` is its guidance scale. If the path has embeddings
            they replace that of `negative`.
        source, source_negative: the path's own; read only by edits that use the source.
        edits: applied in order at each of the four hooks.
        eta: 0 is DDIM, 1 is DDPM's noise (Song et al. 2021, arXiv 2010.02502, eq. 16).
        generator: a CPU generator for that noise.
    Returns:
        The edited latents from `sigmas[first]` on (N + 1 - first, B, C, ...).
    """
    sigmas = path.sigmas.tolist()
    x, latents = path.latents[first], [path.latents[first]]
    for i in range(first, path.steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        step = Step(index=i, path=path, source=source, mix=denoiser.mix)

        step_condition = condition
        for edit in edits:
            step_condition = edit.condition(step, step_condition)

        embedding = path.null_embedding(i)
        if embedding is not None:
            negative = source_negative = denoiser.with_embedding(negative, embedding)
        adjust = None
        if path.proximal is not None:
            adjust = partial(path.proximal, clean=path.clean, part=i / path.steps)

        also: list[Condition] = []
        if any(edit.needs_source_prediction(step) for edit in edits):
            also = [source] if path.cfg == 1 else [source, source_negative]
        denoised, extra = denoiser.guided(x, sigma, step_condition, negative, cfg, also, adjust)
        if also:
            source_denoised = extra[0] if path.cfg == 1 else guidance(extra[1], extra[0], path.cfg)
            step = dataclasses.replace(
                step, source_prediction=derivative(x, source_denoised, sigma)
            )

        d = derivative(x, denoised, sigma)
        for edit in edits:
            d = edit.prediction(step, d)

        denoised = x - sigma * d
        x = ddim_step(denoiser.mixing, x, d, sigma, sigma_next, eta, generator)
        for edit in edits:
            x = edit.latent(step, x)
        latents.append(x)
        progress(i - first, denoised, x)
    return torch.stack(latents)


def ddim_step(
    mixing: Mixing,
    x: Tensor,
    d: Tensor,
    sigma: float,
    sigma_next: float,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One DDIM step along the derivative `d` (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    With `eta` the part `eta * sigma' * sqrt(1 - r^2)` of the noise is drawn afresh, r being the
    ratio of the two noise-to-signal levels; the rest keeps the predicted direction.
    """
    if eta == 0 or sigma_next == 0:
        return x + (sigma_next - sigma) * d
    denoised = x - sigma * d
    signal, signal_next = mixing.signal(sigma), mixing.signal(sigma_next)
    ratio = sigma_next * signal / (sigma * signal_next)
    fresh = eta * sigma_next * (1 - ratio**2) ** 0.5
    kept = (sigma_next**2 - fresh**2) ** 0.5
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
    return signal_next * denoised + kept * mixing.noise(x, denoised, sigma) + fresh * noise
