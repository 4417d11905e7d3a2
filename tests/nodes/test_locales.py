"""Languages: each says all that the nodes say in English, and nothing that no node says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from diffusion_path.tests.calls import node
from diffusion_path.tools.locales import LANGUAGES, LOCALES, compare, english, flat, strings
from diffusion_path.tools.setup import ROOT

DOCS = ROOT / "web" / "docs"
PAGES = sorted(page.relative_to(DOCS) for page in DOCS.glob("*/*.md"))
TRANSLATED = [
    "DDIMInversion",
    "DemoModel",
    "DiffEditMask",
    "FlowEdit",
    "LocalBlend",
    "MaskBlend",
    "PromptPair",
    "PromptToPrompt",
    "Sampler",
    "StraightPath",
]
"""The nodes whose help pages are in every language."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)?(?:e-\d+)?")
PLACEHOLDER = re.compile(r"%\w+%")

each_language = pytest.mark.parametrize("language", LANGUAGES)
each_page = pytest.mark.parametrize("page", PAGES, ids=str)


def listed(problems: dict[str, str]) -> str:
    """One problem a line."""
    return "".join(f"\n  {key}: {text}" for key, text in problems.items())


def figures(text: str) -> list[str]:
    """The numbers of a text, and what ComfyUI fills in; a decimal comma is a point."""
    return sorted([n.replace(",", ".") for n in NUMBER.findall(text)] + PLACEHOLDER.findall(text))


@each_language
def test_nothing_is_missing_and_nothing_is_left_over(comfy: Path, language: str):
    found = compare(language)
    if found["missing"]:
        pytest.fail(
            f"locales/{language} lacks (`make locales LOCALE={language}` prints it as JSON):"
            + listed(found["missing"])
        )
    assert found["stale"] == [], f"locales/{language} has what no node says"


@each_language
def test_every_string_is_translated(comfy: Path, language: str):
    wanted = english()
    same = {
        key: text
        for key, text in strings(language).items()
        if not text.strip() or text == wanted.get(key)
    }
    assert not same, f"empty, or still English:{listed(same)}"


@each_language
def test_numbers_are_those_of_the_english(comfy: Path, language: str):
    wanted = english()
    wrong = {
        key: f"{text!r} for {wanted[key]!r}"
        for key, text in strings(language).items()
        if key in wanted and figures(text) != figures(wanted[key])
    }
    assert not wrong, f"other numbers than the English has:{listed(wrong)}"


@each_language
def test_the_front_end_can_read_every_string(language: str):
    """Its messages have a syntax of their own: {name}, @:linked, one | many."""
    odd = {key: text for key, text in strings(language).items() if set("{}@|") & set(text)}
    assert not odd, listed(odd)


@each_language
def test_no_two_inputs_of_a_node_have_one_label(language: str):
    defs = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for node_id, told in defs.items():
        labels = [one["name"] for one in told.get("inputs", {}).values()]
        assert len(set(labels)) == len(labels), node_id
    shown = [told["display_name"] for told in defs.values()]
    assert len(set(shown)) == len(shown)


@each_language
def test_the_most_used_nodes_have_a_help_page(language: str):
    there = {str(page.parent) for page in PAGES if page.stem == language}
    assert {f"DiffusionPath_{name}" for name in TRANSLATED} <= there


@each_page
def test_a_help_page_is_a_nodes_and_has_a_language(page: Path):
    assert (DOCS / f"{page.parent}.md").exists(), "no node has this page"
    assert page.stem in LANGUAGES


@each_page
def test_a_help_page_names_what_the_english_one_names(comfy: Path, page: Path):
    """Every input by its label and id, the picture, the formula, the papers, the links."""
    text = (DOCS / page).read_text(encoding="utf-8")
    original = (DOCS / f"{page.parent}.md").read_text(encoding="utf-8")
    schema = node(str(page.parent).removeprefix("DiffusionPath_")).GET_SCHEMA()
    labels = json.loads((LOCALES / page.stem / "nodeDefs.json").read_text(encoding="utf-8"))
    told = labels[schema.node_id]["inputs"]
    missing = [
        f"**{told[one.id]['name']}** `{one.id}`"
        for one in schema.inputs
        if f"**{told[one.id]['name']}** `{one.id}`" not in text
    ]
    assert not missing, f"not in {page}: {missing}"
    for pattern in (
        r"\]\((\S+)\)",  # pictures and links
        r"\b\d{4}\.\d{5}\b",  # arXiv numbers
        r"^#+(?= )",  # headings
    ):
        named = re.findall(pattern, original, re.MULTILINE)
        assert re.findall(pattern, text, re.MULTILINE) == named, pattern


@each_page
def test_a_help_page_has_the_figures_of_the_english_one(page: Path):
    """Defaults, ranges, measurements: what is said in digits there is said in digits here."""
    text = figures((DOCS / page).read_text(encoding="utf-8"))
    original = figures((DOCS / f"{page.parent}.md").read_text(encoding="utf-8"))
    missing, added = list(original), list(text)
    for figure in text:
        if figure in missing:
            missing.remove(figure)
            added.remove(figure)
    assert (missing, added) == ([], []), f"{page} lacks the first and adds the second"


@each_page
def test_emphasis_is_seen_as_such(page: Path):
    """Markdown knows no emphasis whose mark is between a letter outside and punctuation inside.

    Chinese and Japanese, without spaces, easily write that; the stars are then shown as they are.
    """
    text = re.sub(r"`[^`]*`", "``", (DOCS / page).read_text(encoding="utf-8"))
    wrong = []
    for line in text.splitlines():
        opened: set[str] = set()
        for mark in re.finditer(r"\*+", line):
            before, after = line[: mark.start()][-1:], line[mark.end() :][:1]
            inside, outside = (before, after) if mark[0] in opened else (after, before)
            opened ^= {mark[0]}
            if outside.isalnum() and not inside.isalnum():
                wrong.append(line)
        if opened:
            wrong.append(line)
    assert wrong == []


def test_a_missing_key_is_found(comfy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("diffusion_path.tools.locales.LOCALES", tmp_path)
    (tmp_path / "xx").mkdir()
    nodes = {"DiffusionPath_Sampler": {"display_name": "x", "inputs": {"gone": {"name": "y"}}}}
    (tmp_path / "xx" / "nodeDefs.json").write_text(json.dumps(nodes))
    found = compare("xx")
    assert found["stale"] == ["nodeDefs.DiffusionPath_Sampler.inputs.gone.name"]
    assert "nodeDefs.DiffusionPath_Sampler.description" in found["missing"]
    assert "nodeDefs.DiffusionPath_Sampler.display_name" not in found["missing"]
    assert flat(nodes)["DiffusionPath_Sampler.inputs.gone.name"] == "y"
