"""Two models by noise level: as two of ComfyUI's samplers one after the other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import edited, network_calls, refused, results, state, text

STEPS, CFG = 6, 3.0
FAMILIES = {"sd15": (16, None), "flux_dev": (16, 8)}


def conditionings(name: str) -> tuple[list, list, list]:
    """Three prompts."""
    positive, negative, target = (tiny_models.prompt(name, seed=seed) for seed in (1, 2, 3))
    return positive, negative, target


def latent(name: str, batch: int = 2) -> dict[str, Tensor]:
    channels = {"sd15": 4, "flux_dev": 16}[name]
    generator = torch.Generator().manual_seed(0)
    return {"samples": torch.randn(batch, channels, 8, 12, generator=generator)}


def changed(model: Any, factor: float = 4.0) -> Any:
    """A clone of a MODEL whose weights are patched, as a LoRA does it."""
    model = model.clone()
    weights = {
        key: (weight * (factor - 1),)
        for key, weight in model.model_state_dict().items()
        if key.startswith("diffusion_model.") and weight.ndim == 2
    }
    assert model.add_patches(weights)
    return model


def pair(name: str, kind: str) -> tuple[Any, Any]:
    """Two MODELs of one family: with networks of their own, or with one and other weights in it."""
    high = getattr(tiny_models, name)(seed=0)
    return high, changed(high) if kind == "one network" else getattr(tiny_models, name)(seed=1)


def merged(name: str) -> tuple[Any, Any]:
    """The second is a merge of the first with a third, by ComfyUI's own node."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    high = getattr(tiny_models, name)(seed=0)
    third = getattr(tiny_models, name)(seed=1)
    return high, ModelMergeSimple().merge(high, third, 0.3)[0]


def join(high: Any, low: Any, switch_at: float = 0.5) -> Any:
    return results("Experts", high_noise=high, low_noise=low, switch_at=switch_at)[0]


def ksampler(model: Any, name: str, sampler: str = "euler", **inputs: Any) -> Tensor:
    """What ComfyUI's KSamplerAdvanced makes."""
    import nodes

    positive, negative, _ = conditionings(name)
    ways = {
        "add_noise": "enable",
        "noise_seed": 7,
        "steps": STEPS,
        "cfg": CFG,
        "sampler_name": sampler,
        "scheduler": "simple",
        "positive": positive,
        "negative": negative,
        "latent_image": latent(name),
        "start_at_step": 0,
        "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
    }
    with torch.inference_mode():
        (out,) = nodes.KSamplerAdvanced().sample(model=model, **ways | inputs)
    return out["samples"]


def one_after_the_other(turns: list[tuple[Any, int]], name: str, sampler: str = "euler") -> Tensor:
    """KSamplerAdvanced for each model up to a step, the noise left over for the next one."""
    first, x = 0, latent(name)["samples"]
    for model, until in turns:
        ways: dict[str, Any] = {"start_at_step": first, "end_at_step": until}
        ways["latent_image"] = {"samples": x}
        ways["add_noise"] = "disable" if first else "enable"
        ways["return_with_leftover_noise"] = "enable" if until < STEPS else "disable"
        x, first = ksampler(model, name, sampler, **ways), until
    return x


each_family = pytest.mark.parametrize("name", FAMILIES)
each_kind = pytest.mark.parametrize("kind", ["two networks", "one network"])


