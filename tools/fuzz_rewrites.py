"""Workflows made from workflows: what a node depends on, its KSampler twin, and smaller ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .fuzz_graphs import OURS
from .host import Workflow


def links_of(node: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """The links into a node of a workflow, by input."""
    return {
        name: (value[0], value[1])
        for name, value in node["inputs"].items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    }


def ancestors(workflow: Workflow, number: str) -> set[str]:
    """A node and all that it is made from."""
    found: set[str] = set()
    waiting = [number]
    while waiting:
        one = waiting.pop()
        if one in workflow and one not in found:
            found.add(one)
            waiting += [source for source, _ in links_of(workflow[one]).values()]
    return found


def through(workflow: Workflow, link: tuple[str, int]) -> tuple[str, int]:
    """Where a picture comes from, before it was turned from a mask into an image."""
    node = workflow[link[0]]
    return links_of(node)["mask"] if node["class_type"] == "MaskToImage" else link


def source_latent(workflow: Workflow, number: str) -> tuple[str, int] | None:
    """The latent that a node's results have the size of, or None if the graph does not tell."""
    links = links_of(workflow.get(number, {"inputs": {}}))
    if "latent_image" in links:
        return links["latent_image"]
    return source_latent(workflow, links["path"][0]) if "path" in links else None


def strange_numbers(workflow: Workflow, numbers: set[str]) -> bool:
    """Whether NaN, infinity or something huge goes into a stock node of these."""
    for number in numbers:
        node = workflow[number]
        for value in node["inputs"].values():
            text = str(value).lower()
            huge = isinstance(value, float | int) and not abs(value) < 1e6 and "seed" not in text
            if (huge or re.search(r"nan|inf|1e30", text)) and not node["class_type"].startswith(
                OURS
            ):
                return True
    return False


def twin_of(workflow: Workflow, number: str, info: dict[str, Any]) -> Workflow | None:
    """A workflow that samples with what a node of ours was given, and with no node of ours."""
    node = workflow.get(number, {"inputs": {}})
    links, inputs = links_of(node), node["inputs"]
    latent = source_latent(workflow, number)
    if "model" not in links and "clip" in links:
        texts = [text for text in inputs.values() if isinstance(text, str)]
        return encoding_twin(workflow, links["clip"], texts)
    if "model" not in links:
        return None

    def of_path(name: str) -> tuple[str, int] | None:
        made = links_of(workflow[links["path"][0]]) if "path" in links else {}
        return made.get(name)

    positive = links.get("positive") or links.get("target") or of_path("positive")
    if positive is None:
        return None
    negative = links.get("negative") or links.get("source") or of_path("negative") or positive
    twin = {
        one: workflow[one]
        for link in (links["model"], positive, negative, latent)
        if link is not None
        for one in ancestors(workflow, link[0])
    }
    if latent is None:
        size = {"width": 128, "height": 128, "batch_size": 1}
        twin["empty"] = {"class_type": "EmptyLatentImage", "inputs": size}
        latent = ("empty", 0)
    schedulers = info["KSampler"]["input"]["required"]["scheduler"][0]
    spacing = inputs.get("spacing")
    cfg = inputs.get("cfg", 1.0)
    twin["twin"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": list(links["model"]),
            "positive": list(positive),
            "negative": list(negative),
            "latent_image": list(latent),
            "seed": 0,
            "steps": inputs["steps"] if isinstance(inputs.get("steps"), int) else 3,
            "cfg": cfg if isinstance(cfg, int | float) and 0 <= cfg <= 100 else 1.0,
            "sampler_name": "euler",
            "scheduler": spacing if spacing in schedulers else "normal",
            "denoise": 1.0,
        },
    }
    twin["kept"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["twin", 0], "filename_prefix": "fuzz/twin"},
    }
    return twin


def encoding_twin(workflow: Workflow, clip: tuple[str, int], texts: list[str]) -> Workflow:
    """A workflow that has these texts encoded by CLIPTextEncode."""
    twin = {number: workflow[number] for number in ancestors(workflow, clip[0])}
    for k, text in enumerate(texts):
        given = {"clip": list(clip), "text": text}
        twin[f"text-{k}"] = {"class_type": "CLIPTextEncode", "inputs": given}
        shown = {"source": [f"text-{k}", 0]}
        twin[f"kept-{k}"] = {"class_type": "PreviewAny", "inputs": shown}
    return twin


def smaller_workflows(workflow: Workflow, info: dict[str, Any]) -> Iterator[Workflow]:
    """Workflows with one thing less, the largest losses first."""
    needed = {
        n for n, node in workflow.items() if info.get(node["class_type"], {}).get("output_node")
    }
    for number in sorted(needed) if len(needed) > 1 else ():
        yield reachable({n: node for n, node in workflow.items() if n != number}, info)
    for number, node in workflow.items():
        types = info.get(node["class_type"], {}).get("output", [])
        for name, link in links_of(node).items():
            source = workflow.get(link[0])
            made = info.get(source["class_type"], {}).get("output", []) if source else []
            # Past a node: what it is made from, if that is of the same type.
            for further in links_of(source).values() if source else ():
                given = info.get(workflow.get(further[0], {}).get("class_type"), {}).get("output")
                if given and link[1] < len(made) and given[further[1]] == made[link[1]]:
                    yield reachable(changed(workflow, number, name, list(further)), info)
        optional = info.get(node["class_type"], {}).get("input", {}).get("optional", {})
        for name in node["inputs"]:
            if name in optional:
                yield reachable(changed(workflow, number, name, None), info)
        del types
    for number, node in workflow.items():
        required = info.get(node["class_type"], {}).get("input", {}).get("required", {})
        for name, value in node["inputs"].items():
            spec = required.get(name, ())
            default = spec[1].get("default") if len(spec) > 1 else None
            costly = name in ("steps", "inner_steps", "maps", "frames", "width", "height")
            if (
                default is not None
                and value != default
                and not costly
                and not isinstance(value, list)
            ):
                yield changed(workflow, number, name, default)


def changed(workflow: Workflow, number: str, name: str, value: Any) -> Workflow:
    """A workflow with one input changed, or left out where `value` is None."""
    inputs = {key: old for key, old in workflow[number]["inputs"].items() if key != name}
    inputs |= {} if value is None else {name: value}
    return workflow | {number: workflow[number] | {"inputs": inputs}}


def reachable(workflow: Workflow, info: dict[str, Any]) -> Workflow:
    """A workflow without the nodes that no output needs."""
    kept: set[str] = set()
    for number, node in workflow.items():
        if info.get(node["class_type"], {}).get("output_node"):
            kept |= ancestors(workflow, number)
    return {number: node for number, node in workflow.items() if number in kept}
