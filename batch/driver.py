"""Which rows are missing, and who makes them: workers of a Ray cluster, or of one made for it."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import storage
from .manifest import Manifest, file_name
from .pictures import MOST, contact_sheet
from .results import PARQUET, Journal, Line, is_made, parquet
from .server import ComfyUIError, Workflow
from .worker import RECORD, OutputError, Task, Worker, contents_of, digest
from .workflow import Plan, plan

TRIES = 3
"""A row, or a start, on which so many workers have died is given up."""

AHEAD = 2
"""Rows that a worker has got: the one that it makes, and the next."""

LEAST = 8
"""Rows of one picture that are worth a second worker, which has to make the path again."""

ENDING, END_SECONDS = "ending", 20
"""A worker is told to end beside its row, and waited for."""

READERS = 16
SHEET = "contact_sheet.jpg"
OBJECT_STORE = 128 * 2**20
"""Bytes for Ray's object store: pictures do not go through it."""


class BatchError(Exception):
    """A reason, in one sentence, why a run cannot go on."""


@dataclass(frozen=True)
class Outcome:
    """The table of a run, in the order of the manifest, and how many of it are new."""

    table: list[Line]
    ran: int

    @property
    def failed(self) -> int:
        """Rows without a picture."""
        return sum(line["status"] != "done" for line in self.table)


@dataclass
class Member:
    """A worker, the rows that are meant for it, and those that it has got, oldest first."""

    actor: Any
    rows: deque[Task] = field(default_factory=deque)
    flying: deque[tuple[Any, Task | None]] = field(default_factory=deque)
    """What Ray gives for a call, and the row; None is the start."""
    false_starts: int = 0


def tasks_of(manifest: Manifest, workflow: Workflow) -> list[Task]:
    """The rows with their identities: what they and the workflow say, not where they stand."""
    base = digest(json.dumps(workflow, sort_keys=True).encode())
    seen: Counter[str] = Counter()
    tasks = []
    for row in manifest.rows:
        said = json.dumps([base, sorted(row.cells.items()), row.error])
        seen[said] += 1  # a row that is there twice is made twice
        name = digest(f"{said}{seen[said]}".encode())[:16]
        called = file_name(row.number, row.cells.get("picture"), name)
        tasks.append(Task(row.number, name, called, row.cells))
    return tasks


def digests_of(locations: Collection[str]) -> dict[str, str | None]:
    """The digest of each file, read once; None where it cannot be read."""

    def one(location: str) -> str | None:
        try:
            return digest(storage.read(location))
        except Exception:  # whatever the storage raises; the row will say it
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(locations, pool.map(one, locations), strict=True))


def missing(
    tasks: Sequence[Task],
    journal: Journal,
    sizes: dict[str, int],
    planned: Plan,
    folder: str,
    *,
    retry_failed: bool,
) -> list[Task]:
    """The rows without a picture, or with one of other files than there are now.

    A picture whose source is gone is kept. A row that failed is left alone, unless its files have
    changed or `retry_failed`.
    """

    def files(task: Task) -> dict[str, str]:
        named = planned.files & task.cells.keys()
        return {column: storage.joined(folder, str(task.cells[column])) for column in named}

    known = [task for task in tasks if task.id in journal.lines]
    digests = digests_of({location for task in known for location in files(task).values()})

    def is_settled(task: Task) -> bool:
        if (line := journal.lines.get(task.id)) is None:
            return False
        found = {column: digests[location] for column, location in files(task).items()}
        now = {column: there for column, there in found.items() if there is not None}
        gone = len(now) < len(found)
        same = line.get("contents") == (None if gone else contents_of(now))
        if line.get("status") == "failed":
            return same and not retry_failed
        return is_made(line, sizes) and (same or gone)

    return [task for task in tasks if not is_settled(task)]


def grouped(tasks: Sequence[Task], planned: Plan) -> deque[deque[Task]]:
    """Rows that share a path together, in the order of the manifest."""
    groups: dict[tuple[Any, ...], deque[Task]] = {}
    for task in tasks:
        key = tuple(task.cells.get(column) for column in sorted(planned.upstream))
        groups.setdefault(key, deque()).append(task)
    return deque(groups.values())


def described(task: Task, row: Line) -> Line:
    """A row's line: what the manifest says, and what became of it."""
    return {"row": task.number, "id": task.id, "status": "failed", "error": None} | task.cells | row


