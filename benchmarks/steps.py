"""How many steps are enough, on edits of the tune split.

`python -m diffusion_path.benchmarks.steps [unet|flow] [part of a row's name ...]` writes
`benchmarks/results/steps.md`, and `steps_*.json` with the figures. What is not measured keeps its
figures. Both models together take 25 minutes on a busy core.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ..demo.judge import Judge
from .batch import MODELS, Batch, Demo
from .edits import RESULTS, TITLES, arguments, chosen, draw_edits, measure
from .machine import write_page
from .scores import mean
from .techniques import UNET, Row, Technique, ddim, mdp, on, plain, prompt_to_prompt

PER_KIND = 3
COUNTS = (16, 28, 50)
TECHNIQUES: dict[str, tuple[Technique, Sequence[str]]] = {
    "plain sampling": (plain, MODELS),
    "MDP-ε": (partial(mdp, kind="MDPEpsilon"), MODELS),
    "prompt-to-prompt": (prompt_to_prompt, UNET),
}
ROWS = [
    Row(
        f"{name}, {steps} steps",
        partial(on, inversion=partial(ddim, steps=steps), technique=technique),
        kinds,
    )
    for name, (technique, kinds) in TECHNIQUES.items()
    for steps in COUNTS
]

Figures = dict[str, dict[str, float]]
"""By the name of a row."""

EXPLANATION = """\
# How many steps are enough

{count} edits of the tune split, {per_kind} of each kind, after DDIM inversion with 16, 28 and 50
steps (leading spacing for the UNet, simple for the flow model); guidance 7.5 and the nodes'
defaults. PSNR is in dB, of the edited picture against what the renderer draws, then outside of
the pixels that the edit should change. The judge is the classifier that confirms the edited
picture as the target scene. One edit is {one:.1f} % of its column. The seconds are those of a busy
core; the model calls are the cost.

`core/families.py` follows: 50 steps for the UNet, where both edits are confirmed most often, and 28
for the flow model, where 50 confirm no more.
"""

HEAD = """\
| technique | PSNR | outside | judge | model calls | seconds for each edit |
|---|--:|--:|--:|--:|--:|"""


def file(kind: str, folder: Path) -> Path:
    """The figures of a demo model."""
    return folder / f"steps_{kind}.json"


def read(kind: str, folder: Path) -> Figures:
    """The figures that were written last."""
    return json.loads(file(kind, folder).read_text()) if file(kind, folder).exists() else {}


def table(figures: Figures) -> str:
    """The rows that there are figures of."""
    lines = [
        f"| {name} | {one['psnr']:.1f} | {one['outside']:.1f} | {one['judge']:.0%} | "
        f"{one['evaluations']:.0f} | {one['seconds']:.1f} |"
        for name, one in figures.items()
    ]
    return "\n".join([HEAD, *lines])


def write(folder: Path) -> None:
    """The page, of the figures of both models."""
    count = len(draw_edits("tune", PER_KIND))
    parts = [EXPLANATION.format(count=count, per_kind=PER_KIND, one=100 / count)]
    parts += [
        f"## {TITLES[kind][0].upper()}{TITLES[kind][1:]}\n\n{table(figures)}\n"
        for kind in MODELS
        if (figures := read(kind, folder))
    ]
    write_page(folder / "steps.md", "\n".join(parts))


def main(kind: str, names: Sequence[str], folder: Path = RESULTS) -> None:
    """Measure rows, and write the results after each."""
    with torch.inference_mode():
        batch = Batch(Demo.load(kind), draw_edits("tune", PER_KIND))
    figures, started = read(kind, folder), time.perf_counter()
    for row in measure(chosen(ROWS, kind, names), batch, Judge.load()):
        seconds = time.perf_counter() - started
        figures[row.name] = {
            "psnr": round(mean(row.scores, "psnr") or 0.0, 2),
            "outside": round(mean(row.scores, "outside") or 0.0, 2),
            "judge": round(mean(row.scores, "confirmed") or 0.0, 3),
            "evaluations": row.evaluations,
            "seconds": round(seconds / len(batch.edits), 2),
        }
        print(f"{row.name}: {figures[row.name]}", flush=True)
        order = [one.name for one in ROWS]
        figures = dict(sorted(figures.items(), key=lambda one: order.index(one[0])))
        file(kind, folder).write_text(json.dumps(figures, indent=1) + "\n")
        write(folder)
        started = time.perf_counter()


if __name__ == "__main__":
    main(*arguments(sys.argv[1:]))
