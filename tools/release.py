"""What a release needs. Standard library only, for `check`, which the publish workflow calls.

python -P -m diffusion_path.tools.release validate  # comfy-cli's own checks (in `make lint`)
python -P -m diffusion_path.tools.release pack FILE # the archive that the registry would get
python3 tools/release.py check v0.2.0               # may this tag be published? prints its notes
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
OWNER = "OWNER"
"""Stands in pyproject.toml's addresses for the account that the repository will belong to."""

QUIET = ("--skip-prompt", "--no-enable-telemetry")


class ReleaseError(Exception):
    """Reasons, a sentence each, why there can be no release."""


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def comfy_cli(command: str, cwd: Path) -> str:
    """Run `comfy node COMMAND` in a folder: without network, questions, or traces in the home.

    Returns what it has printed.

    Raises:
        ReleaseError: it ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="comfy-cli-") as home:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "comfy_cli", *QUIET, "node", command],
            cwd=cwd,
            env=os.environ
            | {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
            | {"DO_NOT_TRACK": "1", "PYTHONSAFEPATH": "1", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
    if done.returncode:
        raise ReleaseError(f"comfy node {command} failed:\n{done.stdout.strip()}")
    return done.stdout


def validate(folder: Path = ROOT) -> None:
    """The registry's checks. comfy-cli only warns of most of what they find; here it is an error.

    Raises:
        ReleaseError: with all that comfy-cli has said.
    """
    said = comfy_cli("validate", folder)
    if "warning" in said.lower() or "All validation checks passed" not in said:
        raise ReleaseError(f"comfy node validate is not content:\n{said.strip()}")


def pack(archive: Path) -> None:
    """Write the archive that the registry would get: tracked files, less those of .comfyignore.

    comfy-cli writes into the folder that it packs, so it packs a copy of the tracked files.

    Raises:
        ReleaseError: this is no git checkout, or comfy-cli failed.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise ReleaseError(f"Only a git checkout can be packed, and {ROOT} is none.")
    with tempfile.TemporaryDirectory(prefix="pack-") as temporary:
        copy = Path(temporary)
        subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():  # one that is deleted and not yet committed is not
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        subprocess.run(["git", "add", "--all", "--force"], cwd=copy, check=True)
        comfy_cli("pack", copy)
        shutil.move(copy / "node.zip", archive)


def check(tag: str, pyproject: dict[str, Any], changelog: str) -> str:
    """What has changed in the version that a tag names.

    Raises:
        ReleaseError: with everything that is missing before this tag can be published.
    """
    comfy, version = pyproject["tool"]["comfy"], pyproject["project"]["version"]
    missing = []
    if tag != f"v{version}":
        missing.append(f"The tag is {tag}, and pyproject.toml has version {version}.")
    if not comfy["PublisherId"]:
        missing.append("PublisherId is empty in pyproject.toml.")
    addresses = [*pyproject["project"]["urls"].values(), comfy["Icon"], comfy["Banner"]]
    if any(f"/{OWNER}/" in address for address in addresses):
        missing.append(f"{OWNER} stands for the account in the addresses of pyproject.toml.")
    notes = notes_of(version, changelog)
    if not notes:
        missing.append(f"CHANGELOG.md has no section [{version}] with a date.")
    if missing:
        raise ReleaseError("\n".join([*missing, "docs/releasing.md says what to do."]))
    return notes


def notes_of(version: str, changelog: str) -> str:
    """A version's section of the changelog without its heading; empty if there is none."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    found = re.search(heading + r"\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case ["validate"]:
            validate()
        case ["pack", archive]:
            pack(Path(archive).absolute())
        case ["check", tag]:
            print(check(tag, project(), (ROOT / "CHANGELOG.md").read_text()))
        case _:
            raise ReleaseError(__doc__ or "")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ReleaseError as error:
        sys.exit(str(error))
