"""`make bench`: every technique against the truth, then what the pack costs.

Two longer ones are run by themselves: `python -m diffusion_path.benchmarks.inversion`, every
inversion and the published null-text (45 minutes on one core), and
`python -m diffusion_path.benchmarks.combinations`, every inversion with every edit (20 minutes).
"""

from __future__ import annotations

from . import edits, speed
from .edits import RESULTS

if __name__ == "__main__":
    edits.main()
    speed.main()
    print(f"Tables and pictures are in {RESULTS}")
