"""Every technique on held-out edits of the demo world, against the rendered truth.

`python -m diffusion_path.benchmarks.edits [unet|flow] [part of a row's name ...]` writes a table,
the figures of every edit, and a sheet of pictures to `benchmarks/results/`: `edits.*` for the UNet,
`edits_flow.*` for the flow model. After each row the files are written again, with what they had of
the other rows; so a run can be stopped, or be of a few rows only.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..demo.judge import Judge
from ..demo.world import KINDS, SIZE, Edit, Kind, Split, random_edit
from ..edits.flow_edit import FAMILIES
from .batch import MODELS, STEPS, Batch, Demo, to_uint8
from .machine import write_page
from .scores import Score, mean, score
from .sheet import cut, sheet
from .techniques import ROWS, Row

RESULTS = Path(__file__).parent / "results"
SEED = 2026
PER_KIND = 12
SHOWN: Sequence[Kind] = (
    "replace",
    "replace",
    "colour",
    "colour",
    "add",
    "remove",
    "background",
    "background",
)


@dataclass(frozen=True)
class Measured:
    """A row's figures.

    Attributes:
        pictures: those of the sheet, uint8 (pictures, H, W, 3).
        scores: of every edit.
        evaluations: of the network for each edit.
    """

    name: str
    pictures: np.ndarray
    scores: list[Score]
    evaluations: float


def draw_edits(split: Split, per_kind: int) -> list[Edit]:
    """As many different edits of each kind, always the same ones."""
    edits: list[Edit] = []
    for number, kind in enumerate(KINDS):
        rng = np.random.default_rng((SEED, number))
        drawn: dict[Edit, None] = {}
        while len(drawn) < per_kind:
            drawn[random_edit(rng, split, kind)] = None
        edits += drawn
    return edits


def measure(rows: Iterable[Row], batch: Batch, judge: Judge) -> Iterable[Measured]:
    """Run each row's technique on the batch and score it."""
    counter = batch.demo.counter
    for row in rows:
        before = counter.evaluations
        with torch.inference_mode():  # as ComfyUI's executor does
            edited = row.technique(batch)
        evaluations = (counter.evaluations - before) / len(batch.edits)
        scores = score(edited, batch.edits, judge)
        pictures = to_uint8(edited.images)[shown(batch.edits)]
        yield Measured(row.name, pictures, scores, evaluations)


def line(row: Measured) -> str:
    """A row of the table."""
    dB = [f"{mean(row.scores, name):.1f}" for name in ("psnr", "inside", "outside")]
    parts = [mean(row.scores, name) for name in ("direction", "iou")]
    figures = [*dB, f"{mean(row.scores, 'confirmed'):.0%}"]
    figures += ["" if part is None else f"{part:.2f}" for part in parts]
    return " | ".join(["", row.name, *figures, f"{row.evaluations:.0f}", ""]).strip()


HEAD = """\
| technique | PSNR | inside | outside | judge | direction | mask IoU | evaluations |
|---|--:|--:|--:|--:|--:|--:|--:|"""


def by_kind(rows: Sequence[Measured], edits: Sequence[Edit]) -> str:
    """The judge's verdicts on each kind of edit, as a table."""
    kinds = list(dict.fromkeys(edit.kind for edit in edits))
    table = ["| judge confirms | " + " | ".join(kinds) + " |", "|---" + "|--:" * len(kinds) + "|"]
    for row in rows:
        cells = [row.name]
        for kind in kinds:
            scores = [s for s, edit in zip(row.scores, edits, strict=True) if edit.kind == kind]
            cells.append(f"{mean(scores, 'confirmed'):.0%}")
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


EXPLANATION = """\
# Edits of the demo world against the truth: {title}

{count} held-out edits, {per_kind} of each kind. Each has a combination of objects and background
that the model was never trained on. The source picture goes through the autoencoder, the technique
and the autoencoder again. The result is compared with the picture that the edit should give, which
the renderer knows exactly. Everything runs through ComfyUI's nodes with {steps} steps
({spacing} spacing), guidance 7.5 and each node's defaults, unless the row or the list below says
otherwise.

- PSNR: in dB, mean over the edits; inside and outside of the pixels that the edit should change.
  Where an object is added, its prompt does not say where exactly and how large: there the figure
  inside says little.
- judge: how many edited pictures the classifier confirms as the target scene in full: background,
  every object, its place, and nothing else.
- direction: CLIP's directional similarity, -1 to 1: the cosine between the change of the picture
  and the change of the prompt, as the demo CLIP sees them. The truth of another edit has 0.22. Rows
  without it were measured before that CLIP was there.
- mask IoU: of the mask found and the true one. Both are averaged over the latent's 16 x 16 cells
  and thresholded at one half.
- evaluations: of the network for each edit. One is one latent under one condition.
- FlowEdit: a straight path and the node's settings for this model: guidance {flow_cfg:g} for the
  target, {source_cfg:g} for the source, from {start:g} of the schedule on.
- FlowAlign: the same path, guidance 2 with the source's prompt as negative, anchor 0.01.
- edit-friendly DDPM inversion: 100 steps, guidance 3.5 for the source and 15 for the target, from
  0.36 of the schedule on.
- Uni-Edit: its own inversion, guidance 1, omega 5.
{more}
No column is enough alone. The judge also confirms a new picture that has lost the source's places
(plain sampling, img2img at 0.8), and it is lenient with ragged shapes and blotched backgrounds.
PSNR also rewards doing nothing, as where an object should be added and is not. The sheet,
`{stem}.png`, shows the first edits of each kind. Rows called tuned were chosen on the tune split
with the UNet, and so was MDP-x's default. One edit is {one:.1f} % of the judge's column:
differences of a few edits mean nothing.
"""

