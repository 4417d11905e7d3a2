"""What to do: the rows of a manifest, or of a folder and prompts."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from . import storage

Value = str | int | float | bool

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ALIASES = {"source": "source_prompt", "target": "target_prompt"}
LONGEST = 100_000
"""Characters in a cell."""


class ManifestError(Exception):
    """A reason, in one sentence, why a manifest as a whole cannot be used."""


@dataclass(frozen=True)
class Row:
    """One picture to make: the cells that say something, or why it cannot be made."""

    number: int
    cells: dict[str, Value] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Columns and rows, and the folder that relative names start from."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    folder: str


def read_manifest(location: str) -> Manifest:
    """The rows of a CSV, JSONL or Parquet file; which it is, its name says.

    Raises:
        ManifestError: the file as a whole cannot be used. A row that cannot be has its `error`.
        KeyError: the name has none of SUFFIXES.
    """
    suffix = PurePosixPath(location).suffix.lower()
    try:
        data = storage.read(location)
    except Exception as error:
        raise ManifestError(f"the manifest cannot be read: {storage.reason(error)}") from None
    rows = tuple(
        checked(number, cells) for number, cells in enumerate(READERS[suffix](data), start=1)
    )
    if not rows:
        raise ManifestError(f"{storage.shown(location)} has no rows")
    columns = tuple(dict.fromkeys(name for row in rows for name in row.cells))
    if not columns and all(row.error is None for row in rows):
        raise ManifestError(f"{storage.shown(location)} has no cell that says anything")
    return Manifest(columns, rows, storage.absolute(storage.parent(location)))


def read_folder(location: str, source: str | None, targets: Sequence[str]) -> Manifest:
    """A row for each picture in a folder and each target prompt, by name."""
    try:
        names = sorted(
            name
            for name in storage.Folder(location).sizes()
            if name.lower().endswith(PICTURES) and not name.startswith(".")
        )
    except Exception as error:
        raise ManifestError(f"the folder cannot be read: {storage.reason(error)}") from None
    if not names:
        raise ManifestError(f"{storage.shown(location)} holds no pictures ({', '.join(PICTURES)})")
    prompts: list[dict[str, Value]] = [{"target_prompt": target} for target in targets] or [{}]
    said: dict[str, Value] = {} if source is None else {"source_prompt": source}
    rows = [{"picture": name} | said | prompt for name in names for prompt in prompts]
    return Manifest(
        tuple(rows[0]),
        tuple(checked(number, row) for number, row in enumerate(rows, start=1)),
        storage.absolute(location),
    )


def checked(number: int, cells: dict[str, Any] | str) -> Row:
    """A row whose cells are of use, under the columns' own names; a text is why it is not."""
    if isinstance(cells, str):
        return Row(number, error=cells)
    kept: dict[str, Value] = {}
    for column, value in cells.items():
        name = ALIASES.get(column, column)
        if value is None:
            continue
        if problem := wrong(value):
            return Row(number, error=f"{storage.shown(str(column), 60)} {problem}")
        if name in kept:
            return Row(number, error=f"{name} is given twice: leave out one of its names")
        kept[name] = value
    return Row(number, kept)


def wrong(value: Any) -> str | None:
    """What is wrong with a cell's value, if anything is."""
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL byte; write the text anew"
        if len(value) > LONGEST:
            return f"holds {len(value):,} characters; at most {LONGEST:,} are allowed"
        if any("\ud800" <= c <= "\udfff" for c in value):
            return "holds half a character; save the file as UTF-8"
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}; give a number"
    if not isinstance(value, str | int | float | bool):
        return f"is a {type(value).__name__}; give a text, a number, true or false"
    return None


def decoded(data: bytes) -> str:
    """A text file's contents."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"the manifest is not UTF-8 in line {line}: save it as UTF-8") from None


def check_columns(columns: Sequence[Any]) -> None:
    """Refuse names that are missing or there twice."""
    named = [ALIASES.get(name, name) for name in columns]
    if empty := [number for number, name in enumerate(named, start=1) if not name]:
        raise ManifestError(f"column {empty[0]} has no name: write one into the first line")
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ManifestError(f"two columns are named {storage.shown(twice[0], 60)}: rename one")


def csv_rows(data: bytes) -> Iterator[dict[str, Any] | str]:
    """The rows below a header; an empty cell says nothing."""
    csv.field_size_limit(2**31 - 1)  # `wrong` has a limit of its own, for each cell
    reader = csv.reader(io.StringIO(decoded(data), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        check_columns(header)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) > len(header):
                yield f"has {len(cells)} cells for {len(header)} columns; put quotes round commas"
            else:
                yield {name: cell or None for name, cell in zip(header, cells, strict=False)}
    except csv.Error as error:
        raise ManifestError(f"the manifest breaks off in line {reader.line_num}: {error}") from None


def jsonl_rows(data: bytes) -> Iterator[dict[str, Any] | str]:
    """The object on each line; null says nothing."""
    for line in decoded(data).split("\n"):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=once, parse_constant=no_number)
        except (ValueError, RecursionError) as error:
            yield f"is no JSON: {storage.reason(error)}"
        else:
            yield cells if isinstance(cells, dict) else f"is no object: {storage.shown(line, 60)}"


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are there once."""
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValueError("a name is there twice")
    return cells


def no_number(name: str) -> None:
    """Refuse what JSON has no number for."""
    raise ValueError(f"{name} is not a number")


def parquet_rows(data: bytes) -> Iterator[dict[str, Any] | str]:
    """The rows of a table; null says nothing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ManifestError("a Parquet manifest needs pyarrow: pip install pyarrow") from None
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
        check_columns(table.schema_arrow.names)
        for part in table.iter_batches(batch_size=10_000):
            yield from part.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"the manifest is no Parquet: {storage.reason(error)}") from None


READERS = {
    ".csv": csv_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".parquet": parquet_rows,
}
SUFFIXES = tuple(READERS)


def file_name(number: int, picture: Value | None, identity: str) -> str:
    """The name of a row's picture, without its ending: letters, digits, `_`, `-` and `.`."""
    stem = PurePosixPath(str(picture or "").replace("\\", "/").rstrip("/")).stem
    word = re.sub(r"[^\w.-]+", "_", stem).strip("._")[:60] or "row"
    return f"{number:06}_{word}-{identity[:8]}"
