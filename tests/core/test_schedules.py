"""Noise levels: which of the model's own a path visits, and which steps a fraction means."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion_path.core.schedules import boundaries, spaced_sigmas, window

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
    with pytest.raises(ValueError, match=rf"steps is {steps}, .* with more than 666; use fewer"):
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


def evenly(steps: int) -> list[float]:
    """Noise levels from 10 to 0 with as many steps, each of an equal part of the schedule."""
    return [10 * (1 - i / steps) for i in range(steps + 1)]


def percent_to_sigma(percent: float) -> float:
    """Of the schedule whose levels `evenly` gives."""
    return 10 * (1 - percent)


@pytest.mark.parametrize(
    ("steps", "fraction", "kept"),
    [(50, 1.0, 50), (50, 0.5, 25), (10, 0.7, 7), (10, 0.29, 2), (10, 0.05, 0), (7, 0.5, 3)],
)
def test_a_fraction_keeps_whole_steps_rounded_down(steps: int, fraction: float, kept: int):
    """The steps that the clean part of a path has."""
    assert len(window(evenly(steps), 1 - fraction, 1.0, percent_to_sigma)) == kept


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
    found = list(window(evenly(10), start, end, percent_to_sigma))
    assert found == list(chosen)
    assert found == [i for i in range(10) if round(start * 10, 9) <= i < round(end * 10, 9)]


def test_a_window_is_a_part_of_the_models_schedule_and_not_of_the_paths_steps():
    """Levels that crowd at the clean end: most of the steps begin late in the schedule."""
    crowded = [10.0, 6.0, 3.0, 1.5, 0.7, 0.3, 0.0]
    assert window(crowded, 0.0, 0.5, percent_to_sigma) == range(2)
    assert window(crowded, 0.5, 1.0, percent_to_sigma) == range(2, 6)
    assert window(crowded[2:], 0.0, 0.5, percent_to_sigma) == range(0)


def test_boundaries_lie_between_the_levels_and_enclose_the_schedule():
    for levels in (evenly(7), [10.0, 6.0, 3.0, 1.5, 0.7, 0.3, 0.0]):
        found = boundaries(torch.tensor(levels), percent_to_sigma)
        assert (found[0], found[-1], len(found)) == (0.0, 1.0, len(levels))
        for between, above, below in zip(found[1:], levels, levels[1:-1], strict=False):
            assert below < percent_to_sigma(between) < above


def test_levels_between_which_the_schedule_has_nothing_are_refused():
    coarse = torch.tensor([10.0, 4.2, 4.1, 0.0])
    with pytest.raises(ValueError, match=r"no start or end percent .* levels 4\.2 and 4\.1"):
        boundaries(coarse, lambda percent: round(percent_to_sigma(percent)))


def test_windows_that_meet_share_no_step_and_leave_none_out():
    for steps in (7, 10, 50):
        for middle in (0.1, 0.3, 0.5, 0.7, 0.9):
            first = window(evenly(steps), 0, middle, percent_to_sigma)
            rest = window(evenly(steps), middle, 1, percent_to_sigma)
            assert [*first, *rest] == list(range(steps))
