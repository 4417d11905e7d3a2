"""Our guider at the seam: what it predicts is what ComfyUI's own would, whatever is set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import results

SHAPE = (2, 4, 8, 8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_every_hook(model: Any, heard: set[str]) -> Any:
    """A clone of a MODEL with something at every place where ComfyUI lets one be."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    model = model.clone()

    def pre_cfg(args: dict[str, Any]) -> list[Tensor]:
        heard.add("pre_cfg")
        cond, uncond = args["conds_out"]
        return [cond * 1.01, uncond + 0.01 * args["cond_scale"]]

    def cfg(args: dict[str, Any]) -> Tensor:
        heard.add("cfg")
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"] * 0.9

    def post_cfg(args: dict[str, Any]) -> Tensor:
        heard.add("post_cfg")
        options = args["model_options"]
        (again,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        return args["denoised"] + 0.1 * (args["cond_denoised"] - again * 0.5)

    def calc(args: dict[str, Any]) -> list[Tensor]:
        heard.add("calc")
        assert len(args["conds"]) == 2
        keys = ("model", "conds", "input", "sigma", "model_options")
        cond, uncond = comfy.samplers.calc_cond_batch(*(args[key] for key in keys))
        return [cond * 0.99, uncond]

    def unet(apply: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        heard.add("model function")
        return apply(args["input"], args["timestep"], **args["c"]) * 1.02

    def predict_noise(
        executor: Any, x: Tensor, timestep: Tensor, options: dict[str, Any], seed: Any = None
    ) -> Tensor:
        heard.add("predict_noise")
        options = {**options, "transformer_options": {**options["transformer_options"], "mine": 1}}
        return executor(x * 1.001, timestep * 0.97, options, seed)

    def apply_model(executor: Any, x: Tensor, t: Tensor, *args: Any, **named: Any) -> Tensor:
        heard.add("apply_model")
        return executor(x, t * 1.01, *args, **named)

    def diffusion_model(executor: Any, x: Tensor, t: Tensor, *args: Any, **named: Any) -> Tensor:
        heard.add("diffusion_model")
        return executor(x * 0.999, t, *args, **named)

    def batch(executor: Any, *args: Any) -> list[Tensor]:
        heard.add("calc_cond_batch")
        assert args[4]["transformer_options"]["mine"] == 1
        return executor(*args)

    def attn2(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
        heard.add("attn2")
        return q * 1.01, k, v

    def replaced(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        heard.add("attn1 replace")
        factors = [(1.0, 0.9)[number] for number in options["cond_or_uncond"]]
        parts = zip(v.chunk(len(factors)), factors, strict=True)
        return torch.cat([part * factor for part, factor in parts])

    def attention(function: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
        heard.add("attention override")
        return function(*args, **named) * 0.98

    model.set_model_sampler_pre_cfg_function(pre_cfg, disable_cfg1_optimization=True)
    model.set_model_sampler_cfg_function(cfg)
    model.set_model_sampler_post_cfg_function(post_cfg)
    model.set_model_sampler_calc_cond_batch_function(calc)
    model.set_model_unet_function_wrapper(unet)
    model.set_model_attn2_patch(attn2)
    model.set_model_attn1_replace(replaced, "middle", 0)
    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    for kind, wrapper in (
        (WrappersMP.PREDICT_NOISE, predict_noise),
        (WrappersMP.CALC_COND_BATCH, batch),
        (WrappersMP.APPLY_MODEL, apply_model),
        (WrappersMP.DIFFUSION_MODEL, diffusion_model),
    ):
        model.add_wrapper_with_key(kind, "test", wrapper)
    return model


HOOKS = {"pre_cfg", "cfg", "post_cfg", "calc", "model function", "predict_noise", "apply_model"}
HOOKS |= {"diffusion_model", "calc_cond_batch", "attn2", "attn1 replace", "attention override"}


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_our_guided_prediction_is_comfyuis_bit_for_bit_with_every_hook_of_a_model(
    comfy: Path, cfg: float
):
    import comfy.samplers

    from diffusion_path.core.path import DiffusionPath
    from diffusion_path.host.guider import PathGuider
    from diffusion_path.host.model import fingerprint

    heard: set[str] = set()
    model = with_every_hook(tiny_models.sd15(), heard)
    positive = tiny_models.conditioning(16, seed=1)
    positive += [[randn(1, 77, 16, seed=3), {"mask": randn(1, 8, 8).sigmoid(), "strength": 0.7}]]
    negative = tiny_models.conditioning(16, seed=2)
    sigmas = torch.tensor([3.0, 0.5])
    x = randn(*SHAPE, seed=4)

    class Asks(comfy.samplers.Sampler):
        """One prediction in the middle of a run, as a sampler asks for it."""

        def sample(self, guider: Any, sigmas: Tensor, extra_args: dict, *rest: Any) -> Tensor:
            sigma = torch.full((len(x),), 2.0)
            return guider(x, sigma, extra_args["model_options"], extra_args["seed"])

    path = DiffusionPath(
        sigmas=sigmas,
        latents=torch.stack([x, x]),
        positive=positive,
        negative=None,
        cfg=1.0,
        fingerprint=fingerprint(model),
    )
    theirs = comfy.samplers.CFGGuider(model)
    theirs.set_conds(positive, negative)
    theirs.set_cfg(cfg)
    found = []
    for guider in (theirs, PathGuider(model, path, positive, negative, cfg)):
        heard.clear()
        with torch.inference_mode():
            found.append(guider.sample(torch.zeros(SHAPE), x, Asks(), sigmas, seed=7))
        assert heard == HOOKS
    assert torch.equal(*found)


@pytest.fixture(scope="module")
def walked(comfy: Path) -> dict[str, Any]:
    """A recorded and an inverted path of the smallest model, and what to walk them with."""
    model = tiny_models.sd15()
    positive, target, negative = (tiny_models.conditioning(16, seed=i) for i in (1, 2, 3))
    picture = {"samples": randn(*SHAPE, seed=5)}
    inverted, _ = results(
        "DDIMInversion", model=model, positive=positive, latent_image=picture, steps=8
    )
    empty = {"samples": torch.zeros(SHAPE)}
    recorded, _ = results(
        "RecordPath", model=model, positive=positive, negative=negative, latent_image=empty, steps=8
    )
    common = {"model": model, "positive": target, "negative": negative, "cfg": 3.0}
    return {"common": common, "inverted": inverted, "recorded": recorded}


def custom(sampler: Any, sigmas: Tensor | None = None, **inputs: Any) -> Tensor:
    """What ComfyUI's SamplerCustomAdvanced makes with our guider."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    guider, noise, levels, latent = results("Guider", **inputs)
    with torch.inference_mode():
        output = SamplerCustomAdvanced.execute(
            noise, guider, sampler, levels if sigmas is None else sigmas, latent
        )
    return output.args[0]["samples"]


def edits(name: str) -> tuple:
    if name == "none":
        return ()
    if name == "MaskBlend":
        mask = torch.zeros(1, 64, 64)
        mask[..., 32:] = 1
        return results("MaskBlend", mask=mask)[0]
    if name == "chain":
        return results("MDPLatent", edits=edits("MaskBlend"))[0]
    return results(name)[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["inverted", "recorded"])
@pytest.mark.parametrize(
    "name",
    ["none", "MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance", "MaskBlend", "chain"],
)
def test_with_euler_and_the_paths_levels_the_picture_is_that_of_our_sampler(
    walked: dict[str, Any], name: str, kind: str, start: float
):
    import comfy.samplers

    inputs = {**walked["common"], "path": walked[kind], "start": start, "edits": edits(name)}
    mine = results("Sampler", **inputs)[0]["samples"]
    assert relative(custom(comfy.samplers.sampler_object("euler"), **inputs), mine) < 1e-5
    assert relative(custom(results("PathSampler")[0], **inputs), mine) < 1e-5


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "res_multistep", "ipndm", "dpm_2"])
def test_with_comfyuis_samplers_what_lies_outside_a_mask_is_the_source(
    walked: dict[str, Any], sampler: str
):
    import comfy.samplers

    path = walked["inverted"]
    model = walked["common"]["model"]
    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "exponential", 12
    )
    sigmas = sigmas[sigmas <= path.sigmas[0]]
    inputs = {**walked["common"], "path": path, "edits": edits("MaskBlend")}
    found = custom(comfy.samplers.sampler_object(sampler), sigmas, **inputs)
    free = custom(comfy.samplers.sampler_object(sampler), sigmas, **{**inputs, "edits": ()})
    assert relative(found[..., :4], path.clean[..., :4]) < 0.02
    assert relative(found[..., 4:], path.clean[..., 4:]) > 0.1
    assert relative(free[..., :4], path.clean[..., :4]) > 0.1


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "res_multistep"])
def test_with_comfyuis_samplers_the_weight_of_mdp_draws_to_the_source(
    walked: dict[str, Any], sampler: str
):
    import comfy.samplers

    path = walked["inverted"]
    sampling = walked["common"]["model"].get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "exponential", 12)
    sigmas = torch.cat([path.sigmas[:1], sigmas[sigmas < path.sigmas[0]]])
    away = []
    for weight in (0.0, 0.5, 1.0):
        chain = results("MDPEpsilon", weight=weight, start=0.0, end=1.0)[0]
        inputs = {**walked["common"], "path": path, "edits": chain}
        away.append(
            relative(custom(comfy.samplers.sampler_object(sampler), sigmas, **inputs), path.clean)
        )
    assert away[0] > 1.3 * away[1]
    assert away[1] > 1.3 * away[2]


def test_a_sampler_that_begins_above_the_path_is_told_so(walked: dict[str, Any]):
    import comfy.samplers

    inputs = {**walked["common"], "path": walked["inverted"], "edits": edits("MDPLatent")}
    with pytest.raises(ValueError, match=r"^Diffusion Path Guider: the sampler begins at noise"):
        custom(comfy.samplers.sampler_object("euler"), torch.tensor([14.6, 1.0, 0.0]), **inputs)


def test_the_path_sampler_is_for_our_guider_only(walked: dict[str, Any]):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(walked["common"]["model"])
    guider.set_conds(walked["common"]["positive"], walked["common"]["negative"])
    latent = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"^Path Sampler: the guider holds no path; connect"):
        guider.sample(latent, latent, results("PathSampler")[0], torch.tensor([1.0, 0.5]), seed=0)


def test_a_guider_can_be_used_twice(walked: dict[str, Any]):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    inputs = {**walked["common"], "path": walked["inverted"], "edits": edits("chain")}
    guider, noise, sigmas, latent = results("Guider", **inputs)
    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        first, second = (
            SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]["samples"]
            for _ in range(2)
        )
    assert torch.equal(first, second)


def test_the_sources_negative_keeps_its_role(comfy: Path):
    """The refiner scores a negative's picture 2.5 and a positive's 6."""
    model = tiny_models.sdxl_refiner()
    prompts = [tiny_models.conditioning(16, pooled=1280, seed=seed) for seed in (1, 2, 3)]
    common = {"model": model, "negative": prompts[1]}
    empty = {"samples": torch.zeros(SHAPE)}
    path, _ = results(
        "RecordPath", positive=prompts[0], latent_image=empty, steps=3, cfg=5.0, **common
    )
    own = results("MDPGuidance", weight=1.0, start=0.0, end=1.0)[0]
    again = results("Sampler", positive=prompts[2], path=path, cfg=2.0, edits=own, **common)[0]
    assert relative(again["samples"], path.clean) < 1e-5


@pytest.mark.parametrize("name", ["RecordPath", "DiffEditMask", "Sampler", "Guider"])
def test_a_seed_stays_unless_it_is_told_to_change(comfy: Path, name: str):
    """So that a second Run with nothing changed computes nothing."""
    from diffusion_path.tests.calls import node

    inputs = {one.id: one for one in node(name).GET_SCHEMA().inputs}
    assert inputs["seed"].as_dict()["control_after_generate"] == "fixed"


def test_what_a_run_had_on_the_device_is_let_go(walked: dict[str, Any]):
    import comfy.samplers

    inputs = {**walked["common"], "path": walked["inverted"], "edits": edits("chain")}
    guider = results("Guider", **inputs)[0]
    latent = walked["inverted"].clean
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(latent),
            latent,
            comfy.samplers.sampler_object("euler"),
            walked["inverted"].sigmas,
            seed=0,
        )
    assert guider.step is None and guider.denoiser is None and guider.prepared == ()
    assert guider.outcome.evaluations == 16
