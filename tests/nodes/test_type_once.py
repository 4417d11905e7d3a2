"""A prompt is written once: nodes take it, and the words that differ, from Prompt Pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from diffusion_path.tests.calls import call, edited, refused, results, text

LAYOUT = "a star on the left and a heart on the right"
APPLE, PEAR = "a red apple on a blue background", "a red pear on a blue background"


class Demo(NamedTuple):
    """The demo model, and a recorded picture of an apple."""

    model: Any
    clip: Any
    vae: Any
    source: list
    target: list
    prompts: Any
    negative: list
    path: Any


def plain(clip: Any, prompt: str) -> list:
    """What ComfyUI's CLIP Text Encode makes of a prompt."""
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, prompt)[0]


def record(model: Any, positive: list, negative: list, edits: tuple = (), width: int = 16) -> Any:
    size = {"samples": torch.zeros(1, 4, 16, width)}
    given = {"positive": positive, "negative": negative, "latent_image": size, "edits": edits}
    return results("RecordPath", model=model, steps=6, cfg=4.0, **given)[0]


@pytest.fixture(scope="module")
def demo(comfy: Path) -> Demo:
    model, clip, vae = results("DemoModel")[:3]
    pair = results("PromptPair", clip=clip, source_prompt=APPLE, target_prompt=PEAR)
    negative = plain(clip, "")
    return Demo(model, clip, vae, *pair, negative, record(model, pair[0], negative))


def box(left: int, top: int, right: int, bottom: int, phrase: str) -> dict[str, Any]:
    """A box as Create Bounding Boxes draws it, in pixels of a picture of 512 x 256."""
    said = {"type": "obj", "text": "", "desc": phrase, "palette": []}
    place = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return {**place, "metadata": said}


def elements(*boxes: dict[str, Any]) -> Any:
    """What ComfyUI's own node makes of boxes."""
    from comfy_extras.nodes_bounding_boxes import CreateBoundingBoxes

    return CreateBoundingBoxes.execute(512, 256, [*boxes]).args[2]


# Paint with Words


def test_boxes_paint_as_masks_do_and_the_prompt_is_written_once(demo: Demo):
    star, heart = box(0, 0, 256, 256, "a star"), box(256, 128, 512, 256, "a heart")
    given = {"clip": demo.clip, "prompt": LAYOUT, "phrase": ""}
    edits, positive = results("PaintWithWords", elements=elements(star, heart), **given)
    wired: tuple = ()
    for phrase, (rows, columns) in (("a star", (0, 0)), ("a heart", (64, 128))):
        mask = torch.zeros(1, 128, 256)
        mask[:, rows:, columns : columns + 128] = 1
        painted = given | {"phrase": phrase, "mask": mask, "edits": wired}
        wired = results("PaintWithWords", **painted)[0]
    boxed = record(demo.model, positive, demo.negative, edits, width=32)
    masked = record(demo.model, positive, demo.negative, wired, width=32)
    free = record(demo.model, positive, demo.negative, width=32)
    torch.testing.assert_close(boxed.latents, masked.latents, rtol=0, atol=1e-4)
    assert float((boxed.clean - free.clean).norm() / free.clean.norm()) > 0.02


def test_paint_with_words_gives_its_prompt_as_clip_text_encode_does(demo: Demo):
    boxes = elements(box(0, 0, 256, 256, "a star"))
    inputs = {"clip": demo.clip, "prompt": LAYOUT, "elements": boxes}
    positive = results("PaintWithWords", phrase="", **inputs)[1]
    wanted = plain(demo.clip, LAYOUT)
    assert torch.equal(positive[0][0], wanted[0][0])
    assert torch.equal(positive[0][1]["pooled_output"], wanted[0][1]["pooled_output"])


def test_boxes_of_one_phrase_are_one_place_and_those_beyond_the_picture_are_cut(demo: Demo):
    boxes = [{"bbox": [-50, 0, 1200, 250], "desc": "Apple"}]
    boxes.append({"bbox": [0, 500.4, 500, 1000], "type": "text", "desc": "", "text": " apple "})
    inputs = {"positive": demo.source, "elements": boxes}
    (edit,) = results("PaintWithWords", phrase="", prompt="", **inputs)[0]
    wanted = torch.zeros(1, 1000, 1000)
    wanted[:, :, :250] = wanted[:, :500, 500:] = 1
    assert torch.equal(edit.mask, wanted)
    assert edit.columns == demo.prompts.source.columns("apple")


@pytest.mark.parametrize("side", ["source", "target"])
def test_paint_with_words_takes_its_prompt_from_prompt_pair(demo: Demo, side: str):
    positive = getattr(demo, side)
    given = {"phrase": "background", "mask": torch.ones(1, 64, 64), "positive": positive}
    ((edit,), same) = results("PaintWithWords", prompt="", **given)
    prompt = getattr(demo.prompts, side)
    assert same is positive
    assert edit.prompt.text == prompt.text
    assert edit.prompt.words == prompt.words and edit.prompt.tokens == prompt.tokens
    if side == "source":
        record(demo.model, positive, demo.negative, (edit,))
    else:
        walked = {"model": demo.model, "path": demo.path, "cfg": 4.0, "edits": (edit,)}
        edited(**walked, positive=positive, negative=demo.negative)


def test_a_mask_of_the_painter_fits(demo: Demo):
    from comfy_extras.nodes_painter import PainterNode
    from folder_paths import get_input_directory
    from PIL import Image

    painted = Image.new("RGBA", (128, 128))
    painted.paste((255, 0, 0, 255), (0, 0, 64, 128))
    painted.save(Path(get_input_directory()) / "painted.png")
    mask = PainterNode.execute("painted.png", 128, 128).args[1]
    given = {"phrase": "a red apple", "mask": mask, "positive": demo.source}
    edits = results("PaintWithWords", prompt="", **given)[0]
    path = record(demo.model, demo.source, demo.negative, edits)
    assert not torch.equal(path.clean, demo.path.clean)


