"""Fixtures: the real ComfyUI, imported here or running as a server of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: workers with a thread for each core would stall one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from diffusion_path.tools.host import Server, import_comfy


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI, importable in this process, with input and output folders of its own."""
    path = import_comfy()
    import folder_paths

    folder_paths.set_input_directory(str(tmp_path_factory.mktemp("input")))
    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output")))
    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))
    folder_paths.set_user_directory(str(tmp_path_factory.mktemp("user")))
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One real ComfyUI server with this pack, for all tests of a session."""
    with Server() as running:
        yield running
