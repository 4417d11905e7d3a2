"""What a release needs: one version, comfy-cli's content, the changelog, addresses, pictures."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_path.tools import artwork
from diffusion_path.tools.release import ROOT, ReleaseError, check, notes_of, project, validate

CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2026-12-31

### Added

- Something.

## [0.1.0] - 2026-01-01

- The first.
"""


def complete() -> dict:
    """pyproject.toml as it is when a version 0.2.0 can be published."""
    ready = copy.deepcopy(project())
    ready["project"]["version"] = "0.2.0"
    ready["tool"]["comfy"]["PublisherId"] = "somebody"
    for table in (ready["project"]["urls"], ready["tool"]["comfy"]):
        table |= {k: v.replace("/OWNER/", "/somebody/") for k, v in table.items()}
    return ready


def test_a_release_that_has_everything_has_its_notes():
    assert check("v0.2.0", complete(), CHANGELOG) == "### Added\n\n- Something."


def test_everything_that_is_missing_is_said_at_once():
    with pytest.raises(ReleaseError) as refusal:
        check("v0.3.0", project(), "# Changelog\n\n## [Unreleased]\n\n- Much.\n")
    said = str(refusal.value)
    for missing in ("v0.3.0", "PublisherId", "OWNER", "no section [0.1.0]", "docs/releasing.md"):
        assert missing in said


def test_a_section_without_a_date_is_none():
    assert notes_of("0.1.0", CHANGELOG) == "- The first."
    assert not notes_of("0.1.0", CHANGELOG.replace(" - 2026-01-01", ""))
    assert not notes_of("0.1", CHANGELOG)


def test_the_registry_s_checks_find_nothing():
    validate()


@pytest.mark.parametrize(
    ("pyproject", "code"),
    [
        ('[project]\nname = "x"\nversion = "1"\nclassifiers = ["Environment :: GPU"]\n', ""),
        ('[project]\nname = "x"\nversion = "1"\n', "exec('1')\n"),
        ('[project]\nname = "x"\n', ""),
    ],
)
def test_what_the_registry_s_checks_find_is_an_error(tmp_path: Path, pyproject: str, code: str):
    (tmp_path / "pyproject.toml").write_text(pyproject)
    (tmp_path / "__init__.py").write_text(code)
    with pytest.raises(ReleaseError, match=r"comfy node validate"):
        validate(tmp_path)


def test_the_version_is_in_one_place():
    version = project()["project"]["version"]
    folders = ("batch", "benchmarks", "core", "demo", "host", "inversion", "nodes", "tools", "web")
    files = [
        ROOT / "__init__.py",
        *(f for one in folders for f in (ROOT / one).rglob("*.[jp][sy]")),
    ]
    assert len(files) > 80
    assert not [file for file in files if f'"{version}"' in file.read_text()]


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_icon_and_banner_are_what_the_script_draws(name: str):
    committed = Image.open(ROOT / "docs" / f"{name}.png")
    drawn = getattr(artwork, name)()
    assert committed.size == drawn.size
    difference = np.abs(np.asarray(committed, dtype=float) - np.asarray(drawn, dtype=float))
    assert difference.mean() < 1  # another Pillow may smooth edges a little otherwise


def test_icon_and_banner_have_the_sizes_that_the_registry_asks_for():
    icon, banner = (Image.open(ROOT / "docs" / f"{name}.png") for name in ("icon", "banner"))
    assert icon.width == icon.height <= 400
    assert banner.width * 9 == banner.height * 21


def test_the_addresses_of_icon_and_banner_end_in_files_of_the_repository():
    comfy = project()["tool"]["comfy"]
    for address in (comfy["Icon"], comfy["Banner"]):
        assert (ROOT / address.partition("/main/")[2]).is_file()
