"""What the pack asks of ComfyUI's models is what ComfyUI itself asks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import network_calls, results
from diffusion_path.tests.seam import patches
from diffusion_path.tests.seam.workflow import (
    ON_ATTENTION,
    USES,
    Setting,
    demo,
    edit,
    mask,
    null_text,
    prompted,
    tiny,
    works,
)

UNET_USES = USES | ON_ATTENTION
KNOWN = patches.UNET | patches.DIT


def on(setting: Setting, patch: str) -> Setting:
    """Patched afresh: what a patch remembers of one run is not there in the next."""
    return replace(setting, model=KNOWN[patch](setting.model), key=f"{id(setting)} {patch}")


def euler(
    setting: Setting,
    start: Tensor,
    sigmas: Tensor,
    cfg: float,
    positive: list | None = None,
    negative: list | None = None,
) -> Tensor:
    """ComfyUI's own euler sampler from a latent: what it reaches at each level (N + 1, B, ...)."""
    import comfy.k_diffusion.sampling
    import comfy.sample
    import comfy.samplers

    torch.manual_seed(0)  # for patches that draw by themselves
    reached: list[Tensor] = []

    def walk(model: Any, noise: Tensor, sigmas: Tensor, **named: Any) -> Tensor:
        network = model.inner_model.inner_model
        latents: list[Tensor] = []
        named["callback"] = lambda step: latents.append(step["x"].clone())
        x = network.process_latent_in(start.to(noise))
        x = comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, **named)
        reached.extend(network.process_latent_out(one) for one in (*latents, x))
        return x

    with torch.inference_mode():
        comfy.sample.sample_custom(
            setting.model,
            torch.zeros_like(start),
            cfg,
            comfy.samplers.KSAMPLER(walk),
            sigmas,
            positive or setting.target,
            negative or setting.negative,
            torch.zeros_like(start),
            disable_pbar=True,
            seed=0,
        )
    return torch.stack(reached)


def walked(setting: Setting, path: Any, edits: tuple = (), **inputs: Any) -> Tensor:
    """The latents that our sampler reaches at each level (N + 1, B, ...)."""
    given = {"model": setting.model, "path": path, "edits": edits}
    given |= {"positive": setting.target, "negative": setting.negative}
    torch.manual_seed(0)  # for patches that draw by themselves
    return results("Sampler", **(given | inputs))[2].latents


def assert_same(mine: Tensor, theirs: Tensor, within: float = 1e-5) -> None:
    assert mine.shape == theirs.shape
    assert bool(torch.isfinite(mine).all())
    assert float((mine - theirs).norm() / theirs.norm()) < within


def assert_other(mine: Tensor, theirs: Tensor, by: float = 1e-5) -> None:
    assert float((mine - theirs).norm() / theirs.norm()) > by, "the test would see no difference"


# every call looks like one of ComfyUI's


