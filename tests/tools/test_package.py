"""What would be published works where only that is installed, by the Manager's way."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from diffusion_path.tools.host import Server, comfyui_path
from diffusion_path.tools.release import ReleaseError, pack

EXAMPLE = "example_workflows/api/01_edit_a_picture.app.json"
LARGEST = 40e6
"""Bytes. Nearly all are the demo models' weights."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The archive that the registry would get."""
    file = tmp_path_factory.mktemp("archive") / "node.zip"
    try:
        pack(file)
    except ReleaseError as error:
        if "git checkout" in str(error):
            pytest.skip(str(error))
        raise
    return zipfile.ZipFile(file)


@pytest.fixture
def published(archive: zipfile.ZipFile) -> list[PurePosixPath]:
    """The archive's files."""
    return [PurePosixPath(name) for name in archive.namelist()]


def test_the_archive_is_small(archive: zipfile.ZipFile):
    assert Path(archive.filename or "").stat().st_size < LARGEST


def test_nothing_of_development_is_published(published: list[PurePosixPath]):
    folders = {path.parts[0] for path in published if len(path.parts) > 1}
    assert not folders & {"tests", "tools", "benchmarks", ".git", ".github", ".ci", ".venv"}
    assert {str(path) for path in published if path.match("demo/*.py")} == {
        "demo/__init__.py",
        "demo/loader.py",
    }
    assert not [path for path in published if path.match("demo/glyphs/*.png")]
    files = {path.name for path in published if len(path.parts) == 1}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE"} <= files
    assert not files & {"Makefile", "requirements-dev.txt", ".comfyignore", ".gitignore"}


def test_published_code_is_python_3_10_and_imports_only_what_is_published(
    archive: zipfile.ZipFile, published: list[PurePosixPath]
):
    modules = {path.with_suffix("") for path in published if path.suffix == ".py"}
    modules |= {path.parent for path in modules if path.name == "__init__"}
    sources = [path for path in published if path.suffix == ".py"]
    assert len(sources) > 80
    for path in sources:
        tree = ast.parse(archive.read(str(path)), str(path), feature_version=(3, 10))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not [one.name for one in node.names if "diffusion_path" in one.name], path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("diffusion_path"), path
            elif isinstance(node, ast.ImportFrom):
                package = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
                assert package in modules or package == PurePosixPath("."), f"{path}: {package}"
                if not node.module:
                    for one in node.names:
                        found = package / one.name in modules
                        assert found or package / "__init__" in modules, f"{path}: {one.name}"


def test_it_runs_an_example_in_a_fresh_comfyui(
    archive: zipfile.ZipFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed = tmp_path / "diffusionpath"
    archive.extractall(installed)
    requirements = [sys.executable, "-m", "pip", "install", "-r", "requirements.txt"]
    subprocess.run(requirements, cwd=installed, check=True)

    before = files_in(installed)

    monkeypatch.setenv("COMFYUI_PATH", str(comfyui_path()))
    monkeypatch.setattr("diffusion_path.batch.server.ROOT", installed)
    with Server() as server:
        pack_folder = next((server.base / "custom_nodes").iterdir())
        assert pack_folder.resolve() == installed
        history = server.run(json.loads((installed / EXAMPLE).read_text()))
        pictures = [one for files in server.images(history).values() for one in files]
        log = server.log
    assert pictures
    for picture in pictures:
        assert min(Image.open(io.BytesIO(picture)).size) >= 128
    assert "IMPORT FAILED" not in log and "Traceback" not in log
    assert files_in(installed) == before


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file in a folder with its contents, but what Python compiles."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
