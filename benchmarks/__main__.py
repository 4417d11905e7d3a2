"""`make bench`: every technique against the truth, then what the pack costs; half an hour on two
cores. Tables and pictures go to `bench-output/`.

It takes the first few of the edits whose figures are in `benchmarks/results/`. Those are made by
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
from functools import partial
from multiprocessing import get_context

import torch

from ..tools.setup import ROOT
from . import attention, edits, speed
from .batch import MODELS

FOLDER = ROOT / "bench-output"
PER_KIND = 1


def main() -> None:
    """The demo models beside each other, each with its part of the cores; then the times, alone."""
    FOLDER.mkdir(exist_ok=True)
    threads = max((os.cpu_count() or 1) // len(MODELS), 1)
    pool = partial(ProcessPoolExecutor, mp_context=get_context("spawn"))
    with pool(len(MODELS), initializer=torch.set_num_threads, initargs=(threads,)) as both:
        measure = partial(edits.main, folder=FOLDER, per_kind=PER_KIND)
        list(both.map(measure, MODELS))
    speed.main(FOLDER)
    attention.main(FOLDER)
    print(f"Tables and pictures are in {FOLDER}; those of all edits are in {edits.RESULTS}")


if __name__ == "__main__":
    main()
