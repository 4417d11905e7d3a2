"""Settings on the tune split: what the rows called "tuned" are chosen from.

`python -m diffusion_path.benchmarks.tune` prints a table; name parts of rows to run only those.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

from ..demo.judge import Judge
from .batch import Batch, Demo
from .edits import HEAD, draw_edits, line, measure
from .techniques import FAST, Row, diffedit, img2img, mdp, mdp_in_mask, plain

PER_KIND = 6
MDP = {"MDP-ε": "MDPEpsilon", "MDP-c": "MDPCondition", "MDP-x": "MDPLatent", "MDP-β": "MDPGuidance"}

ROWS = (
    *(Row(f"img2img, denoise {d}", partial(img2img, denoise=d)) for d in (0.5, 0.6, 0.7, 0.8, 0.9)),
    *(Row(f"plain, guidance {cfg}", partial(plain, cfg=cfg)) for cfg in (1, 2, 3, 5)),
    *(
        Row(f"{name}, end {end}", partial(mdp, kind=kind, end=end))
        for name, kind in MDP.items()
        for end in (0.2, 0.3, 0.4, 0.6)
    ),
    *(
        Row(f"{name}, guidance {cfg}", partial(mdp, kind=kind, sampler={"cfg": cfg}))
        for name, kind in MDP.items()
        for cfg in (3, 5)
    ),
    *(
        Row(f"{name}, {curve} to {end}", partial(mdp, kind=kind, curve=curve, end=end))
        for name, kind in MDP.items()
        for curve in ("linear", "cosine")
        for end in (0.5, 0.8)
    ),
    *(
        Row(f"DiffEdit, threshold {threshold}", partial(diffedit, threshold=threshold))
        for threshold in (0.2, 0.3, 0.4)
    ),
    *(Row(f"DiffEdit, start {start}", partial(diffedit, start=start)) for start in (0, 0.1, 0.4)),
    *(
        Row(f"DiffEdit, threshold 0.3, guidance {cfg}", partial(diffedit, threshold=0.3, cfg=cfg))
        for cfg in (3, 5)
    ),
    *(
        Row(f"DiffEdit, mask strength {s}", partial(diffedit, strength=s, threshold=0.3))
        for s in (0.3, 0.7, 0.9)
    ),
    *(
        Row(
            f"FastDiffEdit, threshold {t}, start {s}",
            partial(diffedit, start=s, threshold=t, **FAST),
        )
        for t in (0.4, 0.45)
        for s in (0, 0.2)
    ),
    *(
        Row(
            f"MDP-ε in the mask, threshold {threshold}, end {end}",
            partial(mdp_in_mask, mask={"threshold": threshold}, end=end),
        )
        for threshold in (0.2, 0.3)
        for end in (0.2, 0.4)
    ),
)


def main() -> None:
    """Measure every setting whose name holds one of the arguments, or all of them."""
    chosen = [row for row in ROWS if not sys.argv[1:] or any(a in row.name for a in sys.argv[1:])]
    with torch.inference_mode():
        batch = Batch(Demo.load(), draw_edits("tune", PER_KIND))
    print(HEAD, flush=True)
    for row in measure(chosen, batch, Judge.load()):
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
