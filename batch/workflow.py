"""What the columns of a manifest mean in a workflow: found from the workflow itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import storage
from .manifest import Value
from .server import ROOT, Workflow

TWINS = ROOT / "example_workflows" / "api"

OURS = "DiffusionPath_"
PROMPT_PAIR = OURS + "PromptPair"
EDIT_REPORT = OURS + "EditReport"
PICTURE_NODES = (OURS + "ExamplePicture", "LoadImage")
FILE_INPUTS = {
    ("LoadImage", "image"),
    ("LoadImageMask", "image"),
    (OURS + "ExamplePicture", "photo"),
}
SEEDS = ("seed", "noise_seed")
TEXTS = (
    "text",
    "prompt",
    "value",
    "string",
    "clip_l",
    "clip_g",
    "t5xxl",
    "llama",
    "text_l",
    "text_g",
)
COLUMNS = ("picture", "source_prompt", "target_prompt", "seed", "truth", "mask")

MASK, SIZE, REPORT, TRUTH_REPORT = "batch-mask", "batch-size", "batch-report", "batch-truth-report"

Input = tuple[str, str]
"""A node's id and the name of one of its inputs."""


class WorkflowError(ValueError):
    """A reason, in one sentence, why a workflow or a column of a manifest cannot be used."""


def load_workflow(name: str) -> Workflow:
    """A workflow in API format: of a file, an address, or the pack's example of that name or
    number."""
    examples = sorted(TWINS.glob("*.json"))
    named = [one for one in examples if name in (one.stem, one.stem.removesuffix(".app"))]
    named = named or [one for one in examples if one.stem.partition("_")[0] == name]
    try:
        workflow = json.loads(named[0].read_bytes() if named else storage.read(name))
    except (ValueError, RecursionError) as error:
        raise WorkflowError(
            f"{storage.shown(name)} is no workflow: {storage.reason(error)}"
        ) from None
    except Exception as error:
        raise WorkflowError(
            f"the workflow cannot be read: {storage.reason(error)}; give a file, or the number of "
            "an example, such as 01"
        ) from None
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise WorkflowError(
            f"{storage.shown(name)} is in the format of the front end: save it with Export (API)"
        )
    if not workflow or not isinstance(workflow, dict) or not all(map(is_node, workflow.values())):
        raise WorkflowError(f"{storage.shown(name)} is no workflow in API format")
    for node in workflow.values():
        for origin in links(node):
            if origin not in workflow:
                raise WorkflowError(f"{storage.shown(name)} links to a node {origin} it lacks")
    return dict(workflow)


def is_node(node: Any) -> bool:
    """Whether it is a node in API format."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def is_link(value: Any) -> bool:
    """Whether an input's value is another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def links(node: Mapping[str, Any]) -> Iterator[str]:
    """The nodes that a node takes something from."""
    return (value[0] for value in node["inputs"].values() if is_link(value))


def ancestors(workflow: Workflow, ends: Iterable[str]) -> set[str]:
    """These nodes and all that they depend on."""
    found: set[str] = set()
    todo = list(ends)
    while todo:
        if (node := todo.pop()) not in found:
            found.add(node)
            todo += links(workflow[node])
    return found


def of_class(workflow: Workflow, *names: str) -> list[str]:
    """The nodes of these classes."""
    return [node for node, body in workflow.items() if body["class_type"] in names]


@dataclass(frozen=True)
class Plan:
    """A workflow that saves one picture, and what columns set in it."""

    workflow: Workflow
    saver: str
    inputs: dict[str, list[Input]]
    files: frozenset[str]
    """The columns that name pictures."""
    upstream: frozenset[str]
    """The columns that decide how a path is made: rows with equal values there share it."""

    def filled(self, values: Mapping[str, Value]) -> Workflow:
        """The workflow of a row; a picture is named as in ComfyUI's input folder."""
        workflow = copy.deepcopy(self.workflow)
        for column in sorted(values, key=lambda column: column not in COLUMNS):  # node.input wins
            for node, name in self.inputs[column]:
                if node in workflow:
                    workflow[node]["inputs"][name] = values[column]
        return workflow

    def seed(self, values: Mapping[str, Value]) -> int | None:
        """A row's seed: its own, or the workflow's; of several, the first node's."""
        if isinstance(given := values.get("seed"), int | str):
            return int(given)
        found = (node["inputs"].get(name) for node in self.workflow.values() for name in SEEDS)
        return next((seed for seed in found if isinstance(seed, int)), None)


