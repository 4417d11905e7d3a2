"""Rows of the benchmark table, end to end on two edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def batch(comfy: Path) -> Any:
    from diffusion_path.benchmarks.batch import Batch, Demo
    from diffusion_path.benchmarks.edits import draw_edits

    with torch.inference_mode():
        return Batch(Demo.load(), draw_edits("held_out", 1)[:2])


def measured(batch: Any, *names: str) -> list[Any]:
    from diffusion_path.benchmarks.edits import measure
    from diffusion_path.benchmarks.techniques import ROWS
    from diffusion_path.demo.judge import Judge

    rows = [row for row in ROWS if row.name in names]
    assert len(rows) == len(names)
    return list(measure(rows, batch, Judge.load()))


def test_a_row_of_the_table_is_computed_end_to_end(batch: Any, tmp_path: Path) -> None:
    from diffusion_path.benchmarks.edits import write

    rows = measured(batch, "source, not edited", "MDP-ε", "DiffEdit")
    write(rows, batch.edits, tmp_path)

    table = (tmp_path / "edits.md").read_text()
    assert all(f"| {row.name} | " in table for row in rows)
    assert (tmp_path / "edits.png").stat().st_size > 10_000
    unedited, mdp, diffedit = rows
    # in its window of 25 steps nothing is predicted
    assert (unedited.evaluations, mdp.evaluations) == (0, 50 + 2 * 25)
    assert diffedit.evaluations == 50 + 20 + 80
    assert all(score.iou is not None for score in diffedit.scores)


def test_prompt_to_prompt_is_measured_edit_by_edit(batch: Any) -> None:
    plain, injected, blended = measured(
        batch,
        "plain sampling from the inverted noise",
        "prompt-to-prompt",
        "prompt-to-prompt and local blend",
    )
    assert (injected.evaluations, blended.evaluations) == (50 + 140, 50 + 150)
    assert all(score.iou is None for score in injected.scores)
    assert all(score.iou is not None for score in blended.scores)
    for one, other in zip(plain.scores, injected.scores, strict=True):
        assert other.outside > one.outside  # what the edit does not name stays


def test_the_truth_scores_above_the_unedited_source(batch: Any) -> None:
    from diffusion_path.benchmarks.scores import mean

    unedited, truth = measured(batch, "source, not edited", "the truth itself")
    assert mean(truth.scores, "psnr") > mean(unedited.scores, "psnr")


def test_edits_are_the_same_every_time_and_of_every_kind() -> None:
    from diffusion_path.benchmarks.edits import draw_edits
    from diffusion_path.demo.world import KINDS, split_of

    edits = draw_edits("held_out", 3)
    assert edits == draw_edits("held_out", 3)
    assert len(set(edits)) == len(edits)
    assert [edit.kind for edit in edits] == [kind for kind in KINDS for _ in range(3)]
    assert all(split_of(edit.source, edit.target) == "held_out" for edit in edits)


def test_masks_are_compared_on_the_cells_of_the_latent() -> None:
    from diffusion_path.benchmarks.scores import iou

    true = torch.zeros(128, 128)
    true[:64, :61] = 1  # seven cells and most of an eighth
    found = torch.zeros(16, 16)
    found[:8, :8] = 1
    assert iou(found, true) == 1
    assert iou(found.roll(8, dims=1), true) == 0
    found[:8, 8:] = 1
    assert iou(found, true) == 0.5