TITLES = {"unet": "the UNet", "flow": "the flow model"}
MORE = {
    "unet": "",
    "flow": "- RF-Inversion: inverted without a prompt and with gamma 0.5, eta 0.9 up to 0.25.\n",
}


def stem(kind: str) -> str:
    """The name of a demo model's results, without its ending."""
    return "edits" if kind == "unet" else f"edits_{kind}"


def write(rows: Sequence[Measured], edits: Sequence[Edit], folder: Path, kind: str) -> None:
    """The table, the figures and the pictures."""
    folder.mkdir(exist_ok=True)
    theirs = FAMILIES["SD1.5" if kind == "unet" else "demo flow"]
    head = EXPLANATION.format(
        title=TITLES[kind],
        stem=stem(kind),
        count=len(edits),
        per_kind=len(edits) // len({edit.kind for edit in edits}),
        one=100 / len(edits),
        more=MORE[kind],
        flow_cfg=theirs.cfg,
        source_cfg=theirs.source_cfg,
        start=theirs.start,
        **STEPS[kind],
    )
    table = "\n".join([HEAD, *map(line, rows)])
    write_page(folder / f"{stem(kind)}.md", f"{head}\n{table}\n\n{by_kind(rows, edits)}")

    figures = {
        "edits": described(edits),
        "rows": [
            {
                "name": row.name,
                "evaluations": row.evaluations,
                "scores": [*map(rounded, row.scores)],
            }
            for row in rows
        ],
    }
    (folder / f"{stem(kind)}.json").write_text(json.dumps(figures, indent=1) + "\n")

    chosen = shown(edits)
    pictures: list[tuple[str, Sequence[np.ndarray]]] = [
        ("source", [edits[i].before for i in chosen]),
        ("truth", [edits[i].after for i in chosen]),
        *((row.name, [*row.pictures]) for row in rows),
    ]
    page = sheet([edits[i].target_prompt for i in chosen], pictures)
    page.save(folder / f"{stem(kind)}.png", optimize=True)


def read(edits: Sequence[Edit], folder: Path, kind: str) -> list[Measured]:
    """The rows of what was written last; none if that was of other edits."""
    file, page = (folder / f"{stem(kind)}.{ending}" for ending in ("json", "png"))
    figures = json.loads(file.read_text()) if file.exists() and page.exists() else {}
    if figures.get("edits") != described(edits):
        return []
    columns, rows = len(shown(edits)), []
    with Image.open(page) as opened:
        for number, row in enumerate(figures["rows"]):
            pictures = cut(opened, number + 2, columns, SIZE)  # below the source and the truth
            if pictures is not None:
                scores = [*map(unrounded, row["scores"])]
                rows.append(Measured(row["name"], pictures, scores, row["evaluations"]))
    return rows


def merged(
    old: Iterable[Measured], new: Iterable[Measured], names: Sequence[str]
) -> list[Measured]:
    """The rows called `names`, in that order, as far as there are: the new one before the old."""
    known = {row.name: row for row in (*old, *new)}
    return [known[name] for name in names if name in known]


def described(edits: Sequence[Edit]) -> list[dict[str, str]]:
    """What the results say of the edits."""
    return [{"kind": e.kind, "source": e.source_prompt, "target": e.target_prompt} for e in edits]


def rounded(one: Score) -> dict[str, float | bool | None]:
    """A score as plain values; an infinite PSNR is None."""
    return {
        key: (round(value, 3) if math.isfinite(value) else None) if value is not None else None
        for key, value in asdict(one).items()
    }


def unrounded(values: dict[str, float | bool | None]) -> Score:
    """A score of plain values."""
    dB = {key: values[key] for key in ("psnr", "inside", "outside")}
    finite = {key: math.inf if value is None else value for key, value in dB.items()}
    return Score(**values | finite)  # type: ignore[arg-type]


def shown(edits: Sequence[Edit]) -> list[int]:
    """The numbers of the first edits of each kind, not the best ones, for the sheet."""
    chosen: list[int] = []
    for kind in SHOWN:
        left = [i for i, edit in enumerate(edits) if edit.kind == kind and i not in chosen]
        chosen += left[:1]
    return chosen


def arguments(given: Sequence[str]) -> tuple[str, list[str]]:
    """The demo model, which may be left out, and parts of names."""
    kind, *names = given if given and given[0] in MODELS else ("unet", *given)
    return kind, names


def chosen(rows: Iterable[Row], kind: str, names: Sequence[str]) -> list[Row]:
    """The rows for a demo model whose names hold one of `names`; all if there are none."""
    found = [
        row
        for row in rows
        if kind in row.kinds and (not names or any(name in row.name for name in names))
    ]
    if not found:
        raise SystemExit(f"no row for {kind} is called {' or '.join(names)}")
    return found


def main(kind: str = "unet", names: Sequence[str] = ()) -> None:
    """Measure rows, and write the results after each."""
    rows, edits = chosen(ROWS, kind, names), draw_edits("held_out", PER_KIND)
    order = [row.name for row in chosen(ROWS, kind, ())]
    with torch.inference_mode():
        batch = Batch(Demo.load(kind), edits)
    print(HEAD, flush=True)
    old, new, started = read(edits, RESULTS, kind), [], time.perf_counter()
    for row in measure(rows, batch, Judge.load()):
        print(f"{line(row)} {time.perf_counter() - started:.0f} s", flush=True)
        new.append(row)
        write(merged(old, new, order), edits, RESULTS, kind)
        started = time.perf_counter()


if __name__ == "__main__":
    main(*arguments(sys.argv[1:]))
