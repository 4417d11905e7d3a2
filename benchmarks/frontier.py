"""PSNR against judge for each technique over its main knob, and the frontier of all of them.

`python -m diffusion_path.benchmarks.frontier unet|flow [part of a curve's name ...]` measures the
points that `benchmarks/results/frontier_*.json` does not have yet, and writes it after each: a run
can be stopped and goes on where it was. The two models can be measured at the same time.
`... plot` only draws `frontier.png`, which each run does at its end.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from ..demo.judge import Judge
from ..demo.world import Edit
from .batch import MODELS, Batch, Demo
from .edits import RESULTS, TITLES, Measured, described, draw_edits, measure
from .scores import mean
from .techniques import (
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
    on,
    plain,
    prompt_to_prompt,
    pull_to_source,
    rf_inversion,
    straight,
    uni_edit,
)

PER_KIND = 3


@dataclass(frozen=True)
class Curve:
    """A technique over one of its settings.

    Attributes:
        knob: the setting, an argument of `technique`.
        values: in the order in which the curve joins them.
        kinds: the demo models that it works on.
    """

    name: str
    technique: Callable[..., Edited]
    knob: str
    values: Sequence[float]
    kinds: Sequence[str] = MODELS


def p2p_flow_edit(batch: Batch, start: float) -> Edited:
    """Prompt-to-prompt and FlowEdit on a straight path."""
    return on(batch, straight, partial(prompt_to_prompt, flow={"start": start}))


def pulled(batch: Batch, end: float) -> Edited:
    """Pull to Source: on RF-Inversion's own path with a flow, on DDIM's with the UNet."""
    path = rf_inversion if batch.demo.kind == "flow" else ddim
    return pull_to_source(batch, path=path, end=end)


CURVES = (
    Curve("img2img (SDEdit)", img2img, "denoise", (0.3, 0.4, 0.5, 0.6, 0.8)),
    Curve("plain sampling", plain, "start", (0.0, 0.2, 0.4, 0.5, 0.6)),
    Curve("MDP-ε", partial(mdp, kind="MDPEpsilon"), "end", (0.2, 0.3, 0.4, 0.5, 0.7)),
    Curve("MDP-x", partial(mdp, kind="MDPLatent"), "weight", (0.05, 0.1, 0.2, 0.3, 0.5)),
    Curve("DiffEdit", partial(diffedit, start=0.0), "threshold", (0.1, 0.2, 0.3, 0.4, 0.5)),
    Curve("prompt-to-prompt", prompt_to_prompt, "cross_replace", (0.0, 0.2, 0.4, 0.8, 1.0), UNET),
    Curve("prompt-to-prompt and FlowEdit", p2p_flow_edit, "start", (0.0, 0.1, 0.2, 0.3, 0.4), UNET),
    Curve("FlowEdit", flow_edit, "start", (0.1, 0.2, 0.3, 0.4, 0.5)),
    Curve("FlowEdit (FlowSlider)", flow_edit, "strength", (0.5, 0.75, 1.0, 1.5, 2.0)),
    Curve(
        "FlowEdit in DiffEdit's mask",
        partial(flow_edit, mask={"threshold": 0.3}),
        "start",
        (0.0, 0.1, 0.2, 0.3, 0.4),
    ),
    Curve("FlowAlign", flow_align, "omega", (1.5, 2.0, 3.0, 5.0, 7.5)),
    Curve("edit-friendly DDPM", edit_friendly, "start", (0.12, 0.24, 0.36, 0.5)),
    Curve("Uni-Edit", uni_edit, "alpha", (0.4, 0.5, 0.6, 0.7, 0.8)),
    Curve("Pull to Source", pulled, "end", (0.1, 0.25, 0.4, 0.6)),
)


@dataclass(frozen=True)
class Point:
    """One technique at one value of its knob.

    Attributes:
        psnr, inside, outside: in dB, means over the edits.
        judge: the part of the edits that the judge confirms.
        evaluations: of the network for each edit.
    """

    curve: str
    knob: str
    value: float
    psnr: float
    inside: float
    outside: float
    judge: float
    evaluations: float


def point(curve: Curve, value: float, row: Measured) -> Point:
    """A measured row as a point of a curve."""
    dB = {key: round(mean(row.scores, key) or 0.0, 3) for key in ("psnr", "inside", "outside")}
    judge = round(mean(row.scores, "confirmed") or 0.0, 4)
    return Point(curve.name, curve.knob, value, judge=judge, evaluations=row.evaluations, **dB)


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats, with the judge and in PSNR; by the judge, rising."""
    best: list[Point] = []
    for one in sorted(points, key=lambda one: (-one.judge, -one.psnr)):
        if not best or one.psnr > best[-1].psnr:
            best.append(one)
    return best[::-1]


def missing(curve: Curve, points: Iterable[Point]) -> list[float]:
    """The values of a curve that have not been measured."""
    known = {(one.curve, one.knob, one.value) for one in points}
    return [value for value in curve.values if (curve.name, curve.knob, value) not in known]


def ordered(curve: Curve, points: Iterable[Point]) -> list[Point]:
    """A curve's points in the order of its values."""
    known = {one.value: one for one in points if (one.curve, one.knob) == (curve.name, curve.knob)}
    return [known[value] for value in curve.values if value in known]


