"""Every inversion with every edit, on held-out edits of the demo world.

`python -m diffusion_path.benchmarks.combinations` writes `benchmarks/results/combinations.md`.
"""

from __future__ import annotations

from functools import partial

import torch

from ..demo.judge import Judge
from .batch import Batch, Demo
from .edits import HEAD, RESULTS, draw_edits, line, measure
from .techniques import (
    DIRECT,
    INVERSIONS,
    Edited,
    Inversion,
    Row,
    Technique,
    diffedit,
    mdp,
    mdp_in_mask,
    null_text,
    plain,
)

PER_KIND = 4
EDITS: dict[str, Technique] = {
    "no edit": plain,
    "MDP-ε": partial(mdp, kind="MDPEpsilon"),
    "MDP-c": partial(mdp, kind="MDPCondition"),
    "MDP-x": partial(mdp, kind="MDPLatent"),
    "MDP-β": partial(mdp, kind="MDPGuidance"),
    "DiffEdit": diffedit,
    "MDP-ε in DiffEdit's mask": mdp_in_mask,
}


def on(batch: Batch, inversion: Inversion, technique: Technique) -> Edited:
    """A technique on a path of another making, whose cost counts."""
    inverted = batch.inverted(inversion)
    return technique(inverted)


def rows() -> list[Row]:
    """All of them; direct inversion is DDIM's path, from which the edits read the source."""
    ways = {name: way for name, way in INVERSIONS.items() if name != DIRECT}
    ways["null-text"] = null_text
    return [
        Row(f"{inversion}; {edit}", partial(on, inversion=way, technique=technique))
        for inversion, way in ways.items()
        for edit, technique in EDITS.items()
    ]


def main(per_kind: int = PER_KIND) -> None:
    """Measure every combination and write the table."""
    with torch.inference_mode():
        batch = Batch(Demo.load(), draw_edits("held_out", per_kind))
    table = [HEAD]
    for measured in measure(rows(), batch, Judge.load()):
        table.append(line(measured))
        print(table[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    head = (
        f"# Every inversion with every edit\n\n{len(batch.edits)} held-out edits, as in "
        "[edits](edits.md); each node's defaults.\n\n"
    )
    (RESULTS / "combinations.md").write_text(head + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
