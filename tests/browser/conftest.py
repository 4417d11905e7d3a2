"""What the browser tests need, or why they are skipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing() -> list[str]:
    """What of Node.js, Chromium and its driver is not installed."""
    found = {
        "Node.js": shutil.which("node"),
        "Chromium": any(map(shutil.which, BROWSERS)),
        "playwright-core": (Path(__file__).parent / "node_modules" / "playwright-core").is_dir(),
    }
    return [name for name, there in found.items() if not there]


@pytest.fixture(scope="session", autouse=True)
def browser() -> None:
    """Skip, saying why, where there is no browser to test in."""
    if names := missing():
        pytest.skip(f"no {' and no '.join(names)}: run `make browser`")