class Crew:
    """Hands rows to workers and takes lines from them."""

    def __init__(self, groups: deque[deque[Task]], hire: Any, count: int) -> None:
        """Begin `count` workers; `hire` makes a Ray actor."""
        self.groups, self.hire = groups, hire
        self.deaths: Counter[str] = Counter()
        self.members = [self.begin(Member(hire())) for _ in range(count)]
        self.trouble = "no worker has started"

    @staticmethod
    def begin(member: Member) -> Member:
        """Let a worker start its ComfyUI."""
        member.flying.append((member.actor.start.remote(), None))
        return member

    def take(self, member: Member) -> Task | None:
        """A worker's next row: of its own picture, of a new one, or half of another worker's."""
        if not member.rows and self.groups:
            member.rows = self.groups.popleft()
        if not member.rows:
            longest = max(self.members, key=lambda other: len(other.rows))
            if len(longest.rows) >= LEAST:
                half = len(longest.rows) // 2
                member.rows = deque(longest.rows.pop() for _ in range(half))
                member.rows.reverse()
        return member.rows.popleft() if member.rows else None

    def feed(self, member: Member) -> None:
        """Give a worker what it may have, once it has started."""
        started = not member.flying or member.flying[0][1] is not None
        while started and len(member.flying) < AHEAD and (task := self.take(member)):
            member.flying.append((member.actor.run.remote(task), task))

    def lines(self) -> Iterator[list[Line]]:
        """The lines of all rows, as they come."""
        import ray

        while self.groups or any(one.rows or busy(one) for one in self.members):
            if not self.members:
                raise BatchError(self.trouble)
            for member in self.members:
                self.feed(member)
            calls = [call for member in self.members for call, _ in member.flying]
            ray.wait(calls, num_returns=1, timeout=1)
            yield self.ready()

    @property
    def started(self) -> int:
        """How many workers run rows."""
        return sum(not member.flying or busy(member) for member in self.members)

    def ready(self) -> list[Line]:
        """The lines that have come."""
        import ray

        calls = [call for member in self.members for call, _ in member.flying]
        ready = set(ray.wait(calls, num_returns=len(calls), timeout=0)[0]) if calls else set()
        found = []
        for member in list(self.members):
            while member.flying and member.flying[0][0] in ready:
                call, task = member.flying.popleft()
                line = self.taken(member, call, task)
                if task is not None and line is not None:
                    found.append(described(task, line))
        return found

    def taken(self, member: Member, call: Any, task: Task | None) -> Line | None:
        """A row's line; None for a start, or if the worker has died and the row goes back."""
        import ray

        try:
            answer = ray.get(call)
        except OutputError as error:
            raise BatchError(said(error)) from None
        except ComfyUIError as error:  # it cannot start; what a row fails of is in its line
            self.trouble = said(error)
            self.dismiss(member, task)
            return None
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            return self.bury(member, task, error)
        if task is None:
            return None
        member.false_starts = 0
        return dict(answer)

    def bury(self, member: Member, task: Task | None, error: Exception) -> Line | None:
        """Replace a worker that has died; the line of a row that the third one has died of."""
        import ray

        ray.kill(member.actor)
        member.rows.extendleft(reversed([late for _, late in member.flying if late]))
        member.flying.clear()
        line: Line | None = None
        if task is None:
            member.false_starts += 1
            self.trouble = f"the workers die while they start: {said(error)}"
            if member.false_starts == TRIES:
                self.dismiss(member, None)
                return None
        else:
            tqdm.write(f"a worker has died on row {task.number}, another begins", sys.stderr)
            self.deaths[task.id] += 1
            if self.deaths[task.id] < TRIES:
                member.rows.appendleft(task)
            else:
                line = {"error": f"{TRIES} workers have died on it; it may need too much memory"}
        member.actor = self.hire()
        self.begin(member)
        return line

    def close(self) -> None:
        """End the ComfyUIs, also in the midst of a row, so that nothing of theirs is left."""
        import ray

        calls = [one.actor.stop.options(concurrency_group=ENDING).remote() for one in self.members]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=END_SECONDS)

    def dismiss(self, member: Member, task: Task | None) -> None:
        """Do without a worker that cannot start."""
        import ray

        ray.kill(member.actor)
        back = [task, *(late for _, late in member.flying), *member.rows]
        if rows := deque(one for one in back if one):
            self.groups.appendleft(rows)
        self.members.remove(member)


def said(error: Exception) -> str:
    """What an error says; of one that a worker has raised, without Ray's frame."""
    return storage.reason(getattr(error, "cause", None) or error)


