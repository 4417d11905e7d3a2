"""docs/compatibility.md shows what `make compat` has recorded."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

import diffusion_path
from diffusion_path.tools import compat
from diffusion_path.tools.compat import (
    CONTRACT,
    OLDEST,
    PAGES,
    RECORD,
    ROWS,
    Result,
    counted,
    page,
    table,
)
from diffusion_path.tools.release import project

RECORDED = json.loads(RECORD.read_text())
RESULTS = [Result(**one) for one in RECORDED["results"]]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_a_page_shows_what_was_recorded(file: Path):
    assert file.read_text() == page(file, RECORDED)
    assert table(RESULTS[:2]).splitlines()[2] in file.read_text()


def test_the_record_has_its_date():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", RECORDED["date"])


def test_each_row_was_run_or_says_why_not():
    assert [one.comfyui for one in RESULTS] == [comfyui for comfyui, _, _ in ROWS]
    for result in RESULTS:
        assert result.contract and result.edit


def test_what_is_supported_and_was_run_has_passed():
    supported = [one for one in RESULTS if one.comfyui >= OLDEST and "not run" not in one.edit]
    assert len({one.python for one in supported}) > 1
    assert len({one.torch for one in supported}) > 1
    assert all(map(compat.is_good, supported))


def test_the_oldest_comfyui_is_the_one_that_the_registry_is_told():
    assert project()["tool"]["comfy"]["requires-comfyui"] == f">={OLDEST}"


def test_a_comfyui_that_is_too_old_is_told_so_when_it_loads_the_pack(
    comfy: Path, monkeypatch: pytest.MonkeyPatch
):
    from comfy_api.latest import io

    monkeypatch.delattr(io, "Array")
    with pytest.raises(ImportError, match=f"needs ComfyUI {re.escape(OLDEST)} or newer: update"):
        asyncio.run(diffusion_path.comfy_entrypoint())


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("16 passed in 3.21s\n", "16 passed"),
        ("1 failed, 15 passed, 2 warnings in 3.21s (0:01:00)\n", "1 failed, 15 passed"),
        ("ImportError: no module\n", ""),
    ],
)
def test_pytests_last_line_is_understood(output: str, said: str):
    assert counted(output) == said


def test_the_contracts_tests_exist():
    for one in CONTRACT:
        file, name = one.split("::")
        assert f"def {name}(" in (compat.ROOT / file).read_text()
