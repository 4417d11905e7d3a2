"""docs/techniques.md: its nodes, examples and links exist, and its figures are the benchmark's."""

from __future__ import annotations

import re
from pathlib import Path

from diffusion_path.tools.setup import ROOT
from diffusion_path.tools.workflows import examples

DOCS = ROOT / "docs"
PAGE = DOCS / "techniques.md"
RESULTS = ROOT / "benchmarks" / "results"
HELP = "../web/docs/DiffusionPath_"

FIGURES = {
    "SDEdit": "img2img (SDEdit), denoise 0.6",
    "ILVR": "ILVR, coarse size 2",
    "FlowEdit": "FlowEdit",
    "FlowEdit + Prompt-to-Prompt": "prompt-to-prompt and FlowEdit; FlowEdit alone where something "
    "is added",
    "FlowAlign": "FlowAlign",
    "DDIM inversion alone": "plain sampling from the inverted noise",
    "MDP Epsilon": "MDP-ε",
    "MDP Condition": "MDP-c",
    "MDP Latent": "MDP-x",
    "MDP Guidance": "MDP-β",
    "Edit-friendly DDPM inversion": "edit-friendly DDPM inversion",
    "LEDITS++": "Concept (LEDITS++)",
    "UniEdit-Flow": "Uni-Edit, alpha 0.6, 15 steps",
    "RF-Inversion": "RF-Inversion",
    "RF-Solver-Edit": "RF-Solver-Edit",
    "Prompt-to-Prompt": "prompt-to-prompt",
    "Local Blend": "prompt-to-prompt and local blend",
    "Reweight": "prompt-to-prompt, PIE-Bench's settings: refine, 0.4, 0.6, new words twice",
    "Plug-and-Play": "Plug-and-Play",
    "MasaCtrl": "MasaCtrl",
    "StyleAligned": "StyleAligned",
    "Stable Flow": "Stable Flow",
    "DiffEdit": "DiffEdit",
    "FastDiffEdit": "FastDiffEdit",
    "Blended Latent Diffusion": "Mask Blend on a straight path in the true mask, guidance 1",
    "RePaint": "Resample (RePaint) in the true mask, guidance 1",
    "Asyrp": "h-space, Asyrp's step",
    "Imagic": "FlowEdit under Imagic's embeddings",
    "KV-Edit": "FlowEdit with Keep Background in the true mask",
    "DDIM inversion": "prompt-to-prompt",
    "Null-text inversion": "null-text; prompt-to-prompt",
    "Negative-prompt inversion": "negative-prompt; prompt-to-prompt",
    "ProxEdit": "negative-prompt, proximal l0; prompt-to-prompt",
    "Direct Inversion": "prompt-to-prompt",
}
"""The row of the benchmark whose figures a technique has in the page."""

RECONSTRUCTIONS = {
    "DDIM inversion": "DDIM",
    "Fixed-point inversion": "fixed point, 3 iterations",
    "Null-text inversion": "null-text",
    "Negative-prompt inversion": "negative-prompt",
    "ProxEdit": "negative-prompt, proximal l0",
    "Direct Inversion": "direct",
}
"""The same, in the table of inversions."""


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows of a page."""
    lines = (line for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def measured(file: str, *columns: str) -> dict[str, list[str]]:
    """These columns of the first table of a file of results that has them, by technique."""
    found: dict[str, list[str]] = {}
    places: list[int] = []
    for cells in rows((RESULTS / file).read_text()):
        if set(columns) <= set(cells):
            places = [cells.index(column) for column in columns]
            width = len(cells)
        elif places and len(cells) == width:
            found.setdefault(cells[0], [cells[place] for place in places])
    return found


def figures(technique: str) -> str:
    """What the page has to say of a technique's figures."""
    row = FIGURES.get(technique, "")
    said = [
        "{} {} dB, {}".format(model, *table[row])
        for model, table in (
            ("UNet", measured("edits.md", "PSNR", "judge")),
            ("flow", measured("edits_flow.md", "PSNR", "judge")),
        )
        if row in table
    ]
    return "; ".join(said) or "-"


def techniques() -> dict[str, list[str]]:
    """The page's rows, by technique."""
    found = {
        name[1]: cells
        for cells in rows(PAGE.read_text())
        if (name := re.match(r"\*\*(.+?)\*\*", cells[0]))
    }
    assert len(found) > 50
    return found


def links() -> list[str]:
    """Where the page's links lead, but for addresses on the web."""
    found = re.findall(r"\]\(([^)]+)\)", PAGE.read_text())
    return [link for link in found if not link.startswith("https://")]


def named() -> set[str]:
    """The nodes that the page links to."""
    return {
        link.removeprefix(HELP).removesuffix(".md") for link in links() if link.startswith(HELP)
    }


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_node_of_the_page_exists(comfy: Path):
    from diffusion_path.nodes import NODES

    assert named() <= {node.__name__ for node in NODES}


def test_every_edit_of_the_pack_is_in_the_page(comfy: Path):
    from diffusion_path.nodes import NODES
    from diffusion_path.nodes.support import PathEdits

    edits = {
        node.__name__
        for node in NODES
        if any(output.io_type == PathEdits.io_type for output in node.define_schema().outputs)
    }
    # A grid of edits' values is no edit.
    assert edits - {"EditGrid"} <= named()
    assert {"FlowEdit", "MaskBlend", "PaintWithWords", "Concept"} <= edits


def test_every_example_of_the_page_exists():
    numbers = set(re.findall(r"\[(\d\d)\]\(examples\.md\)", PAGE.read_text()))
    assert numbers <= {example.name[:2] for example in examples()}
    assert numbers >= {str(number) for number in range(61, 73)}


def test_every_link_of_the_page_leads_somewhere():
    for link in set(links()):
        file, _, place = link.partition("#")
        assert (DOCS / file).is_file(), link
        headings = re.findall(r"^#+ (.+)$", (DOCS / file).read_text(), re.MULTILINE)
        assert not place or place in map(anchor, headings), link


def test_the_readme_and_the_examples_lead_to_the_page():
    assert "(docs/techniques.md)" in (ROOT / "README.md").read_text()
    assert "(techniques.md)" in (DOCS / "examples.md").read_text()


def test_the_figures_of_the_page_are_those_of_the_benchmark():
    page = techniques()
    assert page.keys() >= FIGURES.keys() | RECONSTRUCTIONS.keys()
    wrong = {name: said for name, cells in page.items() if cells[-1] != (said := figures(name))}
    assert not wrong, f"the last column should have: {wrong}"


def test_the_reconstructions_of_the_page_are_those_of_the_benchmark():
    table = measured("inversion.md", "reconstruction", "against the autoencoder")
    page = techniques()
    for name, row in RECONSTRUCTIONS.items():
        assert page[name][-2] == table[row][1], name
