"""The GitHub workflows: what they call exists, and they can be read by GitHub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_path.tools.release import project
from diffusion_path.tools.setup import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
each_workflow = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)


def read(file: Path) -> dict[str, Any]:
    workflow: dict[Any, Any] = yaml.safe_load(file.read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads `on` as true; GitHub does not
    return workflow


def steps(file: Path) -> Iterator[dict[str, Any]]:
    for job in read(file)["jobs"].values():
        yield from job["steps"]


def commands(file: Path) -> str:
    return "\n".join(step["run"] for step in steps(file) if "run" in step)


def test_there_are_three():
    assert [file.stem for file in WORKFLOWS] == ["nightly", "publish", "tests"]


@each_workflow
def test_a_workflow_says_when_and_on_what_it_runs_and_for_how_long(file: Path):
    workflow = read(file)
    assert {"name", "on", "permissions", "jobs"} <= {*workflow}
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert job["timeout-minutes"] <= 120
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@each_workflow
def test_actions_are_pinned_to_a_major_version(file: Path):
    used = [step["uses"] for step in steps(file) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", one) for one in used), used


@each_workflow
def test_what_a_workflow_calls_exists(file: Path):
    said = commands(file)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = re.findall(r"\bmake ([a-z-]+)", said)
    assert {*made} <= {*targets}
    modules = re.findall(r"-m diffusion_path\.([\w.]+)", said)
    scripts = re.findall(r"python (?:-\w )*([\w/]+\.py)", said)
    scripts += [module.replace(".", "/") + ".py" for module in modules]
    assert all((ROOT / script).is_file() for script in scripts), scripts
    assert made or scripts
    cached = [step.get("with", {}).get("cache-dependency-path", "") for step in steps(file)]
    for path in " ".join(cached).split():
        if not path.startswith("ComfyUI/"):
            assert (ROOT / path.removeprefix("pack/")).is_file(), path


def test_lint_and_tests_run_on_pushes_and_pull_requests():
    tests = next(file for file in WORKFLOWS if file.stem == "tests")
    assert {*read(tests)["on"]} == {"push", "pull_request"}
    for target in ("make lint", "make test", "make browser"):
        assert target in commands(tests)


def test_the_nightly_run_has_every_python_that_is_supported():
    nightly = next(file for file in WORKFLOWS if file.stem == "nightly")
    workflow = read(nightly)
    assert workflow["on"]["schedule"]
    pythons = workflow["jobs"]["contract"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12", "3.13"]
    assert project()["project"]["requires-python"] == f">={pythons[0]}"


def test_nothing_is_published_before_it_is_complete():
    publish = next(file for file in WORKFLOWS if file.stem == "publish")
    said = [step.get("run") or step["uses"] for step in steps(publish)]
    check = next(i for i, one in enumerate(said) if "release.py check" in one)
    assert all("publish-node-action" not in one and "gh release" not in one for one in said[:check])
    assert "publish-node-action" in said[check + 1]
