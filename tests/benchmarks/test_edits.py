"""Rows of the benchmark table, end to end on two edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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
    write(rows, batch.edits, tmp_path, "unet")

    table = (tmp_path / "edits.md").read_text()
    assert all(f"| {row.name} | " in table for row in rows)
    assert (tmp_path / "edits.png").stat().st_size > 10_000
    unedited, mdp, diffedit = rows
    # in its window of 25 steps nothing is predicted
    assert (unedited.evaluations, mdp.evaluations) == (0, 50 + 2 * 25)
    assert diffedit.evaluations == 50 + 20 + 80
    assert all(score.iou is not None for score in diffedit.scores)


def test_a_row_measured_later_joins_those_of_before(batch: Any, tmp_path: Path) -> None:
    from diffusion_path.benchmarks.edits import merged, read, write

    assert read(batch.edits, tmp_path, "flow") == []
    rows = measured(batch, "source, not edited", "the truth itself")
    names = [row.name for row in rows]
    write(rows[1:], batch.edits, tmp_path, "flow")
    both = merged(read(batch.edits, tmp_path, "flow"), rows[:1], names)
    write(both, batch.edits, tmp_path, "flow")

    for _ in range(2):  # what is read is written again, and read
        kept = read(batch.edits, tmp_path, "flow")
        assert [row.name for row in kept] == names
        for row, before in zip(kept, rows, strict=True):
            assert row.evaluations == before.evaluations
            assert [one.confirmed for one in row.scores] == [one.confirmed for one in before.scores]
            assert abs(row.pictures.astype(int) - before.pictures).mean() < 3  # 256 colours
        write(kept, batch.edits, tmp_path, "flow")
    assert read(batch.edits[:1], tmp_path, "flow") == []  # other edits have other rows
    assert read(batch.edits, tmp_path, "unet") == []


def test_a_new_row_replaces_the_old_one_and_rows_without_a_name_go() -> None:
    from diffusion_path.benchmarks.edits import Measured, merged

    def rows(names: str, evaluations: float) -> list[Measured]:
        return [Measured(name, np.zeros(0), [], evaluations) for name in names]

    found = merged(rows("abd", 1), rows("cb", 2), names=["c", "b", "a"])
    assert [(row.name, row.evaluations) for row in found] == [("c", 2), ("b", 2), ("a", 1)]


def test_a_run_can_be_of_one_model_and_a_few_rows() -> None:
    from diffusion_path.benchmarks.edits import arguments, chosen
    from diffusion_path.benchmarks.techniques import ROWS

    assert arguments([]) == ("unet", [])
    assert arguments(["MDP"]) == ("unet", ["MDP"])
    assert arguments(["flow", "MDP", "Uni"]) == ("flow", ["MDP", "Uni"])
    assert {row.name[:3] for row in chosen(ROWS, "flow", ["MDP", "Uni"])} == {"MDP", "Uni"}
    assert chosen(ROWS, "unet", ["prompt-to-prompt"])
    with pytest.raises(SystemExit, match="no row for flow is called null-text"):
        chosen(ROWS, "flow", ["null-text"])


def test_a_batch_is_walked_as_its_pictures_are_one_by_one(batch: Any) -> None:
    from diffusion_path.benchmarks.techniques import ddpm

    with torch.inference_mode():
        inverted = batch.inverted(lambda batch: ddpm(batch, steps=4))
        together = inverted.sample(eta=1.0, start=0.3)
        alone = [one.sample(eta=1.0, start=0.3) for one in inverted.each()]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-3)


def test_flow_edit_costs_three_evaluations_a_step_and_no_inversion(batch: Any) -> None:
    plain, straight, both = measured(
        batch,
        "plain sampling from the inverted noise",
        "FlowEdit",
        "prompt-to-prompt and FlowEdit",
    )
    # from 0.3 of 50 steps on, the source and the target under guidance
    assert straight.evaluations == both.evaluations == 35 * 3
    for one, other in zip(plain.scores, straight.scores, strict=True):
        assert other.outside > one.outside


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


def test_a_picture_that_changes_as_its_prompt_has_the_direction_of_its_prompt() -> None:
    from diffusion_path.benchmarks.edits import draw_edits
    from diffusion_path.benchmarks.scores import directions

    edits = draw_edits("held_out", 4)
    after = np.stack([edit.after for edit in edits])
    with torch.inference_mode():
        nothing = directions(np.stack([edit.before for edit in edits]), edits)
        right, wrong = directions(after, edits), directions(np.roll(after, 1, axis=0), edits)
    assert nothing == [0.0] * len(edits)
    assert sum(right) / len(edits) > 0.5 > sum(wrong) / len(edits) + 0.2
