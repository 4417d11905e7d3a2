"""Every inversion with every edit, on held-out edits of the demo world.

`python -m diffusion_path.benchmarks.combinations` writes `benchmarks/results/combinations.md`.
"""

from __future__ import annotations

from functools import partial

import torch

from ..demo.judge import Judge
from .batch import Batch, Demo
from .edits import HEAD, RESULTS, draw_edits, line, measure
from .machine import write_page
from .techniques import (
    DIRECT,
    INVERSIONS,
    Row,
    Technique,
    ddim,
    diffedit,
    mdp,
    mdp_in_mask,
    null_text,
    on,
    plain,
    prompt_to_prompt,
)

PER_KIND = 2
EDITS: dict[str, Technique] = {
    "no edit": plain,
    "MDP-ε": partial(mdp, kind="MDPEpsilon"),
    "MDP-c": partial(mdp, kind="MDPCondition"),
    "MDP-x": partial(mdp, kind="MDPLatent"),
    "MDP-β": partial(mdp, kind="MDPGuidance"),
    "DiffEdit": diffedit,
    "MDP-ε in DiffEdit's mask": mdp_in_mask,
    "prompt-to-prompt": prompt_to_prompt,
}
AT_3: dict[str, Technique] = {
    "no edit": partial(plain, cfg=3.0),
    "MDP-ε": partial(mdp, kind="MDPEpsilon", sampler={"cfg": 3.0}),
    "prompt-to-prompt": partial(prompt_to_prompt, sampler={"cfg": 3.0}),
}
"""The same at a guidance of 3, since that pulls harder where the negative is the source's."""


def rows() -> list[Row]:
    """All of them; direct inversion is DDIM's path, from which the edits read the source."""
    ways = {name: (way, EDITS) for name, way in INVERSIONS.items() if name != DIRECT}
    empty = partial(null_text, start_from="negative", inner_steps=3)
    ways["null-text"] = null_text, EDITS
    ways["null-text from the empty prompt, 3 iterations"] = empty, EDITS
    ways["DDIM, guidance 3"] = ddim, AT_3
    ways["null-text, guidance 3"] = partial(null_text, cfg=3.0), AT_3
    return [
        Row(f"{name}; {edit}", partial(on, inversion=way, technique=technique))
        for name, (way, edits) in ways.items()
        for edit, technique in edits.items()
    ]


EXPLANATION = """\
# Every inversion with every edit

{count} held-out edits of the demo world, {per_kind} of each kind; columns as in [edits](edits.md),
each node's defaults. One edit is {one:.0f} % of the judge's column. Evaluations of null-text are
those of a batch, which goes on until its last picture is done; for one picture see
[inversion](inversion.md).
"""


def main(per_kind: int = PER_KIND) -> None:
    """Measure every combination, and write the table after each."""
    with torch.inference_mode():
        batch = Batch(Demo.load(), draw_edits("held_out", per_kind))
    count, table = len(batch.edits), [HEAD]
    head = EXPLANATION.format(count=count, per_kind=per_kind, one=100 / count)
    RESULTS.mkdir(exist_ok=True)
    for measured in measure(rows(), batch, Judge.load()):
        table.append(line(measured))
        print(table[-1], flush=True)
        write_page(RESULTS / "combinations.md", head + "\n" + "\n".join(table))


if __name__ == "__main__":
    main()