def plan(original: Workflow, columns: Iterable[str]) -> Plan:
    """Find what the columns set.

    Raises:
        WorkflowError: a column means nothing in this workflow, or it saves no picture.
    """
    columns = tuple(columns)
    saver = the_saver(original)
    kept = ancestors(original, [saver, *of_class(original, EDIT_REPORT)])
    workflow = {node: copy.deepcopy(body) for node, body in original.items() if node in kept}
    inputs: dict[str, list[Input]] = {}
    files = {"picture", "truth", "mask"} & set(columns)
    if "picture" in columns:
        picture = the_picture(workflow)
        workflow[picture] = {"class_type": "LoadImage", "inputs": {"image": ""}}
        inputs["picture"] = [(picture, "image")]
    for column, found in zip(("source_prompt", "target_prompt"), prompts(workflow), strict=True):
        if column in columns:
            inputs[column] = the_prompt(column, found)
    if {"source_prompt", "target_prompt"} <= inputs.keys() and not set(
        inputs["source_prompt"]
    ).isdisjoint(inputs["target_prompt"]):
        raise WorkflowError("one prompt is both source and target here: leave one column out")
    if "seed" in columns:
        inputs["seed"] = [
            (node, name)
            for node, body in workflow.items()
            for name in SEEDS
            if isinstance(body["inputs"].get(name), int)
        ]
        if not inputs["seed"]:
            raise WorkflowError("the workflow has no seed: leave the column seed out")
    for column in columns:
        if column not in COLUMNS:
            node, name = the_input(original, column)
            if twice := [
                other
                for other in inputs
                if other not in COLUMNS and inputs[other] == [(node, name)]
            ]:
                raise WorkflowError(
                    f"the columns {storage.shown(twice[0], 60)} and {storage.shown(column, 60)} "
                    "set the same input: remove one"
                )
            inputs[column] = [(node, name)]
            if (original[node]["class_type"], name) in FILE_INPUTS:
                files.add(column)
    add_twins(workflow, inputs)
    if files & {"truth", "mask"}:
        add_reports(workflow, saver, files, inputs)
    walked = path_makers(workflow)
    upstream = {
        column for column, ends in inputs.items() if any(node in walked for node, _ in ends)
    }
    return Plan(
        workflow, saver, inputs, frozenset(files), frozenset(upstream | files & {"picture"})
    )


def the_saver(workflow: Workflow) -> str:
    """The only Save Image node."""
    found = of_class(workflow, "SaveImage")
    if len(found) != 1:
        raise WorkflowError(f"the workflow has {len(found)} Save Image nodes: it must have one")
    return found[0]


def the_picture(workflow: Workflow) -> str:
    """The only node that loads a picture."""
    found = of_class(workflow, *PICTURE_NODES)
    if len(found) != 1:
        raise WorkflowError(
            f"the workflow loads {len(found)} pictures, so that the column picture has no meaning: "
            f"{'write columns such as ' + found[0] + '.image' if found else 'leave it out'}"
        )
    return found[0]


def the_prompt(column: str, found: set[Input]) -> list[Input]:
    """The inputs of the one node that holds a prompt."""
    if len({node for node, _ in found}) != 1:
        several = ", ".join(f"{node}.{name}" for node, name in sorted(found))
        raise WorkflowError(
            f"which input is the {column} cannot be told from the workflow: "
            + (f"write columns {several}" if found else "leave the column out, or write node.input")
        )
    return sorted(found)


def path_makers(workflow: Workflow) -> set[str]:
    """The nodes that make a path, and all that these depend on."""
    made = (node["inputs"].get("path") for node in workflow.values())
    return ancestors(workflow, [link[0] for link in made if is_link(link)])


