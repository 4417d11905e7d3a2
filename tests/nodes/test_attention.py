"""The nodes that work on the attention: on the demo model, and on every family that has any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.attention.maps import attention_maps
from diffusion_path.attention.plan import Watch, of
from diffusion_path.core.denoiser import Query
from diffusion_path.core.edit import Step
from diffusion_path.core.path import DiffusionPath, Source
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, network_calls, refused, results, state, text

STEPS, CFG = 6, 4.0
APPLE, PEAR = "a red apple on a blue background", "a red pear on a blue background"
NEW = "a small red apple on a blue background"


class Demo(NamedTuple):
    """The demo model, and two recorded pictures of an apple."""

    model: Any
    clip: Any
    vae: Any
    source: list
    negative: list
    path: Any

    def pair(self, target: str, source: str = APPLE) -> tuple[list, list, Any]:
        return results("PromptPair", clip=self.clip, source_prompt=source, target_prompt=target)

    def record(self, batch: int = 1, height: int = 16, width: int = 16, edits: tuple = ()) -> Any:
        size = {"samples": torch.zeros(batch, 4, height, width)}
        inputs = {"positive": self.source, "negative": self.negative, "latent_image": size}
        inputs |= {"steps": STEPS, "cfg": CFG, "edits": edits}
        return results("RecordPath", model=self.model, **inputs)[0]

    def edit(self, target: str, edits: tuple = (), **inputs: Any) -> Tensor:
        given = {"model": self.model, "path": self.path, "cfg": CFG, "edits": edits}
        given |= {"positive": self.pair(target)[1], "negative": self.negative}
        return edited(**(given | inputs))


@pytest.fixture(scope="module")
def demo(comfy: Path) -> Demo:
    model, clip, vae, _ = results("DemoModel")
    negative, source, _ = results("PromptPair", clip=clip, source_prompt="", target_prompt=APPLE)
    demo = Demo(model, clip, vae, source, negative, None)
    return demo._replace(path=demo.record(2))


def chain(pair: Any, *edits: tuple[str, dict]) -> tuple:
    """Edit nodes wired one after another."""
    wired: tuple = ()
    for name, inputs in edits:
        wired = results(name, prompts=pair, edits=wired, **inputs)[0]
    return wired


INJECT = ("PromptToPrompt", {})
BLEND = ("LocalBlend", {"source_words": "apple", "target_words": "pear", "threshold": 0.5})
STRONGER = ("Reweight", {"words": "red: 3"})
ALL = (INJECT, STRONGER, BLEND)


def assert_changed(a: Tensor, b: Tensor, by: float = 0.005) -> None:
    assert float((a - b).norm() / b.norm()) > by


# what is known in advance


def test_a_recorded_picture_comes_back_for_its_own_prompt(demo: Demo):
    own = {"source_words": "apple", "target_words": "apple"}
    edits = chain(demo.pair(APPLE)[2], INJECT, ("LocalBlend", own))
    latent = demo.edit(APPLE, edits)
    torch.testing.assert_close(latent, demo.path.clean, rtol=0, atol=1e-4)


def invert(demo: Demo, **inputs: Any) -> Any:
    inputs |= {"positive": demo.source, "latent_image": {"samples": demo.path.clean}}
    return results("DDIMInversion", model=demo.model, steps=STEPS, **inputs)[0]


def error(latent: Tensor, path: Any) -> float:
    return float((latent - path.clean).norm() / path.clean.norm())


def test_an_inverted_picture_comes_back_for_its_own_prompt_without_guidance(demo: Demo):
    path = invert(demo, fixed_point_iterations=20)
    edits = chain(demo.pair(APPLE)[2], INJECT)
    lost = error(demo.edit(APPLE, path=path, cfg=1.0), path)  # what six steps do not find
    assert error(demo.edit(APPLE, edits, path=path, cfg=1.0), path) <= 1.1 * lost <= 5e-3


def test_with_null_text_it_comes_back_under_guidance_to_within_its_loss(demo: Demo):
    inverted = invert(demo)
    inputs = {"path": inverted, "negative": demo.negative, "cfg": CFG, "inner_steps": 4}
    path, *_ = results("NullTextInversion", model=demo.model, **inputs)
    edits = chain(demo.pair(APPLE)[2], INJECT)
    lost = error(demo.edit(APPLE, path=path), path)
    assert error(demo.edit(APPLE, edits, path=path), path) <= 1.1 * lost
    assert lost < 0.7 * error(demo.edit(APPLE, edits, path=inverted), path)


@pytest.mark.parametrize("target", [PEAR, NEW])
def test_prompt_to_prompt_that_never_acts_is_no_edit_bit_for_bit(demo: Demo, target: str):
    off = ("PromptToPrompt", {"cross_replace": 0.0, "self_replace": 0.0})
    edits = chain(demo.pair(target)[2], off)
    with network_calls(demo.model, 2) as asked:
        latent = demo.edit(target, edits)
    assert torch.equal(latent, demo.edit(target))
    assert asked.evaluations == 2 * STEPS


def test_a_window_that_is_off_may_begin_anywhere(demo: Demo):
    inputs = {"cross_replace": 0.0, "cross_start": 0.5, "self_replace": 0.0, "self_start": 0.1}
    edits = chain(demo.pair(PEAR)[2], ("PromptToPrompt", inputs))
    assert torch.equal(demo.edit(PEAR, edits), demo.edit(PEAR))


def test_a_factor_of_1_changes_nothing_bit_for_bit(demo: Demo):
    edits = chain(demo.pair(PEAR)[2], ("Reweight", {"words": "red: 1\npear: 1.0"}))
    assert torch.equal(demo.edit(PEAR, edits), demo.edit(PEAR))


@pytest.mark.parametrize("edit", [*ALL, ("Reweight", {"words": "red: -1"})], ids=str)
def test_each_edit_changes_the_picture(demo: Demo, edit: tuple):
    assert_changed(demo.edit(PEAR, chain(demo.pair(PEAR)[2], edit)), demo.edit(PEAR))


def test_outside_its_mask_local_blend_leaves_the_source_exactly(demo: Demo):
    target, pair = demo.pair(PEAR)[1:]
    prompts = {"positive": target, "negative": demo.negative, "cfg": CFG}
    edits = chain(pair, BLEND)
    latent, _, _, mask, _ = results(
        "Sampler", model=demo.model, path=demo.path, edits=edits, **prompts
    )
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.shape[-2:] == (128, 128)
    outside = (mask[:, ::8, ::8] == 0)[:, None].expand_as(demo.path.clean)
    # to a LATENT's scale and back costs a rounding
    torch.testing.assert_close(latent["samples"][outside], demo.path.clean[outside])
    assert_changed(latent["samples"], demo.path.clean)


def test_words_to_leave_alone_make_the_mask_smaller(demo: Demo):
    def masked(**more: Any) -> Tensor:
        pair = demo.pair(PEAR)
        inputs = {"source_words": "apple", "target_words": "pear, background"} | more
        edits = chain(pair[2], ("LocalBlend", inputs))
        given = {"positive": pair[1], "negative": demo.negative, "cfg": CFG, "edits": edits}
        return results("Sampler", model=demo.model, path=demo.path, **given)[3]

    whole, less = masked(), masked(subtract_words="red")
    assert bool((less <= whole).all()) and less.sum() < whole.sum()


def test_the_chain_of_three_is_the_same_in_every_order(demo: Demo):
    pair = demo.pair(PEAR)[2]
    one, other = chain(pair, *ALL), chain(pair, *reversed(ALL))
    torch.testing.assert_close(demo.edit(PEAR, one), demo.edit(PEAR, other), rtol=0, atol=1e-4)


# what a node makes of its inputs


def attention_at(edit: Any, index: int, steps: int = 10) -> Any:
    """What an edit does at a step of a path whose steps are equal parts of the schedule."""
    step = step_at(torch.linspace(10, 0, steps + 1), index)
    edit = edit.prepare(step.source, torch.device("cpu"), torch.float32)
    return of(edit.patch(step, None))


def step_at(sigmas: Tensor, index: int) -> Step:
    latents = torch.zeros(len(sigmas), 1, 4, 16, 16)
    known = {"positive": [], "negative": None, "cfg": 1.0, "fingerprint": {}}
    path = DiffusionPath(sigmas=sigmas, latents=latents, **known)
    source = Source(path, lambda percent: float(sigmas[0]) * (1 - percent))
    sigma, below = sigmas[index : index + 2].tolist()
    nobody: Any = None
    return Step(source=source, denoiser=nobody, x=latents[0], sigma=sigma, sigma_next=below)


def test_an_override_acts_on_its_word_only(demo: Demo):
    pair = demo.pair(PEAR)[2]
    (plain,) = chain(pair, INJECT)
    inputs = {"word_overrides": "pear: 0.2-0.5\nblue background: 0"}
    (edit,) = chain(pair, ("PromptToPrompt", inputs))
    for index in range(10):
        injected = torch.full((len(pair.target.tokens),), float(index < 8))
        injected[list(pair.target.columns("pear"))] = float(2 <= index < 5)
        injected[list(pair.target.columns("blue background"))] = 0.0
        attention = attention_at(edit, index)
        if not injected.any():
            assert attention.mapper is None
            continue
        assert torch.equal(attention.own, 1 - injected)
        assert torch.equal(attention.mapper, plain.alignment.mapper * injected)


def test_the_windows_and_the_limit_reach_the_edit(demo: Demo):
    inputs = {"cross_start": 0.1, "cross_replace": 0.3, "self_start": 0.2, "self_replace": 0.6}
    (edit,) = chain(demo.pair(PEAR)[2], ("PromptToPrompt", inputs | {"self_limit": 16}))
    steps = [attention_at(edit, index) for index in range(10)]
    assert [i for i in range(10) if steps[i].mapper is not None] == [1, 2]
    assert [i for i in range(10) if steps[i].self_limit == 16] == [2, 3, 4, 5]


def test_a_limit_of_0_injects_no_self_attention(demo: Demo):
    pair = demo.pair(PEAR)[2]
    none = chain(pair, ("PromptToPrompt", {"self_limit": 0}))
    off = chain(pair, ("PromptToPrompt", {"self_replace": 0.0}))
    assert torch.equal(demo.edit(PEAR, none), demo.edit(PEAR, off))


def test_auto_is_replace_where_it_can_be_and_refine_elsewhere(demo: Demo):
    def mapper(target: str, mode: str) -> Tensor:
        return chain(demo.pair(target)[2], ("PromptToPrompt", {"mode": mode}))[0].alignment.mapper

    assert torch.equal(mapper(PEAR, "auto"), mapper(PEAR, "replace"))
    assert torch.equal(mapper(NEW, "auto"), mapper(NEW, "refine"))
    assert not torch.equal(mapper(PEAR, "replace"), mapper(PEAR, "refine"))


def test_factors_of_two_nodes_multiply(demo: Demo):
    pair = demo.pair(PEAR)[2]
    twice = chain(pair, ("Reweight", {"words": "red: 2"}), ("Reweight", {"words": "red: 1.5"}))
    once = chain(pair, STRONGER)
    torch.testing.assert_close(demo.edit(PEAR, twice), demo.edit(PEAR, once), rtol=0, atol=1e-5)


# costs


@pytest.mark.parametrize(
    ("edits", "evaluations"),
    [
        ((("PromptToPrompt", {"cross_replace": 0.5, "self_replace": 0.2}),), 2 * STEPS + 2),
        ((("PromptToPrompt", {"cross_replace": 0.0, "self_replace": 0.6}),), 2 * STEPS + 3),
        ((STRONGER,), 2 * STEPS),
        ((BLEND,), 3 * STEPS),
        (ALL, 3 * STEPS),
    ],
)
def test_what_an_edit_costs_is_what_the_sampler_reports(demo: Demo, edits, evaluations: int):
    target, pair = demo.pair(PEAR)[1:]
    prompts = {"positive": target, "negative": demo.negative, "cfg": CFG}
    with network_calls(demo.model, 2) as asked:
        output = call(
            "Sampler", model=demo.model, path=demo.path, edits=chain(pair, *edits), **prompts
        )
    assert asked.evaluations == evaluations
    assert f"{evaluations} model calls" in text(output)
    assert asked.calls == STEPS  # all of a step in one call


# paint with words


def left_half(height: int = 128, width: int = 128) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


def paint(demo: Demo, edits: tuple = (), **inputs: Any) -> tuple:
    given = {"clip": demo.clip, "prompt": APPLE, "phrase": "red apple", "mask": left_half()}
    return results("PaintWithWords", edits=edits, **(given | inputs))[0]


@pytest.mark.parametrize("index", [0, 3])
def test_a_phrase_has_more_of_its_map_where_it_is_painted(demo: Demo, index: int):
    """At one and the same latent."""
    from diffusion_path.host.guider import run

    def share(edit: Any) -> float:
        weights = torch.zeros(len(edit.prompt.tokens), 1)
        weights[list(edit.columns)] = 1
        watch = Watch(weights=weights, resolution=0)

        def look(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
            step = step_at(demo.path.sigmas, index)
            there = edit.prepare(step.source, denoiser.device, denoiser.dtype)
            watched = replace(there.patch(step, None), watched=(watch,))
            latent = denoiser.latent_in(demo.path.latents[index])
            query = Query(latent, conditions["positive"], watched)
            return denoiser.predict([query], step.sigma).seen[watch]

        path = demo.path
        with torch.inference_mode():
            maps = run(
                demo.model, {"positive": path.positive}, path.clean, path.sigmas, look, steps=1
            )
        return float(maps[..., :8].sum() / maps.sum())

    shares = [share(paint(demo, strength=strength)[0]) for strength in (0.0, 0.4, 1.0)]
    assert shares[0] + 0.02 < shares[1] < shares[2] - 0.02


def test_painting_while_recording_moves_the_attention_that_the_picture_gets(demo: Demo):
    def share(edits: tuple) -> float:
        path = demo.record(2, edits=edits)
        maps = maps_of(demo, path=path, words="apple", end=0.5).args[1]
        return float(maps[..., :64].sum() / maps.sum())

    assert share(paint(demo, strength=2.0)) > share(()) + 0.01
    assert torch.equal(demo.record(edits=paint(demo, strength=0.0)).clean, demo.record().clean)


def test_phrases_are_painted_one_after_another(demo: Demo):
    both = paint(demo, paint(demo), phrase="background", mask=1 - left_half())
    assert len(both) == 2
    assert_changed(demo.record(edits=both).clean, demo.record(edits=both[:1]).clean)


def test_painting_works_in_the_sampler_too_and_beside_the_others(demo: Demo):
    pair = demo.pair(PEAR)[2]
    painted = paint(demo, chain(pair, STRONGER, BLEND), prompt=PEAR, phrase="pear")
    assert_changed(demo.edit(PEAR, painted), demo.edit(PEAR, painted[:-1]))


# attention maps


def maps_of(demo: Demo, **inputs: Any) -> Any:
    given = {"path": demo.path, "prompts": demo.pair(PEAR)[2], "vae": demo.vae}
    return call("AttentionMaps", model=demo.model, **(given | inputs))


def test_the_maps_of_all_tokens_sum_to_1_at_each_place(demo: Demo):
    from diffusion_path.host.guider import run

    prompt = demo.pair(PEAR)[2].source

    def look(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
        columns = [[column] for column in range(len(prompt.tokens))]
        source = Source(
            demo.path, denoiser.percent_to_sigma, denoiser.latent_in, conditions["positive"]
        )
        return attention_maps(denoiser, source, prompt, columns, steps=[0, 3], progress=progress)

    path = demo.path
    with torch.inference_mode():
        maps = run(demo.model, {"positive": path.positive}, path.clean, path.sigmas, look, steps=2)
    assert maps.shape == (2, len(prompt.tokens), 16, 16)
    assert float(maps.min()) >= 0 and float(maps.max()) <= 1
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 16, 16), rtol=0, atol=1e-5)


def test_each_word_has_its_map_as_a_picture_and_as_a_mask(demo: Demo):
    with network_calls(demo.model, 2) as asked:
        output = maps_of(demo)
    images, maps = output.args
    assert asked.evaluations == STEPS
    assert f"{STEPS} model calls" in text(output) and "16 x 16" in text(output)
    words = ["a", "red", "apple", "on", "blue", "background"]
    assert maps.shape == (2 * len(words), 128, 128)
    assert len(images) == len(maps) and images.shape[2] == 256  # enlarged, with a strip below
    assert images.shape[1] > 256 and float(images[:, -4:].min()) == 1.0
    assert torch.equal(maps.amax(dim=(1, 2)), torch.ones(len(maps)))
    assert float(maps.min()) >= 0 and float(images.min()) >= 0 and float(images.max()) <= 1
    assert output.ui["images"]
    # the first word of the second picture comes after all words of the first
    alone = maps_of(demo, path=demo.path._replace(latents=demo.path.latents[:, 1:]))
    torch.testing.assert_close(alone.args[1], maps[len(words) :], rtol=0, atol=1e-4)


def test_the_maps_are_of_the_words_asked_for_and_of_phrases(demo: Demo):
    maps = maps_of(demo, words="apple, blue background\nRED").args[1]
    every = maps_of(demo).args[1].unflatten(0, (2, 6))
    assert maps.shape[0] == 2 * 3
    torch.testing.assert_close(maps[0], every[0, 2])
    torch.testing.assert_close(maps[2], every[0, 1])


def test_the_prompt_may_be_the_pairs_target_and_punctuation_is_no_word(demo: Demo):
    prompts = demo.pair(APPLE, source=PEAR)[2]
    torch.testing.assert_close(maps_of(demo, prompts=prompts).args[1], maps_of(demo).args[1])
    from diffusion_path.nodes.attention_maps import every_word

    prompt = demo.pair("A red apple, a blue background.")[2].target
    assert [word.casefold() for word in every_word(prompt)] == [
        *("a", "red", "apple", "blue", "background")
    ]


def test_a_long_word_is_cut_to_the_width_of_its_picture(comfy: Path):
    from diffusion_path.nodes.pictures import labelled_map

    page = labelled_map(torch.zeros(32, 48, 3), torch.zeros(32, 48), "word " * 40)
    assert page.shape[1] == 48 * 8 and page.isfinite().all()


def test_a_strips_label_is_not_much_larger_than_the_strip(comfy: Path):
    from diffusion_path.nodes.pictures import labelled_map

    page = labelled_map(torch.zeros(16, 512, 3), torch.zeros(16, 512), "word")
    assert page.shape[1] == 1024


# refusals


def refused_pair(demo: Demo, name: str, *said: str, target: str = PEAR, **inputs: Any) -> None:
    refused(name, *said, prompts=demo.pair(target)[2], **inputs)


def test_prompt_to_prompt_refuses(demo: Demo):
    def act(*said: str, **inputs: Any) -> None:
        refused_pair(demo, "PromptToPrompt", *said, **inputs)

    act("the source has 7, the target 8", "use auto", target=NEW, mode="replace")
    act('"keep layout from" 0.8 is not before "keep layout until" 0.8', cross_start=0.8)
    act('"keep shapes from" 0.5 is not before "keep shapes until" 0.4', self_start=0.5)
    act('"paer" is not in the prompt', 'nearest there is "pear"', word_overrides="paer: 0.5")
    act('"pear" is not a word and its value', '"word: 0.2-0.6"', word_overrides="pear")
    act('"much", after "pear"', "goes from 0 to 1", word_overrides="pear: much")
    act('"1.5", after "pear"', word_overrides="pear: 1.5")
    act('"0.6-0.2", after "pear"', word_overrides="pear: 0.6-0.2")


def test_reweight_refuses(demo: Demo):
    def act(*said: str, **inputs: Any) -> None:
        refused_pair(demo, "Reweight", *said, **inputs)

    act("words is empty", '"snow: 2"')
    act("words is empty", words=" \n ")
    act('"paer" is not in the prompt', 'nearest there is "pear"', words="paer: 2")
    act('"two", after "pear", is not a number', words="pear: two")
    act("start 0.5 is not before end 0.5", words="pear: 2", start=0.5, end=0.5)


def test_local_blend_refuses(demo: Demo):
    def act(*said: str, **inputs: Any) -> None:
        words = {"source_words": "apple", "target_words": "pear"}
        refused_pair(demo, "LocalBlend", *said, **(words | inputs))

    act('"pear" is not in the prompt "a red apple', source_words="pear")
    act('"aple" is not in the prompt', target_words="aple")
    act('"sky" is not in the prompt', subtract_words="sky")
    act("threshold is 1", "lower it", threshold=1.0)
    act("start is 1", "lower it", start=1.0)


def test_one_list_of_words_is_enough_for_local_blend(demo: Demo):
    words = {"source_words": "apple", "target_words": ""}
    assert_changed(
        demo.edit(PEAR, chain(demo.pair(PEAR)[2], ("LocalBlend", words))), demo.edit(PEAR)
    )


def test_paint_with_words_refuses(demo: Demo):
    def act(*said: str, **inputs: Any) -> None:
        given = {"clip": demo.clip, "prompt": APPLE, "phrase": "apple", "mask": left_half()}
        refused("PaintWithWords", *said, **(given | inputs))

    act("phrase is empty", phrase=" ")
    act('"aple" is not in the prompt', 'nearest there is "apple"', phrase="aple")
    act("the mask is empty", mask=torch.zeros(1, 64, 64))
    act("there is no CLIP", clip=None)


def test_attention_maps_refuses(demo: Demo, other: Any):
    def act(*said: str, **inputs: Any) -> None:
        given = {"model": demo.model, "path": demo.path, "prompts": demo.pair(PEAR)[2]}
        refused("AttentionMaps", *said, vae=demo.vae, **(given | inputs))

    act('made with neither "', "connect the Prompt Pair", prompts=demo.pair(PEAR, source=NEW)[2])
    act('"sky" is not in the prompt', words="apple, sky")
    act("start 0.6 is not before end 0.5", start=0.6, end=0.5)
    act("none of the path's 6 steps", start=0.02, end=0.1)
    act("no attention layer has resolution 7", "choose one of", resolution=7)
    act("invert or record", path=other)
    area = [[demo.source[0][0], {**demo.source[0][1], "area": (8, 8, 0, 0), "strength": 1.0}]]
    act("the path's prompt is set to an area", path=demo.path._replace(positive=area))
    empty = demo.path._replace(positive=demo.negative)
    act("has no words", path=empty, prompts=demo.pair(PEAR, source="")[2])


@pytest.fixture(scope="module")
def other(comfy: Path) -> Any:
    """A path of another family."""
    prompt = tiny_models.conditioning(24)
    picture = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    inputs = {"positive": prompt, "latent_image": picture, "steps": 2}
    return results("DDIMInversion", model=tiny_models.sd2_v(), **inputs)[0]


def test_the_sampler_refuses(demo: Demo):
    def act(*said: str, edits: tuple, **inputs: Any) -> None:
        given = {"model": demo.model, "path": demo.path, "negative": demo.negative}
        given |= {"positive": demo.pair(PEAR)[1], "edits": edits}
        refused("Sampler", *said, **(given | inputs))

    edits = chain(demo.pair(PEAR)[2], INJECT)
    act("positive is not the target prompt of Prompt-to-Prompt", edits=edits, positive=demo.source)
    said = "the path's prompt is not the source prompt of Prompt-to-Prompt"
    act(said, edits=chain(demo.pair(PEAR, source=NEW)[2], INJECT))
    act("positive is not the target prompt of Paint with Words", edits=paint(demo))
    act(
        "no attention layer has resolution 7",
        edits=chain(demo.pair(PEAR)[2], (BLEND[0], {**BLEND[1], "resolution": 7})),
    )
    mask = left_half(64, 128)
    act("the mask is 128 x 64", edits=paint(demo, prompt=PEAR, phrase="pear", mask=mask))
    target = demo.pair(PEAR)[1]
    area = [[target[0][0], {**target[0][1], "area": (8, 8, 0, 0), "strength": 1.0}]]
    act("positive is set to an area", "Set Mask", edits=edits, positive=area)
    both = paint(demo, edits)
    said = ("Paint with Words has the target prompt", "give all edits of the attention")
    act(*said, edits=both, positive=[*demo.pair(PEAR)[1], *demo.source])


@pytest.mark.parametrize("edit", [INJECT, BLEND], ids=str)
def test_record_path_refuses_what_needs_a_source(demo: Demo, edit: tuple):
    size = {"samples": torch.zeros(1, 4, 16, 16)}
    inputs = {"positive": demo.pair(PEAR)[1], "negative": demo.negative, "latent_image": size}
    edits = chain(demo.pair(PEAR)[2], edit)
    said = ("edits a path that is there already", "Diffusion Path Sampler")
    refused("RecordPath", *said, model=demo.model, edits=edits, **inputs)


# nothing stays behind


def test_the_model_is_left_as_it_was_also_after_a_failure(demo: Demo):
    from comfy.model_management import InterruptProcessingException, interrupt_current_processing

    class OutOfMemory(Exception):
        pass

    def fail() -> None:
        raise OutOfMemory

    edits = paint(demo, chain(demo.pair(PEAR)[2], *ALL), prompt=PEAR, phrase="pear")
    before, undisturbed = state(demo.model), demo.edit(PEAR, edits)
    assert state(demo.model) == before
    maps_of(demo)
    assert state(demo.model) == before
    for act, error in (
        (interrupt_current_processing, InterruptProcessingException),
        (fail, OutOfMemory),
    ):
        calls = []

        def hook(*_: Any, act: Callable = act, calls: list = calls) -> None:
            calls.append(1)
            if len(calls) == 3:
                act()

        handle = demo.model.model.diffusion_model.register_forward_hook(hook)
        with pytest.raises(error):
            demo.edit(PEAR, edits)
        handle.remove()
        assert len(calls) == 3
        assert state(demo.model) == before
    assert torch.equal(demo.edit(PEAR, edits), undisturbed)


# batches and sizes


def test_a_batch_is_edited_as_each_of_its_pictures_alone(demo: Demo):
    edits = paint(demo, chain(demo.pair(PEAR)[2], *ALL), prompt=PEAR, phrase="pear")
    both = demo.edit(PEAR, edits)
    for i in range(2):
        alone = demo.path._replace(latents=demo.path.latents[:, i : i + 1])
        latent = demo.edit(PEAR, edits, path=alone)
        torch.testing.assert_close(latent, both[i : i + 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 24), (18, 10), (13, 19)])
def test_pictures_need_not_be_square_nor_even(demo: Demo, height: int, width: int):
    mask = left_half(8 * height, 8 * width)
    edits = paint(demo, chain(demo.pair(PEAR)[2], *ALL), prompt=PEAR, phrase="pear", mask=mask)
    path = demo.record(1, height, width)
    assert_changed(demo.edit(PEAR, edits, path=path), path.clean)
    images, maps = maps_of(demo, path=path).args
    assert maps.shape[1:] == (8 * height, 8 * width)
    assert images.shape[2] >= 256
    same = chain(demo.pair(APPLE)[2], INJECT)
    latent = demo.edit(APPLE, same, path=path)
    torch.testing.assert_close(latent, path.clean, rtol=0, atol=1e-4)


# the families, and what users connect


class Family(NamedTuple):
    """A tiny model, its path and a pair of prompts."""

    model: Any
    path: Any
    target: list
    negative: list
    pair: Any

    def edits(self, *edits: tuple[str, dict]) -> tuple:
        return chain(self.pair, *(edits or TINY))

    def edit(self, **inputs: Any) -> Tensor:
        given = {"model": self.model, "path": self.path, "positive": self.target, "cfg": CFG}
        given |= {"negative": self.negative, "edits": self.edits()}
        return edited(**(given | inputs))


TINY = (
    ("PromptToPrompt", {"self_replace": 0.8}),
    ("Reweight", {"words": "new: 3"}),
    ("LocalBlend", {"source_words": "old", "target_words": "new", "threshold": 0.9}),
)


def prompt_of(words: str, conditioning: list) -> Any:
    """A prompt of one token a word, for a made-up conditioning."""
    from diffusion_path.attention.align import END, PAD, START, Prompt, Word

    texts = words.split()
    tokens = (START, *map(hash, texts), END)
    tokens += (PAD,) * (conditioning[0][0].shape[1] - len(tokens))
    spelt = tuple(Word(text, (i,)) for i, text in enumerate(texts, 1))
    return Prompt(text=words, tokens=tokens, words=spelt, embedding=conditioning[0][0])


def family_of(name: str, **model: Any) -> Family:
    from diffusion_path.attention.align import PromptPair

    width = {"sd2_v": 24, "sd3": 32}.get(name, 16)
    pooled = {"sdxl": 1280, "sd3": 2048}.get(name)
    source, target, negative = (
        tiny_models.conditioning(width, pooled=pooled, seed=seed) for seed in range(3)
    )
    pair = PromptPair(
        source=prompt_of("an old thing", source), target=prompt_of("a new thing", target)
    )
    network = getattr(tiny_models, name)(**model)
    if name != "sd3":
        tiny_models.sharpen(network)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(2, 16 if name == "sd3" else 4, 8, 12, generator=generator)
    inputs = {"positive": source, "latent_image": {"samples": picture}, "steps": STEPS}
    path = results("DDIMInversion", model=network, **inputs)[0]
    return Family(network, path, target, negative, pair)


@pytest.fixture(scope="module")
def tiny(comfy: Path) -> Family:
    return family_of("sd15")


MAPS = TINY[:2]
"""Those that change maps; what Local Blend puts back would hide it if they did not."""
CROSS = ("PromptToPrompt", {"cross_replace": 1.0, "self_replace": 0.0})
SELF = ("PromptToPrompt", {"cross_replace": 0.0, "self_replace": 1.0})


@pytest.mark.parametrize("name", ["sd15", "sd2_v", "sdxl"])
def test_every_family_with_cross_attention_is_edited_and_left_as_it_was(comfy: Path, name: str):
    """Each edit alone, by at least two thirds of what it changes; one that does nothing gives 0."""
    family = family_of(name)
    before, plain = state(family.model), family.edit(edits=())
    for edit, least in ((CROSS, 0.23), (SELF, 1.8e-4), (TINY[1], 0.009), (TINY[2], 0.2)):
        assert_changed(family.edit(edits=family.edits(edit)), plain, least)
    assert_changed(family.edit(), plain, 0.15)
    assert state(family.model) == before


def test_maps_of_a_model_whose_attention_is_not_known_are_refused(comfy: Path):
    model, source = tiny_models.ernie_image(), tiny_models.prompt("ernie_image")
    latent = tiny_models.picture("ernie_image")
    given = {"model": model, "positive": source, "latent_image": latent, "steps": STEPS}
    path = results("StraightPath", **given)[0]
    said = ("the maps are of attention, and that of ErnieImageModel is not known", "use one of")
    refused("AttentionMaps", *said, model=model, path=path, prompts=None, vae=None)


def test_prompts_of_another_family_are_refused(comfy: Path, tiny: Family):
    edits = family_of("sd2_v").edits()
    prompts = {"positive": tiny.target, "negative": tiny.negative, "edits": edits}
    said = ("encoded 24 wide", "this model reads 16")
    refused("Sampler", *said, model=tiny.model, path=tiny.path, **prompts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_nearly_the_same(tiny: Family, dtype: torch.dtype):
    half = family_of("sd15", dtype=dtype)
    latent = half.edit(path=tiny.path, edits=half.edits(*TINY[:2]))
    wanted = tiny.edit(edits=tiny.edits(*TINY[:2]))
    assert float((latent - wanted).norm() / wanted.norm()) < 0.1


def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI then asks the network for one condition at a time."""
    import comfy.model_patcher

    name = "get_free_memory"
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, name, lambda self, device: 0)


