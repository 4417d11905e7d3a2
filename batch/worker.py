"""One ComfyUI with its model loaded, which runs rows one after the other."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from . import storage
from .manifest import Value
from .pictures import png, upright
from .results import Line, names
from .server import ComfyUIError, Server, Workflow, find_comfyui
from .workflow import Plan, figures, plan, typed

RECORD = "workflow.json"
"""The workflow of a run, in its output folder."""

ROW_SECONDS = 3600
"""After that a row has failed, and its ComfyUI is started anew."""

NAN = "invalid value encountered in cast"
"""What numpy says, and ComfyUI goes on to save black, where a picture holds NaN."""


class OutputError(Exception):
    """A reason, in one sentence, why results cannot be written: no row's fault."""


@dataclass(frozen=True)
class Task:
    """A row as a worker gets it: where it stands in the manifest, and what its result is called."""

    number: int
    id: str
    name: str
    cells: dict[str, Value]


def digest(data: bytes) -> str:
    """What tells a file's contents from any other's."""
    return hashlib.sha256(data).hexdigest()


def contents_of(digests: Mapping[str, str]) -> str:
    """One digest of the files that a row names, by column."""
    return digest(repr(sorted(digests.items())).encode())[:32]


def sentence(error: Exception) -> str:
    """Why a row failed."""
    said = storage.reason(error)
    if NAN in said:
        return (
            "the picture holds NaN, as half precision makes them: take another seed or cfg, or a "
            "model or VAE in full precision"
        )
    return (
        said if isinstance(error, ComfyUIError | ValueError) else f"{type(error).__name__}: {said}"
    )


