"""What a step of the edited path predicts: everything that edits ask, guide and change."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.denoiser import Query, distinct
from ..core.diffusion import derivative
from ..core.edit import Edits, Step


def predict(step: Step, edits: Edits) -> tuple[Tensor, Step]:
    """The denoised estimate (B, C, ...) that a step follows, and the step with its answers.

    Edits are asked in their order at each hook.
    """
    denoised, found = _predict(step, edits)
    shifts = [shift for edit in edits for shift in edit.shifts(step)]
    if not shifts:
        return denoised, found
    kept, clean, _ = step.parts
    for shift in shifts:  # what a shifted step reaches, as a step from where this one begins
        further, found_too = _predict(step.shifted(shift), edits)
        denoised = denoised + further + kept / clean * shift
        found = replace(found, seen=found_too.seen)
    return denoised / (1 + len(shifts)), found


def _predict(step: Step, edits: Edits) -> tuple[Tensor, Step]:
    condition, negative, patch = step.condition, step.negative, None
    for edit in edits:
        condition = edit.condition(step, condition)
        negative = edit.negative(step, negative)
        patch = edit.patch(step, patch)
    further = [query for edit in edits for query in edit.queries(step)]
    if not patch and not further and any(edit.replaces(step) for edit in edits):
        return _follow(step, torch.zeros_like(step.x), edits), step  # nobody reads a prediction

    target, unguided = Query(step.x, condition, patch), Query(step.x, negative)
    asked = [target, unguided] if step.denoiser.guides(step.cfg) else [target]
    asked = distinct([*asked, *further])
    answers, now = step.denoiser.predict(asked, step.sigma)
    known = dict(zip(asked, answers, strict=True))
    cond, uncond = known[target], known.get(unguided)
    total = {key: step.seen.get(key, 0) + maps for key, maps in now.items()}
    seen = {**step.seen, **total}
    step = replace(step, answers=known, cond=cond, uncond=uncond, seen=seen, seen_now=now)

    for edit in edits:
        cond, uncond = edit.guidance(step, cond, uncond)
    guided = step.denoiser.guide(cond, uncond, step.cfg, target, negative, step.sigma)
    return _follow(step, guided, edits), step


def _follow(step: Step, guided: Tensor, edits: Edits) -> Tensor:
    """The estimate that the edited derivative means; that under guidance if none is edited."""
    d = predicted = derivative(step.x, guided, step.sigma)
    for edit in edits:
        d = edit.prediction(step, d)
    return guided if d is predicted else step.x - step.sigma * d