def test_source_and_edit_in_one_call_or_in_two_give_the_same(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
):
    edits = paint(demo, chain(demo.pair(PEAR)[2], *ALL), prompt=PEAR, phrase="pear")
    with network_calls(demo.model, 2) as together:
        wanted = demo.edit(PEAR, edits)
    short_of_memory(monkeypatch)
    target = demo.pair(PEAR)[1]
    given = {"positive": target, "negative": demo.negative, "cfg": CFG, "edits": edits}
    with network_calls(demo.model, 2) as apart:
        output = call("Sampler", model=demo.model, path=demo.path, **given)
    torch.testing.assert_close(output.args[0]["samples"], wanted, rtol=0, atol=1e-4)
    assert (together.calls, apart.calls) == (STEPS, 3 * STEPS)
    assert apart.evaluations == together.evaluations
    assert output.ui["report"][0]["kept_bytes"] > 0


LONG = ", ".join(["a red apple on a blue background"] * 12)  # more than 75 tokens


def test_a_recorded_picture_comes_back_for_its_own_long_prompt(demo: Demo):
    long, _, _ = demo.pair(PEAR, source=LONG)
    assert long[0][0].shape[1] == 154
    demo = demo._replace(source=long)
    path = demo.record()
    edits = chain(demo.pair(LONG, source=LONG)[2], INJECT)
    latent = demo.edit(LONG, edits, path=path)
    torch.testing.assert_close(latent, path.clean, rtol=0, atol=2e-4)


