"""Which noise levels a path visits: diffusers' timestep spacings over a model's own levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

SPACINGS = ("leading", "trailing", "linspace")
STEPS_OFFSET = 1
"""SD1.x's `steps_offset`: its "leading" timesteps are 1, 21, ... 981 for 50 steps."""


def spaced_sigmas(table: Tensor, steps: int, spacing: str, flow: bool = False) -> Tensor:
    """The `steps + 1` noise levels of a path, from noisy to clean.

    The timesteps are diffusers' (Lin et al. 2023, arXiv 2305.08891, table 2). The last level is
    the model's smallest (diffusers' `set_alpha_to_one=False`), or 0 for a flow model, whose
    latents are clean there. "linspace" leaves out diffusers' last step, which goes nowhere.
    numpy rounds as it does there.

    Args:
        table: the model's noise levels (T,), ascending: sigma of timestep 0 to T - 1.
        steps: number of steps, 1 to T - 1.
    Raises:
        ValueError: `steps` does not fit the table, or `spacing` is not one of `SPACINGS`.
    """
    total = len(table)
    if not 1 <= steps < total:
        raise ValueError(f"steps is {steps}; choose 1 to {total - 1}")
    timesteps: np.ndarray
    if spacing == "leading":
        timesteps = np.arange(steps)[::-1] * (total // steps) + STEPS_OFFSET
    elif spacing == "trailing":
        timesteps = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
        if timesteps[-1] == 0 and not flow:
            raise ValueError(
                f"steps is {steps}, but trailing spacing repeats a noise level with more than "
                f"{2 * total // 3}; use fewer, or leading spacing"
            )
    elif spacing == "linspace":
        timesteps = np.linspace(0, total - 1, steps + 1).round()[:0:-1]
    else:
        raise ValueError(f"spacing is {spacing!r}; choose one of {', '.join(SPACINGS)}")
    last = table.new_zeros(1) if flow else table[:1]
    visited = torch.from_numpy(timesteps.astype(np.int64))
    return torch.cat([table[visited], last]).float().cpu()


def boundaries(sigmas: Tensor, percent_to_sigma: Callable[[float], float]) -> list[float]:
    """Where each noise level's share of a sampling run begins, in ComfyUI's percents, and 1.

    Between two levels the boundary lies where `percent_to_sigma`, which falls from 0 to 1, is
    strictly between them; it is searched for, because not every model's has an inverse.

    Args:
        sigmas: noise levels (N + 1,), strictly falling.
    Returns:
        N + 1 percents: level i is visited between the i-th and the next.
    Raises:
        ValueError: there is no percent between two of them.
    """
    percents = [0.0]
    for above, below in pairwise(sigmas.tolist()[:-1]):
        low, high = 0.0, 1.0
        for _ in range(64):
            middle = (low + high) / 2
            sigma = float(percent_to_sigma(middle))
            if below < sigma < above and not (
                math.isclose(sigma, below, rel_tol=1e-5) or math.isclose(sigma, above, rel_tol=1e-5)
            ):
                break
            low, high = (middle, high) if sigma >= above else (low, middle)
        else:
            raise ValueError(
                f"no start or end percent lies between the noise levels {above:.4g} and "
                f"{below:.4g}; use fewer steps, or levels within the model's range"
            )
        percents.append(middle)
    return [*percents, 1.0]


def window(
    levels: Sequence[float], start: float, end: float, percent_to_sigma: Callable[[float], float]
) -> range:
    """The steps of a path that begin in a part of the model's own schedule, as ComfyUI counts it.

    Args:
        levels: noise levels (N + 1), strictly falling; the last one begins no step.
        start, end: fractions of the schedule, 0 is its noisy end; the step at `end` is outside.
        percent_to_sigma: the noise level at a fraction.
    """
    first = _begun(levels, start, percent_to_sigma)
    return range(first, max(first, _begun(levels, end, percent_to_sigma)))


def fraction_of(level: float, percent_to_sigma: Callable[[float], float]) -> float:
    """The fraction of the model's own schedule at which a step from a noise level begins.

    The step is in `window(levels, start, end)` if `start <= fraction < end`. It is searched for,
    because not every model's `percent_to_sigma` has an inverse.
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if level > float(percent_to_sigma(middle)) * (1 + 1e-5):
            high = middle
        else:
            low = middle
    return low


def _begun(
    levels: Sequence[float], fraction: float, percent_to_sigma: Callable[[float], float]
) -> int:
    """How many steps of a path begin before a fraction of the schedule."""
    if fraction <= 0:
        return 0
    if fraction >= 1:
        return len(levels) - 1
    limit = float(percent_to_sigma(fraction)) * (1 + 1e-5)
    return sum(level > limit for level in levels[:-1])
