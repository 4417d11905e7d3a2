"""What columns mean, found from the workflows themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_path.batch.workflow import (
    MASK,
    REPORT,
    TRUTH_REPORT,
    TWINS,
    WorkflowError,
    ancestors,
    converted,
    load_workflow,
    path_makers,
    plan,
)

EXAMPLES = sorted(path.stem for path in TWINS.glob("*.json"))
WITHOUT_RESULT = ("08", "43", "53")
GENERATED = ("05", "10", "66", "67")
"""Examples that begin with no picture."""


def prompt(example: str, column: str) -> set[str]:
    """The text that an example has where a column would go."""
    workflow = load_workflow(example)
    return {workflow[n]["inputs"][name] for n, name in plan(workflow, [column]).inputs[column]
            if n in workflow}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_that_saves_a_picture_can_be_run_over_a_folder(example: str):
    workflow = load_workflow(example)
    number = example[:2]
    if number in WITHOUT_RESULT:
        with pytest.raises(WorkflowError, match="0 Save Image nodes"):
            plan(workflow, [])
        return
    if number in GENERATED or number == "71":
        with pytest.raises(WorkflowError, match=r"loads \d pictures"):
            plan(workflow, ["picture"])
        return
    filled = plan(workflow, ["picture", "seed"]).filled({"picture": "a.png", "seed": 7})
    pictures = [node["inputs"] for node in filled.values() if node["class_type"] == "LoadImage"]
    assert pictures == [{"image": "a.png"}]
    assert all(
        node["inputs"].get(name, 7) == 7
        for node in filled.values()
        for name in ("seed", "noise_seed")
    )


@pytest.mark.parametrize("example", ["01", "02", "06", "12", "17", "23", "25", "31", "36"])
def test_the_two_prompts_are_found(example: str):
    (source,), (target,) = prompt(example, "source_prompt"), prompt(example, "target_prompt")
    assert source and target and source != target
    both = plan(load_workflow(example), ["source_prompt", "target_prompt"])
    filled = both.filled({"source_prompt": "AAA", "target_prompt": "BBB"})
    said = json.dumps(filled)
    assert source not in said.replace(target, "") and "AAA" in said and "BBB" in said


def test_the_sources_prompt_is_known_from_its_title():
    workflow = load_workflow("17_keep_the_layout-MDP_Epsilon")
    ends = plan(workflow, ["source_prompt", "target_prompt"]).inputs
    titles = {column: workflow[ends[column][0][0]]["_meta"]["title"] for column in ends}
    assert titles == {
        "source_prompt": "What it shows now",
        "target_prompt": "What it shall show",
    }


def test_another_target_prompt_leaves_the_path_as_it_was():
    for example in ("01", "02", "17", "21"):
        made = plan(load_workflow(example), ["picture", "source_prompt", "target_prompt", "seed"])
        row = {"picture": "a.png", "source_prompt": "a cat", "seed": 1}
        one, other = (made.filled(row | {"target_prompt": text}) for text in ("a dog", "a fox"))
        assert {n: one[n] for n in path_makers(one)} == {n: other[n] for n in path_makers(other)}
        assert one != other
        assert "target_prompt" not in made.upstream
        assert {"picture", "source_prompt"} <= made.upstream


def test_only_what_leads_to_the_picture_is_run():
    made = plan(load_workflow("17"), []).workflow
    assert ancestors(made, ["11"]) == set(made)


def test_a_column_names_a_node_by_number_title_or_class():
    workflow = load_workflow("12")
    flow_edit = next(n for n, b in workflow.items() if b["class_type"] == "DiffusionPath_FlowEdit")
    title = workflow[flow_edit]["_meta"]["title"]
    for name in (flow_edit, title, "FlowEdit", "DiffusionPath_FlowEdit"):
        assert plan(workflow, [f"{name}.strength"]).inputs == {
            f"{name}.strength": [(flow_edit, "strength")]
        }


def test_a_column_of_an_input_goes_before_the_seed_of_all():
    filled = plan(load_workflow("01"), ["seed", "Sampler.seed"]).filled(
        {"Sampler.seed": 5, "seed": 1}
    )
    seeds = {b["class_type"]: b["inputs"]["seed"] for b in filled.values() if "seed" in b["inputs"]}
    assert seeds == {"DiffusionPath_StraightPath": 1, "DiffusionPath_Sampler": 5}


@pytest.mark.parametrize(
    ("example", "columns", "reason"),
    [
        ("01", ["prompt"], "there is no column prompt"),
        ("01", ["Sampler.temperature"], "DiffusionPath_Sampler has cfg, start"),
        ("01", ["Nobody.cfg"], "names no node"),
        ("01", ["Sampler.cfg", "9.cfg"], "set the same input"),
        ("12", ["CLIPTextEncode.text"], "3 nodes are named CLIPTextEncode: write the number"),
        ("28", ["target_prompt"], "write columns"),
        ("63", ["source_prompt"], "leave the column out"),
        ("24", ["source_prompt", "target_prompt"], "one prompt is both"),
        ("05", ["picture"], "loads 0 pictures"),
        ("71", ["picture"], "loads 2 pictures"),
        ("01", ["\x1b[31m" + "x" * 5000], "there is no column"),
    ],
)
def test_a_column_that_means_nothing_is_refused_in_a_sentence(example, columns, reason):
    with pytest.raises(WorkflowError, match=reason) as refused:
        plan(load_workflow(example), columns)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no workflow"),
        ("[]", "no workflow in API format"),
        ("{}", "no workflow in API format"),
        ('{"nodes": [], "links": []}', "save it with Export"),
        ('{"1": {"class_type": "SaveImage"}}', "no workflow in API format"),
        ('{"1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}}', "a node 2 it lacks"),
        ("[" * 100_000, "is no workflow"),
        ("\xff", "is no workflow"),
    ],
)
def test_what_is_no_workflow_is_refused_in_a_sentence(tmp_path: Path, text: str, reason: str):
    (tmp_path / "w.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WorkflowError, match=reason):
        load_workflow(str(tmp_path / "w.json"))


def test_a_missing_workflow_is_refused_with_what_to_give():
    with pytest.raises(WorkflowError, match="or the number of an example"):
        load_workflow("no_such_file.json")


def test_a_truth_and_a_mask_bring_their_reports():
    made = plan(load_workflow("11"), ["picture", "truth", "mask"])
    assert {REPORT, TRUTH_REPORT, MASK} <= made.workflow.keys()
    assert made.files == {"picture", "truth", "mask"}
    assert made.workflow["7"]["inputs"]["mask"] == [MASK, 0]  # in place of the painted one
    assert not plan(load_workflow("11"), ["picture"]).workflow.keys() & {REPORT, TRUTH_REPORT}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("3", "INT", 3), (3.0, "INT", 3), ("0.5", "FLOAT", 0.5), (1, "FLOAT", 1.0),
        ("true", "BOOLEAN", True), (False, "BOOLEAN", False), ("no", "BOOLEAN", False),
        ("=1+1", "STRING", "=1+1"), ("fresh", "COMBO", "fresh"),
    ],
)  # fmt: skip
def test_a_cell_becomes_what_the_node_asks_for(value, kind, expected):
    found = converted(value, kind)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [("0.5", "INT"), (0.5, "INT"), (True, "INT"), ("nan", "FLOAT"), ("inf", "FLOAT"),
     (True, "FLOAT"), ("maybe", "BOOLEAN"), (5, "STRING"), ("", "INT")],
)  # fmt: skip
def test_a_cell_of_another_type_is_refused(value, kind):
    with pytest.raises(ValueError):
        converted(value, kind)
