"""Settings on the tune split: what the rows called "tuned" are chosen from.

`python -m diffusion_path.benchmarks.tune` prints a table; name parts of rows to run only those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from ..demo.judge import Judge
from .batch import Batch, Demo
from .edits import HEAD, draw_edits, line, measure
from .techniques import (
    FAST,
    Edited,
    Row,
    diffedit,
    img2img,
    mdp,
    mdp_in_mask,
    plain,
    prompt_to_prompt,
)

PER_KIND = 4
MDP = {"MDP-ε": "MDPEpsilon", "MDP-c": "MDPCondition", "MDP-β": "MDPGuidance"}
"""MDP-x is not among them: its default was chosen on this split already."""


def several(name: str, technique: Callable[..., Edited], **values: Sequence[Any]) -> list[Row]:
    """A row for each combination of the values of some settings."""
    rows = []
    for combination in product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        words = ", ".join(f"{key} {value}" for key, value in settings.items())
        rows.append(Row(f"{name}: {words}", partial(technique, **settings)))
    return rows


ROWS = [
    *several("img2img", img2img, denoise=(0.5, 0.7)),
    *several("plain", plain, cfg=(2, 4)),
    *several("DiffEdit", diffedit, threshold=(0.2, 0.3, 0.4, 0.5), start=(0.0, 0.2)),
    *several(
        "DiffEdit, threshold 0.3, start 0", partial(diffedit, threshold=0.3, start=0), cfg=(4,)
    ),
    *several(
        "DiffEdit, threshold 0.3", partial(diffedit, threshold=0.3, start=0), strength=(0.3, 0.7)
    ),
    *several("FastDiffEdit", partial(diffedit, **FAST), start=(0.0,), threshold=(0.5, 0.55)),
]
for name, kind in MDP.items():
    ROWS += several(name, partial(mdp, kind=kind), end=(0.2, 0.3, 0.4, 0.5))
    ROWS += several(f"{name} to 0.3", partial(mdp, kind=kind, end=0.3), sampler=({"cfg": 4},))
ROWS += several(
    "MDP-ε to 0.8", partial(mdp, kind="MDPEpsilon", end=0.8), curve=("linear", "cosine")
)
ROWS += several(
    "MDP-ε in the mask", partial(mdp_in_mask, mask={"threshold": 0.3}), end=(0.1, 0.2, 0.3)
)

ROWS += several(
    "P2P", prompt_to_prompt, cross_replace=(0.4, 0.6, 0.8), self_replace=(0.2, 0.4, 0.6, 0.8)
)
ROWS += several(
    "P2P and local blend",
    lambda batch, threshold: prompt_to_prompt(batch, blend={"threshold": threshold}),
    threshold=(0.3, 0.5, 0.7),
)
ROWS += several("P2P and reweight", prompt_to_prompt, reweight=(2.0, 4.0))


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
