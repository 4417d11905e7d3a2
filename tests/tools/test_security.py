"""SECURITY.md: every test that it names exists, and what it says of the code as a whole holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from diffusion_path.tools.setup import ROOT

NODES = ("attention", "core", "edits", "host", "inversion", "nodes", "samplers")
"""The folders that ComfyUI imports; with them come `__init__.py` and the demo model's loader."""

OUTSIDE = {
    *("aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "ssl", "urllib"),
    *("huggingface_hub", "torch.hub", "fsspec", "ray", "websocket", "xmlrpc"),
    *("subprocess", "multiprocessing", "pty", "pip", "ensurepip", "ctypes", "webbrowser"),
}
"""Modules that reach the network or start programs."""

STARTS = {"system", "popen", "spawnl", "spawnv", "execv", "execl", "fork", "startfile"}
UNPICKLE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
RUN = {"eval", "exec", "compile", "__import__"}


def nodes() -> list[Path]:
    files = [ROOT / "__init__.py", ROOT / "demo" / "__init__.py", ROOT / "demo" / "loader.py"]
    files += [file for folder in NODES for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 80
    return files


def imported(file: Path) -> Iterator[str]:
    """The modules from elsewhere that a file imports, at its top or later."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{one.name}" for one in node.names)


def called(file: Path) -> Iterator[str]:
    """What a file calls, as it is written: `open`, `torch.load`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def is_of(module: str, modules: set[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in modules)


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert (ROOT / file).is_file(), file
        functions = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
        assert functions and (not name or name in functions), f"{file}::{name}"


def test_the_nodes_reach_no_network_and_start_no_program():
    for file in nodes():
        assert not [module for module in imported(file) if is_of(module, OUTSIDE)], file
        assert not [name for name in called(file) if name.split(".")[-1] in STARTS], file


def test_nothing_published_is_unpickled_or_run_as_code():
    for file in [*nodes(), *(ROOT / "batch").rglob("*.py")]:
        assert not [module for module in imported(file) if is_of(module, UNPICKLE)], file
        names = [*called(file)]
        assert not {"torch.load", "yaml.load", "np.load", "numpy.load"} & {*names}, file
        assert not RUN & {*names}, file


def test_the_browsers_part_asks_only_its_server_and_writes_no_html():
    files = [*(ROOT / "web" / "js").glob("*.js")]
    assert files
    for file in files:
        source = file.read_text()
        html = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert not re.search(html, source), file
        assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket)\(", source), file
        addresses = re.findall(r"https?://[^'\"`\s)]+", source)
        assert {*addresses} <= {"http://www.w3.org/2000/svg"}, (file, addresses)
