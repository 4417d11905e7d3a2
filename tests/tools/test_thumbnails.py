"""What a user sees of the templates before opening one: names, thumbnails, the app's address."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_path.tools.serve import FIRST, skip_welcome
from diffusion_path.tools.setup import PACK, ROOT
from diffusion_path.tools.thumbnails import SIDE, label_of, split, tiles
from diffusion_path.tools.workflows import EXAMPLES, demos, examples


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 48), colour)


def test_a_template_has_a_number_and_a_name_that_an_address_can_hold():
    names = [example.stem for example in examples()]
    assert all(re.fullmatch(r"\d\d_[a-zA-Z0-9_.-]+", name) for name in names)
    numbers = [name[:2] for name in names]
    assert len(set(numbers)) == len(numbers)


def test_apps_are_named_so_and_their_inputs_and_output_are_there():
    for example in examples():
        workflow = json.loads(example.read_text())
        extra = workflow.get("extra", {})
        assert bool(extra.get("linearMode")) == example.stem.endswith(".app"), example.stem
        nodes = {node["id"]: node for node in workflow["nodes"]}
        app = extra.get("linearData", {"inputs": [], "outputs": []})
        for node, widget, *_ in app["inputs"]:
            given = {slot["name"]: slot for slot in nodes[node]["inputs"]}
            if not widget.startswith("$$"):  # a widget of the pack's JavaScript
                assert given[widget]["label"], f"{example.stem}: {widget}"
        assert all(nodes[node]["type"] == "SaveImage" for node in app["outputs"])


def test_thumbnails_are_square_and_no_two_are_alike():
    small = {}
    for example in examples():
        with Image.open(EXAMPLES / f"{example.stem}.jpg") as opened:
            assert opened.size == (SIDE, SIDE), example.stem
            small[example.stem] = np.asarray(opened.convert("RGB").resize((48, 48)), float)
    made_here = [example.stem for example in demos()]  # the others differ by their label
    for one, other in combinations(made_here, 2):
        assert np.abs(small[one] - small[other]).mean() > 1, f"{one} and {other}"


def test_a_label_is_the_technique_or_what_happens():
    assert label_of("17_keep_the_layout-MDP_Epsilon") == "MDP Epsilon"
    assert label_of("06_add_a_word-Prompt-to-Prompt") == "Prompt-to-Prompt"
    assert label_of("01_edit_a_picture.app") == "edit a picture"


def test_a_split_shows_both_and_goes_through_what_has_changed():
    before, after = picture("red"), picture("red")
    after.paste((0, 0, 255), (8, 4, 24, 20))
    shown = np.asarray(split(before, after))
    blue = (shown[..., 2] > 200) & (shown[..., 0] < 100)
    whole = (np.asarray(split(after, after))[..., 2] > 200).sum()
    assert 0.3 < blue.sum() / whole < 0.7
    assert split(before, before).size == (SIDE, SIDE)


def test_tiles_hold_every_picture():
    shown = np.asarray(tiles([picture(colour) for colour in ("red", "lime", "blue")]))
    for channel in range(3):
        others = [one for one in range(3) if one != channel]
        assert ((shown[..., channel] > 250) & (shown[..., others] < 5).all(axis=-1)).any()


def test_the_app_is_a_template_and_serving_does_not_begin_with_comfyuis_own(tmp_path: Path):
    assert (EXAMPLES / f"{FIRST}.json").is_file()
    settings = tmp_path / "user" / "default" / "comfy.settings.json"
    skip_welcome(tmp_path)
    assert json.loads(settings.read_text()) == {"Comfy.TutorialCompleted": True}
    settings.write_text('{"Comfy.TutorialCompleted": false, "Comfy.Locale": "de"}')
    skip_welcome(tmp_path)
    assert json.loads(settings.read_text()) == {
        "Comfy.TutorialCompleted": False,
        "Comfy.Locale": "de",
    }


def test_the_templates_have_a_category_of_a_readable_name():
    said = json.loads((ROOT / "locales" / "en" / "main.json").read_text())
    assert PACK in said["templateWorkflows"]["category"]
