"""How far the latent moves, against what the judge and PSNR say: the sampler's thresholds.

`python -m diffusion_path.benchmarks.verdicts` writes `benchmarks/results/verdicts.md` (10 minutes
on one core). The sampler knows only how far the latent has moved, relative to the source's. It says
"Almost nothing changed" or "Changed a little", "clearly" or "a lot" by it, and the limits between
these are set by hand from the table (`nodes/sampler.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean

import torch

from ..demo.judge import Judge
from ..nodes.sampler import A_LITTLE, A_LOT, ALMOST_NOTHING
from .batch import Batch, Demo
from .edits import RESULTS, draw_edits
from .machine import write_page
from .scores import Score, score
from .techniques import Row, diffedit, flow_edit, mdp, plain, prompt_to_prompt

PER_KIND = 4
ROWS = (
    Row("plain", plain),
    Row("plain, start 0.6", partial(plain, start=0.6)),
    Row("FlowEdit", flow_edit),
    Row("FlowEdit, strength 0.5", partial(flow_edit, strength=0.5)),
    Row("MDP-ε", partial(mdp, kind="MDPEpsilon")),
    Row("MDP-ε, end 0.8", partial(mdp, kind="MDPEpsilon", end=0.8)),
    Row("DiffEdit", diffedit),
    Row("prompt-to-prompt", prompt_to_prompt),
)
LIMITS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, float("inf"))

HEAD = """\
# What a change of the latent means

{count} tune edits of the demo world under {rows} settings, from hardly any change to a new picture:
{names}.

Moved: the norm of the latent's change over that of the source's latent, as the sampler computes it.
Judge: how many of the pictures show the target scene in full. Outside: PSNR against the truth where
the edit should change nothing, mean over the pictures, in dB.

The sampler says "Almost nothing changed" below {nothing:.0%}, "Changed a little" below {little:.0%}
and "Changed a lot" from {lot:.0%} on. It never calls a picture good or bad: a new background moves
the latent as far as a lost picture does.

| moved | pictures | judge | outside |
|---|--:|--:|--:|
"""

Figure = tuple[float, Score]


def line(low: float, high: float, figures: Sequence[Figure]) -> str:
    """A row of the table: the pictures that moved from `low` to `high`."""
    scores = [one for moved, one in figures if low <= moved < high]
    if not scores:
        return ""
    judge, outside = (
        fmean(getattr(one, key) for one in scores) for key in ("confirmed", "outside")
    )
    span = f"{low:.0%} to {high:.0%}" if high < float("inf") else f"{low:.0%} or more"
    return f"| {span} | {len(scores)} | {judge:.0%} | {outside:.1f} |\n"


def table(figures: Sequence[Figure]) -> str:
    """The table without its head."""
    return "".join(line(low, high, figures) for low, high in pairwise(LIMITS))


def main() -> None:
    """Measure all rows, then write the table; one for each kind of edit below it."""
    edits, judge = draw_edits("tune", PER_KIND), Judge.load()
    figures: list[Figure] = []
    with torch.inference_mode():
        demo = Demo.load()
        batch = Batch(demo, edits)
        for row in ROWS:
            demo.moved.clear()
            scores = score(row.technique(batch), edits, judge)
            moved = torch.cat(demo.moved).tolist()
            figures += zip(moved, scores, strict=True)
            print(
                f"{row.name}: {fmean(moved):.0%}, {fmean(s.confirmed for s in scores):.0%}",
                flush=True,
            )
    names = "; ".join(row.name for row in ROWS)
    limits = {"nothing": ALMOST_NOTHING, "little": A_LITTLE, "lot": A_LOT}
    text = HEAD.format(count=len(edits), rows=len(ROWS), names=names, **limits) + table(figures)
    for kind in dict.fromkeys(edit.kind for edit in edits):
        own = [one for i, one in enumerate(figures) if edits[i % len(edits)].kind == kind]
        text += f"\n## {kind}\n\n" + HEAD[HEAD.index("| moved") :] + table(own)
    write_page(RESULTS / "verdicts.md", text)
    print(text)


if __name__ == "__main__":
    main()
