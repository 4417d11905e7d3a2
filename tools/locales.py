"""What a translator needs: `make locales LOCALE=ja` prints as JSON what a language lacks.

ComfyUI reads `locales/<language>/main.json` and `nodeDefs.json` (its `app/custom_node_manager.py`),
and shows `web/docs/<node id>/<language>.md` as a node's help. An input's `name` takes the place of
its label. The English of a string is the node's own, or that of `locales/en/`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .host import import_comfy
from .setup import ROOT

LOCALES = ROOT / "locales"
LANGUAGES = sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en")
FILES = ("main", "nodeDefs")

Strings = dict[str, str]
"""Strings by where they stand: "nodeDefs.DiffusionPath_FlowEdit.inputs.start.tooltip"."""


def flat(tree: dict[str, Any], above: str = "") -> Strings:
    """The strings of nested JSON; no key of ours has a dot in it."""
    found: Strings = {}
    for key, value in tree.items():
        if isinstance(value, str):
            found[above + key] = value
        else:
            found |= flat(value, f"{above}{key}.")
    return found


def strings(language: str) -> Strings:
    """What `locales/` holds in a language; nothing if there is no such language."""
    found: Strings = {}
    for name in FILES:
        file = LOCALES / language / f"{name}.json"
        if file.exists():
            tree = json.loads(file.read_text(encoding="utf-8"))
            found |= flat(tree if name == "main" else {name: tree})
    return found


def english() -> Strings:
    """What there is to translate: names, descriptions, labels, tooltips, categories."""
    from ..nodes import NODES

    nodes: dict[str, Any] = {}
    categories: Strings = {}
    for schema in (cls.GET_SCHEMA() for cls in NODES):
        categories |= {part: part for part in schema.category.split("/")}
        nodes[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                one.id: {"name": one.display_name or one.id, "tooltip": one.tooltip}
                for one in schema.inputs
            },
            "outputs": {
                str(index): {"name": one.display_name, "tooltip": one.tooltip}
                for index, one in enumerate(schema.outputs)
            },
        }
    return flat({"nodeCategories": categories, "nodeDefs": nodes}) | strings("en")


def compare(language: str) -> dict[str, Any]:
    """The strings that a language lacks, in English, and those that no node has any more."""
    wanted, there = english(), strings(language)
    return {
        "missing": {key: text for key, text in wanted.items() if key not in there},
        "stale": sorted(there.keys() - wanted.keys()),
    }


def main() -> None:
    """Print what the languages on the command line lack; without any, all that there are."""
    import_comfy()
    found = {language: compare(language) for language in sys.argv[1:] or LANGUAGES}
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