def read(folder: Path, kind: str) -> tuple[list[dict[str, str]], list[Point]]:
    """What was written last: of which edits, and the points."""
    file = folder / f"frontier_{kind}.json"
    if not file.exists():
        return [], []
    held = json.loads(file.read_text())
    return held["edits"], [Point(**one) for one in held["points"]]


def write(folder: Path, kind: str, edits: Sequence[Edit], points: Sequence[Point]) -> None:
    """The points, in a file that is whole at any time."""
    folder.mkdir(exist_ok=True)
    held = {"edits": described(edits), "points": [asdict(one) for one in points]}
    file = folder / f"frontier_{kind}.json"
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(held, indent=1) + "\n")
    unfinished.replace(file)


def run(
    kind: str,
    names: Sequence[str] = (),
    per_kind: int = PER_KIND,
    again: bool = False,
    folder: Path = RESULTS,
) -> None:
    """Measure what is missing.

    Args:
        names: parts of the names of the curves to measure; none is all.
        again: measure their points anew.
    """
    edits = draw_edits("held_out", per_kind)
    of, points = read(folder, kind)
    if of != described(edits):
        points = []
    curves = [one for one in CURVES if kind in one.kinds]
    curves = [one for one in curves if not names or any(name in one.name for name in names)]
    if again:
        points = [one for one in points if one.curve not in {curve.name for curve in curves}]
    with torch.inference_mode():
        batch = Batch(Demo.load(kind), edits)
    judge = Judge.load()
    for curve in curves:
        for value in missing(curve, points):
            started = time.perf_counter()
            technique = partial(curve.technique, **{curve.knob: value})
            (row,) = measure([Row(curve.name, technique)], batch, judge)
            points.append(point(curve, value, row))
            print(points[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
            write(folder, kind, edits, points)


COLOURS = (
    *("#7f7f7f", "#b5a27a", "#1f77b4", "#56b4e9", "#2ca02c", "#9467bd", "#d62728"),
    *("#ff7f0e", "#e6ab02", "#8c564b", "#e377c2", "#17a398", "#3f3fbf", "#111111"),
)
MARKERS = "os^vDPXsoD^vPX"
BEST: dict[str, Any] = {"color": "#ffd54a", "linewidth": 9, "alpha": 0.6}
SIZE, DPI = (12, 7.8), 100
"""In inches, and pixels of each: 1200 wide."""


def panel(axes: Any, kind: str, points: Sequence[Point], count: int) -> None:
    """The curves of one demo model, and the steps above which none of their points lies."""
    best = frontier(points)
    x, y = [100 * one.judge for one in best], [one.psnr for one in best]
    axes.plot(x, y, drawstyle="steps-pre", solid_joinstyle="round", zorder=1, **BEST)
    for curve, colour, marker in zip(CURVES, COLOURS, MARKERS, strict=True):
        if mine := ordered(curve, points):
            x, y = [100 * one.judge for one in mine], [one.psnr for one in mine]
            axes.plot(x, y, color=colour, linewidth=1.4, marker=marker, markersize=5.5, zorder=2)
            axes.plot(x[0], y[0], marker, color=colour, mfc="white", markersize=5.5, zorder=3)
    axes.set_title(f"{TITLES[kind][0].upper()}{TITLES[kind][1:]}, {count} held-out edits")
    axes.set_xlabel("edits that the judge confirms, %")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def plot(folder: Path = RESULTS) -> None:
    """Draw both models side by side, as far as there are points of them."""
    held = {kind: read(folder, kind) for kind in MODELS}
    there = {kind: found for kind, found in held.items() if found[1]}
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(there), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (kind, (edits, points)) in zip(panels, there.items(), strict=True):
        panel(axes, kind, points, len(edits))
    panels[0].set_ylabel("PSNR against the true result, dB")
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5.5, label=label(curve))
        for curve, colour, marker in zip(CURVES, COLOURS, MARKERS, strict=True)
        if any(ordered(curve, points) for _, points in there.values())
    ]
    hollow: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5.5, "mfc": "white"}
    handles.append(Line2D([], [], color="#7f7f7f", label="hollow: the first value", **hollow))
    handles.append(Line2D([], [], label="frontier of all points", **BEST))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(folder / "frontier.png")
    with Image.open(folder / "frontier.png") as drawn:
        page = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    page.save(folder / "frontier.png", optimize=True)


def label(curve: Curve) -> str:
    """A curve's name, its knob and the values at its ends; the first one's marker is hollow."""
    return f"{curve.name}: {curve.knob} {curve.values[0]:g} to {curve.values[-1]:g}"


def main(given: Sequence[str]) -> None:
    """Measure what the arguments ask for, and draw."""
    parser = ArgumentParser(prog="frontier")
    parser.add_argument("kind", choices=[*MODELS, "plot"])
    parser.add_argument("names", nargs="*", help="parts of the names of the curves to measure")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help="edits of each kind")
    parser.add_argument("--again", action="store_true", help="measure these curves anew")
    asked = parser.parse_args(given)
    if asked.kind != "plot":
        run(asked.kind, asked.names, asked.per_kind, asked.again)
    plot()


if __name__ == "__main__":
    main(sys.argv[1:])