@pytest.mark.parametrize("lengths", [(APPLE, LONG), (LONG, APPLE)], ids=["longer", "shorter"])
def test_prompts_of_different_length_give_the_same_in_one_call_or_in_two(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, lengths: tuple[str, str]
):
    """In one call ComfyUI repeats the shorter prompt's tokens."""
    source, target = lengths
    demo = demo._replace(source=demo.pair(target, source=source)[0])
    own = ("LocalBlend", {"source_words": "apple", "target_words": "apple", "threshold": 0.5})
    edits = chain(demo.pair(target, source=source)[2], INJECT, STRONGER, own)
    path = demo.record()
    together = demo.edit(target, edits, path=path)
    short_of_memory(monkeypatch)
    apart = demo.edit(target, edits, path=path)
    assert float((together - apart).norm() / apart.norm()) <= 1e-4


def controlled(conditioning: list, model: Any) -> list:
    """The conditioning through ComfyUI's own node for ControlNets, with a random hint."""
    import nodes as comfy_nodes

    hint = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    apply = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet
    with torch.inference_mode():
        return apply(conditioning, conditioning, model, hint, 1.0, 0.0, 1.0)[0]


@pytest.mark.parametrize("sides", ["target", "source", "both"])
def test_a_controlnet_may_be_on_either_prompt(
    tiny: Family, monkeypatch: pytest.MonkeyPatch, sides: str
):
    network = tiny_models.controlnet()
    target, path = tiny.target, tiny.path
    if sides != "source":
        target = controlled(tiny.target, network)
    if sides != "target":
        path = path._replace(positive=controlled(path.positive, network))
    inputs = {"positive": target, "path": path}
    injected = tiny.edit(**inputs, edits=tiny.edits(*MAPS))
    assert_changed(injected, tiny.edit(**inputs, edits=()), 0.5)
    latent = tiny.edit(**inputs)
    assert_changed(latent, tiny.edit(), 0.15)
    short_of_memory(monkeypatch)
    torch.testing.assert_close(tiny.edit(**inputs), latent, rtol=0, atol=1e-4)


