"""`make bench`: every technique against the truth, then what the pack costs.

These are run by themselves, as `python -m diffusion_path.benchmarks.` and a name: `inversion`,
every inversion and the published null-text (45 minutes on one core); `combinations`, each with
every edit (20 minutes); `painting`, painted layouts (15 minutes); `solvers`, those of DDIM
Inversion at equal cost (20 minutes for each demo model); `steps`, 16, 28 and 50 of them (25
minutes); `verdicts`, what a change of the latent means (10 minutes); `frontier`, each technique
over its main knob (3 hours for each demo model). `edits` alone takes a demo model and parts of
rows' names.
"""

from __future__ import annotations

from . import attention, edits, speed
from .batch import MODELS
from .edits import RESULTS

if __name__ == "__main__":
    for kind in MODELS:
        edits.main(kind)
    speed.main()
    attention.main()
    print(f"Tables and pictures are in {RESULTS}")
