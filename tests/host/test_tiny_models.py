"""The tiny models of all families: ComfyUI samples them, and where their attention can be reached.

A test here that fails after ComfyUI has changed says what the attention overrides must know anew.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models

REFERRING = ("flux_dev", "qwen_image", "flux2", "omnigen2")


@pytest.fixture(scope="module", autouse=True)
def models(comfy: Path) -> Iterator[None]:
    """ComfyUI, and each model once, gone before ComfyUI is."""
    yield
    plain.cache_clear()
    tiny.cache_clear()


class Call(NamedTuple):
    """A call of attention, as an `optimized_attention_override` sees it."""

    queries: int
    keys: int
    masked: bool
    reshaped: bool
    grouped: bool
    block: tuple[str | None, int | None]
    prompts: list[int] | None
    uuids: int
    references: list[int] | None


class Recorder:
    """Writes down every call of attention, apart for every call of the network."""

    def __init__(self) -> None:
        self.networks: list[list[Call]] = []

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Tensor:
        queries, keys, *_ = args
        options = kwargs["transformer_options"]
        call = Call(
            queries.shape[-2],
            keys.shape[-2],
            (args[4] if len(args) > 4 else kwargs.get("mask")) is not None,
            kwargs.get("skip_reshape", False),
            kwargs.get("enable_gqa", False),
            (options.get("block_type"), options.get("block_index")),
            options.get("cond_or_uncond"),
            len(options.get("uuids", ())),
            options.get("reference_image_num_tokens"),
        )
        self.networks[-1].append(call)
        return function(*args, **kwargs)

    def network(self, apply_model: Any, args: dict) -> Tensor:
        self.networks.append([])
        return apply_model(args["input"], args["timestep"], **args["c"])

    def on(self, model: Any) -> Any:
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = self
        model.set_model_unet_function_wrapper(self.network)
        return model


@functools.cache
def tiny(name: str) -> Any:
    return getattr(tiny_models, name)()


def words(name: str) -> int:
    """Tokens of the prompts here: what the family reads, and more than a picture has of them."""
    return 77 if tiny_models.prompt(name)[0][0].shape[1] == 77 else 40


def sample(model: Any, name: str, positive: list, negative: list, cfg: float = 3.0) -> Tensor:
    """ComfyUI's own euler sampler, as SamplerCustom calls it."""
    import comfy.sample
    import comfy.samplers

    latent = tiny_models.picture(name)["samples"]
    noise = comfy.sample.prepare_noise(latent, 0)
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([0.9, 0.5, 0.0])
    prompts = positive, negative, latent
    with torch.inference_mode():
        return comfy.sample.sample_custom(model, noise, cfg, euler, sigmas, *prompts, seed=0)


def calls(name: str, positive: list, negative: list, cfg: float = 3.0) -> list[Call]:
    """The calls of attention of one call of the network, of which there is one a step."""
    recorder = Recorder()
    sample(recorder.on(tiny(name)), name, positive, negative, cfg)
    first, second = recorder.networks
    assert first == second
    return first


@functools.cache
def plain(name: str) -> list[Call]:
    """The calls with a positive and a negative prompt, equally long, in one batch."""
    positive, negative = (tiny_models.prompt(name, seed, words(name)) for seed in (1, 2))
    return calls(name, positive, negative)


@pytest.mark.parametrize("name", tiny_models.ALL_SHAPES)
def test_comfyui_samples_each_and_the_prompt_counts_whatever_its_length(name: str):
    negative = tiny_models.prompt(name, 2)
    one = sample(tiny(name), name, tiny_models.prompt(name, 1), negative)
    long = 154 if words(name) == 77 else 21
    other = sample(tiny(name), name, tiny_models.prompt(name, 1, long), negative)
    for latent in (one, other):
        assert latent.shape == tiny_models.picture(name)["samples"].shape
        assert bool(torch.isfinite(latent).all())
    assert float((one - other).norm() / one.norm()) > 1e-4, "the prompt says nothing"


def spelled(text: int, picture: int, kinds: str) -> list[tuple[int, int]]:
    """Queries and keys of the kinds of attention: of the picture with itself, of the picture with
    the text, of the text with itself, and of both together with both."""
    both = text + picture
    sizes = {
        "self": (picture, picture),
        "cross": (picture, text),
        "text": (text, text),
        "joint": (both, both),
    }
    return [sizes[kind] for kind in kinds.split()]


def unet(*levels: int) -> list[tuple[int, int]]:
    return [size for level in levels for size in spelled(77, level, "self cross")]