@pytest.mark.parametrize("short", [False, True])
def test_a_prompt_for_a_part_of_the_picture_may_stand_beside_the_pairs(
    tiny: Family, monkeypatch: pytest.MonkeyPatch, short: bool
):
    import nodes as comfy_nodes

    other = tiny_models.conditioning(16, seed=8)
    (area,) = comfy_nodes.ConditioningSetArea().append(other, 48, 64, 0, 0, 1.0)
    mask = left_half(64, 96)
    (masked,) = comfy_nodes.ConditioningSetMask().append(other, mask, "default", 1.0)
    (own,) = comfy_nodes.ConditioningSetMask().append(tiny.target, mask, "default", 1.0)
    if short:
        short_of_memory(monkeypatch)
    for positive in ([*tiny.target, *area], [*area, *tiny.target], [*own, *masked]):
        plain = tiny.edit(positive=positive, edits=())
        assert_changed(tiny.edit(positive=positive, edits=tiny.edits(*MAPS)), plain, 0.35)
        off = tiny.edits(("PromptToPrompt", {"cross_replace": 0.0, "self_replace": 0.0}))
        assert torch.equal(tiny.edit(positive=positive, edits=off), plain)


def test_a_source_for_a_part_of_the_picture_may_stand_beside_the_pairs(tiny: Family):
    area = [[tiny.negative[0][0], {"area": (8, 6, 0, 0), "strength": 1.0}]]
    inputs = {"path": tiny.path._replace(positive=[*area, *tiny.path.positive])}
    injected = tiny.edit(**inputs, edits=tiny.edits(*MAPS))
    assert_changed(injected, tiny.edit(**inputs, edits=()), 0.6)