def prompts(workflow: Workflow) -> tuple[set[Input], set[Input]]:
    """The inputs of the source's text, which the path is made with, and of the target's."""
    walked = path_makers(workflow)
    found: tuple[set[Input], set[Input]] = set(), set()
    for node, body in workflow.items():
        if is_link(link := body["inputs"].get("positive")):
            found[node not in walked].update(texts(workflow, link))
    return found


def texts(workflow: Workflow, link: list[Any]) -> set[Input]:
    """The inputs that hold the text of a conditioning."""
    node, slot = link
    inputs = workflow[node]["inputs"]
    if workflow[node]["class_type"] == PROMPT_PAIR:
        written = ["target_prompt" if slot else "source_prompt"]
    elif "negative" in inputs:
        written = ["negative" if slot else "positive"]
    else:
        written = [name for name in inputs if name in TEXTS]
        written = written or [name for name in inputs if "conditioning" in name or name == "target"]
        written = written or [name for name in inputs if name == "positive"]
    found: set[Input] = set()
    for name in written:
        if is_link(inputs[name]):
            found |= texts(workflow, inputs[name])
        elif isinstance(inputs[name], str):
            found.add((node, name))
    return found


def the_input(workflow: Workflow, column: str) -> Input:
    """The node and the input that a column such as `9.cfg` or `Sampler.cfg` names."""
    dots = [place for place, letter in enumerate(column) if letter == "."]
    if not dots:
        raise WorkflowError(
            f"there is no column {storage.shown(column, 60)}: use {', '.join(COLUMNS)} "
            "or node.input, such as 9.cfg"
        )
    for dot in dots:
        name, wanted = column[:dot], column[dot + 1 :]
        found = [name] if name in workflow else of_class(workflow, name, OURS + name)
        found = found or [
            node
            for node, body in workflow.items()
            if isinstance(body.get("_meta"), dict) and body["_meta"].get("title") == name
        ]
        if len(found) > 1:
            raise WorkflowError(
                f"{len(found)} nodes are named {storage.shown(name, 60)}: "
                f"write the number, {' or '.join(f'{node}.{wanted}' for node in found)}"
            )
        if found and wanted in workflow[found[0]]["inputs"]:
            return found[0], wanted
        if found:
            has = ", ".join(workflow[found[0]]["inputs"]) or "none"
            raise WorkflowError(
                f"the column {storage.shown(column, 60)} names no input: "
                f"{workflow[found[0]]['class_type']} has {has}"
            )
    raise WorkflowError(
        f"the column {storage.shown(column, 60)} names no node: "
        "use a number, a title or a class of the workflow"
    )


def add_twins(workflow: Workflow, inputs: dict[str, list[Input]]) -> None:
    """Give a path that takes its prompt from a Prompt Pair a pair of the source alone, so that
    another target prompt does not make the path again."""
    walked = path_makers(workflow)
    for pair in of_class(workflow, PROMPT_PAIR):
        twin = f"{pair}-source"
        used = False
        for node in walked:
            for name, value in workflow[node]["inputs"].items():
                if value == [pair, 0]:
                    workflow[node]["inputs"][name] = [twin, 0]
                    used = True
        if not used:
            continue
        workflow[twin] = copy.deepcopy(workflow[pair])
        workflow[twin]["inputs"]["target_prompt"] = workflow[pair]["inputs"]["source_prompt"]
        for ends in inputs.values():
            if (pair, "source_prompt") in ends:
                ends += [(twin, "source_prompt"), (twin, "target_prompt")]
            elif any(node == pair and name != "target_prompt" for node, name in ends):
                ends += [(twin, name) for node, name in ends if node == pair]