def difference(found: Tensor, wanted: Tensor) -> float:
    """In parts of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def alike(found: Tensor, wanted: Tensor) -> None:
    """They differ by what is rounded when a LATENT leaves a sampler and enters the next."""
    assert difference(found, wanted) < 1e-6


def without_rounding(model: Any) -> Any:
    """The MODEL, whose latents are the same on a wire, at the switch too."""
    latent_format = copy.copy(model.model.latent_format)
    latent_format.scale_factor, latent_format.shift_factor = 1.0, 0.0
    model.model.latent_format = latent_format
    if hasattr(model.model.model_sampling, "shift"):
        model.model.model_sampling.set_parameters(shift=0.0)  # Flux's: level 0.5 is in the middle
    return model


@each_family
@each_kind
def test_it_is_two_samplers_one_after_the_other_bit_for_bit(comfy: Path, name: str, kind: str):
    high, low = (without_rounding(model) for model in pair(name, kind))
    wanted = one_after_the_other([(high, 3), (low, STEPS)], name)
    assert torch.equal(ksampler(join(high, low), name), wanted)
    for alone in (high, low):
        assert difference(ksampler(alone, name), wanted) > 1e-5


def test_with_a_merge_of_comfyuis_own_too(comfy: Path):
    high, low = (without_rounding(model) for model in merged("sd15"))
    wanted = one_after_the_other([(high, 3), (low, STEPS)], "sd15")
    assert torch.equal(ksampler(join(high, low), "sd15"), wanted)


@pytest.mark.parametrize(("switch_at", "until"), [(0.16, 1), (0.5, 3), (0.84, 6), (0.83, 5)])
def test_a_step_that_begins_where_it_switches_is_the_seconds(
    comfy: Path, switch_at: float, until: int
):
    """The simple scheduler's step k of 6 begins at k / 6 of the schedule, or just before."""
    high, low = pair("flux_dev", "two networks")
    wanted = one_after_the_other([(high, until), (low, STEPS)][: 1 + (until < STEPS)], "flux_dev")
    alike(ksampler(join(high, low, switch_at), "flux_dev"), wanted)


@each_kind
def test_three_models_take_turns(comfy: Path, kind: str):
    high, low = pair("sd15", kind)
    third = changed(low, 0.8)
    found = ksampler(join(join(high, low, 0.3), third, 0.6), "sd15")
    wanted = one_after_the_other([(high, 2), (low, 4), (third, STEPS)], "sd15")
    alike(found, wanted)


