"""Each page of results says when and with what it was made."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from diffusion_path.benchmarks.machine import stamp, write_page
from diffusion_path.tools.setup import ROOT

STAMP = re.compile(
    r"^(Written on|This page last changed on) \d{4}-\d\d-\d\d|; \d{4}-\d\d-\d\d\.", re.M
)


def test_a_page_is_written_with_the_date_the_versions_and_the_machine(tmp_path: Path):
    write_page(tmp_path / "page.md", "# Title\n\n| a |\n")
    page = (tmp_path / "page.md").read_text()
    assert page == f"# Title\n\n| a |\n\n{stamp()}\n"
    assert f"Written on {datetime.date.today()} with ComfyUI 0." in page
    assert re.search(r"PyTorch \d+\.\d+.* and Python 3\.\d+\.\d+, on .+, \d+ cores, \d+ GiB", page)


def test_every_page_of_results_has_its_stamp():
    pages = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    assert len(pages) > 10
    assert not [page.name for page in pages if not STAMP.search(page.read_text())]
