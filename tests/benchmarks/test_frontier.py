"""The curves of the benchmark, their frontier, and solvers at equal cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("comfy")


def at(judge: float, psnr: float, curve: str = "FlowEdit", value: float = 0.3) -> Any:
    from diffusion_path.benchmarks.frontier import Point

    return Point(curve, "start", value, psnr, 20.0, 20.0, judge, 100.0)


def test_the_frontier_is_what_no_other_point_beats():
    from diffusion_path.benchmarks.frontier import frontier

    best = [at(0.2, 25), at(0.6, 23), at(1.0, 20)]
    beaten = [at(0.2, 24), at(0.5, 22.9), at(0.6, 22), at(0.9, 20), at(0.0, 25)]
    assert frontier([*beaten, *best]) == best
    assert frontier(best[::-1]) == best
    assert frontier([]) == []


def test_a_run_goes_on_where_it_was(tmp_path: Path):
    from diffusion_path.benchmarks.edits import described, draw_edits
    from diffusion_path.benchmarks.frontier import CURVES, missing, ordered, read, write

    (curve,) = [one for one in CURVES if (one.name, one.knob) == ("FlowEdit", "start")]
    last, first = at(0.6, 23, value=curve.values[-1]), at(0.8, 21, value=curve.values[0])
    edits = draw_edits("held_out", 1)
    assert read(tmp_path, "flow") == ([], [])
    write(tmp_path, "flow", edits, [last, first])
    of, points = read(tmp_path, "flow")
    assert (of, points) == (described(edits), [last, first])
    assert missing(curve, points) == [*curve.values[1:-1]]
    assert ordered(curve, points) == [first, last]
    assert missing(replace(curve, knob="strength"), points) == [*curve.values]


def test_the_curves_are_told_apart_and_drawn(tmp_path: Path):
    from diffusion_path.benchmarks.edits import draw_edits
    from diffusion_path.benchmarks.frontier import COLOURS, CURVES, plot, write

    assert len(set(COLOURS)) == len(CURVES)
    assert len({(curve.name, curve.knob) for curve in CURVES}) == len(CURVES)
    assert all(len(set(curve.values)) == len(curve.values) for curve in CURVES)
    write(tmp_path, "unet", draw_edits("held_out", 1), [at(0.4, 22), at(0.8, 20, value=0.1)])
    plot(tmp_path)
    assert 10_000 < (tmp_path / "frontier.png").stat().st_size < 300_000


def test_no_solver_spends_more_than_its_budget():
    import torch

    from diffusion_path.benchmarks.batch import Batch, Demo
    from diffusion_path.benchmarks.edits import draw_edits
    from diffusion_path.benchmarks.solvers import SOLVERS, measure

    with torch.inference_mode():
        batch = Batch(Demo.load(), draw_edits("held_out", 1)[:1])
        figures = [measure(batch, solver, 8) for solver in SOLVERS]
    for figure, solver in zip(figures, SOLVERS, strict=True):
        assert figure.up == 8, solver.name
        assert figure.latent > 20 and figure.picture > 15, solver.name
