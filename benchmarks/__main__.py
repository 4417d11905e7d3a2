"""`make bench`: every technique against the truth, then what the pack costs."""

from __future__ import annotations

from . import edits, speed
from .edits import RESULTS

if __name__ == "__main__":
    edits.main()
    speed.main()
    print(f"Tables and pictures are in {RESULTS}")
