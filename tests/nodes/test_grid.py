"""Several values of a setting, and the pictures on one labelled sheet."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_path.attention.align import Prompt
from diffusion_path.edits.diffedit import MaskBlend
from diffusion_path.edits.mdp import MDPEpsilon, MDPLatent
from diffusion_path.edits.paint_with_words import PaintWithWords
from diffusion_path.edits.prompt_to_prompt import PromptToPrompt, Reweight
from diffusion_path.tests.calls import call, refused, results, text
from diffusion_path.tools.host import Server

PROMPT = Prompt(text="a", tokens=(0, 1), words=(), embedding=torch.zeros(1, 2, 4))
CHAIN = (MDPEpsilon(), MDPLatent(), MaskBlend(mask=torch.ones(1, 4, 4)))
ATTENTION: Any = (
    PromptToPrompt(pair=None, alignment=None, self_replace=(0.1, 0.4)),  # type: ignore[arg-type]
    Reweight(prompt=PROMPT, scales=torch.tensor([1.0, 2.0])),
    *(PaintWithWords(prompt=PROMPT, columns=(i,), mask=torch.ones(1, 4, 4)) for i in range(2)),
)


def grid(edits: tuple = CHAIN, **inputs: Any) -> tuple:
    return results("EditGrid", edits=edits, **inputs)


def test_one_setting_gives_a_chain_for_each_value(comfy: Path):
    chains, scales, labels, columns = grid(knob="weight", values="0.1, 0.2\n0.3,")
    assert [chain[1].weight for chain in chains] == [0.1, 0.2, 0.3]
    assert [chain[1] for chain in chains] == [replace(CHAIN[1], weight=w) for w in (0.1, 0.2, 0.3)]
    assert all(chain[0] is CHAIN[0] and chain[2] is CHAIN[2] for chain in chains)
    assert (scales, columns) == ([-1.0] * 3, 3)
    assert labels == ["weight 0.1", "weight 0.2", "weight 0.3"]


def test_a_second_setting_gives_a_row_for_each_of_its_values(comfy: Path):
    settings = {"knob": "end", "values": "0.5, 1", "second_knob": "cfg", "second_values": "4, 7.5"}
    chains, scales, labels, columns = grid(**settings)
    assert [chain[2].end for chain in chains] == [0.5, 1, 0.5, 1]
    assert scales == [4, 4, 7.5, 7.5]
    assert labels[0] == "end 0.5, cfg 4" and labels[3] == "end 1, cfg 7.5"
    assert columns == 2


def test_the_settings_of_the_attention(comfy: Path):
    def tried(knob: str, values: str) -> list:
        return grid(ATTENTION, knob=knob, values=values)[0]

    assert [chain[0].cross_replace for chain in tried("keep layout until", "0, 0.5")] == [
        (0.0, 0.0),
        (0.0, 0.5),
    ]
    assert tried("keep shapes until", "0.7")[0][0].self_replace == (0.1, 0.7)
    (chain,) = tried("factor of the words", "-3")
    assert chain[1].scales.tolist() == [1.0, -3.0]
    (chain,) = tried("strength", "0.9")
    assert [edit.strength for edit in chain[2:]] == [0.9, 0.9]


def test_edit_grid_refuses(comfy: Path):
    def act(*said: str, edits: tuple = CHAIN, **inputs: Any) -> None:
        refused("EditGrid", *said, edits=edits, **inputs)

    act("values is empty", values=" , ")
    act('values "0.3 0.5" are not all numbers', values="0.3 0.5")
    act("not all numbers", values="nan")
    act("that makes 121 pictures; use 100 at most", values="1," * 11, second_values="1," * 11)
    act("second values belong to no setting", second_values="1")
    act("second values is empty; write some for cfg", second_knob="cfg")
    act("both settings are end", second_knob="end", second_values="1")
    act("weight is 1.5; use 0 to 1", knob="weight", values="1.5")
    act("no edit of the chain has omega; choose weight, start, end, cfg", knob="omega")
    act("no edit of the chain has end; choose cfg", edits=())
    act("start 1 is not before end 1", knob="start", values="1")
    act(
        '"keep shapes from" 0.1 is not before',
        edits=ATTENTION,
        knob="keep shapes until",
        values=".1",
    )


def pictures(*colours: float, batch: int = 1, height: int = 300, width: int = 400) -> list[Tensor]:
    return [torch.full((batch, height, width, 3), colour) for colour in colours]


def lists(**inputs: Any) -> dict[str, Any]:
    """The inputs of Contact Sheet as ComfyUI gives them: each a list."""
    return {"labels": [""], "columns": [0]} | inputs


def shown(images: list[Tensor], **inputs: Any) -> Tensor:
    return results("ContactSheet", **lists(images=images, **inputs))[0]


def test_a_sheet_has_the_pictures_in_rows_with_their_labels_below(comfy: Path):
    sheet = shown(pictures(0.1, 0.2, 0.3), labels=["one", "two", "three"], columns=[2])
    strip = 2 * (400 // 14)
    assert sheet.shape == (1, 2 * (300 + strip) + 6, 2 * 400 + 6, 3)
    places = {(0, 0): 0.1, (0, 406): 0.2, (306 + strip, 0): 0.3}
    for (top, left), colour in places.items():
        whole = sheet[0, top : top + 300, left : left + 400]
        assert torch.equal(whole, torch.full((300, 400, 3), colour))
        label = sheet[0, top + 300 : top + 300 + strip, left : left + 400]
        assert float(label.min()) < 0.3 and float(label[0].min()) == 1.0
    assert torch.equal(sheet[0, 306 + strip :, 406:], torch.ones(300 + strip, 400, 3))


def test_a_list_of_batches_gives_a_sheet_for_each_picture_and_one_batch_is_a_list(comfy: Path):
    batches = [torch.cat(pictures(a, a + 0.5)) for a in (0.1, 0.2)]
    sheets = shown(batches, labels=["one\ntwo"])
    assert len(sheets) == 2
    for i, sheet in enumerate(sheets):
        assert torch.equal(
            sheet, shown([one[i : i + 1] for one in batches], labels=["one\ntwo"])[0]
        )
    assert torch.equal(
        shown([batches[0]], labels=["one", "two"]), shown(pictures(0.1, 0.6), labels=["one", "two"])
    )


def test_a_sheet_without_labels_is_about_square_and_small_pictures_are_enlarged(comfy: Path):
    sheet = shown([torch.rand(5, 64, 64, 4)])
    assert sheet.shape[2] == 3 * 256 + 2 * 6
    output = call("ContactSheet", **lists(images=pictures(0.5)))
    assert len(output.ui["images"]) == 1 and text(output) == "1 picture"


def test_contact_sheet_refuses(comfy: Path):
    mixed = [*pictures(0.1), *pictures(0.1, width=300)]
    refused(
        "ContactSheet", "several sizes", "1 of 300 x 300 and 1 of 400 x 300", **lists(images=mixed)
    )
    many = {"images": pictures(0.1, 0.2), "labels": ["one\ntwo\nthree"]}
    refused("ContactSheet", "3 labels for 2 pictures", **lists(**many))
    refused("ContactSheet", "holds no picture", **lists(images=[torch.zeros(0, 8, 8, 3)]))


def test_in_comfyui_a_grid_becomes_a_labelled_sheet(server: Server):
    def fed(node: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": node, "inputs": inputs}

    ours = "DiffusionPath_"
    walk: dict[str, Any] = {"model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0]}
    sampling = {"steps": 4, "cfg": 4.0, "seed": 0, "spacing": "leading", "latent_image": ["5", 0]}
    tried = {"knob": "end", "values": "0.2, 0.6", "second_knob": "cfg", "second_values": "1, 6"}
    workflow = {
        "1": fed(f"{ours}DemoModel", kind="unet"),
        "2": fed("CLIPTextEncode", clip=["1", 1], text="a horse on a green background"),
        "3": fed("CLIPTextEncode", clip=["1", 1], text="a zebra on a green background"),
        "4": fed("CLIPTextEncode", clip=["1", 1], text=""),
        "5": fed("EmptyLatentImage", width=128, height=128, batch_size=2),
        "6": fed(f"{ours}RecordPath", **(walk | sampling | {"positive": ["2", 0]})),
        "7": fed(f"{ours}MDPEpsilon", weight=1.0, curve="constant", start=0.0, end=0.5),
        "8": fed(f"{ours}EditGrid", edits=["7", 0], **tried),
        "9": fed(
            f"{ours}Sampler",
            **walk,
            path=["6", 0],
            cfg=["8", 1],
            start=0.0,
            eta=0.0,
            seed=0,
            edits=["8", 0],
        ),
        "10": fed("VAEDecode", samples=["9", 0], vae=["1", 2]),
        "11": fed(f"{ours}ContactSheet", images=["10", 0], labels=["8", 2], columns=["8", 3]),
        "12": fed("SaveImage", images=["11", 0], filename_prefix="sheet"),
    }
    sheets = server.images(server.run(workflow))["12"]
    assert len(sheets) == 2
    for data in sheets:
        sheet = np.asarray(Image.open(io.BytesIO(data))).astype(float)
        assert sheet.shape == (2 * (256 + 36) + 6, 2 * 256 + 6, 3)
        cells = [sheet[top : top + 256, left : left + 256] for top in (0, 298) for left in (0, 262)]
        assert all(float(np.abs(a - b).mean()) > 1 for i, a in enumerate(cells) for b in cells[:i])
