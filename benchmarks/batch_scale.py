"""What a second worker brings to batch editing, and what one costs over ComfyUI's bare queue.

`python -m diffusion_path.benchmarks.batch_scale` writes `benchmarks/results/batch.md`, with
OMP_NUM_THREADS=1 on two cores that do nothing else (20 minutes). Its arguments are pictures,
prompts for each, and turns: 4, 3 and 5.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

from ..batch.driver import run_batch
from ..batch.manifest import Manifest, Row
from ..batch.results import Line
from ..batch.server import Server
from ..batch.workflow import TWINS, load_workflow, plan
from .edits import RESULTS
from .machine import write_page

EXAMPLE = "02"
INPUTS = TWINS.parent / "inputs"
PICTURES = ("red_apple", "rose", "fish", "horse", "tree", "car")
TARGETS = ("a strawberry", "a pear", "a football", "a star")


def manifest(pictures: int, targets: int) -> Manifest:
    """Each picture with each prompt."""
    cells = [
        {
            "picture": str(INPUTS / f"{picture}.png"),
            "source_prompt": f"a {picture.replace('_', ' ')} on a blue background",
            "target_prompt": f"{target} on a blue background",
        }
        for picture in PICTURES[:pictures]
        for target in TARGETS[:targets]
    ]
    rows = tuple(Row(number, dict(one)) for number, one in enumerate(cells, start=1))
    return Manifest(tuple(cells[0]), rows, str(INPUTS))


def batch(rows: Manifest, workers: int) -> list[Line]:
    """The lines of a run, as they were finished."""
    with tempfile.TemporaryDirectory() as output:
        table = run_batch(rows, load_workflow(EXAMPLE), output, workers=workers).table
    assert all(line["status"] == "done" for line in table), table
    return sorted(table, key=lambda line: str(line["finished"]))


def finished(line: Line) -> float:
    """When a row was, in seconds."""
    return datetime.fromisoformat(line["finished"]).timestamp()


def rate(lines: Sequence[Line]) -> float:
    """Network evaluations in a second, by all workers together, while all of them work."""
    by_worker: dict[str, list[Line]] = {}
    for line in lines:
        by_worker.setdefault(line["worker"], []).append(line)
    begin = max(finished(some[0]) for some in by_worker.values())
    end = min(finished(some[-1]) for some in by_worker.values())
    total = 0.0
    for line in lines:  # of a row that reaches over an edge, its part
        started = finished(line) - line["seconds"]
        inside = max(0, min(end, finished(line)) - max(begin, started))
        total += line["evaluations"] * inside / line["seconds"]
    return total / (end - begin)


def bare(rows: Manifest) -> float:
    """Seconds from the first row's end to the last one's, all queued at once in one ComfyUI."""
    planned = plan(load_workflow(EXAMPLE), rows.columns)
    environment = {"OMP_NUM_THREADS": "1"}
    with Server("--cache-classic", "--cpu", environment=environment) as server:
        queued = []
        for row in rows.rows:
            name = server.upload(Path(str(row.cells["picture"])))
            workflow = planned.filled(row.cells | {"picture": name})
            queued.append(server.queue(workflow))
        ends = [end_of(server.wait(one, timeout=3600)) for one in queued]
    return ends[-1] - ends[0]


def end_of(history: dict) -> float:
    """When ComfyUI was done with a workflow, in seconds."""
    (end,) = (
        data["timestamp"]
        for kind, data in history["status"]["messages"]
        if kind == "execution_success"
    )
    return float(end) / 1000


def turn(rows: Manifest, *, backwards: bool) -> tuple[float, float, float, float]:
    """Rates of one and of two workers; seconds of one worker, and of the bare queue."""
    if backwards:
        two, one, queue = batch(rows, 2), batch(rows, 1), bare(rows)
    else:
        queue, one, two = bare(rows), batch(rows, 1), batch(rows, 2)
    return rate(one), rate(two), finished(one[-1]) - finished(one[0]), queue


def main(pictures: int = 4, targets: int = 3, turns: int = 5) -> None:
    """Measure and write; in turns, as the machine changes from minute to minute."""
    rows = manifest(pictures, targets)
    measured = [turn(rows, backwards=bool(n % 2)) for n in range(turns)]
    first, second, seconds, queue = (median(some) for some in zip(*measured, strict=True))
    gains = sorted(two / one for one, two, _, _ in measured)
    costs = sorted(batch / bare for _, _, batch, bare in measured)
    text = (
        "# Batch editing: what a second worker brings, and what one costs\n\n"
        f"Example {EXAMPLE}, {pictures} pictures with {targets} prompts each on the demo model, "
        "one thread for each worker. A path is made once for each picture. Rates are taken while "
        "all workers work: without Ray's and ComfyUI's start, and without the last rows. Medians "
        f"of {turns} turns, each with all three; in brackets the least and the greatest.\n\n"
        "| | network evaluations in a second | over one worker |\n"
        "|---|--:|--:|\n"
        f"| 1 worker | {first:.1f} | 1.00 |\n"
        f"| 2 workers | {second:.1f} "
        f"| {median(gains):.2f} ({gains[0]:.2f} to {gains[-1]:.2f}) |\n\n"
        "From the end of the first row to the end of the last, on one worker:\n\n"
        "| | seconds | over the bare queue |\n"
        "|---|--:|--:|\n"
        f"| ComfyUI's bare queue | {queue:.1f} | 1.000 |\n"
        f"| batch editing | {seconds:.1f} "
        f"| {median(costs):.3f} ({costs[0]:.3f} to {costs[-1]:.3f}) |\n"
    )
    RESULTS.mkdir(exist_ok=True)
    write_page(RESULTS / "batch.md", text)
    print(text)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