@each_kind
def test_each_model_keeps_its_own_patches_functions_and_wrappers(comfy: Path, kind: str):
    from comfy.patcher_extension import WrappersMP

    def with_all(model: Any, by: float) -> Any:
        model = model.clone()

        def cfg(args: dict[str, Any]) -> Tensor:
            return args["uncond"] + (args["cond"] - args["uncond"]) * by

        def post(args: dict[str, Any]) -> Tensor:
            return args["denoised"] * (1 + by / 100)

        def attn2(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
            return q * by, k, v

        def apply(executor: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
            return executor(x * (1 + by / 1000), *args, **named)

        model.set_model_sampler_cfg_function(cfg)
        model.set_model_sampler_post_cfg_function(post)
        model.set_model_attn2_patch(attn2)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", apply)
        return model

    plain, other = pair("sd15", kind)
    for high, low in (
        (with_all(plain, 2.0), with_all(other, 5.0)),
        (plain, with_all(other, 5.0)),
        (with_all(plain, 2.0), other),
    ):
        wanted = one_after_the_other([(high, 3), (low, STEPS)], "sd15")
        alike(ksampler(join(high, low), "sd15"), wanted)


def test_what_is_connected_behind_it_is_for_both(comfy: Path):
    def behind(model: Any) -> Any:
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.9)
        return model

    high, low = pair("sd15", "two networks")
    wanted = one_after_the_other([(behind(high), 3), (behind(low), STEPS)], "sd15")
    alike(ksampler(behind(join(high, low)), "sd15"), wanted)


def test_a_sampler_that_remembers_goes_on_over_the_switch(comfy: Path):
    """Two samplers one after the other forget what the first one knew."""
    high, low = pair("sd15", "two networks")
    model = join(high, low)
    multistep = ksampler(model, "sd15", "dpmpp_2m")
    assert not torch.equal(
        multistep, one_after_the_other([(high, 3), (low, STEPS)], "sd15", "dpmpp_2m")
    )
    with network_calls(high, batch=2) as of_high, network_calls(low, batch=2) as of_low:
        ksampler(model, "sd15", "heun")
    # Heun's method asks twice a step but for the last; the third step's end is the second model's.
    assert (of_high.evaluations, of_low.evaluations) == (2 * 5, 2 * 6)


@pytest.mark.parametrize(("name", "kind"), [("sd15", "one network"), ("flux_dev", "two networks")])
def test_an_inversion_takes_both_and_our_sampler_leads_back(comfy: Path, name: str, kind: str):
    high, low = pair(name, kind)
    model, (source, negative, _) = join(high, low), conditionings(name)

    def error(inverts: Any) -> float:
        inputs = {"positive": source, "latent_image": latent(name), "steps": 8}
        inputs |= {"spacing": "simple", "fixed_point_iterations": 6, "solver": "euler"}
        path, _ = results("DDIMInversion", model=inverts, **inputs)
        back = edited(model, path, source, negative, cfg=1.0)
        return float((back - path.clean).norm() / path.clean.norm())

    assert 5 * error(model) < min(error(high), error(low))


@each_kind
def test_our_sampler_and_the_guider_are_two_of_comfyuis_samplers_too(comfy: Path, kind: str):
    """From the same noise, at the same levels."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustomAdvanced

    high, low = pair("sd15", kind)
    model, (source, negative, target) = join(high, low), conditionings("sd15")
    inputs = {"positive": source, "latent_image": latent("sd15"), "steps": STEPS}
    path, _ = results("DDIMInversion", model=model, spacing="simple", **inputs)
    ways = {"model": model, "path": path, "positive": target, "negative": negative, "cfg": CFG}
    found = edited(**ways)

    guider, noise, sigmas, image = results("Guider", **ways)
    with torch.inference_mode():
        euler = KSamplerSelect.execute("euler").args[0]
        theirs = SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, image).args[0]
    torch.testing.assert_close(theirs["samples"], found, rtol=0, atol=1e-4)

    x = image
    for part, levels in ((high, sigmas[:4]), (low, sigmas[3:])):
        x = {
            "samples": custom(part, levels, x, None if x is not image else noise, target, negative)
        }
    torch.testing.assert_close(found, x["samples"], rtol=0, atol=1e-4)


def custom(
    model: Any, sigmas: Tensor, image: dict, noise: Any, positive: list, negative: list
) -> Tensor:
    """ComfyUI's SamplerCustomAdvanced with its own guider."""
    from comfy_extras.nodes_custom_sampler import (
        CFGGuider,
        DisableNoise,
        KSamplerSelect,
        SamplerCustomAdvanced,
    )

    with torch.inference_mode():
        guider = CFGGuider.execute(model, positive, negative, CFG).args[0]
        euler = KSamplerSelect.execute("euler").args[0]
        noise = noise or DisableNoise.execute().args[0]
        return SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, image).args[0]["samples"]


@each_family
@each_kind
def test_an_edit_of_the_attention_works_in_both(comfy: Path, name: str, kind: str):
    """In each part of the schedule it is that of the model whose turn it is, alone."""
    high, low = pair(name, kind)
    model, (source, negative, target) = join(high, low), conditionings(name)
    inputs = {"positive": source, "latent_image": latent(name), "steps": STEPS}
    path, _ = results("DDIMInversion", model=model, spacing="simple", solver="euler", **inputs)
    edits = results("SourceFeatures", preset="MasaCtrl", start=0.0, end=1.0)[0]

    def latents(model: Any, start: float, edits: tuple = edits) -> Tensor:
        ways = {"path": path, "positive": target, "negative": negative, "cfg": CFG, "start": start}
        return results("Sampler", model=model, edits=edits, **ways)[2].latents

    assert torch.equal(latents(model, 0.0)[:4], latents(high, 0.0)[:4])
    assert torch.equal(latents(model, 0.5), latents(low, 0.5))
    for start in (0.0, 0.5):
        plain = latents(model, start, edits=())
        assert not torch.allclose(latents(model, start)[1], plain[1], atol=1e-4)