def add_reports(
    workflow: Workflow, saver: str, files: set[str], inputs: dict[str, list[Input]]
) -> None:
    """Add an Edit Report against the truth, and one against the picture where there is a mask."""
    after = workflow[saver]["inputs"]["images"]
    workflow[SIZE] = {"class_type": "GetImageSize", "inputs": {"image": after}}
    mask = {}
    if "mask" in files:
        picture = inputs["picture"][0][0] if "picture" in inputs else the_picture(workflow)
        workflow[MASK] = {"class_type": "LoadImageMask", "inputs": {"image": "", "channel": "red"}}
        inputs["mask"] = [(MASK, "image")]
        mask = {"mask": [MASK, 0]}
        for body in workflow.values():  # the mask that is painted into the picture
            for name, value in body["inputs"].items():
                if value == [picture, 1]:
                    body["inputs"][name] = [MASK, 0]
        workflow[REPORT] = report([picture, 0], after, mask, workflow)
    if "truth" in files:
        workflow["batch-truth"] = {"class_type": "LoadImage", "inputs": {"image": ""}}
        inputs["truth"] = [("batch-truth", "image")]
        workflow[TRUTH_REPORT] = report(["batch-truth", 0], after, mask, workflow)


def report(
    before: list[Any], after: list[Any], mask: dict[str, Any], workflow: Workflow
) -> dict[str, Any]:
    """An Edit Report that compares with `before`, as large as the result."""
    fitted = f"{before[0]}-fitted"
    workflow[fitted] = {
        "class_type": "ImageScale",
        "inputs": {
            "image": before,
            "upscale_method": "lanczos",
            "width": [SIZE, 0],
            "height": [SIZE, 1],
            "crop": "disabled",
        },
    }
    return {
        "class_type": EDIT_REPORT,
        "inputs": {"before": [fitted, 0], "after": after} | mask,
    }


def typed(workflow: Workflow, inputs: Iterable[Input], info: Mapping[str, Any]) -> None:
    """Bring what a row has set into the types that the nodes ask for.

    Args:
        info: what ComfyUI says of its nodes (`/object_info`).

    Raises:
        ValueError: a value is of another type, in a sentence.
    """
    for node, name in inputs:
        if node in workflow:
            known = info.get(workflow[node]["class_type"], {}).get("input", {})
            kind = next((kind[name][0] for kind in known.values() if name in kind), None)
            kind = kind if isinstance(kind, str) else "COMBO"  # a list of choices
            held = workflow[node]["inputs"]
            try:
                held[name] = converted(held[name], kind)
            except ValueError:
                raise ValueError(
                    f"{node}.{name} is {storage.shown(str(held[name]), 60)}; give {ASKED[kind]}"
                ) from None


ASKED = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "BOOLEAN": "true or false",
    "STRING": "a text",
}
WORDS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def converted(value: Any, kind: str) -> Any:
    """A manifest's value as a node's input has it.

    Raises:
        ValueError: it is of another type.
    """
    if kind == "BOOLEAN" and str(value).lower() in WORDS:
        return WORDS[str(value).lower()]
    if kind == "INT" and not isinstance(value, bool):
        if isinstance(value, float) and value.is_integer():  # a whole column, with gaps
            return int(value)
        if isinstance(value, int | str):
            return int(value)
    elif kind == "FLOAT" and not isinstance(value, bool):
        number = float(value)
        if abs(number) < float("inf"):  # neither it nor NaN
            return number
    elif kind not in ASKED or (kind == "STRING" and isinstance(value, str)):
        return value
    raise ValueError


def figures(plan: Plan, history: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's nodes have reported: network evaluations of this run, and Edit Report's."""
    cached = {
        node
        for kind, data in history["status"]["messages"]
        if kind == "execution_cached"
        for node in data["nodes"]
    }
    found: dict[str, Any] = {"evaluations": None}
    for node, output in history["outputs"].items():
        for told in output.get("report") or ():
            if "evaluations" in told:
                made = 0 if node in cached else told["evaluations"]
                found["evaluations"] = (found["evaluations"] or 0) + made
            if plan.workflow.get(node, {}).get("class_type") == EDIT_REPORT:
                prefix = "truth_" if node == TRUTH_REPORT else ""
                found |= {prefix + name: told.get(name) for name in FIGURES if name in told}
    return found


FIGURES = ("changed", "identical", "psnr", "inside", "background")
"""What Edit Report reports; a PSNR is missing where the pictures are identical."""