@pytest.mark.parametrize("late", ["positive", "path"])
def test_a_prompt_that_begins_late_is_edited_from_there_on(tiny: Family, late: str):
    """The last two of six steps begin after 70 percent of the schedule."""
    timed = {"start_percent": 0.7, "end_percent": 1.0}
    positive, path = tiny.target, tiny.path
    if late == "positive":
        positive = [[tiny.target[0][0], timed], *tiny.negative]
    else:
        path = tiny.path._replace(positive=[[tiny.path.positive[0][0], timed]])
    given = {"model": tiny.model, "path": path, "positive": positive, "cfg": CFG}
    given |= {"negative": tiny.negative}
    plain, injected = (
        results("Sampler", edits=edits, **given)[2].latents for edits in ((), tiny.edits(CROSS))
    )
    torch.testing.assert_close(injected[:5], plain[:5], rtol=0, atol=1e-4)
    assert_changed(injected[5], plain[5], 0.02)
    assert_changed(injected[6], plain[6], 0.03)
    assert_changed(tiny.edit(path=path, positive=positive), plain[6], 0.15)  # with the mask too


def test_a_lora_acts_and_is_gone_afterwards(tiny: Family):
    before, without = state(tiny.model), tiny.edit()
    patched, weights = tiny.model.clone(), tiny.model.model.state_dict()
    keys = [key for key in weights if ".to_k." in key or ".to_q." in key]
    generator = torch.Generator().manual_seed(0)
    patches = {key: (torch.randn(weights[key].shape, generator=generator),) for key in keys}
    assert patched.add_patches(patches, 0.3)
    assert_changed(tiny.edit(model=patched), without, 0.3)
    assert torch.equal(tiny.edit(), without)
    assert state(tiny.model) == before


