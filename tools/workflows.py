"""The example workflows' two formats: what ComfyUI's front end saves, and what its API runs.

`make workflows` writes the API twin of every example workflow through ComfyUI's own front end.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .host import Server, Workflow
from .setup import ROOT

EXAMPLES = ROOT / "example_workflows"
TWINS = EXAMPLES / "api"
BROWSER = ROOT / "tests" / "browser"

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")


def examples() -> list[Path]:
    """Every example workflow, in the format of the front end."""
    return sorted(EXAMPLES.glob("*.json"))


def twin_of(example: Path) -> Path:
    """The API twin of an example workflow."""
    return TWINS / example.name


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> Workflow:
    """What the front end's "Export (API)" makes of a workflow without subgraphs, in Python."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {
        str(node["id"]): {
            "inputs": inputs_of(node, object_info[node["type"]], origins),
            "class_type": node["type"],
            "_meta": {"title": node.get("title") or title_of(object_info[node["type"]])},
        }
        for node in workflow["nodes"]
        if node["type"] not in ("Note", "MarkdownNote")
    }


def title_of(info: dict[str, Any]) -> str:
    """What stands over a node that was given no title of its own."""
    return str(info["display_name"] or info["name"])


def inputs_of(
    node: dict[str, Any], info: dict[str, Any], origins: dict[int, list[Any]]
) -> dict[str, Any]:
    """A node's inputs: the values of its widgets, then its links, which win."""
    values = iter(node.get("widgets_values") or [])
    inputs = {name: next(values) for name in widgets_of(info, values)}
    if left := list(values):
        raise ValueError(f"node {node['id']} ({node['type']}) has values without a widget: {left}")
    for slot in node.get("inputs", []):
        if slot.get("link") is not None:
            inputs[slot["name"]] = origins[slot["link"]]
    return inputs


def widgets_of(info: dict[str, Any], values: Iterator[Any]) -> Iterator[str]:
    """The names of a node's widgets in their order, skipping values that belong to buttons."""
    for kind in ("required", "optional"):
        for name, (datatype, *options) in info["input"].get(kind, {}).items():
            settings = options[0] if options else {}
            if settings.get("forceInput") or not is_widget(datatype):
                continue
            yield name
            has_button = datatype == "INT" and name in ("seed", "noise_seed")
            if has_button or settings.get("control_after_generate") or "image_upload" in settings:
                next(values)


def is_widget(datatype: str | list[Any]) -> bool:
    """Whether an input of this type is edited on the node itself."""
    return isinstance(datatype, list) or datatype in WIDGETS


def front_end_to_api(server: Server, files: list[Path]) -> dict[Path, Workflow]:
    """What ComfyUI's own front end exports for each workflow file."""
    command = ["node", str(BROWSER / "to_api.mjs"), server.url, *map(str, files)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {Path(file): workflow for file, workflow in json.loads(answer).items()}


def main() -> None:
    """Write the API twins of all examples."""
    TWINS.mkdir(exist_ok=True)
    with Server() as server:
        for example, workflow in front_end_to_api(server, examples()).items():
            twin_of(example).write_text(json.dumps(workflow, indent=2) + "\n")
            print(twin_of(example).relative_to(ROOT))


if __name__ == "__main__":
    main()
