"""The path sampler: walk a source path again, under another prompt, with every edit of a chain."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.plan import UNCHANGED, Watch
from ..edits.base import Edits, Step
from ..inversion.path import DiffusionPath
from .diffusion import Condition, Denoiser, Mixing, Progress, derivative, guidance, no_progress


class Sampled(NamedTuple):
    """An edited path.

    Attributes:
        latents: from the noise level it began at to the image (N + 1, B, C, ...).
        mask: where the edits have let the image change (B or 1, 1, ...), 0 to 1, at
            the last step; None is everywhere.
    """

    latents: Tensor
    mask: Tensor | None


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
) -> Sampled:
    """Sample under `condition` from the path's latent at step `first`, applying the edits.

    Args:
        path: the source path, in the model's own scale and on its device.
        condition, negative: the target's; `cfg` is its guidance scale. If the path has embeddings
            they replace that of `negative`.
        source, source_negative: the path's own; read only by edits that use the source.
        edits: applied in order at each of the four hooks.
        eta: 0 is DDIM, 1 is DDPM's noise (Song et al. 2021, arXiv 2010.02502, eq. 16).
        generator: a CPU generator for that noise.
    """
    sigmas = path.sigmas.tolist()
    x, latents = path.latents[first], [path.latents[first]]
    seen: dict[Watch, Tensor] = {}
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
        attention = UNCHANGED
        for edit in edits:
            attention = edit.attention(step, attention)

        denoised, extra, now = denoiser.guided(
            x,
            sigma,
            step_condition,
            negative,
            cfg,
            also,
            adjust,
            attention,
            (source, path.latents[i]) if attention.needs_source else None,
        )
        seen |= {watch: seen.get(watch, 0) + maps for watch, maps in now.items()}
        step = replace(step, seen=seen)
        if also:
            source_denoised = extra[0] if path.cfg == 1 else guidance(extra[1], extra[0], path.cfg)
            step = replace(step, source_prediction=derivative(x, source_denoised, sigma))

        d = derivative(x, denoised, sigma)
        for edit in edits:
            d = edit.prediction(step, d)

        denoised = x - sigma * d
        x = ddim_step(denoiser.mixing, x, d, sigma, sigma_next, eta, generator)
        for edit in edits:
            x = edit.latent(step, x)
        latents.append(x)
        progress(i - first, denoised, x)
    masks = [mask for edit in edits if (mask := edit.changes(step)) is not None]
    mask = torch.stack(torch.broadcast_tensors(*masks)).prod(dim=0) if masks else None
    return Sampled(torch.stack(latents), mask)


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
