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
    """A tiny model, a path, the prompts of both sides, and the target's picture unedited."""

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
def made(name: str, source: int = 40, target: int = 40, steps: int = STEPS, batch: int = 1) -> Case:
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
        with network_calls(case.model) as asked:
            latent = case.edit(edits)
        assert torch.equal(latent, case.plain)
        assert asked.evaluations == 2 * STEPS


# what each edit does, and whose call it is in


def in_one_call_and_in_two(case: Case, edits: tuple, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The edited latent, which is the same if ComfyUI asks for one condition at a time."""
    together = case.edit(edits)
    with monkeypatch.context() as patch:
        short_of_memory(patch)
        with network_calls(case.model) as asked:
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
    for edits in (case.edits(P2P), case.edits(STRONGER), painted(case)):
        latent = in_one_call_and_in_two(case, edits, monkeypatch)
        assert error(latent, case.plain) > 5e-4
    assert state(case.model) == before


@pytest.mark.parametrize("name", (*UNETS, *CROSS))
def test_both_kinds_of_attention_are_injected_whatever_shares_a_call(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    case = made(name, 40, 45)
    both = ("PromptToPrompt", {"cross_replace": 1.0, "self_replace": 1.0, "self_limit": 64})
    latent = in_one_call_and_in_two(case, case.edits(both), monkeypatch)
    assert error(latent, case.edit(case.edits(P2P))) > 5e-6


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
    assert maps.shape == (1, tokens, *wanted)
    assert float(maps.min()) >= 0
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, *wanted), rtol=0, atol=1e-4)
    spread = maps.flatten(2).std(dim=2) / maps.flatten(2).mean(dim=2)
    assert float(spread.min()) > 5e-3
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
    joint = [one for one in recorder.calls if one.q.shape[-2] == one.k.shape[-2] == most]
    places = math.prod(found.shape[2:])
    middle = {2: (0, 1), 3: (1,), 4: (1, 2)}[len(joint)]
    joint = [joint[number] for number in middle]
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


@each_family
def test_local_blend_keeps_the_source_where_the_words_are_not(name: str):
    case = made(name)
    words = {"source_words": "old", "target_words": "new", "threshold": 0.99}
    latent, _, _, mask, _ = case.run(case.edits(("LocalBlend", words | {"start": 0.0}))).args
    assert {*mask.unique().tolist()} == {0.0, 1.0}
    found, source = latent["samples"], case.path.clean
    height, width = source.shape[-2:]
    mask = mask[:, :: mask.shape[-2] // height, :: mask.shape[-1] // width]
    if source.ndim == 5:  # of a video's latent each frame but the first holds several
        frames = source.shape[2]
        mask = mask[:: max((len(mask) - 1) // max(frames - 1, 1), 1)]
    outside = (mask == 0).expand_as(source)
    assert torch.equal(found[outside], source[outside])
    assert error(found[~outside], source[~outside]) > 1e-2


# costs


@pytest.mark.parametrize(
    ("inputs", "start", "window"),
    [
        ({"joint_replace": 0.6}, 0.0, 3),
        ({"joint_replace": 0.0}, 0.0, 0),
        ({}, 0.0, 1),  # a fifth
        ({}, 0.5, 1),  # of what is walked
    ],
)
@pytest.mark.parametrize("name", ["sd3", "flux_dev", "qwen_image", "z_image", "hidream"])
def test_the_source_is_asked_for_in_the_window_only(
    name: str, inputs: dict, start: float, window: int
):
    case = made(name, steps=4)
    walked = 2 if start else 4
    with network_calls(case.model) as asked:
        output = case.run(case.edits(("PromptToPrompt", inputs)), start=start)
    assert asked.evaluations == 2 * walked + window
    assert asked.calls == walked  # the source's are in the target's calls
    assert f"{2 * walked + window} model calls" in text(output)
    assert output.ui["report"][0]["kept_bytes"] == 0


@each_joint
def test_prompts_of_other_lengths_cost_one_void_prediction_and_the_memory_of_what_is_kept(
    name: str,
):
    from diffusion_path.host.dit import blocks_of

    case = made(name, 40, 45, steps=4)
    width = {"sd3": 128, "sd35_medium": 128, "z_image": 256}.get(name, 64)
    places = math.prod(case.path.clean.shape[2:]) // (1 if name == "flux2" else 4)
    apart = name != "flux2"  # which fills up every prompt to 512 tokens
    for blocks, count in (("", len(blocks_of(case.model.model.diffusion_model))), ("0", 1)):
        inputs = {"joint_replace": 0.6, "joint_blocks": blocks}
        with network_calls(case.model) as asked:
            output = case.run(case.edits(("PromptToPrompt", inputs)))
        (figures,) = output.ui["report"]
        assert asked.evaluations == figures["evaluations"] == 2 * 4 + 3 + 3 * apart
        queries_and_keys = 2 * places * width * 4
        assert figures["kept_bytes"] == queries_and_keys * count * apart


def test_only_the_blocks_that_are_named_are_injected():
    case = made("flux_dev")
    every, last = (
        case.edit(case.edits(("PromptToPrompt", {"joint_replace": 1.0, "joint_blocks": blocks})))
        for blocks in ("", "single 1")
    )
    assert error(last, case.plain) > 1e-4
    assert error(last, every) > 1e-4


@pytest.mark.parametrize("name", ["sd15", "flux_dev", "wan"])
def test_what_is_offloaded_gives_the_same_picture(name: str, monkeypatch: pytest.MonkeyPatch):
    import comfy.model_management

    case = made(name, 40, 45)
    edits = case.edits(P2P, STRONGER)
    wanted = case.edit(edits)
    free, asked = comfy.model_management.get_free_memory, []

    def none(device: Any = None, torch_free_too: bool = False) -> Any:
        asked.append(device)
        return free(device, torch_free_too) if torch_free_too else 0

    monkeypatch.setattr(comfy.model_management, "get_free_memory", none)
    assert error(case.edit(edits), wanted) <= 1e-5
    assert asked


# batches, chains, guidance as an input


@each_family
def test_a_batch_of_a_chain_is_edited_as_each_of_its_pictures_alone(name: str):
    case = made(name, 40, 45, batch=2)
    blend = {"source_words": "old", "target_words": "new", "threshold": 0.9}
    edits = case.edits(P2P, STRONGER, ("LocalBlend", blend))
    (edits,) = results("SourceFeatures", take="k and v", blocks="all", start=0.3, edits=edits)
    both = case.edit(edits)
    for i in range(2):
        assert error(case.edit(edits, path=case.alone(i)), both[i : i + 1]) <= 1e-4
    assert error(both, case.edit(edits[:3])) > 1e-5


def test_guidance_that_is_an_input_of_the_network_needs_no_negatives_prediction():
    case = made("flux_dev")

    def guided(guidance: float, edits: tuple) -> Tensor:
        ((words, options),) = case.target
        positive = [[words, options | {"guidance": guidance}]]
        with network_calls(case.model) as asked:
            latent = case.edit(edits, positive=positive, cfg=1.0)
        assert asked.evaluations == STEPS * (2 if edits else 1)
        return latent

    plain, injected = guided(3.5, ()), guided(3.5, case.edits(P2P))
    assert error(injected, plain) > 1e-4
    assert error(guided(7.0, case.edits(P2P)), injected) > 1e-5


@pytest.mark.parametrize("name", ["flux_dev", "sd15", "wan"])
def test_reweight_acts_beside_the_sources_keys_and_values_too(name: str):
    """StyleAligned lets the target attend to both pictures, in every block."""
    case = made(name)
    stronger = case.edits(STRONGER)
    (shared,) = results("SourceFeatures", preset="StyleAligned")
    (both,) = results("SourceFeatures", preset="StyleAligned", edits=stronger)
    assert error(case.edit(both), case.edit(shared)) > 1e-4


# pictures to refer to


@pytest.mark.parametrize("sizes", [((8, 12),), ((4, 6), (8, 4))], ids=["one", "two"])
@pytest.mark.parametrize("name", ["flux_dev", "qwen_image"])
def test_with_references_all_of_the_sources_attention_gives_the_source_back(
    name: str, sizes: tuple
):
    assert_source_comes_back(recorded(name, *sizes))


@pytest.mark.parametrize("name", ["flux_dev", "qwen_image"])
def test_the_picture_has_the_sources_queries_and_keys_and_text_and_references_their_own(name: str):
    case = made(name)
    reference = tiny_models.picture(name, height=4, width=6, seed=9)
    prompts = {
        "path": case.path._replace(positive=tiny_models.referring(case.source, reference)),
        "positive": tiny_models.referring(case.target, reference),
        "negative": tiny_models.referring(case.negative, reference),
    }
    plain, injected = Recorder(), Recorder()
    for recorder, edits in ((plain, ()), (injected, case.edits(P2P))):
        case.edit(edits, model=overridden(case.model, recorder), **prompts)
    assert len(injected.calls) == len(plain.calls)
    first_step = len(plain.calls) // STEPS
    before, after = plain.calls[:first_step], injected.calls[:first_step]
    words, picture, behind = slice(0, 40), slice(40, 64), slice(64, 70)

    def positives(one: Recorded) -> list[int]:
        return [i for i, side in enumerate(one.options["cond_or_uncond"]) if side == 0]

    (own,) = positives(before[0])
    wanted = before[0].of("k", own)
    assert wanted.shape[1] == 70
    target, source = sorted(
        positives(after[0]),
        key=lambda part: error(after[0].of("k", part)[:, words], wanted[:, words]),
    )
    for what in ("q", "k", "v"):
        mine, theirs = after[0].of(what, target), before[0].of(what, own)
        for part in (words, behind):
            torch.testing.assert_close(mine[:, part], theirs[:, part], rtol=1e-5, atol=1e-5)
    for one in after[1:]:
        for what in ("q", "k"):
            mine, theirs = one.of(what, target), one.of(what, source)
            assert torch.equal(mine[:, picture], theirs[:, picture])
            for part in (words, behind):
                assert error(mine[:, part], theirs[:, part]) > 1e-4
        assert error(one.of("v", target), one.of("v", source)) > 1e-4


# other packs


@each_family
def test_what_another_packs_override_makes_of_attention_stays(name: str):
    """One that lets nothing through leaves nothing to edit."""
    case = made(name)
    model = overridden(case.model, Recorder(torch.zeros_like))
    before = state(model)
    plain = case.edit(model=model)
    assert error(plain, case.plain) > 1e-3
    edits = (*case.edits(P2P, STRONGER), *painted(case))
    (edits,) = results("SourceFeatures", take="k and v", blocks="all", start=0.0, edits=edits)
    assert error(case.edit(edits, model=model), plain) <= 1e-5
    assert state(model) == before


@each_joint
def test_another_packs_override_is_called_once_for_every_call_of_attention(name: str):
    case = made(name)
    plain, injected = Recorder(), Recorder()
    case.edit(model=overridden(case.model, plain))
    found = case.edit(case.edits(P2P), model=overridden(case.model, injected))
    assert [one.q.shape[1:] for one in injected.calls] == [one.q.shape[1:] for one in plain.calls]
    assert error(found, case.edit(case.edits(P2P))) <= 1e-5


def skip(args: dict, extra: dict) -> dict:
    """As SkipLayerGuidanceDiT does to a block."""
    return args


def passed_on(args: dict, extra: dict) -> dict:
    return extra["original_block"](args)


def patched(model: Any, patch: Any) -> Any:
    clone = model.clone()
    clone.set_model_patch_replace(patch, "dit", "double_block", 0)
    return clone


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd3", ("0", "1")),
        ("sd35_medium", ("0", "1")),
        ("flux_dev", ("double 0", "double 1")),
        ("ltxv", ("0", "1")),
    ],
)
def test_another_packs_patch_of_a_block_works_and_the_blocks_keep_their_numbers(
    name: str, blocks: tuple[str, str]
):
    case = made(name)
    skipped = patched(case.model, skip)
    before = state(skipped)
    plain = case.edit(model=skipped)
    assert error(plain, case.plain) > 1e-3
    for only, acts in zip(blocks, (False, True), strict=True):
        edits = case.edits(("PromptToPrompt", {"joint_replace": 1.0, "joint_blocks": only}))
        if name == "ltxv":
            (edits,) = results("SourceFeatures", take="k and v", blocks=only, start=0.0)
        found = case.edit(edits, model=skipped)
        assert (error(found, plain) > 1e-4) if acts else (error(found, plain) <= 1e-6)
        wanted = case.edit(edits)
        assert error(wanted, case.plain) > 1e-4
        assert error(case.edit(edits, model=patched(case.model, passed_on)), wanted) <= 1e-6
    assert state(skipped) == before


# out of reach


@pytest.mark.parametrize("name", UNREACHED)
def test_networks_whose_attention_is_not_known_are_refused_before_they_are_called(name: str):
    model = getattr(tiny_models, name)()
    source, target, negative = (tiny_models.prompt(name, seed) for seed in range(3))
    pair = PromptPair(
        source=prompt_of("an old thing", source), target=prompt_of("a new thing", target)
    )
    latent = tiny_models.picture(name)
    (path,) = results("StraightPath", model=model, positive=source, latent_image=latent, steps=2)
    prompts = {"model": model, "positive": target, "negative": negative}
    network = type(model.model.diffusion_model).__name__
    height, width = latent["samples"].shape[-2:]
    said = (f"changes attention, and that of {network} is not known", "use MDP Epsilon")
    for edits in (
        chain(pair, P2P),
        chain(pair, STRONGER),
        chain(pair, ("LocalBlend", {})),
        *results("SourceFeatures"),
        *results("KeepBackground", mask=left_half(8 * width, 8 * height)),
    ):
        refused("Sampler", *said, path=path, edits=edits, **prompts)
    refused("RecordPath", *said, latent_image=latent, edits=chain(pair, STRONGER), **prompts)
    said = (f"attention, and that of {network} is not known",)
    refused("AttentionMaps", *said, model=model, path=path, prompts=pair, vae=None)


def by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **named: Any) -> Tensor:
    """Attention that asks nobody."""
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def never_reached(act: Callable[[], Any], model: Any) -> None:
    """It is refused in one sentence, after one call of the network."""
    with network_calls(model) as asked, pytest.raises(ValueError) as refusal:
        act()
    assert asked.calls == 1
    message = str(refusal.value)
    assert "the attention of Flux cannot be reached" in message and "use FlowEdit" in message
    assert len(re.findall(r"[.!?](?:\s|$)", message)) <= 1, f"more than a sentence: {message}"


def test_a_network_that_computes_its_attention_itself_is_refused_at_its_first_call(
    monkeypatch: pytest.MonkeyPatch,
):
    case = made("flux_dev")
    monkeypatch.setattr("comfy.ldm.flux.math.optimized_attention", by_hand)
    assert error(case.edit(), case.plain) <= 1e-5  # without an edit of attention nobody minds
    (late,) = results("SourceFeatures", take="k and v", start=0.7, end=1.0)
    for edits in (case.edits(P2P), case.edits(STRONGER), painted(case), late):
        never_reached(lambda edits=edits: case.edit(edits), case.model)  # type: ignore[misc]
    start = {"latent_image": tiny_models.picture("flux_dev"), "steps": STEPS, "cfg": CFG}
    given = {"positive": case.target, "negative": case.negative, "model": case.model}
    stronger = case.edits(("Reweight", {"words": "new: 5", "start": 0.7}))
    never_reached(lambda: call("RecordPath", edits=stronger, **start, **given), case.model)
    never_reached(lambda: maps_of(case, [[2]], [0, 1]), case.model)


# the background, and the first picture of a batch


@each_family
def test_outside_its_mask_keep_background_is_the_source_and_inside_it_sees_the_source(name: str):
    case = made(name, 40, 45)
    mask = left_half()
    (edits,) = results("KeepBackground", mask=mask)
    found, source = case.edit(edits), case.path.clean
    assert torch.equal(found[..., 6:], source[..., 6:])
    assert error(found[..., :6], source[..., :6]) > 1e-2
    (blend,) = results("MaskBlend", mask=mask)
    assert error(found, case.edit(blend)) > 1e-5


@pytest.mark.parametrize("inputs", [{"take": "everything"}, {"preset": "StyleAligned"}], ids=str)
@pytest.mark.parametrize("name", ["sd15", "flux_dev"])
def test_a_batch_is_recorded_with_the_attention_of_its_first_picture(name: str, inputs: dict):
    case = made(name)
    start = {"samples": torch.zeros_like(tiny_models.picture(name, 2)["samples"])}
    given = {"positive": case.target, "negative": case.negative, "model": case.model}
    given |= {"latent_image": start, "steps": STEPS, "cfg": CFG, "seed": 3}
    shared = {"reference": "first picture", "blocks": "all", "start": 0.0, "end": 1.0}
    (edits,) = results("SourceFeatures", **shared | inputs)
    plain = results("RecordPath", **given)[0].clean
    with network_calls(case.model, 2) as asked:
        found = results("RecordPath", edits=edits, **given)[0].clean
    assert asked.evaluations == 2 * STEPS  # nothing more is asked
    if "take" in inputs:
        assert error(found[:1], plain[:1]) <= 1e-5
    assert error(found[1:], plain[1:]) > 1e-5


# factors below 0, and of 0


@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, 0.0) for name in JOINT), ("flux_dev", 0.5)],
)
def test_a_factor_below_0_is_refused_where_text_and_picture_share_an_attention(
    name: str, start: float
):
    case = made(name)
    edits = case.edits(("Reweight", {"words": "new: -1", "start": start}))
    said = ("a factor of Reweight is below 0", "use 0 or more")
    refused("Sampler", *said, **case.given(edits))


@pytest.mark.parametrize("name", (*UNETS, *CROSS))
def test_a_factor_below_0_is_the_opposite_where_the_picture_reads_the_text(name: str):
    case = made(name)
    less, least = (
        case.edit(case.edits(("Reweight", {"words": f"new: {factor}"}))) for factor in (0, -1)
    )
    assert error(least, case.plain) > 1.5 * error(less, case.plain) > 1e-5


@each_joint
def test_a_factor_of_0_leaves_nothing_of_a_word(name: str):
    case = made(name)
    none, little = (
        case.edit(case.edits(("Reweight", {"words": f"new: {factor}"}))) for factor in (0, 1e-9)
    )
    assert error(none, little) <= 1e-5 < error(none, case.plain)