# other packs' patches


def replaced(model: Any, kind: str, patch: Callable) -> Any:
    """A clone with a replacement of all of its attention layers of a kind."""
    from diffusion_path.host.unet import attention_layers

    clone = model.clone()
    for layer in attention_layers(model.model.diffusion_model):
        getattr(clone, f"set_model_{kind}_replace")(patch, *layer)
    return clone


def ordinary(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(q, k, v, options["n_heads"])


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_a_replacement_that_only_calls_attention_leaves_the_edit_as_it_was(tiny: Family, kind: str):
    model = replaced(tiny.model, kind, ordinary)
    torch.testing.assert_close(tiny.edit(model=model), tiny.edit(), rtol=0, atol=1e-4)


def test_a_replacement_of_one_block_is_found_for_all_of_its_layers(tiny: Family):
    model, asked = tiny.model.clone(), []

    def patch(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        asked.append(options["block"])
        return ordinary(q, k, v, options)

    model.set_model_attn2_replace(patch, "middle", 0)
    torch.testing.assert_close(tiny.edit(model=model), tiny.edit(), rtol=0, atol=1e-4)
    assert asked and {block[0] for block in asked} == {"middle"}


def test_what_a_replacement_adds_to_cross_attention_stays(tiny: Family):
    """As an image prompt does: its share comes on top of the edited maps."""
    from diffusion_path.host.unet import _blocks

    def more(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        return ordinary(q, k, v, options) + 0.5

    network = tiny.model.model.diffusion_model
    blocks = {(name, number): block for name, number, block in _blocks(network)}

    def behind_the_layer(out: Tensor, options: dict) -> Tensor:
        (layer,) = blocks[options["block"]][1].transformer_blocks
        return out + 0.5 * layer.attn2.to_out[0].weight.sum(dim=1)

    model, by_hand = replaced(tiny.model, "attn2", more), tiny.model.clone()
    by_hand.set_model_attn2_output_patch(behind_the_layer)
    edits = tiny.edits(*TINY[:2])
    mine, wanted = (tiny.edit(model=one, edits=edits) for one in (model, by_hand))
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-4)
    assert_changed(mine, tiny.edit(edits=edits), 0.2)


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_patches_of_queries_keys_and_values_act_before_the_edit(tiny: Family, kind: str):
    model, doubled = tiny.model.clone(), tiny.model.clone()
    getattr(model, f"set_model_{kind}_patch")(lambda q, k, v, options: (q, k, v))
    getattr(doubled, f"set_model_{kind}_patch")(lambda q, k, v, options: (q, k, 2 * v))
    assert torch.equal(tiny.edit(model=model), tiny.edit())
    assert_changed(tiny.edit(model=doubled), tiny.edit(), 0.15)