@each_kind
def test_a_run_an_interrupted_one_and_a_second_one_leave_both_as_they_were(comfy: Path, kind: str):
    import comfy.model_management

    high, low = pair("sd15", kind)
    ksampler(high, "sd15"), ksampler(low, "sd15"), ksampler(high, "sd15")
    before = state(high), state(low)
    model = join(high, low)
    first = ksampler(model, "sd15")

    calls: list[int] = []

    def interrupts(args: dict[str, Any]) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise comfy.model_management.InterruptProcessingException
        return args["denoised"]

    stopped = model.clone()
    stopped.set_model_sampler_post_cfg_function(interrupts)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ksampler(stopped, "sd15")
    assert low.model.current_patcher is None
    assert torch.equal(ksampler(model, "sd15"), first)
    assert low.model.current_patcher is None
    ksampler(high, "sd15")
    assert (state(high), state(low)) == before


def test_hooks_of_a_prompt_act_on_both(comfy: Path):
    """A LoRA on the prompt, by ComfyUI's hooks."""
    import comfy.hooks

    high, low = pair("sd15", "two networks")
    weights = {
        key: (weight * 2,)
        for key, weight in high.model_state_dict().items()
        if key.endswith("attn2.to_v.weight")
    }
    hook = comfy.hooks.WeightHook()
    hook.weights, hook.need_weight_init = weights, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    positive = conditionings("sd15")[0]
    hooked = [[one, {**options, "hooks": group}] for one, options in positive]
    ways = {"positive": hooked}

    def both(**more: Any) -> Tensor:
        x = ksampler(
            high, "sd15", end_at_step=3, return_with_leftover_noise="enable", **ways | more
        )
        return ksampler(
            low,
            "sd15",
            add_noise="disable",
            start_at_step=3,
            latent_image={"samples": x},
            **ways | more,
        )

    found = ksampler(join(high, low), "sd15", **ways)
    assert not torch.allclose(both(), both(positive=positive), atol=1e-3)
    alike(found, both())


def test_it_says_at_which_noise_level_it_switches(comfy: Path):
    from diffusion_path.tests.calls import call

    high, low = pair("flux_dev", "two networks")
    told = call("Experts", high_noise=high, low_noise=low, switch_at=0.5)
    level = high.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert text(told) == f"Switches at noise level {level:.3g}"


def test_two_models_of_different_kinds_are_refused(comfy: Path):
    high = tiny_models.sd15()
    refused("Experts", "of different kinds", high_noise=high, low_noise=tiny_models.sdxl())
    refused("Experts", "of different kinds", high_noise=high, low_noise=tiny_models.flux_dev())
    refused("Experts", "differ in their size", high_noise=high, low_noise=tiny_models.sd15_deep())


@pytest.mark.parametrize(("switch_at", "idle"), [(0.0, "high_noise"), (1.0, "low_noise")])
def test_a_switch_that_leaves_nothing_to_one_of_them_is_refused(
    comfy: Path, switch_at: float, idle: str
):
    high, low = pair("sd15", "two networks")
    refused("Experts", idle, "switch_at", high_noise=high, low_noise=low, switch_at=switch_at)


def test_switches_in_the_wrong_order_are_refused(comfy: Path):
    high, low = pair("sd15", "two networks")
    model = join(high, low, 0.5)
    refused("Experts", "raise switch_at", high_noise=model, low_noise=low, switch_at=0.4)
    refused("Experts", "connect those to high_noise", high_noise=high, low_noise=model)


def test_what_acts_on_the_whole_of_sampling_is_refused_on_the_second(comfy: Path):
    from comfy_extras.nodes_easycache import EasyCacheNode

    high, low = pair("sd15", "two networks")
    cached = EasyCacheNode.execute(low, 0.2, 0.15, 0.95, False).args[0]
    refused("Experts", "EasyCache", high_noise=high, low_noise=cached)


def test_null_text_inversion_refuses_two_models(comfy: Path):
    high, low = pair("sd15", "two networks")
    model, (source, negative, _) = join(high, low), conditionings("sd15")
    inputs = {"positive": source, "latent_image": latent("sd15"), "steps": 4}
    path, _ = results("DDIMInversion", model=model, **inputs)
    refused("NullTextInversion", "take turns", model=model, path=path, negative=negative)
