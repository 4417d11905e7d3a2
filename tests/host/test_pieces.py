"""Packs that show the network a picture in pieces, or a batch in parts, as tiled diffusion does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests.calls import call, results
from diffusion_path.tests.nodes.test_attention import Family, family_of
from diffusion_path.tests.seam.workflow import demo

Apply = Callable[..., Tensor]


def halved(dim: int) -> Callable[[Apply, dict[str, Any]], Tensor]:
    """Two halves of the call, one after the other; the conditions of the first are for both."""

    def wrapper(apply: Apply, args: dict[str, Any]) -> Tensor:
        found = []
        rows = [slice(None)] * 2 if dim else [slice(0, 1), slice(1, 2)]
        for part, own in zip(args["input"].chunk(2, dim=dim), rows, strict=True):
            c = {name: one[own] if torch.is_tensor(one) else one for name, one in args["c"].items()}
            found.append(apply(part, args["timestep"][own], **c))
        return torch.cat(found, dim=dim)

    return wrapper


def stacked(apply: Apply, args: dict[str, Any]) -> Tensor:
    """Two halves in one call, the second one's rows behind the first one's."""
    parts = args["input"].chunk(2, dim=-1)
    twice = {
        name: torch.cat([one, one]) if torch.is_tensor(one) else one
        for name, one in args["c"].items()
    }
    output = apply(torch.cat(parts), torch.cat([args["timestep"]] * 2), **twice)
    return torch.cat(output.chunk(2), dim=-1)


def whole(apply: Apply, args: dict[str, Any]) -> Tensor:
    return apply(args["input"], args["timestep"], **args["c"])


def wrapped(model: Any, wrapper: Callable) -> Any:
    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


@pytest.fixture(scope="module")
def tiny(comfy: Path) -> Family:
    return family_of("sd15")


EDITS = {
    "self": (("PromptToPrompt", {"cross_replace": 0.0, "self_limit": 64}),),
    "cross": (("PromptToPrompt", {"self_replace": 0.0}),),
    "blend": (("LocalBlend", {"source_words": "old", "target_words": "new"}),),
}


def refusal(act: Callable[[], Any]) -> None:
    with pytest.raises(ValueError) as refused:
        act()
    message = str(refused.value)
    assert "something on the model shows the network" in message
    assert "take it off the model, or use MDP Epsilon" in message
    assert message.endswith(".") and message.count(".") == 1, message


@pytest.mark.parametrize("wrapper", [halved(-1), stacked], ids=["one by one", "stacked"])
@pytest.mark.parametrize("name", EDITS)
def test_injection_into_pieces_is_refused(tiny: Family, name: str, wrapper: Callable):
    model = wrapped(tiny.model, wrapper)
    refusal(lambda: tiny.edit(model=model, edits=tiny.edits(*EDITS[name])))


def test_a_batch_in_parts_is_refused_too(tiny: Family):
    """Its rows are one condition's alone, and would be taken for those of several."""
    model = wrapped(tiny.model, halved(0))
    refusal(lambda: tiny.edit(model=model, cfg=1.0, edits=tiny.edits(*EDITS["cross"])))


def test_painting_and_maps_of_pieces_are_refused(comfy: Path):
    setting = demo()
    model = wrapped(setting.model, halved(-1))
    inputs = {"clip": setting.clip, "prompt": "a red pear on a blue background"}
    edits = results("PaintWithWords", phrase="pear", mask=torch.ones(1, 64, 64), **inputs)[0]
    prompts = {"positive": setting.target, "negative": setting.negative}
    refusal(lambda: call("Sampler", model=model, path=setting.path, edits=edits, **prompts))
    look = {"path": setting.path, "prompts": setting.pair, "vae": setting.vae}
    refusal(lambda: call("AttentionMaps", model=model, **look))


def test_a_wrapper_that_leaves_the_call_whole_changes_nothing(tiny: Family):
    torch.testing.assert_close(
        tiny.edit(model=wrapped(tiny.model, whole)), tiny.edit(), rtol=0, atol=1e-4
    )


def test_factors_of_words_are_for_every_piece_alike(tiny: Family):
    """All places are treated alike, so that the pieces may be."""
    model, edits = wrapped(tiny.model, halved(-1)), tiny.edits(("Reweight", {"words": "new: 9"}))
    assert not torch.equal(tiny.edit(model=model, edits=edits), tiny.edit(model=model, edits=()))


@pytest.mark.parametrize("wrapper", [halved(-1), stacked], ids=["one by one", "stacked"])
@pytest.mark.parametrize(
    "name", ["none", "MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance", "MaskBlend"]
)
def test_what_leaves_attention_alone_works_on_pieces_as_on_pictures(
    comfy: Path, name: str, wrapper: Callable
):
    """Each half comes out as the edit of that half alone."""
    setting = demo()

    def edits(width: int) -> tuple:
        mask = {"mask": torch.full((1, 64, width), 0.5)}
        inputs = mask if name == "MaskBlend" else {"weight": 0.7, "end": 1.0}
        return () if name == "none" else results(name, **inputs)[0]

    pieces = replace(setting, model=wrapped(setting.model, wrapper)).sample(setting.path, edits(64))
    halves = [
        setting.sample(setting.path._replace(latents=half), edits(32))
        for half in setting.path.latents.chunk(2, dim=-1)
    ]
    torch.testing.assert_close(pieces, torch.cat(halves, dim=-1), rtol=0, atol=1e-4)
