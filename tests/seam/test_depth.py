"""Edits of the attention reach every layer, numbered as ComfyUI numbers them: in SDXL up to ten
behind one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import results
from diffusion_path.tests.seam import patches
from diffusion_path.tests.seam.test_contract import assert_other, assert_same, euler, walked
from diffusion_path.tests.seam.workflow import Setting, demo, tiny

LEVELS = torch.tensor([8.0, 0.0])
DEEP = ("sd15_deep", "sdxl_deep")


@cache
def setting_of(name: str) -> Setting:
    """A tiny UNet, under the demo's words with embeddings of its own."""
    setting, pair = tiny(name), demo().pair
    # sharper maps than those of embeddings of unit variance
    (source,), (target,) = (
        [[4 * embedding, options] for embedding, options in prompt]
        for prompt in (setting.source, setting.target)
    )
    words = replace(
        pair,
        source=replace(pair.source, embedding=source[0]),
        target=replace(pair.target, embedding=target[0]),
    )
    return replace(setting, source=[source], target=[target], pair=words, key=f"deep {name}")


def every_layer(setting: Setting, kind: str, patch: Callable[..., Tensor]) -> Setting:
    """With a replacement of all layers of a kind."""
    model = setting.model.clone()
    for layer in patches.layers(setting.model):
        getattr(model, f"set_model_{kind}_replace")(patch, *layer)
    return replace(setting, model=model)


@pytest.mark.parametrize("name", DEEP)
def test_a_words_factor_is_that_of_its_values_in_every_layer(comfy: Path, name: str):
    setting = setting_of(name)
    (word,) = (word for word in setting.pair.target.words if word.text == "pear")
    columns = list(word.tokens)

    def stronger(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple:
        numbers, v = options["cond_or_uncond"], v.clone()
        for number, rows in zip(numbers, v.chunk(len(numbers)), strict=True):
            if number == 0:
                rows[:, columns] *= 3
        return q, k, v

    by_hand = replace(setting, model=setting.model.clone())
    by_hand.model.set_model_attn2_patch(stronger)
    edits = results("Reweight", prompts=setting.pair, words="pear: 3")[0]
    path = setting.invert(sigmas=LEVELS)
    theirs, plain = (euler(one, path.latents[0], LEVELS, 3.0) for one in (by_hand, setting))
    assert_other(theirs, plain, 1e-6)
    assert_same(walked(setting, path, edits, cfg=3.0) - plain, theirs - plain, 0.01)


def injected(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """The maps of the prompt with the values of each."""
    from comfy.ldm.modules.attention import optimized_attention

    numbers = options["cond_or_uncond"]
    source = numbers.index(0)
    q, k = (part.chunk(len(numbers))[source].repeat(len(numbers), 1, 1) for part in (q, k))
    return optimized_attention(q, k, v, options["n_heads"])


@pytest.mark.parametrize(
    ("kinds", "inputs"),
    [
        (("attn2",), {"cross_replace": 1.0, "self_replace": 0.0}),
        (("attn1",), {"cross_replace": 0.0, "self_replace": 1.0, "self_limit": 64}),
        (("attn1", "attn2"), {"cross_replace": 1.0, "self_replace": 1.0, "self_limit": 64}),
    ],
    ids=["cross", "self", "both"],
)
@pytest.mark.parametrize("name", DEEP)
def test_the_sources_maps_are_in_every_layer(comfy: Path, name: str, kinds: tuple, inputs: dict):
    """In one step, where both begin with the same latent.

    By hand: the source is the prompt, the target the negative, and guidance 0 follows the latter.
    """
    setting = setting_of(name)
    path = setting.invert(sigmas=LEVELS)
    by_hand: Any = setting
    for kind in kinds:
        by_hand = every_layer(by_hand, kind, injected)
    start = (path.latents[0], LEVELS, 0.0, setting.source, setting.target)
    theirs, plain = euler(by_hand, *start), euler(setting, *start)
    assert_other(theirs, plain, 1e-6)
    edits = results("PromptToPrompt", prompts=setting.pair, mode="replace", **inputs)[0]
    assert_same(walked(setting, path, edits, cfg=1.0) - plain, theirs - plain, 0.01)


def test_sdxls_layers_are_numbered_as_in_the_whole_model(comfy: Path):
    layers = patches.layers(tiny_models.sdxl_deep())
    blocks = {"input": {4: 2, 5: 2, 7: 10, 8: 10}, "middle": {0: 10}}
    blocks["output"] = {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}
    assert layers == [
        (kind, number, index)
        for kind, depths in blocks.items()
        for number, depth in depths.items()
        for index in range(depth)
    ]
