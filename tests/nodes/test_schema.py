"""What every node tells of itself, in ComfyUI's menu, on hovering and in its help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffusion_path.core.families import USUAL
from diffusion_path.edits.flow_edit import FAMILIES
from diffusion_path.tests.calls import node
from diffusion_path.tools.setup import ROOT

NAMES = [
    "DemoModel",
    "DemoCLIPVision",
    "ExamplePicture",
    "Experts",
    "DDIMInversion",
    "RecordPath",
    "StraightPath",
    "DDPMInversion",
    "NullTextInversion",
    "NegativePromptInversion",
    "OptimizePrompt",
    "DiffEditMask",
    "MDPEpsilon",
    "MDPCondition",
    "MDPLatent",
    "MDPGuidance",
    "ILVR",
    "FlowEdit",
    "UniEdit",
    "PullToSource",
    "Guidance",
    "Concept",
    "HSpace",
    "HSpaceDirections",
    "MaskBlend",
    "Resample",
    "PromptPair",
    "PromptToPrompt",
    "Reweight",
    "LocalBlend",
    "PaintWithWords",
    "SourceFeatures",
    "KeepBackground",
    "AttentionMaps",
    "Sampler",
    "Guider",
    "PathSampler",
    "SavePath",
    "LoadPath",
    "PathPreview",
    "EditReport",
    "Composite",
    "EditGrid",
    "ContactSheet",
]
each_node = pytest.mark.parametrize("name", NAMES)


def test_the_pack_offers_these_nodes_and_no_others(comfy: Path):
    from diffusion_path.nodes import NODES

    assert [cls.__name__ for cls in NODES] == NAMES


@each_node
def test_a_node_has_a_lasting_id_a_place_in_the_menu_and_words_to_find_it_by(
    comfy: Path, name: str
):
    schema = node(name).GET_SCHEMA()
    assert schema.node_id == f"DiffusionPath_{name}"
    assert schema.category == "diffusion path" or schema.category.startswith("diffusion path/")
    assert schema.display_name
    assert schema.description.endswith(".")
    assert schema.search_aliases


@each_node
def test_every_input_and_output_explains_itself(comfy: Path, name: str):
    schema = node(name).GET_SCHEMA()
    for socket in (*schema.inputs, *schema.outputs):
        assert socket.tooltip and socket.tooltip.endswith("."), socket


@each_node
def test_widgets_have_labels_in_words(comfy: Path, name: str):
    inputs = node(name).GET_SCHEMA().inputs
    labels = [one.display_name or one.id for one in inputs]
    assert len(set(labels)) == len(labels)
    widgets = [one for one in inputs if hasattr(one, "socketless")]
    assert [one.id for one in widgets if "_" in (one.display_name or one.id)] == []


def test_no_two_nodes_have_one_name(comfy: Path):
    shown = [node(name).GET_SCHEMA().display_name for name in NAMES]
    assert len(set(shown)) == len(shown)


@each_node
def test_a_node_has_a_help_page_under_its_name(comfy: Path, name: str):
    page = ROOT / "web" / "docs" / f"DiffusionPath_{name}.md"
    title = node(name).GET_SCHEMA().display_name
    assert page.read_text(encoding="utf-8").startswith(f"# {title}\n")


@each_node
def test_a_help_page_fits_the_panel_and_has_a_picture(name: str):
    page = ROOT / "web" / "docs" / f"DiffusionPath_{name}.md"
    text = page.read_text(encoding="utf-8")
    for file in (found := re.findall(r"!\[[^]]+\]\((\S+)\)", text)):
        assert (page.parent / file).stat().st_size < 30_000
    assert found
    assert [row for row in text.splitlines() if row.startswith("|") and len(row) > 45] == []


@each_node
def test_the_help_page_lists_every_input_with_its_default_and_range(comfy: Path, name: str):
    page = (ROOT / "web" / "docs" / f"DiffusionPath_{name}.md").read_text(encoding="utf-8")
    _, _, section = page.partition("\n## Inputs\n")
    told = {}
    for row in re.finditer(
        r"^- ((?:\*\*[^*]+\*\*(?: `\w+`)?(?:, )?)+)(?: \((.*?)\))?: ",
        section.split("\n## ")[0],
        re.MULTILINE,
    ):
        ids = re.findall(r"`(\w+)`", row[1]) or re.findall(r"\*\*(\w+)\*\*", row[1])
        told |= {input_id: (row[2] or "", index) for index, input_id in enumerate(ids)}
    inputs = {one.id: one for one in node(name).GET_SCHEMA().inputs}
    assert set(told) == set(inputs)
    for input_id, one in inputs.items():
        text, index = told[input_id]
        default = getattr(one, "default", None)
        if isinstance(default, int | float):
            value, _, limits = text.split(";")[0].partition(", ")
            values = value.split(" and ")
            assert float(values[min(index, len(values) - 1)]) == default, input_id
            if limits and not limits.startswith("or "):
                assert [float(limit) for limit in limits.split(" to ")] == [one.min, one.max]
        elif isinstance(default, str) and text:
            assert text.split(";")[0] in (default, "empty", "optional"), input_id


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        (
            "DDIMInversion",
            {
                "steps": 0,
                "spacing": "leading",
                "strength": 1.0,
                "fixed_point_iterations": 0,
                "cfg": 1.0,
                "average": 1,
                "solver": "auto",
                "gamma": 0.0,
                "seed": 0,
            },
        ),
        ("DemoModel", {"kind": "unet", "checkpoint": "demo (ships with the pack)"}),
        (
            "StraightPath",
            {"steps": 0, "spacing": "auto", "seed": 0, "noise": "fresh", "settings": "auto"},
        ),
        (
            "DDPMInversion",
            {"steps": 100, "cfg": 3.5, "seed": 0, "spacing": "leading", "solver": "ddpm"},
        ),
        (
            "NullTextInversion",
            {"cfg": -1.0, "inner_steps": 0, "learning_rate": 0.01, "early_stop": 0.0},
        ),
        (
            "NegativePromptInversion",
            {"proximal": "none", "quantile": 0.7, "reconstruction": 0.6},
        ),
        ("RecordPath", {"seed": 0, "steps": 0, "cfg": -1.0, "spacing": "leading"}),
        (
            "DiffEditMask",
            {
                "strength": 0.5,
                "maps": 10,
                "method": "noise",
                "threshold": 0.5,
                "blur": 0,
                "seed": 0,
            },
        ),
        *(
            (name, {"weight": 1.0, "curve": "constant", "start": 0.0, "end": 0.5})
            for name in ("MDPCondition", "MDPGuidance")
        ),
        ("MDPEpsilon", {"weight": 1.0, "curve": "constant", "start": 0.04, "end": 0.54}),
        ("MDPLatent", {"weight": 0.2, "curve": "constant", "start": 0.0, "end": 0.8}),
        (
            "FlowEdit",
            {
                "source_cfg": -1.0,
                "strength": 1.0,
                "anchor": 0.0,
                "start": -1.0,
                "end": 1.0,
                "average": 1,
                "settings": "auto",
            },
        ),
        ("UniEdit", {"alpha": 0.6, "omega": 5.0}),
        ("PullToSource", {"eta": 0.9, "start": 0.0, "end": 0.25}),
        (
            "HSpace",
            {"scale": 0.5, "start": 0.0, "end": 1.0, "shifted": "picture only", "number": 1},
        ),
        (
            "HSpaceDirections",
            {"pictures": 32, "count": 4, "scale": 2.0, "steps": 20, "cfg": -1.0},
        ),
        ("Composite", {"feather": 8}),
        ("MaskBlend", {"start": 0.0, "end": 1.0}),
        (
            "PromptToPrompt",
            {
                "mode": "auto",
                "cross_replace": 0.8,
                "self_replace": 0.4,
                "word_overrides": "",
                "cross_start": 0.0,
                "self_start": 0.0,
                "self_limit": 32,
            },
        ),
        ("Reweight", {"start": 0.0, "end": 1.0}),
        ("LocalBlend", {"subtract_words": "", "threshold": 0.3, "start": 0.2, "resolution": 0}),
        ("PaintWithWords", {"strength": 0.4}),
        ("AttentionMaps", {"words": "", "resolution": 0, "start": 0.0, "end": 1.0}),
        ("Sampler", {"cfg": -1.0, "start": 0.0, "eta": 0.0, "seed": 0}),
        ("PathPreview", {"frames": 8}),
    ],
)
def test_defaults_are_those_of_the_documentation(comfy: Path, name: str, defaults: dict):
    inputs = {one.id: one for one in node(name).GET_SCHEMA().inputs}
    assert {key: inputs[key].default for key in defaults} == defaults


def test_the_help_page_of_flow_edit_has_the_settings_of_every_family():
    page = (ROOT / "web" / "docs" / "DiffusionPath_FlowEdit.md").read_text(encoding="utf-8")
    told = {
        row[1]: [*row.groups()[1:]]
        for row in re.finditer(
            r"^- \*\*(.+?)\*\*(?: \(also .*?\))?: (\d+) steps, \*(\w+)\*, `start` ([\d.]+), "
            r"`source_cfg` ([\d.]+), sampler's `cfg` ([\d.]+)\. ",
            page,
            re.MULTILINE,
        )
    }
    assert told == {
        name: [str(steps), spacing, *(f"{value:g}" for value in values)]
        for name, (steps, spacing, *values) in FAMILIES.items()
    }


def test_the_help_page_of_the_sampler_has_what_is_usual_for_every_family():
    page = (ROOT / "web" / "docs" / "DiffusionPath_Sampler.md").read_text(encoding="utf-8")
    row = re.compile(r"^- \*\*([^*]+)\*\*.*?: (\d+) steps, `cfg` ([\d.]+)\.$", re.MULTILINE)
    told = {name: (int(steps), float(cfg)) for name, steps, cfg in row.findall(page)}
    assert told == USUAL
    assert USUAL.keys() == FAMILIES.keys()
