"""Control of attention on every family of networks, by the nodes, on tiny models of each."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.attention.align import PromptPair
from diffusion_path.attention.maps import attention_maps
from diffusion_path.core.path import Source
from diffusion_path.edits.paint_with_words import PaintWithWords
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, network_calls, refused, results, state, text
from diffusion_path.tests.nodes.test_attention import chain, prompt_of, short_of_memory

STEPS, CFG = 3, 3.0
UNETS = ("sd15", "sdxl")
CROSS = ("wan", "wan_i2v", "ltxv", "anima")
JOINT = (
    *("sd3", "sd35_medium", "flux_dev", "flux_schnell", "flux2", "chroma", "qwen_image"),
    *("lumina2", "z_image", "hunyuan_video", "hidream"),
)
FAMILIES = (*UNETS, *JOINT, *CROSS)
UNREACHED = ("ernie_image", "pixart", "hunyuan_dit", "auraflow", "omnigen2")

each_family = pytest.mark.parametrize("name", FAMILIES)
each_joint = pytest.mark.parametrize("name", JOINT)


@pytest.fixture(scope="module", autouse=True)
def models(comfy: Path) -> Iterator[None]:
    """ComfyUI, and each model once, gone before ComfyUI is."""
    yield
    for cached in (tiny, made, recorded):
        cached.cache_clear()


@functools.cache
def tiny(name: str) -> Any:
    return sharp(tiny_models.attentive(getattr(tiny_models, name)()))


def sharp(model: Any) -> Any:
    """The model, whose attention is not nearly the same everywhere."""
    norms = re.compile(r"(query|key|[qk](_rms)?)_norm|norm_[qk]\b|ln_[qk]\b")
    with torch.no_grad():
        weights = dict(model.model.diffusion_model.named_parameters())
        normed = [name for name in weights if norms.search(name)]
        for name in normed:
            weights[name].mul_(10)
        for name in () if normed else weights:  # SD3, and the UNets
            if name.endswith(("to_q.weight", "to_k.weight", "attn.qkv.weight")):
                weights[name].mul_(3)
    return model


class Case(NamedTuple):
    """A tiny model, a path of two pictures, and the prompts of both sides."""

    name: str
    model: Any
    source: list
    target: list
    negative: list
    pair: Any
    path: Any
    plain: Tensor

    def edit(self, edits: tuple = (), **inputs: Any) -> Tensor:
        return edited(**(self.given(edits) | inputs))

    def run(self, edits: tuple = (), **inputs: Any) -> Any:
        return call("Sampler", **(self.given(edits) | inputs))

    def given(self, edits: tuple) -> dict[str, Any]:
        given = {"model": self.model, "path": self.path, "positive": self.target, "cfg": CFG}
        return given | {"negative": self.negative, "edits": edits}

    def edits(self, *edits: tuple[str, dict]) -> tuple:
        return chain(self.pair, *edits)

    def alone(self, picture: int) -> Any:
        return self.path._replace(latents=self.path.latents[:, picture : picture + 1])


@functools.cache
def made(name: str, source: int = 40, target: int = 40, steps: int = STEPS, batch: int = 2) -> Case:
    """Prompts of so many tokens; where they differ, source and target share no network call."""
    model = tiny(name)
    counts = (source, target, 40)
    prompts = [tiny_models.prompt(name, seed, tokens=n) for seed, n in enumerate(counts)]
    pair = PromptPair(
        source=prompt_of("an old thing", prompts[0]), target=prompt_of("a new thing", prompts[1])
    )
    given = {"model": model, "steps": steps, "spacing": "simple", "positive": prompts[0]}
    (path,) = results("StraightPath", latent_image=tiny_models.picture(name, batch), **given)
    plain = edited(model, path, prompts[1], prompts[2], cfg=CFG)
    return Case(name, model, *prompts, pair, path, plain)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def left_half(width: int = 96, height: int = 64) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


def painted(case: Case, strength: float = 2.0) -> tuple:
    prompt = case.pair.target
    columns, mask = prompt.columns("new"), left_half()
    return (PaintWithWords(prompt=prompt, columns=columns, mask=mask, strength=strength),)


P2P = ("PromptToPrompt", {"joint_replace": 1.0, "cross_replace": 1.0, "self_replace": 0.0})
STRONGER = ("Reweight", {"words": "new: 5"})


# what is known in advance


def source_with(name: str, source: list, target: list) -> list:
    """The target's words with what else the source's prompt has: an attention cannot bring that."""
    ((_, known),), ((words, options),) = source, target
    masks = {key: value for key, value in options.items() if key == "attention_mask"}
    return [[words, known | masks]]


@functools.cache
def recorded(name: str, *references: tuple[int, int]) -> Case:
    """A picture that was made under guidance; prompts of the family's own, different, lengths."""
    model = tiny(name)
    source, target, negative = (tiny_models.prompt(name, seed) for seed in range(3))
    target = source_with(name, source, target)
    pair = PromptPair(
        source=prompt_of("an old thing", source), target=prompt_of("a new thing", target)
    )
    if references:
        latents = [tiny_models.picture(name, height=h, width=w, seed=9) for h, w in references]
        source, target, negative = (
            tiny_models.referring(prompt, *latents) for prompt in (source, target, negative)
        )
    start = {"samples": torch.zeros_like(tiny_models.picture(name)["samples"])}
    given = {"positive": source, "negative": negative, "latent_image": start, "seed": 1}
    path = results("RecordPath", model=model, steps=STEPS, cfg=CFG, spacing="simple", **given)[0]
    plain = edited(model, path, target, negative, cfg=CFG)
    return Case(name, model, source, target, negative, pair, path, plain)


