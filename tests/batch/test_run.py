"""The command as people run it: a real Ray, real ComfyUIs, and deaths at bad moments."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_path.batch.__main__ import main
from diffusion_path.batch.driver import missing, tasks_of
from diffusion_path.batch.manifest import read_manifest
from diffusion_path.batch.results import Journal
from diffusion_path.batch.storage import Folder
from diffusion_path.batch.workflow import TWINS, load_workflow, plan
from diffusion_path.tools.host import Server

INPUTS = TWINS.parent / "inputs"
PATIENCE = 300


class Command:
    """`python -m diffusion_path.batch` in a process group of its own, as in a terminal."""

    def __init__(self, *words: object, workers: int) -> None:
        command = [sys.executable, "-P", "-m", "diffusion_path.batch", *map(str, words)]
        self.output = Path(str(words[1]))
        self.process = subprocess.Popen(
            [*command, "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell has its background jobs ignore Ctrl-C, and so would what they start.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def lines(self) -> list[dict]:
        """The whole lines that are on disk."""
        table = self.output / "results.jsonl"
        whole = table.read_text().split("\n")[:-1] if table.exists() else []
        return [json.loads(line) for line in whole]

    def until(self, count: int) -> list[dict]:
        """Wait for so many lines."""
        deadline = time.monotonic() + PATIENCE
        while len(self.lines()) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)
        return self.lines()

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


def comfyui_of(line: dict) -> psutil.Process:
    """The ComfyUI that has made a row."""
    return psutil.Process(process_of(line))


def process_of(line: dict) -> int:
    """The number of that ComfyUI's process."""
    return int(line["worker"].rpartition(":")[2])


def gone(*processes: psutil.Process) -> bool:
    """Whether they end by themselves."""
    return psutil.wait_procs(processes, timeout=30)[1] == []


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_five_hundred_rows_though_a_worker_and_a_comfyui_are_killed_in_the_midst(tmp_path: Path):
    flat = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 0},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    (tmp_path / "flat.json").write_text(json.dumps(flat))
    manifest = tmp_path / "rows.csv"
    manifest.write_text("1.color\n" + "".join(f"{1000 * n}\n" for n in range(1, 501)))
    command = Command(manifest, tmp_path / "out", "--workflow", tmp_path / "flat.json", workers=2)
    comfyuis = {}  # both have to be there before one of them goes
    while len(comfyuis) < 2:
        begun = command.until(len(command.lines()) + 1)
        comfyuis = {line["worker"]: comfyui_of(line) for line in begun}
        assert len(begun) < 400
    with_worker, alone = comfyuis.values()
    os.kill(with_worker.ppid(), signal.SIGKILL)
    alone.kill()
    assert gone(with_worker, alone)
    code, out, err = command.end()
    assert code == 0, err
    assert out.startswith("500 of 500 rows are done")
    assert err.count("a worker has died on row") == 2
    lines = command.lines()
    assert [line["row"] for line in lines] == list(range(1, 501))
    assert not {process_of(line) for line in lines} & set(psutil.pids())
    for line in lines:
        red, green, blue = pixels(command.output / line["result"])[0, 0]
        assert 65536 * int(red) + 256 * int(green) + int(blue) == 1000 * line["row"]
    made = {path.name for path in command.output.glob("*.png")}
    assert made == {line["result"] for line in lines}


TARGETS = ("a strawberry", "a pear", "a tomato", "a green apple")
LOUD = 10.0
"""So often, forty times over, is more than single precision can hold."""


@dataclass
class Story:
    """A run that was killed, one that was stopped, and a third that has finished."""

    folder: Path
    rows: list[dict]
    killed: list[dict]
    stopped: list[dict]
    stopped_as: tuple[int, str, str]
    finished_as: tuple[int, str, str]
    table: list[dict]

    @property
    def words(self) -> list[str]:
        """What each run was called with."""
        workflow = ["--workflow", str(self.folder / "workflow.json")]
        return [str(self.folder / "rows.jsonl"), str(self.folder / "out"), *workflow]


def loud(workflow: dict) -> dict:
    """Example 02 in four steps, with a factor between the sampler and the decoder."""
    workflow["loudness"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 1.0}}
    (decoder,) = (b for b in workflow.values() if b["class_type"] == "VAEDecode")
    for n in range(40):
        held = {"samples": decoder["inputs"]["samples"], "multiplier": ["loudness", 0]}
        workflow[f"times-{n}"] = {"class_type": "LatentMultiply", "inputs": held}
        decoder["inputs"]["samples"] = [f"times-{n}", 0]
    (inversion,) = (b for b in workflow.values() if b["class_type"].endswith("DDIMInversion"))
    inversion["inputs"]["steps"] = 4
    return workflow


