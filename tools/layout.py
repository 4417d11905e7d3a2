"""`make workflows`: the nodes of the example workflows in columns, none over another.

A workflow is drawn by hand only roughly. Nodes whose left edges are close are a column, and the
groups say which columns belong together. The sizes are those that ComfyUI's front end gives the
nodes in either renderer, before and after a run, for a node that reports something grows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .host import Server
from .workflows import BROWSER, examples, models_of

Box = tuple[float, float, float, float]
Measured = dict[str, dict[str, dict[str, Any]]]

TITLE = 30
"""The height of a node's title, which is above its position."""
GAP, GROUP_GAP, PADDING, GROUP_TITLE = 30, 40, 20, 40
REPORT = 80
"""By how much a node of ours grows when it reports."""
CLOSE = 150
"""Nodes whose left edges are at most so far from their column's belong to it."""


def measure(server: Server, files: Iterable[Path], steps: int = 4) -> Measured:
    """The boxes of all nodes in both renderers, by file: opened, and run with few steps.

    No `steps` opens the workflows only.
    """
    command = ["node", str(BROWSER / "boxes.mjs"), server.url, str(steps), *map(str, files)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer)


def largest(measured: Measured, file: Path) -> dict[int, tuple[float, float]]:
    """The largest width and height (without title) that each node of a workflow has; of one that
    has only been opened, with room for what its nodes will report."""
    reporting = {
        node["id"]: REPORT
        for node in json.loads(file.read_text())["nodes"]
        if models_of(file) and node["type"].startswith("DiffusionPath_")
    }
    boxes = [
        boxes
        for files in measured.values()
        for state, boxes in files[str(file)].items()
        if state in ("opened", "ran")
    ]
    return {
        int(node): (
            max(b[node][2] for b in boxes),
            max(b[node][3] for b in boxes) - TITLE + reporting.get(int(node), 0),
        )
        for node in boxes[0]
    }


def columns_of(nodes: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The nodes by column from left to right, and in a column from top to bottom."""
    columns: list[list[dict[str, Any]]] = []
    for node in sorted(nodes, key=lambda node: node["pos"][0]):
        if not columns or node["pos"][0] - columns[-1][0]["pos"][0] > CLOSE:
            columns.append([])
        columns[-1].append(node)
    return [sorted(column, key=lambda node: node["pos"][1]) for column in columns]


def group_of(node: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The group that a node's corner lies in."""
    x, y = node["pos"]
    for group in groups:
        left, top, width, height = group["bounding"]
        if left <= x < left + width and top <= y < top + height:
            return group
    return None


def lay_out(workflow: dict[str, Any], sizes: dict[int, tuple[float, float]]) -> None:
    """Put the nodes of a workflow into straight columns, and the groups around them."""
    groups = workflow["groups"]
    members: dict[int, list[Box]] = {group["id"]: [] for group in groups}
    x, last = 0.0, None
    for number, column in enumerate(columns_of(workflow["nodes"])):
        group = group_of(column[0], groups)
        if number:
            x += GAP if group is not None and group is last else GROUP_GAP + 2 * PADDING
        last, y = group, 0.0
        width = max(sizes[node["id"]][0] for node in column)
        for node in column:
            height = sizes[node["id"]][1]
            node["pos"] = [round(x), round(y)]
            if node["type"] in ("MarkdownNote", "SaveImage", "PreviewImage", "ImageCompare"):
                node["size"] = [round(width), node["size"][1]]
            else:
                node["size"][0] = round(width)
            if group is not None:
                members[group["id"]].append((x, y - TITLE, width, height + TITLE))
            y += height + TITLE + GAP
        x += width
    for group in groups:
        group["bounding"] = around(members[group["id"]])


def around(boxes: list[Box]) -> list[int]:
    """The frame of a group around boxes, with room for its title."""
    left, top = min(box[0] for box in boxes) - PADDING, min(box[1] for box in boxes) - GROUP_TITLE
    right = max(box[0] + box[2] for box in boxes) + PADDING
    bottom = max(box[1] + box[3] for box in boxes) + PADDING
    return [round(left), round(top), round(right - left), round(bottom - top)]


def main() -> None:
    """Lay out the examples named on the command line by their beginnings, or all."""
    chosen = tuple(sys.argv[1:]) or ("",)
    files = [file for file in examples() if file.name.startswith(chosen)]
    with Server("--cache-lru", "1000") as server:
        measured = measure(server, [file for file in files if not models_of(file)])
        opened = measure(server, [file for file in files if models_of(file)], steps=0)
    for renderer, boxes in opened.items():
        measured[renderer] |= boxes
    for file in files:
        workflow = json.loads(file.read_text())
        lay_out(workflow, largest(measured, file))
        file.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n")
        print(file.name)


if __name__ == "__main__":
    main()
