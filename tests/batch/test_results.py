"""What an interrupted run leaves, and what the next one makes of it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_path.batch.pictures import MOST, contact_sheet, png, upright
from diffusion_path.batch.results import Journal, is_made, names, parquet
from diffusion_path.batch.storage import Folder, joined, read

A, B, C = ({"id": name, "row": number, "status": "done"} for number, name in enumerate("abc", 1))


def lines(folder: Folder) -> list[dict]:
    return [json.loads(line) for line in folder.read("results.jsonl").splitlines()]


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path: Path) -> Iterator[Folder]:
    """A folder on this machine, and one of fsspec's."""
    made = Folder(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path}")
    with made.held():
        yield made


def test_what_was_written_is_known_to_the_next_run(folder: Folder):
    journal = Journal(folder)
    journal.add([A])
    journal.add([B])
    journal.close()
    assert list(Journal(folder).lines.values()) == [A, B]


def test_the_table_has_the_manifests_rows_in_its_order(folder: Folder):
    journal = Journal(folder)
    journal.add([C, A, {**B, "status": "failed"}])
    journal.add([B])
    journal.finish(["b", "a"])
    assert lines(folder) == [{**B, "row": 1}, {**A, "row": 2}]
    assert [name for name in folder.sizes() if "part" in name] == []


@pytest.mark.parametrize(
    "torn", [b'{"id": "b", "st', b'{"id": "b", "status": "done"}', b"\xff\xfe"]
)
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes):
    table = tmp_path / "results.jsonl"
    whole = json.dumps(A).encode() + b"\n"
    table.write_bytes(whole + torn)
    journal = Journal(Folder(str(tmp_path)))
    assert list(journal.lines) == ["a"]
    journal.add([C])
    assert table.read_bytes() == whole + json.dumps(C).encode() + b"\n"


def test_lines_of_others_are_passed_over(tmp_path: Path):
    (tmp_path / "results.jsonl").write_bytes(
        b'nonsense\n[1]\n{"id": 5}\n' + b"[" * 100_000 + b"\n" + json.dumps(A).encode() + b"\n"
    )
    assert list(Journal(Folder(str(tmp_path))).lines) == ["a"]


def test_a_picture_is_made_only_if_all_of_it_is_there():
    line = {"status": "done", "result": "a.png", "bytes": [10, 20]}
    assert names("a.png", 2) == ["a.png", "a_2.png"]
    assert is_made(line, {"a.png": 10, "a_2.png": 20})
    assert not is_made(line, {"a.png": 10, "a_2.png": 19})
    assert not is_made(line, {"a.png": 10})
    assert not is_made({**line, "status": "failed"}, {"a.png": 10, "a_2.png": 20})
    for odd in ({"bytes": None}, {"result": ["a"]}, {"bytes": []}, {"result": "../a.png"}):
        assert not is_made(line | odd, {"a.png": 10, "a_2.png": 20})


def test_an_interrupted_write_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch):
    folder = Folder(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write("a.png", b"data")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".a.png.123.part").touch()  # of a run that was killed here
    with folder.held():
        assert not list(tmp_path.glob("*.part"))


def test_a_folder_is_one_runs_until_it_ends(tmp_path: Path):
    with (
        Folder(str(tmp_path)).held(),
        pytest.raises(FileExistsError, match="another run writes into"),
        Folder(str(tmp_path)).held(),
    ):
        raise AssertionError
    with Folder(str(tmp_path)).held():
        pass


def test_a_table_of_uneven_lines_becomes_parquet():
    table = [
        {"id": "a", "seed": 2**64 - 1, "9.cfg": 1.5, "bytes": [1, 2]},
        {"id": "b", "seed": None, "9.cfg": "2", "error": "a sentence"},
    ]
    read = pq.read_table(io.BytesIO(parquet(table))).to_pylist()
    assert read == [
        {"id": "a", "seed": 2**64 - 1, "9.cfg": "1.5", "bytes": [1, 2], "error": None},
        {"id": "b", "seed": None, "9.cfg": "2", "bytes": None, "error": "a sentence"},
    ]


def test_names_in_a_folder_and_addresses(tmp_path: Path):
    assert joined("s3://bucket/in", "a.png") == "s3://bucket/in/a.png"
    assert joined("/in", "s3://bucket/a.png") == "s3://bucket/a.png"
    assert joined("s3://bucket/in", "/a.png") == "/a.png"
    assert joined("file:///in", "a.png") == "/in/a.png"
    (tmp_path / "a b.txt").write_bytes(b"x")
    assert read(f"file://{tmp_path}/a b.txt") == b"x"


def test_what_is_no_file_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)):
        with pytest.raises(ValueError, match="is not a file"):
            read(name)
    with pytest.raises(OSError, match="there is no file"):
        read(str(tmp_path / "none"))


def test_a_photograph_is_turned_as_the_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    Image.new("CMYK", (40, 20)).save(file, "JPEG", exif=exif)
    assert (upright(file.getvalue()).size, upright(file.getvalue()).mode) == ((20, 40), "RGB")


def test_what_is_no_picture_is_refused():
    whole = png(Image.effect_noise((64, 64), 50).convert("RGB"))
    for data in (
        b"",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        whole[: len(whole) // 2],
    ):
        with pytest.raises(ValueError, match="no whole picture"):
            upright(data)


def test_a_contact_sheet_is_of_bounded_size():
    data = png(Image.new("RGB", (8, 8), "red"))
    sheet = Image.open(io.BytesIO(contact_sheet([(data, data, "1  a rose " * 50)] * MOST)))
    assert sheet.size[0] * sheet.size[1] < 4e6
    assert sheet.getpixel((80, 80))[0] > 200
