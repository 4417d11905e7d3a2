"""`make bench`: every technique against the truth, then what the pack costs; 22 minutes on two
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

from ..tools.setup import ROOT
from . import attention, speed
from .edits import RESULTS
from .short import techniques

FOLDER = ROOT / "bench-output"
REPEATS = 3


def main() -> None:
    """Every technique; then the times, with nothing beside them."""
    techniques(FOLDER, os.cpu_count() or 1)
    speed.main(FOLDER, REPEATS)
    attention.main(FOLDER, REPEATS, large=1)
    print(f"Tables and pictures are in {FOLDER}; those of all edits are in {RESULTS.resolve()}")


if __name__ == "__main__":
    main()
