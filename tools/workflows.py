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

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGECOMPARE", "BOUNDING_BOXES"}
EXAMPLE_PICTURE = "DiffusionPath_ExamplePicture"
NOTES = ("Note", "MarkdownNote")


def examples() -> list[Path]:
    """Every example workflow, in the format of the front end."""
    return sorted(EXAMPLES.glob("*.json"))


def demos() -> list[Path]:
    """The examples that run on the demo model, without a download."""
    return [example for example in examples() if not models_of(example)]


def twin_of(example: Path) -> Path:
    """The API twin of an example workflow."""
    return TWINS / example.name


def models_of(example: Path) -> list[dict[str, str]]:
    """The models that an example needs, each with its file's name, address and folder."""
    nodes = json.loads(example.read_text())["nodes"]
    return [model for node in nodes for model in node["properties"].get("models", [])]


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> Workflow:
    """What the front end's "Export (API)" makes of a workflow, in Python."""
    graphs = list(Graph(workflow, subgraphs_of(workflow)).all())
    ids = [node_id for graph in graphs for node_id in graph.nodes]
    if twice := {node_id for node_id in ids if ids.count(node_id) > 1}:
        raise ValueError(f"the front end would give the nodes {sorted(twice)} other ids")
    return {
        graph.prefix + str(node["id"]): {
            "inputs": inputs_of(node, object_info[node["type"]], graph),
            "class_type": node["type"],
            "_meta": {"title": node.get("title") or title_of(object_info[node["type"]])},
        }
        for graph in graphs
        for node in graph.nodes.values()
        if node["type"] not in (*NOTES, *graph.subgraphs)
    }


def subgraphs_of(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The subgraphs that a workflow defines, by the type of the nodes that stand for them."""
    return {graph["id"]: graph for graph in workflow.get("definitions", {}).get("subgraphs", [])}


class Graph:
    """A workflow, or a subgraph inside the node that stands for it."""

    INPUT = -10  # the id of the origin of a link that comes from outside a subgraph

    def __init__(
        self,
        body: dict[str, Any],
        subgraphs: dict[str, dict[str, Any]],
        outer: Graph | None = None,
        place: dict[str, Any] | None = None,
    ) -> None:
        """A subgraph's `place` is the node of its `outer` graph that stands for it."""
        self.body, self.subgraphs, self.outer, self.place = body, subgraphs, outer, place
        self.prefix: str = f"{outer.prefix}{place['id']}:" if outer and place else ""
        self.nodes: dict[int, dict[str, Any]] = {node["id"]: node for node in body["nodes"]}
        self.links: dict[int, tuple[int, int]] = dict(map(ends_of, body["links"]))

    def inside(self, node: dict[str, Any]) -> Graph:
        """The subgraph that a node stands for."""
        if node.get("widgets_values"):
            raise ValueError(f"node {node['id']} sets widgets of its subgraph: not supported")
        return Graph(self.subgraphs[node["type"]], self.subgraphs, self, node)

    def all(self) -> Iterator[Graph]:
        """This graph and all graphs in it."""
        yield self
        for node in self.nodes.values():
            if node["type"] in self.subgraphs:
                yield from self.inside(node).all()

    def origin(self, link: int | None) -> list[Any] | None:
        """The node and output, in API terms, that a link comes from; None where nothing does."""
        if link is None:
            return None
        node_id, slot = self.links[link]
        if node_id == self.INPUT:
            assert self.outer and self.place
            return self.outer.origin(self.place["inputs"][slot]["link"])
        if self.nodes[node_id]["type"] in self.subgraphs:
            inner = self.inside(self.nodes[node_id])
            return inner.origin(inner.body["outputs"][slot]["linkIds"][0])
        return [self.prefix + str(node_id), slot]


def ends_of(link: Any) -> tuple[int, tuple[int, int]]:
    """A link's id, and the node and output it comes from; a subgraph's links are objects."""
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])


def title_of(info: dict[str, Any]) -> str:
    """What stands over a node that was given no title of its own."""
    return str(info["display_name"] or info["name"])


def inputs_of(node: dict[str, Any], info: dict[str, Any], graph: Graph) -> dict[str, Any]:
    """A node's inputs: the values of its widgets, then its links, which win."""
    values = iter(node.get("widgets_values") or [])
    # A workflow saved before an input was added has no value for it.
    inputs = {name: plain(next(values, default)) for name, default in widgets_of(info, values)}
    if left := list(values):
        raise ValueError(f"node {node['id']} ({node['type']}) has values without a widget: {left}")
    for slot in node.get("inputs", []):
        if origin := graph.origin(slot.get("link")):
            inputs[slot["name"]] = origin
    return inputs


def plain(value: Any) -> Any:
    """A widget's value as the API has it: a list alone would be a link."""
    return {"__value__": value} if isinstance(value, list) else value


def widgets_of(info: dict[str, Any], values: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """A node's widgets in their order, by name and default; skips values that belong to buttons."""
    for kind in ("required", "optional"):
        for name, (datatype, *options) in info["input"].get(kind, {}).items():
            settings = options[0] if options else {}
            if settings.get("forceInput") or not is_widget(datatype):
                continue
            yield name, settings.get("default")
            has_button = datatype == "INT" and name in ("seed", "noise_seed")
            if has_button or settings.get("control_after_generate") or "image_upload" in settings:
                next(values, None)


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
