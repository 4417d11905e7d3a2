"""The benchmark for graphics cards: on tiny models, and its true sizes without their weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def rows(comfy: Path) -> dict[tuple[str, str], Any]:
    from diffusion_path.benchmarks.gpu import SMALL, SMALL_STEPS, measured

    found = measured(list(SMALL.values()), SMALL_STEPS, repeats=1)
    return {(row.family, row.technique): row for row in found}


def check(row: Any) -> None:
    """Every figure is a number that can be."""
    assert not row.failed, row.failed
    figures = [row.evaluations, row.backwards, row.seconds, row.ratio]
    if torch.cuda.is_available():
        figures += [*row.peaks, row.bare_peak]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
    assert row.seconds > 0 and row.ratio > 0


def test_every_technique_is_measured_on_every_family_that_allows_it(rows: dict):
    unet = ["Sampler", "Sampler with Prompt-to-Prompt", "Null-Text Inversion"]
    assert list(rows) == [
        *[("tiny sd15", name) for name in unet],
        *[("tiny sdxl", name) for name in unet],
        ("tiny sd3", "Sampler"),
        ("tiny sd3", "Null-Text Inversion"),
        ("tiny flux_dev", "Sampler"),
        ("tiny flux_schnell", "Null-Text Inversion"),
    ]
    for row in rows.values():
        check(row)


def test_a_step_takes_the_evaluations_of_its_technique(rows: dict):
    costs = {
        "Sampler": (2, 0),
        "Sampler with Prompt-to-Prompt": (3, 0),
        "Null-Text Inversion": (3, 2),
    }
    for (family, technique), row in rows.items():
        assert (row.evaluations, row.backwards) == costs[technique], (family, technique)


def test_the_table_has_every_row_and_says_where_it_was_made(rows: dict):
    from diffusion_path.benchmarks.gpu import SMALL_STEPS, device, report

    text = report(list(rows.values()), SMALL_STEPS, repeats=1)
    for (family, technique), row in rows.items():
        figures = f"{row.evaluations:g} | {row.backwards:g} | "
        assert f"| {family} | {technique} | float32 | {figures}" in text
    assert device() in text and torch.__version__ in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {11}


def test_what_the_bare_network_is_asked_is_what_the_node_has_asked(comfy: Path):
    from diffusion_path.benchmarks.batch import Demo
    from diffusion_path.benchmarks.gpu import NULL_TEXT, SMALL, Calls, way

    family = SMALL["sd15"]
    with torch.inference_mode():
        model = family.model()
        run = way(family, model, Demo.load().clip, NULL_TEXT, 2)
        network = model.model.diffusion_model
        theirs, bare = Calls(network), Calls(network)
        with theirs.listening():
            run()
        with bare.listening():
            theirs.again()
    assert (bare.evaluations, bare.backwards) == (theirs.evaluations, theirs.backwards) == (6, 4)
    assert bare.asked.keys() == theirs.asked.keys()


def test_only_the_whole_table_of_a_card_goes_into_the_repository(comfy: Path):
    from diffusion_path.benchmarks.gpu import RESULTS, ROOT, folder

    assert folder(on_card=True, partly=False) == RESULTS
    for card, partly in [(True, True), (False, True), (False, False)]:
        assert folder(card, partly) == ROOT / "bench-output"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("sd15", 0.860),
        ("sdxl", 2.567),
        ("sd3", 2.470),
        ("flux_dev", 11.901),
        ("flux_without_guidance", 11.891),
    ],
)
def test_the_models_have_the_size_of_the_published_ones(comfy: Path, name: str, billions: float):
    from diffusion_path.benchmarks.gpu import FULL, configured

    network: nn.Module = configured(*FULL[name].model.args, device="meta").diffusion_model
    numbers = sum(weight.numel() for weight in network.parameters())
    numbers += sum(buffer.numel() for buffer in network.buffers())
    assert numbers / 1e9 == pytest.approx(billions, abs=5e-4)
