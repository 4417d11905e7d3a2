"""`make bench`: every technique against the truth, then what the pack costs; half an hour on two
cores. Tables and pictures go to `bench-output/`.

It takes a few of the edits whose figures are in `benchmarks/results/`. Those are made by
`python -m diffusion_path.benchmarks.edits` and a demo model, with all edits, in some hours. These
are run by themselves too, as `python -m diffusion_path.benchmarks.` and a name: `inversion`,
every inversion and the published null-text (45 minutes on one core); `combinations`, each with
every edit (20 minutes); `painting`, painted layouts (15 minutes); `solvers`, those of DDIM
Inversion at equal cost (20 minutes for each demo model); `steps`, 16, 28 and 50 of them (25
minutes); `verdicts`, what a change of the latent means (10 minutes); `frontier`, each technique
over its main knob (3 hours for each demo model); `word_maps`, whether maps find their word (10
minutes).
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import torch

from ..demo.judge import Judge
from ..demo.world import Edit, Kind
from ..tools.setup import ROOT
from . import attention, speed
from .batch import MODELS, Batch, Demo
from .edits import HEAD, RESULTS, Measured, draw_edits, line, measure, write
from .techniques import ROWS

FOLDER = ROOT / "bench-output"
TAKEN: tuple[Kind, ...] = ("replace", "remove", "background")
REPEATS = 3


def some_edits() -> list[Edit]:
    """The first held-out edit of each kind that is taken."""
    return [edit for edit in draw_edits("held_out", 1) if edit.kind in TAKEN]


@cache
def batch(kind: str) -> Batch:
    """The edits on a demo model, once in each process."""
    with torch.inference_mode():
        return Batch(Demo.load(kind), some_edits())


def measured(kind: str, name: str) -> Measured:
    """A row of a demo model's table."""
    rows = [row for row in ROWS if kind in row.kinds and row.name == name]
    (found,) = measure(rows, batch(kind), Judge.load())
    return found


def techniques(workers: int) -> None:
    """Both tables, a row at a time in each worker, with one thread each."""
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with pool:
        names = {kind: [row.name for row in ROWS if kind in row.kinds] for kind in MODELS}
        runs = {
            kind: [pool.submit(measured, kind, name) for name in some]
            for kind, some in names.items()
        }
        for kind in MODELS:
            print(f"{kind}\n{HEAD}", flush=True)
            rows = []
            for run in runs[kind]:
                rows.append(run.result())
                print(line(rows[-1]), flush=True)
            write(rows, some_edits(), FOLDER, kind)


def main() -> None:
    """Every technique; then the times, with nothing beside them."""
    techniques(os.cpu_count() or 1)
    speed.main(FOLDER, REPEATS)
    attention.main(FOLDER, REPEATS, large=1)
    print(f"Tables and pictures are in {FOLDER}; those of all edits are in {RESULTS}")


if __name__ == "__main__":
    main()
