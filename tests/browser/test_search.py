"""What the front end's own node search finds for the words that people type."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from diffusion_path.tools.host import Server

SEARCH = Path(__file__).parent / "search.mjs"

EDIT, SAMPLER = "Edit a Picture", "Edit Picture"
DDIM, EXACT = "Invert Picture", "Exact Inversion (Unsampler)"
FIND, BLEND, MAPS = "Find Mask from Prompts", "Change Only at Words", "Where the Words Are"

FIRST = 3  # places at the top of the list, of which one has to be a right one
PLACES = {
    # ComfyUI's own nodes of style models come first: they have the word in their name.
    "style": 5,
    # Names that look like it, of nodes in much use such as CLIP Text Encode, come first.
    "clipseg": 20,
    # So do ComfyUI's own nodes that have attention in their name.
    "attention": 10,
}

WORDS = {
    "edit picture": {EDIT, SAMPLER},
    "edit photo": {EDIT, SAMPLER},
    "edit image": {EDIT},
    "change prompt": {EDIT, SAMPLER},
    "image to image": {EDIT},
    "img2img": {SAMPLER},
    "sdedit": {SAMPLER},
    "replace object": {"Exchange a Word"},
    "swap": {"Exchange Words"},
    "unsampler": {EXACT},
    "noise inversion": {DDIM},
    "invert": {DDIM},
    "rf inversion": {"Pull to Source"},
    "ledits": {"Add or Remove"},
    "mask from prompt": {FIND},
    "text to mask": {FIND},
    "segment by text": {FIND},
    "clip seg": {FIND},
    "clipseg": {FIND},
    "inpainting": {"Inpainting with Any Model"},
    "emphasis": {"More or Less of a Word"},
    "prompt weight": {"More or Less of a Word"},
    "slider": {"More or Less of a Word"},
    "style": {"Mix Prompts"},
    "mood": {"Mix Prompts"},
    "inversion": {EXACT},
    "attention": {MAPS},
    "heatmap": {MAPS},
    "p2p": {BLEND, "Exchange Words", "More or Less of a Word", "Two Prompts"},
    "prompt2prompt": {"Exchange Words"},
    "ddim": {DDIM},
    "diffedit": {FIND},
    "regional": {"Paint a Scene with Words"},
}


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, list[str]]:
    command = ["node", str(SEARCH), server.url, *WORDS]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return json.loads(answer.stdout)


@pytest.mark.parametrize("words", WORDS)
def test_a_search_finds_the_right_node_or_blueprint(found: dict[str, list[str]], words: str):
    first = found[words][: PLACES.get(words, FIRST)]
    assert any(name.startswith(tuple(WORDS[words])) for name in first), first
