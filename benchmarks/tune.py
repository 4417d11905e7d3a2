"""Settings on the tune split: what the rows called "tuned" are chosen from.

`python -m diffusion_path.benchmarks.tune [unet|flow] [part of a row's name ...]` prints a table.
With parts of names it measures those rows only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from ..demo.judge import Judge
from .batch import MODELS, Batch, Demo
from .edits import HEAD, arguments, chosen, draw_edits, line, measure
from .techniques import (
    FAST,
    UNET,
    Edited,
    Row,
    ddim,
    diffedit,
    edit_friendly,
    flow_align,
    flow_edit,
    img2img,
    mdp,
    mdp_in_mask,
    on,
    plain,
    prompt_to_prompt,
    pull_to_source,
    rf_inversion,
    straight,
    uni_edit,
)

PER_KIND = 4
MDP = {"MDP-ε": "MDPEpsilon", "MDP-c": "MDPCondition", "MDP-β": "MDPGuidance"}
"""MDP-x is not among them: its default was chosen on this split already."""


def several(
    name: str,
    technique: Callable[..., Edited],
    kinds: Sequence[str] = MODELS,
    **values: Sequence[Any],
) -> list[Row]:
    """A row for each combination of the values of some settings."""
    rows = []
    for combination in product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        words = ", ".join(f"{key} {value}" for key, value in settings.items())
        rows.append(Row(f"{name}: {words}", partial(technique, **settings), kinds))
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
    "P2P", prompt_to_prompt, UNET, cross_replace=(0.4, 0.6, 0.8), self_replace=(0.2, 0.4, 0.6, 0.8)
)
ROWS += several(
    "P2P and local blend",
    lambda batch, threshold: prompt_to_prompt(batch, blend={"threshold": threshold}),
    UNET,
    threshold=(0.3, 0.5, 0.7),
)
ROWS += several("P2P and reweight", prompt_to_prompt, UNET, reweight=(2.0, 4.0))


def flow_edit_at(batch: Batch, cfg: float, **settings: Any) -> Edited:
    """FlowEdit at a guidance of the target."""
    return flow_edit(batch, sampler={"cfg": cfg}, **settings)


def p2p_flow_edit(
    batch: Batch,
    start: float,
    cfg: float,
    cross_replace: float = 0.8,
    self_replace: float = 0.4,
    blend: float | None = None,
) -> Edited:
    """Prompt-to-prompt with FlowEdit on a straight path, and with local blend at a threshold."""
    technique = partial(
        prompt_to_prompt,
        flow={"start": start},
        sampler={"cfg": cfg},
        blend=None if blend is None else {"threshold": blend},
        cross_replace=cross_replace,
        self_replace=self_replace,
    )
    return on(batch, straight, technique)


STARTS, CFGS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (3.5, 5.5, 7.5, 13.5)
IN_MASK = partial(flow_edit, mask={"threshold": 0.3})
ROWS += [
    *several("FlowEdit", flow_edit_at, start=STARTS, cfg=CFGS, source_cfg=(1.0, 2.0, 3.5)),
    *several("FlowEdit, averaged", flow_edit, average=(2, 4)),
    *several("FlowEdit, part of the way", flow_edit, strength=(0.75, 1.5), start=(0.2, 0.3)),
    *several("FlowEdit, one noise", partial(flow_edit, path=partial(straight, noise="one"))),
    *several("FlowEdit in the mask", IN_MASK, start=(0.0, 0.1, 0.2, 0.3)),
    *several(
        "FlowEdit in a mask", flow_edit, mask=tuple({"threshold": t} for t in (0.2, 0.4, 0.5))
    ),
    *several(
        "FlowEdit on the inverted path",
        partial(flow_edit_at, path=ddim),
        start=(0.0, 0.3),
        cfg=(5.5, 7.5),
        source_cfg=(1.0, 3.5, 7.5),
    ),
    *several("P2P and FlowEdit", p2p_flow_edit, UNET, start=(0.0, 0.1, 0.2, 0.3), cfg=(5.5, 7.5)),
    *several(
        "P2P and FlowEdit from 0.2",
        partial(p2p_flow_edit, start=0.2, cfg=7.5),
        UNET,
        cross_replace=(0.4, 0.8),
        self_replace=(0.2, 0.4, 0.6),
    ),
    *several(
        "P2P, local blend and FlowEdit",
        partial(p2p_flow_edit, cfg=7.5),
        UNET,
        start=(0.0, 0.2),
        blend=(0.3, 0.5),
    ),
    *several("FlowAlign", flow_align, omega=(3.5, 7.5, 13.5), anchor=(0.0, 0.01, 0.03)),
    *several("FlowAlign, omega 7.5", flow_align, start=(0.1, 0.2, 0.4)),
    *several("edit-friendly DDPM", edit_friendly, cfg=(7.5, 15.0), start=(0.24, 0.36, 0.5)),
    *several("Uni-Edit", uni_edit, alpha=(0.5, 0.6, 0.7, 0.8), omega=(2.0, 5.0)),
    *several("Uni-Edit, 15 steps", partial(uni_edit, steps=15), alpha=(0.5, 0.6, 0.7, 0.8)),
    *several("Pull to Source", pull_to_source, eta=(0.7, 0.9), end=(0.15, 0.25, 0.4)),
    *several(
        "RF-Inversion",
        partial(pull_to_source, path=rf_inversion),
        eta=(0.7, 0.9),
        end=(0.15, 0.25, 0.4),
    ),
]


def main(kind: str = "unet", names: Sequence[str] = ()) -> None:
    """Measure every setting whose name holds one of `names`, or all of them."""
    rows = chosen(ROWS, kind, names)
    with torch.inference_mode():
        batch = Batch(Demo.load(kind), draw_edits("tune", PER_KIND))
    print(HEAD, flush=True)
    for row in measure(rows, batch, Judge.load()):
        print(line(row), flush=True)


if __name__ == "__main__":
    main(*arguments(sys.argv[1:]))