class Seen:
    """What a model's patches are shown while it is asked."""

    def __init__(self, setting: Setting) -> None:
        import comfy.patcher_extension
        import comfy.samplers

        self.conds: list[list] = []
        self.numbers: list[list[int]] = []
        self.rows: list[int] = []
        self.model = setting.model.clone()

        def calc(args: dict) -> list[Tensor]:
            self.conds.append(args["conds"])
            inputs = (args["model"], args["conds"], args["input"], args["sigma"])
            return comfy.samplers.calc_cond_batch(*inputs, args["model_options"])

        def wrapper(executor: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
            everything = (*args, *named.values())
            options = [one for one in everything if isinstance(one, dict) and "uuids" in one]
            self.numbers.append(options[0]["cond_or_uncond"])
            self.rows.append(len(x))
            return executor(x, *args, **named)

        def attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple:
            self.numbers.append(options["cond_or_uncond"])
            return q, k, v

        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        self.model.add_wrapper_with_key(kind, "seam", wrapper)
        self.model.set_model_sampler_calc_cond_batch_function(calc)
        if setting.clip is not None:
            self.model.set_model_attn2_patch(attention)


def assert_like_comfyui(seen: Seen, batch: int) -> None:
    assert seen.numbers, "the network was not asked"
    assert {number for numbers in seen.numbers for number in numbers} <= {0, 1}
    assert all(rows % batch == 0 for rows in seen.rows)
    assert seen.conds, "the model's own way to predict was passed by"
    for conds in seen.conds:
        assert len(conds) == 2
        assert isinstance(conds[0], list)
        assert conds[1] is None or isinstance(conds[1], list)


@pytest.mark.parametrize("use", UNET_USES)
def test_patches_of_a_unet_see_one_prompt_and_one_negative(comfy: Path, use: str):
    seen = Seen(demo())
    assert works(UNET_USES[use], replace(demo(), model=seen.model).along(demo().path))
    assert_like_comfyui(seen, 1)


@pytest.mark.parametrize("use", [use for use in USES if use != "null-text"])
def test_patches_of_a_transformer_see_one_prompt_and_one_negative(comfy: Path, use: str):
    seen = Seen(tiny("sd3"))
    path = replace(tiny("sd3"), key="sd3").path
    assert works(USES[use], replace(tiny("sd3"), model=seen.model).along(path))
    assert_like_comfyui(seen, 1)


@pytest.mark.parametrize("use", ["MDPGuidance", "PromptToPrompt", "LocalBlend"])
def test_patches_see_the_rows_of_a_batch_that_is_theirs(comfy: Path, use: str):
    """A prompt's rows are as many as there are pictures, whatever else is predicted."""
    seen = Seen(demo())
    picture = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    setting = replace(demo(), picture=picture, key="two pictures")
    assert works(UNET_USES[use], replace(setting, model=seen.model).along(setting.path))
    assert_like_comfyui(seen, 2)


# no guidance, no functions of guidance

GUIDANCE = (
    "APG",
    "PerturbedAttentionGuidance",
    "SelfAttentionGuidance",
    "RescaleCFG",
    "CFGZeroStar",
    "CFGNorm",
    "TCFG",
    "Mahiro",
    "NAGuidance",
)
"""What changes guidance, and says nothing where there is none."""


def assert_plain(use: Callable[[Setting], Any], setting: Setting, patch: str) -> None:
    with network_calls(setting.model) as asked:
        plain = use(replace(setting, key=f"plain {id(setting)}"))[0]
    one = on(setting, patch)
    with network_calls(one.model) as asked_under_patch:
        found = use(one)[0]
    assert asked_under_patch.evaluations == asked.evaluations
    assert torch.equal(found, plain)


@pytest.mark.parametrize("patch", GUIDANCE)
def test_an_inversion_without_guidance_knows_no_functions_of_guidance(comfy: Path, patch: str):
    assert_plain(lambda setting: (setting.invert().latents,), demo(), patch)


@pytest.mark.parametrize(
    "patch", ["SkipLayerGuidanceDiT", "SkipLayerGuidanceSD3", "SkipLayerGuidanceDiTSimple"]
)
def test_nor_does_that_of_a_transformer(comfy: Path, patch: str):
    assert_plain(lambda setting: (setting.invert().latents,), tiny("sd3"), patch)


@pytest.mark.parametrize("method", ["noise", "x0", "denoise"])
@pytest.mark.parametrize("patch", GUIDANCE)
def test_nor_does_a_mask(comfy: Path, patch: str, method: str):
    assert_plain(mask(method), demo(), patch)


@pytest.mark.parametrize("method", ["noise", "x0", "denoise"])
def test_nor_does_a_mask_by_a_transformer(comfy: Path, method: str):
    """Whose negative has layers skipped: neither of a mask's two prompts is one."""
    assert_plain(mask(method), tiny("sd3"), "SkipLayerGuidanceDiTSimple")


@pytest.mark.parametrize("patch", GUIDANCE)
def test_nor_do_maps_of_attention(comfy: Path, patch: str):
    path = demo().invert()

    look = ON_ATTENTION["AttentionMaps"]
    assert_plain(lambda setting: look(setting.along(path)), demo(), patch)


# the same guidance for source and target

STATELESS = (
    "RescaleCFG",
    "CFGZeroStar",
    "CFGNorm",
    "TCFG",
    "PerturbedAttentionGuidance",
    "SelfAttentionGuidance",
)


@pytest.mark.parametrize("patch", ["none", *STATELESS])
def test_guidance_of_the_source_alone_is_sampling_of_the_source(comfy: Path, patch: str):
    """MDP Guidance at weight 1 follows the source's prompt, under the path's guidance."""
    path = demo().invert(cfg=3.0, negative=demo().negative, steps=4)
    edits = results("MDPGuidance", weight=1.0, start=0.0, end=1.0)[0]
    mine = walked(on(demo(), patch), path, edits, cfg=7.0)
    theirs = euler(on(demo(), patch), path.latents[0], path.sigmas, 3.0, demo().source)
    assert_other(theirs, walked(on(demo(), patch), path, cfg=7.0))
    assert_same(mine, theirs)


@pytest.mark.parametrize("patch", STATELESS)
def test_a_recorded_picture_comes_back_under_guidance_of_the_source_alone(comfy: Path, patch: str):
    path = on(demo(), patch).record(cfg=5.0, steps=4)
    edits = results("MDPGuidance", weight=1.0, start=0.0, end=1.0)[0]
    assert_same(walked(on(demo(), patch), path, edits, cfg=7.0), path.latents)


def lost(setting: Setting, path: Any) -> float:
    """How far from its picture a path's own prompt leads under guidance 4."""
    clean = walked(setting, path, cfg=4.0, positive=setting.source)[-1]
    return float((clean - path.clean).norm() / path.clean.norm())


@pytest.mark.parametrize("patch", ["RescaleCFG", "CFGNorm"])
def test_null_text_finds_as_much_under_a_function_of_guidance_as_without(comfy: Path, patch: str):
    setting = demo()
    picture = {"samples": setting.record(cfg=4.0, seed=2, steps=6).clean}
    inverted = replace(setting, picture=picture).invert(steps=6)

    def left(model: Any) -> float:
        inputs = {"path": inverted, "negative": setting.negative, "cfg": 4.0, "inner_steps": 5}
        found = results("NullTextInversion", model=model, **inputs)[0]
        one = replace(setting, model=model)
        return lost(one, found) / lost(one, inverted)

    assert left(KNOWN[patch](setting.model)) < 1.6 * left(setting.model) < 1


# our sampler without edits is ComfyUI's

SAME = (
    "none",
    *GUIDANCE,
    "IPAdapter's form",
    "InstantID's form",
    "FreeU_V2",
    "Deep Shrink",
    "ToMe",
    "LoRA",
    "EasyCache",
    "LazyCache",
    "sampling v, zero SNR",
    "sampling lcm",
    "sampling x0",
    "sampling EDM",
)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("patch", SAME)
def test_sampling_an_inverted_path_is_comfyuis_euler(comfy: Path, patch: str, cfg: float):
    if patch.startswith("sampling"):
        path = on(demo(), patch).invert(steps=6)
    else:
        path = demo().invert(steps=6)
    mine = walked(on(demo(), patch), path, cfg=cfg)
    # One rounding of the start moves Euler itself by 1.2e-5 under Mahiro, 8e-7 under RescaleCFG.
    within = 5e-5 if patch == "Mahiro" else 1e-5
    assert_same(mine, euler(on(demo(), patch), path.latents[0], path.sigmas, cfg), within)


@pytest.mark.parametrize("patch", [patch for patch in SAME if patch != "ToMe"])
def test_recording_a_path_is_comfyuis_euler(comfy: Path, patch: str):
    path = on(demo(), patch).record(cfg=5.0, steps=6)
    inputs = (path.latents[0], path.sigmas, 5.0, demo().source)
    assert_same(path.latents, euler(on(demo(), patch), *inputs))


@pytest.mark.parametrize("patch", patches.PROMPTS)
def test_sampling_under_prompts_of_many_parts_is_comfyuis_euler(comfy: Path, patch: str):
    path, setting = demo().invert(steps=6), prompted(demo(), patch)
    theirs = euler(setting, path.latents[0], path.sigmas, 5.0)
    assert_same(walked(setting, path, cfg=5.0), theirs)
    assert_other(theirs, walked(demo(), path, cfg=5.0))


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("patch", patches.DIT)
def test_sampling_with_a_transformer_is_comfyuis_euler(comfy: Path, patch: str, cfg: float):
    setting = tiny("sd3")
    if patch.startswith("ModelSampling"):
        path = on(setting, patch).invert(steps=6, solver="uni")
    else:
        path = setting.invert(steps=6, solver="uni")
    mine = walked(on(setting, patch), path, cfg=cfg)
    assert_same(mine, euler(on(setting, patch), path.latents[0], path.sigmas, cfg))


# mixing prompts

FAMILIES = tuple(tiny_models.SHAPES)


def long_source(name: str) -> Setting:
    """A source of more tokens than the target has, with another guidance where that is an input."""
    tokens = 154 if tiny_models.prompt(name)[0][0].shape[1] == 77 else 21
    source = tiny_models.prompt(name, 5, tokens)
    if "guidance" in source[0][1]:
        source[0][1]["guidance"] = 1.5
    return replace(tiny(name), source=source, key=f"long {name}")


def mixing(weight: float) -> tuple:
    return results("MDPCondition", weight=weight, start=0.0, end=1.0)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_wholly_the_sources_samples_as_the_source(comfy: Path, name: str):
    setting = long_source(name)
    path = setting.path
    wanted = walked(setting, path, cfg=3.0, positive=setting.source)
    assert_other(wanted[-1], walked(setting, path, cfg=3.0)[-1])
    assert_same(walked(setting, path, mixing(1.0), cfg=3.0), wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_with_nothing_of_the_source_samples_as_the_target(comfy: Path, name: str):
    setting = long_source(name)
    mine = walked(setting, setting.path, mixing(0.0), cfg=3.0)
    assert_same(mine, walked(setting, setting.path, cfg=3.0))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_half_the_sources_is_neither_or_is_refused(comfy: Path, name: str):
    setting = long_source(name)
    if not works(edit("MDPCondition", weight=0.5, start=0.0, end=1.0), setting):
        return
    half = walked(setting, setting.path, mixing(0.5), cfg=3.0)[-1]
    for positive in (setting.source, setting.target):
        assert_other(half, walked(setting, setting.path, cfg=3.0, positive=positive)[-1], 1e-6)


REGIONS = ("ConditioningCombine", "ConditioningSetMask", "ConditioningSetArea")


@pytest.mark.parametrize("sides", ["source", "target", "both"])
@pytest.mark.parametrize("patch", ["ConditioningCombine", "ConditioningSetMask"])
def test_regional_prompts_mix_as_single_ones_do(comfy: Path, patch: str, sides: str):
    apply = patches.PROMPTS[patch](demo().model)
    setting = replace(demo(), key=f"mix {patch} {sides}")
    if sides != "target":
        setting.source = apply(setting.source)
    if sides != "source":
        setting.target = apply(setting.target)
    path = setting.path
    source = walked(setting, path, cfg=5.0, positive=setting.source)
    target = walked(setting, path, cfg=5.0)
    assert_other(source, target)
    assert_same(walked(setting, path, mixing(1.0), cfg=5.0), source)
    assert_same(walked(setting, path, mixing(0.0), cfg=5.0), target)


def test_a_source_in_areas_mixes_wholly_as_it_samples(comfy: Path):
    """If the target has those areas: ComfyUI gives the negative those of its positive."""
    setting = replace(demo(), source=patches.in_areas(demo().source), key="areas")
    setting.target = patches.in_areas(setting.target)
    wanted = walked(setting, setting.path, cfg=5.0, positive=setting.source)
    assert_other(wanted, walked(setting, setting.path, cfg=5.0))
    assert_same(walked(setting, setting.path, mixing(1.0), cfg=5.0), wanted)


# pictures of five dimensions

FIVE = [(name, use) for name in ("qwen_image", "wan") for use in USES]


@pytest.mark.parametrize(("name", "use"), FIVE)
def test_pictures_of_five_dimensions_are_worked_on_or_refused(comfy: Path, name: str, use: str):
    works(USES[use], replace(tiny(name), key=name))


@pytest.mark.parametrize("name", ["qwen_image", "wan"])
@pytest.mark.parametrize(
    "use", ["invert", "invert under guidance", "record", "sample at cfg 1", "sample at cfg 5"]
)
def test_pictures_of_five_dimensions_have_paths(comfy: Path, name: str, use: str):
    assert works(USES[use], replace(tiny(name), key=name))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_samples_a_path_as_comfyuis_euler_does(comfy: Path, name: str):
    setting = tiny(name)
    path = setting.invert(solver="uni")
    theirs = euler(setting, path.latents[0], path.sigmas, 4.0)
    assert_same(walked(setting, path, cfg=4.0), theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_path_for_null_text_or_is_refused(comfy: Path, name: str):
    works(null_text, replace(tiny(name), key=name))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("use", ["mask by noise", "mask by denoising", "MaskBlend", "MDPGuidance"])
def test_every_family_runs_or_is_refused(comfy: Path, name: str, use: str):
    works(USES[use], replace(tiny(name), key=name))


# regional targets where the negative is the path's own


def found_path(setting: Setting, name: str) -> tuple[Any, list]:
    """A path with embeddings of its own, and those as CONDITIONING for KSampler."""
    path = setting.invert(steps=4)
    if name == "NegativePromptInversion":
        return results(name, path=path)[:2]
    inputs = {"path": path, "negative": setting.negative, "cfg": 5.0, "inner_steps": 2}
    return results(name, model=setting.model, **inputs)[:2]


@pytest.mark.parametrize("name", ["NullTextInversion", "NegativePromptInversion"])
@pytest.mark.parametrize("patch", [*REGIONS, "ConditioningSetMask, mask bounds"])
def test_a_regional_target_on_a_path_with_its_own_negative(comfy: Path, patch: str, name: str):
    path, _ = found_path(demo(), name)
    target = patches.PROMPTS[patch](demo().model)(demo().target)
    mine = walked(demo(), path, cfg=5.0, positive=target)
    embeddings = path.edits[0].embeddings
    x, theirs = path.latents[0], [path.latents[0]]
    for i in range(path.steps):  # at once, ComfyUI would give areas the first step's alone
        own = [[embeddings[min(i, len(embeddings) - 1)], path.negative[0][1]]]
        x = euler(demo(), x, path.sigmas[i : i + 2], 5.0, target, own)[-1]
        theirs.append(x)
    assert_same(mine, torch.stack(theirs))
    assert_other(mine, walked(demo(), path, cfg=5.0))


@pytest.mark.parametrize("name", ["NullTextInversion", "NegativePromptInversion"])
@pytest.mark.parametrize("use", ["MDPEpsilon", "MDPCondition", "MDPGuidance", "PromptToPrompt"])
def test_edits_of_a_regional_target_on_a_path_with_its_own_negative(
    comfy: Path, use: str, name: str
):
    target = patches.masked(demo().target)
    setting = replace(demo(), target=target).along(found_path(demo(), name)[0])
    found, _ = UNET_USES[use](setting)
    assert bool(torch.isfinite(found).all())


# keyframes

KEYFRAMES = {0.0: 1.0, 0.35: -1.0, 0.7: 0.3}


def strength_at(sigma: float) -> float:
    """Of the last keyframe that has begun."""
    sampling = demo().model.get_model_object("model_sampling")
    begun = [one for at, one in KEYFRAMES.items() if sampling.percent_to_sigma(at) >= sigma]
    return begun[-1]


@pytest.fixture(scope="module")
def levels(comfy: Path) -> Tensor:
    """Of eight steps, two and more for each keyframe."""
    sigmas = demo().invert(steps=8).sigmas
    strengths = [strength_at(float(sigma)) for sigma in sigmas[:-1]]
    assert all(strengths.count(one) >= 2 for one in KEYFRAMES.values())
    return sigmas


def constant(sigma: float) -> list:
    """The source's prompt under a LoRA of the strength of a level, without keyframes."""
    return patches.hooked(demo().model, None, strength_at(sigma))(demo().source)


def one_step_up(x: Tensor, levels: Tensor, prompt: list) -> Tensor:
    """One step of an inversion, which the node makes of whole paths only."""
    from diffusion_path.host.guider import run
    from diffusion_path.inversion.ddim import ddim_inversion

    def invert(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
        start, condition = denoiser.latent_in(x), conditions["positive"]
        return ddim_inversion(denoiser, start, levels, condition, store=denoiser.latent_out)

    with torch.inference_mode():
        return run(demo().model, {"positive": prompt}, x, levels, invert, steps=1)[0]


def test_sampling_under_keyframes_has_each_levels_strength(levels: Tensor):
    keyframed = patches.hooked(demo().model, KEYFRAMES)(demo().source)
    setting = replace(demo(), target=keyframed)
    path = demo().invert(sigmas=levels)
    x, by_hand = path.latents[0], [path.latents[0]]
    for i in range(path.steps):
        prompt = constant(float(levels[i]))
        x = euler(demo(), x, levels[i : i + 2], 1.0, prompt)[-1]
        by_hand.append(x)
    theirs = euler(setting, path.latents[0], levels, 1.0)
    assert_same(theirs, torch.stack(by_hand))
    assert_same(walked(setting, path, cfg=1.0), theirs)
    assert_other(theirs, euler(demo(), path.latents[0], levels, 1.0, constant(float(levels[0]))))


def test_an_inversion_under_keyframes_has_each_levels_strength_or_is_refused(levels: Tensor):
    picture = demo().picture
    x, by_hand = picture["samples"], [picture["samples"]]
    for i in range(len(levels) - 2, -1, -1):
        x = one_step_up(x, levels[i : i + 2], constant(float(levels[i])))
        by_hand.append(x)
    setting = replace(demo(), source=patches.hooked(demo().model, KEYFRAMES)(demo().source))
    if works(lambda one: (one.invert(sigmas=levels).latents, torch.Size((9, 1, 4, 8, 8))), setting):
        mine = setting.invert(sigmas=levels).latents
        assert_same(mine, torch.stack(by_hand[::-1]))


def test_an_inversion_in_parts_is_the_whole_one(levels: Tensor):
    """What the test of keyframes takes for granted."""
    x = demo().picture["samples"]
    for i in range(len(levels) - 2, -1, -1):
        x = one_step_up(x, levels[i : i + 2], demo().source)
    assert_same(x, demo().invert(sigmas=levels).latents[0])


def test_the_source_of_an_edit_has_each_levels_strength(levels: Tensor):
    """Where source and target are both predicted, each under keyframes of its own."""
    keyframed = patches.hooked(demo().model, KEYFRAMES)(demo().source)
    path = demo().invert(sigmas=levels)._replace(positive=keyframed)
    edits = results("MDPGuidance", weight=1.0, start=0.0, end=1.0)[0]
    mine = walked(demo(), path, edits, cfg=7.0)
    setting = replace(demo(), target=keyframed)
    assert_same(mine, euler(setting, path.latents[0], levels, 1.0))


# guidance functions beside edits of the attention


@pytest.mark.parametrize("patch", ["PerturbedAttentionGuidance", "SelfAttentionGuidance"])
@pytest.mark.parametrize("name", ["PromptToPrompt", "Reweight"])
def test_a_function_that_changes_attention_acts_beside_an_edit_of_it(
    comfy: Path, patch: str, name: str
):
    setting = demo()
    more = {"words": "pear: 2"} if name == "Reweight" else {}
    edits = results(name, prompts=setting.pair, **more)[0]
    plain = walked(setting, setting.path, edits, cfg=5.0)
    patched = replace(setting, model=patches.UNET[patch](setting.model))
    assert_other(walked(patched, setting.path, edits, cfg=5.0), plain)