class Worker:
    """Runs rows; Ray keeps one for each graphics card, or for each few cores."""

    def __init__(
        self, workflow: Workflow, folder: str, output: str, *, gpu: bool, threads: int
    ) -> None:
        """Keep what the rows have in common.

        Args:
            folder: what relative names in the manifest start from.
            output: the folder for pictures, which holds RECORD.
            gpu: run on the graphics card that Ray has chosen, and else on the CPU.
            threads: of the CPU.
        """
        self.workflow, self.folder, self.output = workflow, folder, storage.Folder(output)
        self.gpu, self.threads = gpu, threads
        self.plans: dict[frozenset[str], Plan] = {}
        self.loaded: dict[str, str] = {}
        """The digests of the pictures that ComfyUI's input folder holds, by where they are from."""
        self.server: Server | None = None

    def start(self) -> str:
        """Start ComfyUI; returns a name for this worker.

        Raises:
            ComfyUIError: there is none, or it does not start.
            OutputError: the output folder is not the same here as where the command was started.
        """
        if not self.output.has(RECORD):
            raise OutputError(
                f"{platform.node()} does not see the output folder {self.output.location}: "
                "give a folder that all machines share, or an address such as s3://..."
            )
        warnings = [os.environ.get("PYTHONWARNINGS", ""), f"error:{NAN}:RuntimeWarning"]
        server = Server(
            "--cache-classic",  # what the last row had in common with the next, and no more
            *([] if self.gpu else ["--cpu"]),
            models=find_comfyui() / "models",
            environment={
                "OMP_NUM_THREADS": str(self.threads),
                "PYTHONWARNINGS": ",".join(filter(None, warnings)),
            },
        )
        self.loaded = {}
        self.server = server  # now, so that it can be ended while it starts
        server.__enter__()
        self.info = server.object_info()
        self.name = f"{platform.node()}:{server.process.pid}"
        return self.name

    def stop(self) -> None:
        """End ComfyUI, whatever it does; called beside a row when all ends."""
        server, self.server = self.server, None
        if server is not None and hasattr(server, "process"):
            server.__exit__()

    def run(self, task: Task) -> Line:
        """Make a row's picture; what became of it, as far as it is not known from the row.

        Raises:
            OutputError: the picture cannot be written.
        """
        if self.server is None:
            self.start()
        started = time.monotonic()
        line: Line = {"status": "failed", "error": None, "seed": None}
        try:
            self.edit(task, line)
            line["status"] = "done"
        except OutputError:
            raise
        except Exception as error:  # whatever a row brings, the others go on
            line["error"] = sentence(error)
        finally:
            self.sweep()
        line["seconds"] = round(time.monotonic() - started, 3)
        line["worker"] = self.name
        line["finished"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return line

    def edit(self, task: Task, line: Line) -> None:
        """Make a row's picture, and say in `line` what there is to say."""
        assert self.server is not None
        columns = frozenset(task.cells)
        if columns not in self.plans:
            self.plans[columns] = plan(self.workflow, sorted(columns))
        planned = self.plans[columns]
        cells = self.with_files(task, planned, line)
        workflow = planned.filled(cells)
        typed(workflow, [end for ends in planned.inputs.values() for end in ends], self.info)
        # Of a name of its own, so that a row like the one before is saved too.
        workflow[planned.saver]["inputs"]["filename_prefix"] = task.id
        line["seed"] = planned.seed(cells)
        history = self.history(workflow)
        line |= figures(planned, history)
        saved = history["outputs"].get(planned.saver, {}).get("images") or []
        if not saved:
            raise ValueError("ComfyUI has saved no picture")
        line["result"], line["bytes"] = f"{task.name}.png", []
        for name, one in zip(names(line["result"], len(saved)), saved, strict=True):
            data = (self.server.base / "output" / one["subfolder"] / one["filename"]).read_bytes()
            line["bytes"].append(len(data))
            self.write(name, data)

    def history(self, workflow: Workflow) -> dict[str, Any]:
        """ComfyUI's account of a run; if ComfyUI has died of it, this process ends as well."""
        assert self.server is not None
        server = self.server
        try:
            prompt_id = server.queue(workflow)
            history = server.wait(prompt_id, ROW_SECONDS)
            server.forget(prompt_id)
            return history
        except OSError as error:  # ComfyUITimeout is one
            ended = server.ended()
            self.stop()
            if ended:
                os._exit(1)  # the driver hears of it from Ray, and counts
            raise ComfyUIError(f"ComfyUI does not answer: {storage.reason(error)}") from None
        except ComfyUIError:
            if server.ended(patience=0):
                self.stop()
                os._exit(1)
            raise

    def write(self, name: str, data: bytes) -> None:
        """Put a picture into the output folder."""
        try:
            self.output.write(name, data)
        except Exception as error:
            raise OutputError(
                f"{self.output.at(name)} cannot be written: {storage.reason(error)}"
            ) from None

    def sweep(self) -> None:
        """Remove what ComfyUI has written for a row."""
        if self.server is not None:
            for folder in ("output", "temp"):
                for one in (self.server.base / folder).iterdir():
                    shutil.rmtree(one) if one.is_dir() else one.unlink()

    def with_files(self, task: Task, planned: Plan, line: Line) -> dict[str, Value]:
        """A row's cells, with its pictures in ComfyUI's input folder and named as they are there.

        Raises:
            ValueError: a picture cannot be read, in a sentence.
        """
        assert self.server is not None
        folder = self.server.base / "input"
        named = sorted(planned.files & task.cells.keys())
        where = {column: storage.joined(self.folder, str(task.cells[column])) for column in named}
        read: dict[str, bytes] = {}
        digests: dict[str, str] = {}
        for column, location in where.items():
            if location in self.loaded:
                digests[column] = self.loaded[location]
            else:
                with reading(column, location):
                    read[location] = storage.read(location)
                digests[column] = digest(read[location])
        line["contents"] = contents_of(digests)
        for column, location in where.items():
            if location in read:
                with reading(column, location):
                    (folder / name_of(digests[column])).write_bytes(png(upright(read[location])))
        inside = {column: name_of(digests[column]) for column in named}
        for old in {name_of(one) for one in self.loaded.values()} - set(inside.values()):
            (folder / old).unlink(missing_ok=True)
        self.loaded = {location: digests[column] for column, location in where.items()}
        return task.cells | inside


def name_of(contents: str) -> str:
    """What a picture is called in ComfyUI's input folder."""
    return f"{contents[:32]}.png"


@contextmanager
def reading(column: str, location: str) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"the {column} {storage.shown(location)} cannot be read: {storage.reason(error)}"
        ) from None
