"""The walk: along a source path again, under another prompt, with every edit of a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..core.diffusion import Progress, no_progress
from ..core.edit import Edits, Step
from .solvers import Solver

Transition = tuple[float, float]
"""The noise levels that one step goes from and to."""

Predict = Callable[[Step], tuple[Tensor, Step]]
"""The denoised estimate that a step follows, and the step with what it was answered."""


def walk(
    predict: Predict,
    step: Step,
    transitions: Iterable[Transition],
    solver: Solver,
    edits: Edits = (),
    keep: Callable[[Tensor], None] | None = None,
    progress: Progress = no_progress,
) -> tuple[Tensor, Step]:
    """Follow a path and apply the edits.

    Args:
        step: where to begin: its latent `x`; its noise levels are not read.
        transitions: the steps to take.
        keep: told of each latent reached, the first one too.
    Returns:
        The latent reached (B, C, ...), and the last step.
    """
    x = step.x
    if keep is not None:
        keep(x)

    def ask(
        x: Tensor,
        sigma: float,
        sigma_next: float,
        eta: float = 0.0,
        added: Tensor | None = None,
    ) -> Tensor:
        nonlocal step
        denoised, step = predict(step.at(x, sigma, sigma_next, eta, added))
        return denoised

    for number, (sigma, sigma_next) in enumerate(transitions):
        before = x
        x, denoised = solver.step(ask, x, sigma, sigma_next)
        step = replace(step, x=before, sigma=sigma, sigma_next=sigma_next)
        for edit in edits:
            x = edit.latent(step, x)
        if keep is not None:
            keep(x)
        progress(number, denoised, x)
    return x, step


def where(edits: Edits, step: Step) -> Tensor | None:
    """Where a chain lets the image change (B or 1, 1, ...), 0 to 1; None is everywhere."""
    masks = [mask for edit in edits if (mask := edit.changes(step)) is not None]
    return torch.stack(torch.broadcast_tensors(*masks)).prod(dim=0) if masks else None