def test_paint_with_words_refuses_boxes_and_prompts(demo: Demo):
    def act(*said: str, **inputs: Any) -> None:
        given = {"prompt": "", "phrase": "", "positive": demo.source}
        refused("PaintWithWords", *said, **(given | inputs))

    def boxes(**one: Any) -> dict[str, Any]:
        return {"elements": [{"bbox": [0, 0, 500, 500], "desc": "a red apple"}, one]}

    act("no phrase has a place", "Create Bounding Boxes")
    act("no phrase has a place", elements=[])
    act("phrase has no place", phrase="apple")
    act("phrase has no place", phrase="apple", **boxes(bbox=[0, 0, 500, 500], desc="blue"))
    for nothing in ("apple", {"desc": "apple"}, [[0, 0, 1, 1]], [None]):
        act("elements holds no boxes", elements=nothing)
    act("box 2 has no description", **boxes(bbox=[0, 0, 500, 500]))
    for sides in (None, [0, 0, 500], [0, 0, "a", "b"], [0, 0, float("nan"), 500]):
        act("box 2 has no four sides", **boxes(bbox=sides, desc="apple"))
    for sides in ([0, 0, 0, 500], [500, 0, 400, 500], [0, 1000, 500, 2000]):
        act("box 2, apple, has no area", **boxes(bbox=sides, desc="apple"))
    act(
        'the prompt has no "lion", "sun"; its words are a, red, apple, on, blue, background.',
        elements=[
            {"bbox": [0, 0, 500, 500], "desc": phrase} for phrase in ("lion", "apple", "sun")
        ],
    )
    known = boxes(bbox=[0, 0, 500, 500], desc="blue")
    act("there is no CLIP", positive=None, prompt=APPLE, **known)
    act("two different prompts", prompt=PEAR, **known)
    mixed = [[0.9 * demo.source[0][0] + 0.1 * demo.target[0][0], demo.source[0][1]]]
    for unknown in ([[demo.source[0][0], {}]], mixed, [*demo.source, *demo.target]):
        act("positive does not know its words", positive=unknown, **known)


# Attention Maps


def maps(demo: Demo, path: Any, **inputs: Any) -> Any:
    return results("AttentionMaps", model=demo.model, vae=demo.vae, path=path, **inputs)[1]


@pytest.mark.parametrize("saved", [False, True])
def test_a_path_knows_its_words_also_from_a_file(demo: Demo, saved: bool):
    path = demo.path
    if saved:
        file = text(call("SavePath", path=path))
        (path,) = results("LoadPath", file=f"{file} [output]")
    wanted = maps(demo, demo.path, prompts=demo.prompts)
    torch.testing.assert_close(maps(demo, path), wanted, rtol=0, atol=1e-6)


def test_an_edited_path_knows_the_new_words(demo: Demo):
    given = {"path": demo.path, "positive": demo.target, "negative": demo.negative, "cfg": 4.0}
    path = results("Sampler", model=demo.model, **given)[2]
    assert len(maps(demo, path, words="pear")) == 1


def test_attention_maps_refuses_a_path_that_does_not_know_its_words(demo: Demo):
    ((embedding, options),) = demo.source
    whole = {"area": (8, 8, 0, 0), "strength": 1.0}
    others = {
        "does not know the words": [[[embedding, {}]], [[2 * embedding, options]]],
        "set to an area": [[[embedding, {**options, **whole}]]],
    }
    for said, prompts in others.items():
        for positive in prompts:
            path = demo.path._replace(positive=positive)
            refused("AttentionMaps", said, model=demo.model, vae=demo.vae, path=path)


# Local Blend


@pytest.mark.parametrize(
    ("source", "target", "old", "new"),
    [
        (APPLE, PEAR, "apple", "pear"),
        (APPLE, "a green pear on a blue background", "red apple", "green pear"),
        (APPLE, "a small red apple on a blue background", "", "small"),
        ("a horse and a horse", "a horse and a zebra", "horse", "zebra"),
        ("a horse on grass", "the horse on grass", "a", "the"),
    ],
)
def test_without_words_local_blend_takes_those_that_differ(
    demo: Demo, source: str, target: str, old: str, new: str
):
    pair = results("PromptPair", clip=demo.clip, source_prompt=source, target_prompt=target)[2]
    output = call("LocalBlend", prompts=pair)
    assert text(output) == f"Words that change: {old or '–'} → {new or '–'}"
    (edit,) = output.args[0]
    for side, words, watch in (("source", old, edit.source), ("target", new, edit.target)):
        prompt = getattr(pair, side)
        marked = {int(one) for one in watch.weights[:, 0].nonzero()}
        last = {
            column for word in prompt.words for column in word.tokens if word.text in words.split()
        }
        assert marked <= last and bool(marked) == bool(words)


def test_with_words_local_blend_takes_those_and_says_nothing(demo: Demo):
    output = call("LocalBlend", prompts=demo.prompts, target_words="blue background")
    (edit,) = output.args[0]
    assert output.ui is None and not edit.source.weights.any()
    assert edit.target.weights.any()


def test_local_blend_refuses_two_equal_prompts_without_words(demo: Demo):
    same = replace(demo.prompts, target=demo.prompts.source)
    refused("LocalBlend", "no word differs between the two prompts", prompts=same)
