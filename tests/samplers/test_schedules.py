"""Noise levels: which of the model's own a path visits, and which steps a fraction means."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion_path.samplers.schedules import kept_steps, spaced_sigmas, window

TABLE = torch.linspace(0.03, 14.6, 1000, dtype=torch.float64)


def timesteps(spacing: str, steps: int) -> list[int]:
    """Where the levels of a path, without the last, stand in the table."""
    levels = spaced_sigmas(TABLE, steps, spacing)[:-1]
    return [int((TABLE.float() == level).nonzero()) for level in levels]


def reference(spacing: str, steps: int) -> list[int]:
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 48, 50, 200, 333, 666])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_timesteps_are_those_of_diffusers(spacing: str, steps: int):
    assert timesteps(spacing, steps) == reference(spacing, steps)


@pytest.mark.parametrize("steps", [1, 7, 50, 998])
def test_linspace_is_that_of_diffusers_without_its_last_step_which_goes_nowhere(steps: int):
    *there, last = reference("linspace", steps + 1)
    assert timesteps("linspace", steps) == there
    assert last == 0


def test_fifty_leading_steps_are_the_ones_of_the_papers():
    assert timesteps("leading", 50) == list(range(981, 0, -20))


@pytest.mark.parametrize(
    ("spacing", "most"), [("leading", 999), ("trailing", 666), ("linspace", 999)]
)
def test_levels_fall_at_every_step(spacing: str, most: int):
    for steps in (*range(1, most, 7), most):
        levels = spaced_sigmas(TABLE, steps, spacing)
        assert len(levels) == steps + 1
        assert bool((levels[1:] < levels[:-1]).all()), steps


@pytest.mark.parametrize("steps", [667, 999])
def test_so_many_trailing_steps_that_the_last_goes_nowhere_are_refused(steps: int):
    with pytest.raises(ValueError, match=rf"steps is {steps}, .* beyond 666; use fewer"):
        spaced_sigmas(TABLE, steps, "trailing")


def test_the_last_level_is_the_smallest_of_the_model_or_zero_for_a_flow():
    assert spaced_sigmas(TABLE, 10, "leading")[-1] == TABLE[0].float()
    assert spaced_sigmas(TABLE, 10, "leading", flow=True)[-1] == 0


@pytest.mark.parametrize("steps", [0, 1000, -1])
def test_steps_that_do_not_fit_the_model_are_refused_with_the_range_that_does(steps: int):
    with pytest.raises(ValueError, match=f"steps is {steps}; choose 1 to 999"):
        spaced_sigmas(TABLE, steps, "leading")


def test_an_unknown_spacing_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'karras'; choose one of leading, trailing, linspace"):
        spaced_sigmas(TABLE, 10, "karras")


@pytest.mark.parametrize(
    ("steps", "fraction", "kept"),
    [(50, 1.0, 50), (50, 0.5, 25), (10, 0.7, 7), (10, 0.29, 2), (10, 0.05, 0), (7, 0.5, 3)],
)
def test_a_fraction_keeps_whole_steps_rounded_down(steps: int, fraction: float, kept: int):
    assert kept_steps(steps, fraction) == kept


@pytest.mark.parametrize(
    ("start", "end", "chosen"),
    [
        (0.0, 1.0, range(10)),
        (0.0, 0.5, range(5)),
        (0.3, 0.7, range(3, 7)),
        (0.25, 0.55, range(3, 6)),
        (0.95, 1.0, range(10, 10)),
        (0.91, 0.99, range(10, 10)),
    ],
)
def test_a_window_holds_the_steps_from_start_to_before_end(start: float, end: float, chosen: range):
    assert list(window(10, start, end)) == list(chosen)
    assert list(window(10, start, end)) == [
        i for i in range(10) if round(start * 10, 9) <= i < round(end * 10, 9)
    ]


def test_windows_that_meet_share_no_step_and_leave_none_out():
    for steps in (7, 10, 50):
        for middle in (0.1, 0.3, 0.5, 0.7, 0.9):
            assert [*window(steps, 0, middle), *window(steps, middle, 1)] == list(range(steps))
