"""What has been done: one line for each row, on disk as soon as it is known."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from .storage import Folder, sync_folder

Line = dict[str, Any]

TABLE = "results.jsonl"
PARQUET = "results.parquet"
PART_SECONDS = 10
"""How long lines wait for company, where a file cannot grow."""


def parsed(data: bytes) -> list[Line]:
    """The whole lines of a table; a torn or foreign one is left out."""
    found = []
    for text in data.split(b"\n")[:-1]:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("id"), str):
            found.append(line)
    return found


def written(lines: Iterable[Line]) -> bytes:
    """Lines as bytes, each with its end."""
    return b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)


class Journal:
    """The table while it grows: a local file, or objects that are put together at the end."""

    def __init__(self, folder: Folder) -> None:
        """Read what an earlier run has left in `folder`; a torn last line is cut off."""
        self.folder = folder
        self.waiting: list[Line] = []
        self.since = time.monotonic()
        names = sorted(folder.sizes())
        self.parts = [name for name in names if name.startswith("results.part-")]
        self.lines: dict[str, Line] = {}
        """The last line of each row, by its id."""
        for name in ([TABLE] if TABLE in names else []) + self.parts:
            self.lines.update({line["id"]: line for line in parsed(folder.read(name))})
        if folder.path is not None:
            self.file = (folder.path / TABLE).open("ab")
            whole = folder.read(TABLE).rfind(b"\n") + 1
            self.file.truncate(whole)
            sync_folder(folder.path)

    def add(self, lines: Sequence[Line]) -> None:
        """Write lines; on this machine they are on disk when it returns."""
        self.lines.update({line["id"]: line for line in lines})
        if self.folder.path is not None:
            self.file.write(written(lines))
            self.file.flush()
            os.fsync(self.file.fileno())
            return
        self.waiting += lines
        if time.monotonic() - self.since > PART_SECONDS:
            self.close()

    def close(self) -> None:
        """Write what waits."""
        if self.folder.path is not None:
            self.file.close()
        elif self.waiting:
            part = f"results.part-{time.time_ns():020}.jsonl"
            self.folder.write(part, written(self.waiting))
            self.parts.append(part)
            self.waiting = []
        self.since = time.monotonic()

    def finish(self, ids: Sequence[str]) -> list[Line]:
        """Write the table anew: these rows, in this order, once each; returns them."""
        self.close()
        table = [
            self.lines[id_] | {"row": number}
            for number, id_ in enumerate(ids, start=1)
            if id_ in self.lines
        ]
        self.folder.write(TABLE, written(table))
        for part in self.parts:
            self.folder.remove(part)
        self.parts = []
        return table


def names(first: str, count: int) -> list[str]:
    """The names of a row's pictures: `a.png`, `a_2.png` and so on."""
    stem = first.removesuffix(".png")
    return [first, *(f"{stem}_{number}.png" for number in range(2, count + 1))]


def is_made(line: Line, sizes: dict[str, int]) -> bool:
    """Whether a line's pictures are in the folder, whole."""
    result, made = line.get("result"), line.get("bytes")
    if line.get("status") != "done" or not isinstance(result, str) or not isinstance(made, list):
        return False
    return bool(made) and [sizes.get(name) for name in names(result, len(made))] == made


def parquet(table: Sequence[Line]) -> bytes:
    """A table as a Parquet file: a column for whatever any line has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for line in table for name in line))
    columns = {name: column(pa, [line.get(name) for line in table]) for name in names}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def column(pa: Any, values: list[Any]) -> Any:
    """Values of one kind as they are; of several kinds, as texts."""
    for kind in (None, pa.uint64()):  # a seed may be too large for the kind that pyarrow guesses
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    return pa.array([None if value is None else str(value) for value in values], pa.string())
