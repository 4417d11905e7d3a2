"""The README's table of which model's attention can be changed, and how."""

from __future__ import annotations

from pathlib import Path

from diffusion_path.tools.setup import ROOT

BEFORE, AFTER = "<!-- families: checked by tests/host/test_readme.py -->\n", "<!-- -->\n"
HEAD = """\
| models | attention | Prompt-to-Prompt | edits by words | Source Features, Keep the Background |
|---|---|---|---|---|
| SD 1.x, SD 2.x, SDXL | self- and cross-attention | maps of words and shapes | yes | yes |
"""
NONE = "clear error"
LAST = f"| any other network, Nunchaku, TensorRT | not reached | {NONE} | {NONE} | {NONE} |\n"


def table() -> str:
    """What `host.dit` knows, each line tested in tests/nodes/test_transformers.py."""
    from diffusion_path.host.dit import FAMILIES

    lines = []
    for family in FAMILIES.values():
        attention, way, words = "joint", "queries and keys of the picture", "yes"
        if not family.joint:
            attention, way = "self- and cross-attention", "maps of words and shapes"
        if family.other_text:
            way = words = "clear error"
        lines.append(f"| {family.name} | {attention} | {way} | {words} | yes |\n")
    return HEAD + "".join(lines) + LAST


def test_the_readme_says_what_works_on_which_model(comfy: Path):
    readme = (ROOT / "README.md").read_text()
    assert BEFORE in readme
    found = readme.partition(BEFORE)[2].partition(AFTER)[0]
    assert found == table(), f"the README should have:\n{table()}"
