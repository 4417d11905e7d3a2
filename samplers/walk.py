"""The walk: along a source path again, under another prompt, with every edit of a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ..core.diffusion import Progress, no_progress
from ..core.edit import Edits, Step, Transition
from ..core.path import Source
from .solvers import Noise, Solver

Predict = Callable[[Step], tuple[Tensor, Step]]
"""The denoised estimate that a step follows, and the step with what it was answered."""


def transitions_of(edits: Edits, source: Source, levels: Sequence[float]) -> Sequence[Transition]:
    """The steps of a walk over falling noise levels, as a chain of edits wants them.

    Raises:
        ValueError: an edit cannot work with them.
    """
    transitions: Sequence[Transition] = list(pairwise(levels))
    for edit in edits:
        transitions = edit.transitions(source, transitions)
    return transitions


def walk(
    predict: Predict,
    step: Step,
    transitions: Iterable[Transition],
    solver: Solver,
    edits: Edits = (),
    keep: Callable[[Tensor], None] | None = None,
    progress: Progress = no_progress,
    noise: Noise | None = None,
) -> tuple[Tensor, Step]:
    """Follow a path and apply the edits.

    Args:
        step: where to begin: its latent `x`; its noise levels are not read.
        transitions: the steps to take.
        keep: told of each latent reached, the first one too.
        noise: where the noise of jumps back comes from; needed with those only.
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
        if sigma_next > sigma:
            assert noise is not None
            kept, fresh = step.denoiser.mixing.noisier(sigma, sigma_next)
            x = kept * x + noise(x, sigma, fresh)
            solver.forget()
        else:
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