EVERYTHING = {"take": "everything", "blocks": "all", "start": 0.0, "end": 1.0}


def assert_source_comes_back(case: Case) -> None:
    latent = case.edit(results("SourceFeatures", **EVERYTHING)[0])
    lost = error(latent, case.path.clean)
    assert lost <= 1e-4
    assert error(case.plain, case.path.clean) > 10 * max(lost, 1e-4)


@each_family
def test_all_of_the_sources_attention_gives_the_recorded_source_under_another_prompt(name: str):
    assert_source_comes_back(recorded(name))


@each_family
def test_what_never_acts_is_no_edit_bit_for_bit(name: str):
    case = made(name)
    (none,) = results("SourceFeatures", **EVERYTHING | {"start": 0.99})
    off = {"joint_replace": 0.0, "cross_replace": 0.0, "self_replace": 0.0}
    for edits in (
        none,
        case.edits(("PromptToPrompt", off)),
        case.edits(("Reweight", {"words": "new: 1\nthing: 1.0"})),
    ):
        with network_calls(case.model, 2) as asked:
            latent = case.edit(edits)
        assert torch.equal(latent, case.plain)
        assert asked.evaluations == 2 * STEPS


# what each edit does, and whose call it is in


def in_one_call_and_in_two(case: Case, edits: tuple, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The edited latent, which is the same if ComfyUI asks for one condition at a time."""
    together = case.edit(edits)
    with monkeypatch.context() as patch:
        short_of_memory(patch)
        with network_calls(case.model, 2) as asked:
            apart = case.edit(edits)
    assert asked.calls == asked.evaluations
    assert error(together, apart) <= 1e-4
    return together


@pytest.mark.parametrize("counts", [(40, 40), (40, 45)], ids=["alike", "of other lengths"])
@each_family
def test_each_edit_acts_whatever_shares_a_call_and_leaves_the_model_as_it_was(
    name: str, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    case = made(name, *counts)
    before = state(case.model)
    for edits, least in (
        (case.edits(P2P), 2e-5),
        (case.edits(STRONGER), 1e-4),
        (painted(case), 1e-6),
    ):
        latent = in_one_call_and_in_two(case, edits, monkeypatch)
        assert error(latent, case.plain) > least
    assert state(case.model) == before


@pytest.mark.parametrize("name", (*UNETS, *CROSS))
def test_both_kinds_of_attention_are_injected_whatever_shares_a_call(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    case = made(name, 40, 45)
    both = ("PromptToPrompt", {"cross_replace": 1.0, "self_replace": 1.0, "self_limit": 64})
    latent = in_one_call_and_in_two(case, case.edits(both), monkeypatch)
    assert error(latent, case.edit(case.edits(P2P))) > 1e-7


@each_family
def test_what_is_taken_of_the_source_is_the_same_in_one_call_and_in_two(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    case = made(name)
    for inputs in ({}, {"preset": "StyleAligned"}, {"take": "q, k and v", "weight": 0.5}):
        (edits,) = results("SourceFeatures", **inputs | {"blocks": "all", "start": 0.0})
        latent = in_one_call_and_in_two(case, edits, monkeypatch)
        assert error(latent, case.plain) > 1e-5


# maps


def maps_of(case: Case, words: list[list[int]], steps: list[int]) -> Tensor:
    from diffusion_path.host.guider import run

    path, prompt = case.path, case.pair.source

    def look(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
        positive = conditions["positive"]
        source = Source(path, denoiser.percent_to_sigma, denoiser.latent_in, positive)
        return attention_maps(denoiser, source, prompt, words, steps=steps).cpu()

    prompts = {"positive": path.positive}
    with torch.inference_mode():
        return run(case.model, prompts, path.clean, path.sigmas, look, steps=len(steps))


@each_family
def test_the_maps_of_all_tokens_sum_to_1_at_each_place_and_are_not_the_same_everywhere(name: str):
    case = made(name)
    tokens = len(case.pair.source.tokens)
    maps = maps_of(case, [[column] for column in range(tokens)], [0, 2])
    size = {2: (8, 12) if name in (*UNETS, "flux2") else (4, 6), 3: (3, 4, 6)}
    grid = {"ltxv": (3, 8, 12), "anima": (1, 4, 6), "qwen_image": (1, 4, 6)}
    wanted = grid.get(name, size[case.path.clean.ndim - 2])
    assert maps.shape == (2, tokens, *wanted)
    assert float(maps.min()) >= 0
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, *wanted), rtol=0, atol=1e-4)
    spread = maps.flatten(2).std(dim=2) / maps.flatten(2).mean(dim=2)
    assert float(spread.min()) > 1e-5
    both = maps_of(case, [[2, 3]], [0, 2])
    torch.testing.assert_close(both[:, 0], maps[:, 2] + maps[:, 3], rtol=1e-4, atol=1e-6)


class Recorded(NamedTuple):
    """A call of attention, as another pack sees it."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Any
    options: dict

    def of(self, name: str, part: int) -> Tensor:
        """Queries, keys or values of one condition's first picture (heads, tokens, width)."""
        x = getattr(self, name)
        rows = len(x) // len(self.options["uuids"])
        x = x[part * rows]
        return x if x.ndim == 3 else x.unflatten(-1, (self.heads, -1)).transpose(0, 1)


class Recorder:
    """The override of another pack, which writes down what attention is called with."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda out: out) -> None:
        self.change = change
        self.calls: list[Recorded] = []

    def __call__(self, attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any):
        given = dict(zip(("heads", "mask"), args, strict=False)) | named
        options = dict(given["transformer_options"])
        call = Recorded(q.clone(), k.clone(), v, given["heads"], given.get("mask"), options)
        self.calls.append(call)
        return self.change(attention(q, k, v, *args, **named))


def overridden(model: Any, override: Any) -> Any:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


@each_joint
def test_a_map_is_what_the_picture_gives_a_word_of_all_it_gives_to_the_prompt(name: str):
    """In the first step, with the scores written out, in the blocks that are looked at."""
    case = made(name)
    recorder = Recorder()
    found = maps_of(case._replace(model=overridden(case.model, recorder)), [[2]], [0])
    most = max(one.k.shape[-2] for one in recorder.calls)
    # the first call of each block: a map is looked at by further ones
    joint = [one for one in recorder.calls if one.k.shape[-2] == most and one.v.shape[-1] > 1]
    places = math.prod(found.shape[2:])
    blocks = WATCHED.get(name, (0, 1))
    joint = [joint[i] for i in CALLS_OF.get(name, blocks)]
    total = torch.zeros(places)
    for one in joint:
        q, k = one.of("q", 0), one.of("k", 0)
        behind = {"hidream": most, "z_image": most - 8}.get(name, most)
        place = slice(0, places) if name == "hidream" else slice(behind - places, behind)
        first = {"hidream": places, "flux2": 512 - 40}.get(name, 0)
        scores = q[:, place] @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        maps = scores.softmax(dim=-1)[..., first : first + 40].mean(dim=0)
        total += maps[:, 2] / maps.sum(dim=1) / len(joint)
    torch.testing.assert_close(found[0, 0].flatten(), total, rtol=1e-3, atol=1e-7)
