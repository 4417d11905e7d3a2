"""Who gets which row, and what happens when workers die: on a real Ray, with small workers."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray

from diffusion_path.batch.driver import BatchError, Crew
from diffusion_path.batch.server import ComfyUIError
from diffusion_path.batch.worker import OutputError, Task


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray of this module's own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local",
        num_cpus=4,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


STEPS = 10
"""Rows that each of two workers has to get."""


class Stand:
    """A worker that says who has made a row; a row tells by its name what is to happen."""

    def __init__(self, *, starts: str = "", room: str = "") -> None:
        self.starts, self.room, self.begun = starts, room, 0

    def start(self) -> str:
        if self.starts == "dies":
            os._exit(1)
        if self.starts:
            raise ComfyUIError(self.starts)
        return "here"

    def run(self, task: Task) -> dict:
        if self.room:
            self.meet(Path(self.room))
        if task.name == "dies":
            os._exit(1)
        if task.name == "full":
            raise OutputError("the disk is full")
        return {"status": "done", "worker": os.getpid()}

    def meet(self, room: Path) -> None:
        """Go through the first rows in step with another worker, however long it takes to start."""
        self.begun += 1
        (room / f"{os.getpid()} {self.begun}").touch()
        end = time.monotonic() + 60
        while self.begun <= STEPS and len(list(room.glob(f"* {self.begun}"))) < 2:
            assert time.monotonic() < end, "no other worker has got as many rows"
            time.sleep(0.01)


def tasks(*names: str, first: int = 1) -> deque[Task]:
    return deque(Task(first + n, f"{first + n}", name, {}) for n, name in enumerate(names))


def lines(groups: list[deque[Task]], count: int = 2, **options: str) -> list[dict]:
    """All lines of a run, as they came."""
    hire = partial(ray.remote(num_cpus=1)(Stand).remote, **options)
    crew = Crew(deque(groups), hire, count)
    return [line for some in crew.lines() for line in some]


def test_every_row_is_run_once_and_a_pictures_rows_by_one_worker(tmp_path: Path):
    groups = [tasks(*["row"] * 7, first=first) for first in range(1, 57, 7)]
    found = lines(groups, room=f"{tmp_path}")
    assert sorted(line["row"] for line in found) == list(range(1, 57))
    assert len({line["worker"] for line in found}) == 2
    for first in range(1, 57, 7):
        workers = {line["worker"] for line in found if first <= line["row"] < first + 7}
        assert len(workers) == 1


def test_a_picture_of_many_rows_is_shared(tmp_path: Path):
    found = lines([tasks(*["row"] * 60)], room=f"{tmp_path}")
    assert sorted(line["row"] for line in found) == list(range(1, 61))
    assert min(Counter(line["worker"] for line in found).values()) >= STEPS


def test_a_row_on_which_three_workers_die_is_given_up_and_no_other():
    found = lines([tasks("row", "dies", "row", "row", "dies")], count=1)
    assert [line["row"] for line in found] == [1, 2, 3, 4, 5]
    assert [line["status"] for line in found] == ["done", "failed", "done", "done", "failed"]
    assert "3 workers have died on it" in found[1]["error"]


def test_a_full_disk_ends_the_run_and_is_no_rows_fault():
    with pytest.raises(BatchError, match=r"^the disk is full$"):
        lines([tasks("row", "full", "row")], count=1)


def test_a_comfyui_that_does_not_start_ends_the_run_with_its_reason():
    with pytest.raises(BatchError, match=r"^no ComfyUI here$"):
        lines([tasks("row")], starts="no ComfyUI here")


def test_workers_that_die_while_they_start_end_the_run():
    with pytest.raises(BatchError, match="die while they start"):
        lines([tasks("row")], starts="dies", count=1)
