"""Numbers that are none, and levels that do not fall, are refused in one sentence.

They come from other packs' nodes: a widget holds none of them, but a wire does.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.tests.calls import refused, results
from diffusion_path.tests.seam.workflow import TARGET, Setting, demo, tiny

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def setting(comfy: Path) -> Setting:
    return demo()


def inputs_of(setting: Setting, name: str) -> dict[str, Any]:
    """What a node needs to run."""
    picture, size = setting.picture, {"samples": torch.zeros(1, 4, 8, 8)}
    prompts = {"positive": setting.source, "negative": setting.negative}
    model, path = {"model": setting.model}, {"path": setting.path}
    pair = {"prompts": setting.pair}
    return {
        "DDIMInversion": {**model, **prompts, "latent_image": picture, "steps": 2},
        "RecordPath": {**model, **prompts, "latent_image": size, "steps": 2},
        "NullTextInversion": {**model, **path, "negative": setting.negative, "inner_steps": 1},
        "NegativePromptInversion": {**path, "proximal": "l0"},
        "DiffEditMask": {
            **model,
            "source": setting.source,
            "target": setting.target,
            "latent_image": picture,
            "maps": 1,
        },
        "Sampler": {**model, **path, **prompts, "positive": setting.target},
        "AttentionMaps": {**model, **path, **pair, "vae": setting.vae},
        "MaskBlend": {"mask": torch.ones(1, 8, 8)},
        "PromptToPrompt": pair,
        "Reweight": {**pair, "words": "pear: 2"},
        "LocalBlend": {**pair, "target_words": "pear"},
        "PaintWithWords": {
            "clip": setting.clip,
            "prompt": TARGET,
            "phrase": "red pear",
            "mask": torch.ones(1, 8, 8),
        },
    }.get(name, {})


NODES = (
    "DDIMInversion",
    "RecordPath",
    "NullTextInversion",
    "NegativePromptInversion",
    "DiffEditMask",
    "Sampler",
    "AttentionMaps",
    "MDPEpsilon",
    "MaskBlend",
    "PromptToPrompt",
    "Reweight",
    "LocalBlend",
    "PaintWithWords",
)


@pytest.mark.parametrize("name", NODES)
def test_each_runs_on_what_the_others_start_from(setting: Setting, name: str):
    assert results(name, **inputs_of(setting, name))


NUMBERS = [
    ("DDIMInversion", "cfg"),
    ("DDIMInversion", "strength"),
    ("RecordPath", "cfg"),
    ("NullTextInversion", "cfg"),
    ("NullTextInversion", "learning_rate"),
    ("NullTextInversion", "early_stop"),
    ("NegativePromptInversion", "quantile"),
    ("NegativePromptInversion", "reconstruction"),
    ("DiffEditMask", "strength"),
    ("DiffEditMask", "threshold"),
    ("Sampler", "cfg"),
    ("Sampler", "start"),
    ("Sampler", "eta"),
    ("AttentionMaps", "start"),
    ("AttentionMaps", "end"),
    *[
        (name, key)
        for name in ("MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance")
        for key in ("weight", "start", "end")
    ],
    ("MaskBlend", "start"),
    ("MaskBlend", "end"),
    ("PromptToPrompt", "cross_replace"),
    ("PromptToPrompt", "self_replace"),
    ("PromptToPrompt", "cross_start"),
    ("PromptToPrompt", "self_start"),
    ("Reweight", "start"),
    ("Reweight", "end"),
    ("LocalBlend", "threshold"),
    ("LocalBlend", "start"),
    ("PaintWithWords", "strength"),
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_a_setting_that_is_no_number(setting: Setting, name: str, key: str):
    refused(name, key, "nan", **(inputs_of(setting, name) | {key: NAN}))


@pytest.mark.parametrize("value", [INF, -INF])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("DDIMInversion", "cfg"),
        ("RecordPath", "cfg"),
        ("NullTextInversion", "cfg"),
        ("NullTextInversion", "learning_rate"),
        ("Sampler", "cfg"),
        ("Sampler", "eta"),
        ("MDPEpsilon", "weight"),
        ("PaintWithWords", "strength"),
    ],
)
def test_a_setting_without_end(setting: Setting, name: str, key: str, value: float):
    refused(name, key, "inf", **(inputs_of(setting, name) | {key: value}))


@pytest.mark.parametrize("factor", ["nan", "inf", "-inf"])
def test_a_factor_of_a_word_that_is_no_number(setting: Setting, factor: str):
    refused("Reweight", factor, prompts=setting.pair, words=f"pear: {factor}")


LEVELS = {
    "that rise": [0.1, 1.0, 5.0],
    "that stay": [5.0, 1.0, 1.0, 0.1],
    "that rise in the end": [5.0, 1.0, 0.1, 0.2],
    "with none": [5.0, NAN, 0.1],
    "that begin with none": [NAN, 1.0, 0.1],
    "that end with none": [5.0, 1.0, NAN],
    "without end": [INF, 1.0, 0.1],
    "below zero": [5.0, 1.0, -0.1],
    "all below zero": [-0.1, -1.0, -5.0],
    "of one level": [1.0],
    "of no level": [],
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", ["DDIMInversion", "RecordPath"])
def test_levels(setting: Setting, name: str, levels: str):
    sigmas = torch.tensor(LEVELS[levels])
    refused(name, "sigmas", **(inputs_of(setting, name) | {"sigmas": sigmas}))


@pytest.mark.parametrize("name", ["DDIMInversion", "RecordPath"])
def test_levels_of_two_dimensions(setting: Setting, name: str):
    sigmas = torch.tensor([[5.0, 1.0], [0.5, 0.1]])
    refused(name, "sigmas", **(inputs_of(setting, name) | {"sigmas": sigmas}))


def spoilt(prompt: list, value: float) -> list:
    """The prompt with one number that is none."""
    other = copy.deepcopy(prompt)
    other[0][0][0, 3, 5] = value
    return other


PROMPTS = [
    ("DDIMInversion", "positive"),
    ("RecordPath", "positive"),
    ("RecordPath", "negative"),
    ("NullTextInversion", "negative"),
    ("DiffEditMask", "source"),
    ("DiffEditMask", "target"),
    ("Sampler", "positive"),
    ("Sampler", "negative"),
]


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(("name", "key"), PROMPTS)
def test_a_prompt_with_a_number_that_is_none(setting: Setting, name: str, key: str, value: float):
    given = inputs_of(setting, name)
    refused(name, key, **(given | {key: spoilt(given[key], value)}))


def test_a_negative_with_a_number_that_is_none_where_it_is_read(setting: Setting):
    given = inputs_of(setting, "DDIMInversion")
    negative = spoilt(setting.negative, NAN)
    refused("DDIMInversion", "negative", **(given | {"cfg": 2.0, "negative": negative}))


def test_a_pooled_vector_with_a_number_that_is_none(comfy: Path):
    setting = tiny("sdxl")
    positive = copy.deepcopy(setting.source)
    positive[0][1]["pooled_output"][0, 7] = NAN
    inputs = {"model": setting.model, "positive": positive, "latent_image": setting.picture}
    refused("DDIMInversion", "positive", steps=2, **inputs)


@pytest.mark.parametrize("name", ["MaskBlend", "PaintWithWords"])
def test_a_mask_with_a_number_that_is_none(setting: Setting, name: str):
    mask = torch.ones(1, 8, 8)
    mask[0, 2, 3] = NAN
    refused(name, "mask", **(inputs_of(setting, name) | {"mask": mask}))
