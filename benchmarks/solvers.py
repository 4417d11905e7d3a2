"""The solvers of DDIM Inversion at equal cost: how well each reproduces held-out pictures.

`python -m diffusion_path.benchmarks.solvers [unet|flow] [part of a solver's name ...]` writes
`benchmarks/results/solvers.md` and, for each demo model, `solvers_*.json`. After each figure the
files are written again; what is not measured keeps its figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batch import MODELS, Batch, Demo
from .edits import RESULTS, TITLES, arguments, draw_edits
from .machine import write_page
from .techniques import ddim

PER_KIND = 4
BUDGETS = (8, 15, 28, 50)
"""Evaluations that an inversion may take."""
SPACINGS = {"unet": "trailing", "flow": "simple"}
"""Those that begin at the model's highest noise level, however few the steps."""


@dataclass(frozen=True)
class Solver:
    """A way to take an inversion's steps.

    Attributes:
        settings: of DDIM Inversion.
        steps: how many steps an inversion of so many evaluations has.
    """

    name: str
    settings: dict[str, Any]
    steps: Callable[[int], int]


def each(evaluations: int, once: int, budget: int) -> int:
    """Steps of so many evaluations each within a budget, with some evaluations once."""
    return (budget - once) // evaluations


def refined(iterations: int, average: int = 1) -> dict[str, Any]:
    """Euler's steps with fixed-point iterations."""
    return {"solver": "euler", "fixed_point_iterations": iterations, "average": average}


SOLVERS = (
    Solver("euler (DDIM)", {"solver": "euler"}, partial(each, 1, 0)),
    Solver("uni (Uni-Inv)", {"solver": "uni"}, partial(each, 1, 1)),
    Solver("midpoint (RF-Solver)", {"solver": "midpoint"}, partial(each, 2, 0)),
    Solver("reuse (FireFlow)", {"solver": "reuse"}, partial(each, 1, 1)),
    Solver("euler, 1 fixed-point iteration", refined(1), partial(each, 2, 0)),
    Solver("euler, 3 fixed-point iterations", refined(3), partial(each, 4, 0)),
    Solver("ReNoise: euler, 3 iterations, average of 2", refined(3, 2), partial(each, 4, 0)),
)


@dataclass(frozen=True)
class Figure:
    """A solver within a budget.

    Attributes:
        up, back: evaluations of the inversion and of the sampling, for each picture.
        latent, picture: PSNR in dB, means over the pictures.
    """

    name: str
    budget: int
    steps: int
    up: float
    back: float
    latent: float
    picture: float


def psnr(found: Tensor, true: Tensor, span: Tensor | float = 1.0) -> float:
    """The mean PSNR in dB of several (B, ...).

    Args:
        span: how far apart the values of each can be (B,).
    """
    error = (found - true).square().flatten(1).mean(dim=1).clamp(min=1e-10)
    return float((10 * (torch.as_tensor(span) ** 2 / error).log10()).mean())


def measure(batch: Batch, solver: Solver, budget: int) -> Figure:
    """Invert a batch's pictures, sample them again under their own prompt, and compare."""
    counter, count, steps = batch.demo.counter, len(batch.edits), solver.steps(budget)
    before = counter.evaluations
    path = ddim(batch, steps=steps, spacing=SPACINGS[batch.demo.kind], **solver.settings)
    up = counter.evaluations - before
    latent, _ = batch.walk(path, positive=batch.source, cfg=1.0)
    back = counter.evaluations - before - up
    found, true = latent["samples"], batch.latent["samples"]
    span = true.flatten(1).amax(dim=1) - true.flatten(1).amin(dim=1)
    images = (batch.decode({"samples": one}).clamp(0, 1) for one in (found, true))
    return Figure(
        name=solver.name,
        budget=budget,
        steps=steps,
        up=up / count,
        back=back / count,
        latent=round(psnr(found, true, span), 2),
        picture=round(psnr(*images), 2),
    )


EXPLANATION = """\
# Solvers of DDIM Inversion at equal cost

{count} held-out pictures, each with a combination of objects and background that the model was
never trained on. A picture is inverted under its own prompt at guidance 1 and sampled again under
the same prompt at guidance 1. For a budget of 8, 15, 28 or 50 evaluations of the network every
solver takes as many steps as its inversion can pay for. The Sampler's way back has the same steps,
by the path's own solver, and a cost of its own. Every path begins at the model's highest noise
level: {unet} spacing for the UNet, {flow} for the flow model.

A cell is PSNR in dB: of the picture against what the autoencoder alone makes of the original, then
of the latent against its own range.
"""


def table(kind: str, figures: Sequence[Figure]) -> str:
    """PSNR of each solver within each budget."""
    lines = [
        f"## {TITLES[kind][0].upper()}{TITLES[kind][1:]}: picture / latent",
        "",
        "| solver | " + " | ".join(f"{budget} evaluations" for budget in BUDGETS) + " |",
        "|---" + "|--:" * len(BUDGETS) + "|",
    ]
    known = {(figure.name, figure.budget): figure for figure in figures}
    for solver in SOLVERS:
        found = [known.get((solver.name, budget)) for budget in BUDGETS]
        cells = (f"{one.picture:.1f} / {one.latent:.1f}" if one else "" for one in found)
        lines.append(f"| {solver.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(figures: Sequence[Figure]) -> str:
    """Steps and evaluations of each solver within each budget."""
    lines = [
        "## Steps: evaluations of the inversion + of the sampling",
        "",
        "| solver | " + " | ".join(f"{budget}" for budget in BUDGETS) + " |",
        "|---" + "|--:" * len(BUDGETS) + "|",
    ]
    known = {(figure.name, figure.budget): figure for figure in figures}
    for solver in SOLVERS:
        found = [known.get((solver.name, budget)) for budget in BUDGETS]
        cells = (f"{one.steps}: {one.up:.0f} + {one.back:.0f}" if one else "" for one in found)
        lines.append(f"| {solver.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(folder: Path, kind: str) -> list[Figure]:
    """The figures that were written last."""
    file = folder / f"solvers_{kind}.json"
    return [Figure(**one) for one in json.loads(file.read_text())] if file.exists() else []


def write(folder: Path, kind: str, new: Figure, count: int) -> None:
    """The figures with a new one, and the tables of both models."""
    folder.mkdir(exist_ok=True)
    known = {(one.name, one.budget): one for one in (*read(folder, kind), new)}
    figures = [asdict(one) for one in known.values()]
    (folder / f"solvers_{kind}.json").write_text(json.dumps(figures, indent=1) + "\n")
    there = {one: found for one in MODELS if (found := read(folder, one))}
    head = EXPLANATION.format(count=count, **SPACINGS)
    tables = [table(one, found) for one, found in there.items()]
    everything = [figure for found in there.values() for figure in found]
    text = "\n\n".join([head.strip(), *tables, costs(everything)])
    write_page(folder / "solvers.md", text)


def main(kind: str = "unet", names: Sequence[str] = (), folder: Path = RESULTS) -> None:
    """Measure solvers, those whose names hold one of `names`, within each budget."""
    wanted = [one for one in SOLVERS if not names or any(name in one.name for name in names)]
    with torch.inference_mode():
        batch = Batch(Demo.load(kind), draw_edits("held_out", PER_KIND))
        for budget in BUDGETS:
            for solver in wanted:
                started = time.perf_counter()
                figure = measure(batch, solver, budget)
                print(figure, f"{time.perf_counter() - started:.0f} s", flush=True)
                write(folder, kind, figure, len(batch.edits))


if __name__ == "__main__":
    main(*arguments(sys.argv[1:]))