def busy(member: Member) -> bool:
    """Whether a worker has got rows."""
    return any(task is not None for _, task in member.flying)


@contextmanager
def cluster(address: str | None, workers: int | None, threads: int) -> Iterator[tuple[Any, int]]:
    """Ray, joined at an address or started for this run: the class of workers, and how many."""
    try:
        import ray
    except ImportError:
        raise BatchError(
            "Ray is missing: run pip install ray, or install the pack with [batch]"
        ) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address:
            ray.init(address, **quiet)
        else:
            ray.init(
                "local",
                num_cpus=max(cores(), (workers or 1) * threads),
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                **quiet,
            )
    except (ConnectionError, ValueError, OSError) as error:
        raise BatchError(f"Ray cannot be reached: {storage.reason(error)}") from None
    # What Ray prints of dead workers, also late, Crew says in a sentence.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), ExitStack() as stack:
        stack.callback(ray.shutdown)
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        share: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": threads}
        most = gpus or max(1, int(there.get("CPU", 0)) // threads)
        share |= {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {ENDING: 1}}
        hire = ray.remote(**share)(Worker).remote
        yield partial(hire, gpu=bool(gpus), threads=threads), workers or most


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_batch(
    manifest: Manifest,
    workflow: Workflow,
    output: str,
    *,
    workers: int | None = None,
    threads: int = 1,
    address: str | None = None,
    retry_failed: bool = False,
    as_parquet: bool = False,
) -> Outcome:
    """Make what is missing of a manifest's pictures, and the table of all.

    Args:
        workers: how many; else one for each graphics card, or for each `threads` cores.
        threads: of the CPU, for each worker.
        address: of a Ray cluster; else one is started for this run.

    Raises:
        WorkflowError: a column means nothing in the workflow.
        BatchError: results cannot be written, or no worker starts.
    """
    planned = plan(workflow, manifest.columns)
    tasks = tasks_of(manifest, workflow)
    folder = storage.Folder(output)
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.held())
            folder.write(RECORD, json.dumps(workflow, indent=2).encode())
            journal = Journal(folder)
            sizes = folder.sizes()
        except Exception as error:
            raise BatchError(f"the output folder cannot be used: {said(error)}") from None
        stack.callback(journal.close)
        wrong = {row.number: row.error for row in manifest.rows if row.error}
        journal.add(
            [
                described(task, {"error": wrong[task.number]})
                for task in tasks
                if task.number in wrong and task.id not in journal.lines
            ]
        )
        todo = missing(
            [task for task in tasks if task.number not in wrong],
            journal,
            sizes,
            planned,
            manifest.folder,
            retry_failed=retry_failed,
        )
        try:
            if todo:
                with cluster(address, workers, threads) as (hire, most):
                    hire = partial(hire, workflow, manifest.folder, folder.location)
                    crew = Crew(grouped(todo, planned), hire, min(most, len(todo)))
                    with closing(crew):
                        write_lines(crew, journal, len(todo))
            table = journal.finish([task.id for task in tasks])
            if as_parquet:
                folder.write(PARQUET, parquet(table))
            write_sheet(table, manifest.folder, folder)
        except OSError as error:
            raise BatchError(f"the results cannot be written: {said(error)}") from None
    return Outcome(table, len(todo))


def write_lines(crew: Crew, journal: Journal, total: int) -> None:
    """Write the lines of all rows as they come, also those that have come when it is stopped."""
    with tqdm(total=total, unit="row", dynamic_ncols=True) as bar:
        failed = 0

        def add(lines: list[Line]) -> None:
            nonlocal failed
            if lines:
                journal.add(lines)
                failed += sum(line["status"] != "done" for line in lines)
                bar.update(len(lines))
            bar.set_postfix(workers=crew.started, failed=failed, refresh=False)

        try:
            for lines in crew.lines():
                add(lines)
        except KeyboardInterrupt:
            add(crew.ready())
            raise


def write_sheet(table: Sequence[Line], folder: str, output: storage.Folder) -> None:
    """Write a contact sheet of rows from all over the table."""
    made = [line for line in table if line["status"] == "done"]
    step = max(1, -(-len(made) // MOST))
    cells = []
    for line in made[::step]:
        try:
            source = storage.read(storage.joined(folder, line["picture"]))
        except Exception:  # it has none, or no longer
            source = None
        label = f"{line['row']}  {line.get('target_prompt', '')}"
        cells.append((source, output.read(line["result"]), label))
    if cells:
        output.write(SHEET, contact_sheet(cells))