def good_and_bad_rows() -> list[dict]:
    """Three pictures with four prompts each, rows that cannot be made, and one that is there
    already."""
    good = [
        {
            "picture": str(INPUTS / f"{picture}.png"),
            "source": f"a {what} on a blue background",
            "target": f"{target} on a blue background",
            "seed": 5,
        }
        for picture, what in (("red_apple", "red apple"), ("rose", "rose"), ("fish", "fish"))
        for target in TARGETS
    ]
    compared = {"truth": str(INPUTS / "red_heart.png"), "mask": "left_half.png"}
    good[-1] |= compared
    bad = [
        {"loudness.value": LOUD},
        {"picture": "../../../../no/such.png"},
        {"picture": "broken.png"},
        {"Sampler.cfg": "=1+1"},
        {"Sampler.cfg": 1e6},
        {"target": "a\0b"},
        {"target": ["a"]},
    ]
    return [*good, *(good[0] | change for change in bad), dict(good[0])]


GOOD, REASONS = (
    [*range(12), 19],
    {
        12: "holds NaN",
        13: "no/such.png cannot be read: there is no file",
        14: "broken.png cannot be read: it is no whole picture",
        15: "cfg is =1+1; give a number",
        16: "cfg",
        17: "target holds a NUL byte",
        18: "target is a list",
    },
)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Three runs of one command."""
    folder = tmp_path_factory.mktemp("batch")
    (folder / "workflow.json").write_text(json.dumps(loud(load_workflow("02"))))
    (folder / "broken.png").write_bytes((INPUTS / "rose.png").read_bytes()[:900])
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "left_half.png")
    rows = good_and_bad_rows()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (folder / "rows.jsonl", folder / "out", "--workflow", folder / "workflow.json")

    first = Command(*words, workers=1)
    comfyui = comfyui_of(first.until(2 + 2)[-1])  # two rows are bad as they are read
    first.process.kill()
    first.end()
    assert gone(comfyui)
    killed = first.lines()
    with (folder / "out" / "results.jsonl").open("ab") as table:
        table.write(b'{"row": 5, "id": "torn')
    (folder / "out" / ".000009_rose.png.123.part").write_bytes(b"half a picture")

    second = Command(*words, workers=1)
    comfyui = comfyui_of(second.until(len(killed) + 2)[-1])
    os.killpg(second.process.pid, signal.SIGINT)
    stopped_as = second.end()
    assert gone(comfyui)
    stopped = second.lines()

    third = Command(*words, "--results", "parquet", workers=1)
    finished_as = third.end()
    return Story(folder, rows, killed, stopped, stopped_as, finished_as, third.lines())


def test_ctrl_c_ends_in_a_sentence_that_says_how_to_go_on(story: Story):
    code, _, err = story.stopped_as
    assert code == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in err


def test_what_was_done_before_a_kill_or_a_stop_is_not_done_again(story: Story):
    code, out, err = story.finished_as
    assert (code, "Traceback" in err) == (1, False)
    assert out.startswith(f"13 of 20 rows are done, {20 - len(story.stopped)} of them now run")
    assert 4 <= len(story.killed) < len(story.stopped) < 20
    for before in (story.killed, story.stopped):
        assert all(line in story.table for line in before)
    assert [line["row"] for line in story.table] == list(range(1, 21))


def test_each_bad_row_is_one_line_with_a_sentence_and_the_others_are_done(story: Story):
    failed = {n: line["error"] for n, line in enumerate(story.table) if line["status"] == "failed"}
    assert failed.keys() == REASONS.keys()
    for number, reason in REASONS.items():
        assert reason in failed[number] and "\n" not in failed[number]
    assert all(line["error"] is None for n, line in enumerate(story.table) if n in GOOD)


def test_pictures_are_bit_for_bit_those_of_the_bare_queue(story: Story, server: Server):
    workflow = loud(load_workflow("02"))
    (pair,) = (b["inputs"] for b in workflow.values() if b["class_type"].endswith("PromptPair"))
    loader = next(n for n, b in workflow.items() if b["class_type"].endswith("ExamplePicture"))
    saver = next(n for n, b in workflow.items() if b["class_type"] == "SaveImage")
    for number in GOOD:
        row, line = story.rows[number], story.table[number]
        name = server.upload(Path(row["picture"]))
        workflow[loader] = {"class_type": "LoadImage", "inputs": {"image": name}}
        pair |= {"source_prompt": row["source"], "target_prompt": row["target"]}
        for node in workflow.values():
            node["inputs"] |= {"seed": 5} if "seed" in node["inputs"] else {}
        workflow[saver]["inputs"]["filename_prefix"] = f"row{number}"
        (bare,) = server.images(server.run(workflow))[saver]
        made = pixels(story.folder / "out" / line["result"])
        assert made.std() > 5
        assert np.array_equal(made, np.array(Image.open(io.BytesIO(bare))))


def test_a_path_is_made_once_for_each_picture_and_worker(story: Story):
    made: dict[tuple[str, str], list[int]] = {}
    for line in sorted((story.table[n] for n in range(12)), key=lambda line: line["finished"]):
        made.setdefault((line["picture"], line["worker"]), []).append(line["evaluations"])
    each = min(number for numbers in made.values() for number in numbers)
    assert each > 0
    for first, *others in made.values():
        assert first > each
        assert others == [each] * len(others)
    assert len(made) <= 3 + 2  # a picture begun before the kill or the stop is begun again


def test_a_truth_and_a_mask_bring_figures(story: Story):
    line = story.table[11]
    assert 0 < line["changed"] < 1
    for kind in ("", "truth_"):
        inside, background = line[f"{kind}inside"], line[f"{kind}background"]
        assert 5 < min(inside, background) < line[f"{kind}psnr"] < max(inside, background) < 60
    assert "psnr" not in story.table[10]


def test_lines_say_with_what_when_and_where(story: Story):
    for number in GOOD:
        row, line = story.rows[number], story.table[number]
        assert line["source_prompt"], line["target_prompt"] == (row["source"], row["target"])
        assert line["seed"] == 5
        assert line["seconds"] > 0
        assert line["picture"] == row["picture"]
        assert line["bytes"] == [(story.folder / "out" / line["result"]).stat().st_size]


def test_the_folder_holds_the_results_and_nothing_else(story: Story):
    pictures = {story.table[n]["result"] for n in GOOD}
    tables = {"results.jsonl", "results.parquet", "contact_sheet.jpg", "workflow.json", ".lock"}
    assert {path.name for path in (story.folder / "out").iterdir()} == pictures | tables
    table = pq.read_table(story.folder / "out" / "results.parquet").to_pylist()
    assert [row["evaluations"] for row in table] == [
        line.get("evaluations") for line in story.table
    ]
    with Image.open(story.folder / "out" / "contact_sheet.jpg") as sheet:
        assert sheet.width > sheet.height > 400


def test_another_run_has_nothing_to_do(story: Story, capsys: pytest.CaptureFixture[str]):
    assert main(story.words) == 1
    assert capsys.readouterr().out.startswith("13 of 20 rows are done, 0 of them now run")


def todo(story: Story, rows: list[dict], **options: bool) -> list[int]:
    """Which of these rows a run would make now, from 0 on."""
    path = story.folder / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest, workflow = read_manifest(str(path)), load_workflow(story.words[3])
    output = Folder(story.words[1])
    tasks = [t for t in tasks_of(manifest, workflow) if not manifest.rows[t.number - 1].error]
    planned = plan(workflow, manifest.columns)
    arguments = (tasks, Journal(output), output.sizes(), planned, manifest.folder)
    return [t.number - 1 for t in missing(*arguments, **({"retry_failed": False} | options))]


def test_only_what_has_changed_is_to_do(story: Story):
    assert todo(story, story.rows) == []
    assert todo(story, list(reversed(story.rows))) == []
    changed = [story.rows[0] | {"target": "an orange"}, *story.rows]
    assert todo(story, changed) == [0]
    assert todo(story, story.rows, retry_failed=True) == [12, 13, 14, 15, 16]


def test_another_picture_under_the_same_name_is_to_do(story: Story):
    copied = story.folder / "copied.png"
    copied.write_bytes((INPUTS / "fish.png").read_bytes())
    lines = {line["id"]: line for line in story.table}
    rows = [story.rows[8] | {"picture": str(copied)}]
    assert todo(story, rows) == [0]
    # As if it had been made from the fish.
    manifest, workflow = (
        read_manifest(str(story.folder / "changed.jsonl")),
        load_workflow(story.words[3]),
    )
    (task,) = tasks_of(manifest, workflow)
    journal = Journal(Folder(story.words[1]))
    journal.lines = lines | {task.id: story.table[8] | {"id": task.id}}
    sizes = Folder(story.words[1]).sizes()
    arguments = ([task], journal, sizes, plan(workflow, manifest.columns), manifest.folder)
    assert missing(*arguments, retry_failed=False) == []
    assert missing([task], journal, {}, *arguments[3:], retry_failed=False) == [task]
    copied.write_bytes((INPUTS / "rose.png").read_bytes())
    assert missing(*arguments, retry_failed=False) == [task]
    copied.unlink()
    assert missing(*arguments, retry_failed=False) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["none.csv", "out"], "cannot be read"),
        (["none", "out"], "the folder cannot be read"),
        (["rows.csv", "out", "--source", "a cat"], "a manifest has columns"),
        (["rows.csv", "out", "--workflow", "none.json"], "the workflow cannot be read"),
        (["rows.csv", "out"], "there is no column nonsense"),
        (["good.csv", "rows.csv/out"], "the output folder cannot be used"),
        (["good.csv", "nonsense://out"], "the output folder cannot be used"),
    ],
)
def test_what_cannot_be_begun_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], words, reason
):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("picture,nonsense\na,b\n")
    Path("good.csv").write_text("picture\na.png\n")
    assert main(words) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.startswith("diffusion-path-batch: ") and err.count("\n") == 1