CALLS = {
    "sd15": unet(96, 24, 24, 24, 24, 96, 96),
    "sd15_deep": unet(*4 * [96], *(4 + 2 + 6) * [24], *6 * [96]),
    "sd2_v": unet(96, 24, 24, 24, 24, 96, 96),
    "sdxl": unet(96, 24, 24, 24, 24, 96, 96),
    "sdxl_deep": unet(*4 * [24], *(20 + 10 + 30) * [6], *6 * [24]),
    "sd3": spelled(77, 24, "joint joint"),
    "flux_dev": spelled(40, 24, "joint joint joint joint"),
    "flux_schnell": spelled(40, 24, "joint joint joint joint"),
    "chroma": spelled(40, 24, "joint joint joint joint"),
    "qwen_image": spelled(40, 24, "joint joint"),
    "wan": spelled(40, 72, "self cross self cross"),
    # without CLIP's view of the first frame the text is read once more in its place
    "wan_i2v": spelled(40, 72, "self cross cross self cross cross"),
    "lumina2": spelled(40, 24, "text self joint joint"),
    "z_image": spelled(64, 32, "text self joint joint"),
    "sd35_medium": spelled(77, 24, "joint self joint self joint"),
    "flux2": spelled(512, 96, "joint joint joint joint"),
    "hunyuan_video": spelled(40, 72, "text text joint joint joint joint"),
    "hunyuan_video_15": spelled(40, 288, "text text joint joint joint joint"),
    "hidream": spelled(40 + 42 + 42, 24, "joint joint joint joint"),
    "ltxv": spelled(40, 288, "self cross self cross"),
    "anima": spelled(40, 24, "self cross self cross"),
    "auraflow": spelled(8 + 77, 24, "joint joint joint joint"),
    "omnigen2": spelled(40, 24, "text self joint joint"),
    "ernie_image": [],
    "pixart": [],
    "hunyuan_dit": [],
}
"""Queries and keys of every call of attention that an override is asked for, in their order."""


@pytest.mark.parametrize("name", tiny_models.ALL_SHAPES)
def test_an_override_is_asked_for_these_calls_of_attention(name: str):
    assert [(call.queries, call.keys) for call in plain(name)] == CALLS[name]


@pytest.mark.parametrize("name", tiny_models.ALL_SHAPES)
def test_every_call_says_whose_prompts_it_is_for(name: str):
    for call in plain(name):
        assert (call.prompts, call.uuids) == ([1, 0], 2)


FLUX = [("double", 0), ("double", 1), ("single", 0), ("single", 1)]
LUMINA = [(None, None), (None, None), ("double", 0), ("double", 1)]
BLOCKS = {
    "flux_dev": FLUX,
    "flux_schnell": FLUX,
    "chroma": FLUX,
    "flux2": FLUX,
    "qwen_image": FLUX[:2],
    "wan": [block for block in FLUX[:2] for _ in range(2)],
    "wan_i2v": [block for block in FLUX[:2] for _ in range(3)],
    "lumina2": LUMINA,
    "z_image": LUMINA,
    "hunyuan_video": [(None, None), (None, None), *FLUX],
    "hunyuan_video_15": [(None, None), (None, None), *FLUX],
    "anima": [(None, 0), (None, 0), (None, 1), (None, 1)],
}
"""`block_type` and `block_index` of the calls, where the family says any."""

SILENT = ("sd3", "sd35_medium", "hidream", "ltxv", "auraflow", "omnigen2")


@pytest.mark.parametrize("name", [*BLOCKS, *SILENT])
def test_a_call_says_which_blocks_it_is_or_none(name: str):
    blocks = [call.block for call in plain(name)]
    assert blocks == BLOCKS.get(name, [(None, None)] * len(blocks))


HEADS_APART = (
    *("flux_dev", "flux_schnell", "chroma", "flux2", "qwen_image", "lumina2", "z_image"),
    *("hunyuan_video", "hunyuan_video_15", "anima", "auraflow", "omnigen2"),
)


@pytest.mark.parametrize("name", tiny_models.ALL_SHAPES)
def test_how_a_family_lays_out_its_calls(name: str):
    for call in plain(name):
        assert call.reshaped == (name in HEADS_APART)
        assert call.grouped == (name == "omnigen2")
        cross = name == "ltxv" and call.queries != call.keys
        assert call.masked == (name == "qwen_image" or cross)


def test_hunyuan_video_masks_all_its_calls_if_some_tokens_are_no_words():
    ((embedding, options),) = tiny_models.prompt("hunyuan_video", 1, 40)
    mask = torch.ones(1, 40, dtype=torch.int64)
    mask[:, 30:] = 0
    prompt = [[embedding, options | {"attention_mask": mask}]]
    assert all(call.masked for call in calls("hunyuan_video", prompt, prompt, cfg=1.0))


def test_anima_reads_the_t5_tokens_of_a_prompt_padded_to_512():
    ((embedding, options),) = tiny_models.prompt("anima", 1, 40)
    t5 = {"t5xxl_ids": torch.arange(7, dtype=torch.int), "t5xxl_weights": torch.ones(7)}
    prompt = [[embedding, options | t5]]
    found = [(call.queries, call.keys) for call in calls("anima", prompt, prompt)]
    assert found == spelled(512, 24, "self cross self cross")


@pytest.mark.parametrize("name", REFERRING)
def test_a_reference_is_more_tokens_of_the_picture_which_omnigen2_refines_apart(name: str):
    size = 96 if name == "flux2" else 24
    reference = tiny_models.picture(name, seed=3)
    positive, negative = (
        tiny_models.referring(tiny_models.prompt(name, seed, 40), reference) for seed in (1, 2)
    )
    found = calls(name, positive, negative)
    text = 512 if name == "flux2" else 40
    wanted = spelled(text, 2 * size, " ".join(["joint"] * len(CALLS[name])))
    if name == "omnigen2":  # the text, the picture and the reference are refined apart
        wanted = [*spelled(text, size, "text self self"), *wanted[2:]]
    assert [(call.queries, call.keys) for call in found] == wanted
    said = None if name == "omnigen2" else [size]
    assert all(call.references == said for call in found)
