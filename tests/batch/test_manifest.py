"""Manifests as people write them, and as nobody should."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_path.batch.manifest import (
    LONGEST,
    ManifestError,
    file_name,
    read_folder,
    read_manifest,
)

TEXT = "a rose, red"


@pytest.fixture
def write(tmp_path: Path):
    """Write a manifest and read it."""

    def write(name: str, data: str | bytes):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_manifest(str(tmp_path / name))

    return write


def test_the_three_formats_say_the_same(write, tmp_path: Path):
    rows = [
        {"picture": "a.png", "target_prompt": TEXT, "9.cfg": 2.5},
        {"picture": "b.png", "target_prompt": "=1+1", "9.cfg": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    jsonl = write("rows.jsonl", "\n".join(map(json.dumps, rows)))
    csv = write("rows.csv", f'picture,target,9.cfg\na.png,"{TEXT}",2.5\nb.png,=1+1,\n')
    assert read_manifest(str(tmp_path / "rows.parquet")) == jsonl
    assert [row.cells for row in jsonl.rows] == [
        {name: value for name, value in row.items() if value is not None} for row in rows
    ]
    assert [dict(row.cells) | {"9.cfg": None} for row in csv.rows] == [
        row | {"9.cfg": None} for row in rows
    ]
    assert csv.rows[0].cells["9.cfg"] == "2.5"  # the worker knows that it is a number
    assert csv.columns == jsonl.columns == ("picture", "target_prompt", "9.cfg")


def test_a_byte_order_mark_is_no_part_of_the_first_column(write):
    assert write("rows.csv", "\ufeffpicture\na.png\n").columns == ("picture",)


def test_an_empty_prompt_can_be_said_in_json(write):
    (row,) = write("rows.jsonl", '{"picture": "a.png", "target": ""}').rows
    assert row.cells["target_prompt"] == ""


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("rows.csv", b"", "has no rows"),
        ("rows.csv", b"picture,target\n", "has no rows"),
        ("rows.csv", b"picture,target,target_prompt\na,b,c\n", "two columns are named target_pr"),
        ("rows.csv", b"picture,,x.y\na,b,c\n", "column 2 has no name"),
        ("rows.csv", "picture,target\na,é\n".encode("latin-1"), "not UTF-8 in line 2"),
        ("rows.csv", "picture\na\n".encode("utf-16"), "not UTF-8 in line 1"),
        ("rows.csv", b'picture,target\na,"never closed\n', "breaks off in line"),
        ("rows.parquet", b"PAR1 and no more", "is no Parquet"),
        ("rows.parquet", b"", "is no Parquet"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_in_a_sentence(write, name, data, reason):
    with pytest.raises(ManifestError, match=reason) as refused:
        write(name, data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "is no JSON"),
        ("[1, 2]", "is no object"),
        ('{"picture": ["a.png"]}', "picture is a list"),
        ('{"picture": {"a": 1}}', "picture is a dict"),
        ('{"9.cfg": NaN}', "NaN is not a number"),
        ('{"9.cfg": 1e999}', "9.cfg is inf"),
        ('{"picture": "a\\u0000.png"}', "picture holds a NUL byte"),
        ('{"picture": "a", "picture": "b"}', "a name is there twice"),
        ('{"source": "a", "source_prompt": "b"}', "is given twice"),
        ('{"target": "\\ud800"}', "half a character"),
        (json.dumps({"target": "x" * (LONGEST + 1)}), "at most 100,000"),
        ("[" * 100_000, "is no JSON"),
        ('{"9.cfg": ' + "1" * 10_000 + "}", "is no JSON"),
    ],
)
def test_a_bad_row_is_a_sentence_and_the_rest_goes_on(write, line, reason):
    bad, good = write("rows.jsonl", f'{line}\n{{"picture": "a.png"}}\n').rows
    assert reason in bad.error
    assert "\n" not in bad.error and len(bad.error) < 700
    assert (good.number, good.error, good.cells) == (2, None, {"picture": "a.png"})


def test_bad_rows_of_a_csv_are_sentences_too(write):
    rows = write("rows.csv", f"picture,target\na\0,x\na,b,c,d\na,{'x' * 200_000}\na,b\n").rows
    assert ["NUL" in rows[0].error, "4 cells" in rows[1].error, "200,000" in rows[2].error] == [
        True
    ] * 3
    assert rows[3].error is None


def test_a_folder_and_prompts_are_rows_by_name(tmp_path: Path):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    manifest = read_folder(str(tmp_path), "a cat", ["a dog", "a fox"])
    assert [(row.cells["picture"], row.cells["target_prompt"]) for row in manifest.rows] == [
        ("a.jpg", "a dog"),
        ("a.jpg", "a fox"),
        ("b.PNG", "a dog"),
        ("b.PNG", "a fox"),
    ]
    assert {row.cells["source_prompt"] for row in manifest.rows} == {"a cat"}


def test_a_folder_without_pictures_is_refused(tmp_path: Path):
    with pytest.raises(ManifestError, match="holds no pictures"):
        read_folder(str(tmp_path), "a cat", ["a dog"])
    with pytest.raises(ManifestError, match="cannot be read"):
        read_folder(str(tmp_path / "none"), "a cat", ["a dog"])


@pytest.mark.parametrize(
    "picture",
    ["../../etc/passwd", "/etc/passwd", "..", "...", "a/../../b", "C:\\x\\..\\b.png", "\x1b[31m",
     "s3://bucket/../x.png", "CON", ".", "", "x" * 5000, "a\nb.png", "-rf", "~root"],
)  # fmt: skip
def test_a_picture_by_whatever_name_stays_in_the_output_folder(tmp_path: Path, picture):
    name = file_name(7, picture, "0123456789abcdef") + ".png"
    assert (tmp_path / name).resolve().parent == tmp_path
    assert name.startswith("000007_") and name.isprintable() and len(name) < 100
