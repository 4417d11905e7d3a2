"""Every technique on a few edits, a row at a time in each of several processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

from ..demo.judge import Judge
from ..demo.world import Edit, Kind
from .batch import MODELS, Batch, Demo
from .edits import HEAD, Measured, chosen, draw_edits, line, measure, write
from .techniques import ROWS

TAKEN: tuple[Kind, ...] = ("replace", "remove", "background")


def some_edits() -> list[Edit]:
    """The first held-out edit of each kind that is taken."""
    return [edit for edit in draw_edits("held_out", 1) if edit.kind in TAKEN]


@cache
def batch(kind: str) -> Batch:
    """The edits on a demo model, once in each process."""
    with torch.inference_mode():
        return Batch(Demo.load(kind), some_edits())


@cache
def judge() -> Judge:
    """The judge, once in each process."""
    return Judge.load()


def measured(kind: str, name: str) -> Measured:
    """A row of a demo model's table."""
    (row,) = (row for row in chosen(ROWS, kind, ()) if row.name == name)
    (found,) = measure([row], batch(kind), judge())
    return found


def techniques(folder: Path, workers: int) -> None:
    """Both tables, a row at a time in each worker, with one thread each."""
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with pool:
        runs = {
            kind: [pool.submit(measured, kind, row.name) for row in chosen(ROWS, kind, ())]
            for kind in MODELS
        }
        for kind in MODELS:
            print(f"{kind}\n{HEAD}", flush=True)
            rows = []
            for run in runs[kind]:
                rows.append(run.result())
                print(line(rows[-1]), flush=True)
            write(rows, some_edits(), folder, kind)
