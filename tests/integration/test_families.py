"""Every family of models, and what ComfyUI's users connect to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, network_calls, results, state

STEPS, CFG = 5, 3.0
EDITS = ["MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance", "MaskBlend"]


class Family(NamedTuple):
    """A tiny model of a family, and three prompts for it."""

    name: str
    model: Any
    source: list
    target: list
    negative: list

    @property
    def channels(self) -> int:
        return tiny_models.SHAPES[self.name].channels

    def latent(self, batch: int = 1, height: int = 8, width: int = 12, seed: int = 0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, self.channels, height, width)
        return {"samples": torch.randn(shape, generator=generator)}

    def invert(self, latent: dict | None = None, **inputs: Any) -> Any:
        defaults = {"positive": self.source, "latent_image": latent or self.latent()}
        return results(
            "DDIMInversion", **({"model": self.model, "steps": STEPS} | defaults | inputs)
        )[0]

    def edit(self, path: Any, **inputs: Any) -> Tensor:
        defaults = {"model": self.model, "positive": self.target, "negative": self.negative}
        return edited(**({"path": path, "cfg": CFG} | defaults | inputs))


def family_of(name: str) -> Family:
    prompts = (tiny_models.prompt(name, seed) for seed in range(3))
    return Family(name, getattr(tiny_models, name)(), *prompts)


@pytest.fixture(scope="module", params=["sd15_deep", "sd2_v", "sdxl", "sd3", "flux_dev"])
def family(request: pytest.FixtureRequest, comfy: Path) -> Family:
    return family_of(request.param)


@pytest.fixture(scope="module")
def sd15(comfy: Path) -> Family:
    return family_of("sd15")


def edit_of(name: str, **inputs: Any) -> tuple:
    """An edit in the whole path: at weight 0.7, or with a mask of the left half of 8 x 12."""
    if name == "MaskBlend":
        mask = torch.zeros(1, 64, 96)
        mask[..., :48] = 1
        return results(name, **({"mask": mask} | inputs))[0]
    return results(name, **({"weight": 0.7, "start": 0.0, "end": 1.0} | inputs))[0]


def assert_changed(a: Tensor, b: Tensor, by: float = 0.005) -> None:
    assert float((a - b).norm() / b.norm()) > by


def comfy_sample(
    family: Family, noise: Tensor, latent: Tensor, positive: list, cfg: float, sigmas: Tensor
) -> Tensor:
    """ComfyUI's own euler sampler, as SamplerCustom calls it."""
    import comfy.sample
    import comfy.samplers

    with torch.inference_mode():
        return comfy.sample.sample_custom(
            family.model,
            noise,
            cfg,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            positive,
            family.negative,
            latent,
            seed=0,
        )


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_changes_the_picture_of_a_batch_that_is_not_square(family: Family, edit: str):
    path = family.invert(family.latent(batch=2))
    assert path.latents.shape == (STEPS + 1, 2, family.channels, 8, 12)
    latent, plain = family.edit(path, edits=edit_of(edit)), family.edit(path)
    assert bool(torch.isfinite(latent).all())
    assert latent.dtype == torch.float32
    assert_changed(latent, plain, 0.012)
    assert_changed(latent, path.clean, 0.002)


@pytest.mark.parametrize("name", ["MDPEpsilon", "MDPLatent"])
def test_at_full_weight_every_family_returns_the_source(family: Family, name: str):
    path = family.invert()
    latent = family.edit(path, edits=edit_of(name, weight=1.0))
    torch.testing.assert_close(latent, path.clean, rtol=0, atol=1e-4)


def test_a_path_ends_in_the_picture_it_was_made_of(family: Family):
    picture = family.latent()
    torch.testing.assert_close(family.invert(picture).clean, picture["samples"])


def test_a_batch_of_three_is_the_three_alone(family: Family):
    pictures = family.latent(batch=3)["samples"]
    chain = edit_of("MaskBlend", edits=edit_of("MDPGuidance", edits=edit_of("MDPCondition")))

    def run(samples: Tensor) -> Tensor:
        return family.edit(family.invert({"samples": samples}), edits=chain)

    alone = torch.cat([run(picture[None]) for picture in pictures])
    torch.testing.assert_close(run(pictures), alone, rtol=1e-4, atol=1e-4)


def test_a_mask_is_found_for_every_picture_of_a_batch(family: Family):
    inputs = {"source": family.source, "target": family.target, "maps": 2}
    mask, heatmap = results(
        "DiffEditMask", model=family.model, latent_image=family.latent(batch=2), **inputs
    )
    assert mask.shape == (2, 64, 96)
    assert heatmap.shape == (2, 64, 96, 3)
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    assert 0 <= float(heatmap.min()) < float(heatmap.max()) <= 1


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_noise_of_an_inversion_drives_comfyuis_own_sampler(family: Family, cfg: float):
    """With add_noise off: the noise is what the sampler takes as its latent image. ComfyUI's euler
    takes the steps that ours takes on a path of these solvers."""
    inputs = {"model": family.model, "positive": family.source, "latent_image": family.latent()}
    path, noise = results("DDIMInversion", steps=STEPS, solver="uni", **inputs)
    no_noise = torch.zeros_like(noise["samples"])
    theirs = comfy_sample(family, no_noise, noise["samples"], family.target, cfg, path.sigmas)
    torch.testing.assert_close(family.edit(path, cfg=cfg), theirs, rtol=1e-4, atol=1e-4)


SIGMAS = torch.tensor([0.9, 0.6, 0.3, 0.1, 0.0])


def record(family: Family, start: dict, cfg: float, **levels: Any) -> tuple[Any, dict]:
    prompts = {"positive": family.source, "negative": family.negative}
    inputs = {"latent_image": start, "seed": 42, "steps": STEPS, "cfg": cfg}
    return results("RecordPath", model=family.model, **(prompts | inputs | levels))


@pytest.mark.parametrize("levels", [{"spacing": "karras"}, {"spacing": "simple"}, {}])
@pytest.mark.parametrize(("cfg", "batch"), [(1.0, 1), (3.0, 2)])
def test_recording_is_comfyuis_euler_with_the_same_levels_seed_and_guidance(
    family: Family, cfg: float, batch: int, levels: dict
):
    """From an empty latent, and from a picture where the levels begin half-way."""
    import comfy.sample

    start = family.latent(batch=batch)
    if levels:
        start["samples"].zero_()
    path, latent = record(family, start, cfg, **(levels or {"sigmas": SIGMAS}))
    noise = comfy.sample.prepare_noise(start["samples"], 42)
    theirs = comfy_sample(family, noise, start["samples"], family.source, cfg, path.sigmas)
    torch.testing.assert_close(latent["samples"], theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(latent["samples"], path.clean)


def left_half(latent: dict) -> dict:
    """The latent with a mask of its left half, as Set Latent Noise Mask gives it."""
    *_, height, width = latent["samples"].shape
    mask = torch.zeros(1, 1, 8 * height, 8 * width)
    mask[..., : 4 * width] = 1
    return latent | {"noise_mask": mask}


def test_a_masked_latent_is_recorded_as_comfyui_samples_it(family: Family):
    import comfy.sample
    import comfy.samplers

    start = left_half(family.latent(batch=2))
    path, latent = record(family, start, 3.0, sigmas=SIGMAS)
    noise = comfy.sample.prepare_noise(start["samples"], 42)
    euler = comfy.samplers.sampler_object("euler")
    prompts = family.source, family.negative, start["samples"]
    with torch.inference_mode():
        theirs = comfy.sample.sample_custom(
            family.model, noise, 3.0, euler, SIGMAS, *prompts, start["noise_mask"], seed=0
        )
    torch.testing.assert_close(latent["samples"], theirs, rtol=1e-4, atol=1e-4)
    right = start["samples"][..., 6:]
    torch.testing.assert_close(path.clean[..., 6:], right, rtol=1e-4, atol=1e-4)
    assert_changed(path.clean[..., :6], start["samples"][..., :6])


def test_a_masked_picture_is_inverted_as_a_whole_and_edited_in_its_mask_only(family: Family):
    picture = left_half(family.latent(batch=2))
    inputs = {"model": family.model, "positive": family.source, "steps": STEPS}
    path, noise = results("DDIMInversion", latent_image=picture, **inputs)
    whole = family.invert(family.latent(batch=2))
    assert torch.equal(path.latents, whole.latents)
    assert "noise_mask" not in noise
    latent, plain = family.edit(path), family.edit(whole)
    torch.testing.assert_close(latent[..., 6:], path.clean[..., 6:])
    assert_changed(latent[..., :6], path.clean[..., :6])
    assert_changed(plain[..., 6:], path.clean[..., 6:])
    masked = family.edit(whole, edits=edit_of("MaskBlend"))
    torch.testing.assert_close(latent, masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_spacings_of_diffusers_begin_with_noise_of_unit_variance_in_its_coordinates(
    sd15: Family, spacing: str
):
    import comfy.sample

    size = {"samples": torch.zeros(1, 4, 8, 12)}
    path, _ = record(sd15, size, 1.0, spacing=spacing)
    scale = sd15.model.get_model_object("latent_format").scale_factor
    noise = comfy.sample.prepare_noise(size["samples"], 42)
    unit = path.latents[0] * scale / (1 + path.sigmas[0] ** 2) ** 0.5
    torch.testing.assert_close(unit, noise)


def test_the_schedulers_of_comfyui_give_its_own_levels(sd15: Family):
    import comfy.samplers

    sampling = sd15.model.get_model_object("model_sampling")
    for name in ("karras", "ddim_uniform", "normal"):
        path = sd15.invert(spacing=name)
        wanted = comfy.samplers.calculate_sigmas(sampling, name, STEPS)
        assert torch.equal(path.sigmas, wanted.float())
    wanted = torch.tensor([3.0, 1.0, 0.2, 0.0])
    assert torch.equal(sd15.invert(sigmas=wanted).sigmas, wanted)


def test_a_later_start_equals_a_path_of_less_strength(family: Family):
    whole, part = family.invert(steps=10), family.invert(steps=10, strength=0.5)
    assert part.steps == 5
    assert torch.equal(part.latents, whole.latents[5:])
    assert torch.equal(family.edit(whole, start=0.5), family.edit(part))


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(family: Family):
    path = family.invert()

    def noisy(seed: int) -> Tensor:
        return family.edit(path, eta=1.0, seed=seed, edits=edit_of("MDPGuidance"))

    def recorded(seed: int) -> Tensor:
        inputs = {"positive": family.source, "negative": family.negative, "steps": 2}
        size = {"samples": torch.zeros_like(path.clean)}
        inputs |= {"latent_image": size, "seed": seed}
        return results("RecordPath", model=family.model, **inputs)[1]["samples"]

    for run in (noisy, recorded):
        assert torch.equal(run(1), run(1))
        assert_changed(run(2), run(1))


def test_nodes_leave_the_model_as_it_was(family: Family):
    before = state(family.model)
    path = family.invert(cfg=2.0, negative=family.negative, fixed_point_iterations=1)
    assert state(family.model) == before
    for name in EDITS:
        family.edit(path, edits=edit_of(name), eta=0.5)
    assert state(family.model) == before
    inputs = {"source": family.source, "target": family.target, "maps": 1}
    call("DiffEditMask", model=family.model, latent_image=family.latent(), **inputs)
    assert state(family.model) == before
    inputs = {"positive": family.source, "negative": family.negative, "steps": 2}
    call("RecordPath", model=family.model, latent_image=family.latent(), **inputs)
    assert state(family.model) == before


def test_nodes_leave_prompts_and_latents_as_they_were(family: Family):
    import copy

    picture, prompts = family.latent(), (family.source, family.target, family.negative)
    kept = copy.deepcopy((picture, prompts))
    path = family.invert(picture)
    kept_path = path.latents.clone()
    family.edit(path, edits=edit_of("MDPCondition", edits=edit_of("MDPGuidance")))
    assert torch.equal(path.latents, kept_path)
    assert torch.equal(picture["samples"], kept[0]["samples"])
    for prompt, old in zip(prompts, kept[1], strict=True):
        assert torch.equal(prompt[0][0], old[0][0])
        assert prompt[0][1].keys() == old[0][1].keys()


def test_a_lora_acts_and_is_gone_afterwards(family: Family):
    """Patched as LoraLoader does: on a clone, the weights changed only while they are loaded."""
    before, path = state(family.model), family.invert()
    patched = family.model.clone()
    keys = [
        key
        for key, value in family.model.model.state_dict().items()
        if value.ndim == 2 and (".to_k." in key or ".to_q." in key or "qkv" in key)
    ]
    generator = torch.Generator().manual_seed(0)
    patches = {
        key: (0.3 * torch.randn(family.model.model.state_dict()[key].shape, generator=generator),)
        for key in keys
    }
    assert patched.add_patches(patches, 1.0)
    with_lora = family.edit(path, model=patched, edits=edit_of("MDPGuidance"))
    without = family.edit(path, edits=edit_of("MDPGuidance"))
    assert_changed(with_lora, without, 0.01)
    assert state(family.model) == before
    assert torch.equal(family.edit(path, edits=edit_of("MDPGuidance")), without)


def half(prompt: list, x: int, **options: Any) -> list:
    """A prompt for the half of an 8 x 12 latent that begins at column x."""
    return [[prompt[0][0], prompt[0][1] | {"area": (8, 6, 0, x), "strength": 1.0} | options]]


@pytest.mark.parametrize("edit", [None, *EDITS])
def test_a_prompt_for_each_half_acts_on_its_half(sd15: Family, edit: str | None):
    """At one step, before the halves have spoken to each other through the whole picture."""
    path = sd15.invert(steps=1, spacing="trailing")
    edits = edit_of(edit) if edit else ()
    if edit == "MaskBlend":
        edits = edit_of(edit, mask=torch.full((1, 8, 12), 0.5))
    other = tiny_models.conditioning(16, seed=8)

    def regional(left: list, right: list) -> Tensor:
        prompt = [*half(left, 0), *half(right, 6)]
        return sd15.edit(path, positive=prompt, edits=edits)

    both = regional(sd15.target, other)
    swapped = regional(sd15.target, sd15.source)
    torch.testing.assert_close(both[..., :6], swapped[..., :6], rtol=1e-5, atol=1e-5)
    assert_changed(both[..., 6:], swapped[..., 6:], 0.08)


def test_a_regional_source_prompt_is_inverted_as_it_is_sampled(sd15: Family):
    regional = [*half(sd15.source, 0), *half(sd15.target, 6)]
    path = sd15.invert(positive=regional, fixed_point_iterations=8)
    there_and_back = sd15.edit(path, positive=regional, cfg=1.0)
    torch.testing.assert_close(there_and_back, path.clean, rtol=1e-3, atol=1e-3)
    assert_changed(sd15.edit(path, positive=sd15.source, cfg=1.0), path.clean)


def test_a_prompt_acts_only_between_its_start_and_end_percent(sd15: Family):
    """The first step of five is alone before 30 percent."""
    path = sd15.invert()
    early = [
        [sd15.target[0][0], {"start_percent": 0.0, "end_percent": 0.3}],
        [sd15.source[0][0], {"start_percent": 0.3, "end_percent": 1.0}],
    ]
    prompts = {"model": sd15.model, "negative": sd15.negative, "path": path, "cfg": CFG}
    mixed = results("Sampler", positive=early, **prompts)[2].latents
    target = results("Sampler", positive=sd15.target, **prompts)[2].latents
    source = results("Sampler", positive=sd15.source, **prompts)[2].latents
    torch.testing.assert_close(mixed[1], target[1])
    assert_changed(mixed[1], source[1], 0.05)
    assert_changed(mixed[2], target[2], 0.02)
    tail = results(
        "Sampler",
        positive=sd15.source,
        **(prompts | {"path": results("Sampler", positive=early, **prompts)[2], "start": 0.2}),
    )[2].latents
    torch.testing.assert_close(tail, mixed[1:], rtol=1e-5, atol=1e-5)


def test_guidance_functions_of_the_model_are_honoured(sd15: Family):
    path = sd15.invert()
    replaced, after = sd15.model.clone(), sd15.model.clone()
    replaced.set_model_sampler_cfg_function(lambda args: args["cond"])
    after.set_model_sampler_post_cfg_function(lambda args: args["cond_denoised"])
    wanted = sd15.edit(path, cfg=1.0)
    torch.testing.assert_close(sd15.edit(path, model=replaced), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sd15.edit(path, model=after), wanted, rtol=1e-4, atol=1e-4)


def test_a_function_before_guidance_is_honoured(sd15: Family):
    path, before = sd15.invert(), sd15.model.clone()
    before.set_model_sampler_pre_cfg_function(
        lambda args: [args["conds_out"][0], args["conds_out"][0]]
    )
    wanted = sd15.edit(path, cfg=1.0)
    torch.testing.assert_close(sd15.edit(path, model=before), wanted, rtol=1e-4, atol=1e-4)


def test_wrappers_around_the_network_are_honoured(sd15: Family):
    path, wrapped, seen = sd15.invert(), sd15.model.clone(), []

    def wrapper(apply_model: Any, args: dict) -> Tensor:
        seen.append(sorted(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    wrapped.set_model_unet_function_wrapper(wrapper)
    assert torch.equal(sd15.edit(path, model=wrapped), sd15.edit(path))
    assert seen == [[0, 1]] * STEPS


def test_a_model_that_has_only_attention_patches_is_honoured(sd15: Family):
    path, patched = sd15.invert(), sd15.model.clone()
    patched.set_model_attn2_output_patch(lambda out, options: 0.5 * out)
    assert_changed(sd15.edit(path, model=patched), sd15.edit(path), 0.04)


def test_a_relative_of_the_model_may_walk_its_path(sd15: Family):
    path, relative = sd15.invert(), tiny_models.sd15(seed=1)
    edits = edit_of("MDPEpsilon", weight=1.0)
    latent = sd15.edit(path, model=relative, edits=edits)
    torch.testing.assert_close(latent, path.clean, rtol=0, atol=1e-4)


def test_an_empty_latent_of_four_channels_will_do_for_any_model(comfy: Path):
    sd3 = family_of("sd3")
    inputs = {"positive": sd3.source, "negative": sd3.negative, "steps": 2}
    size = {"samples": torch.zeros(1, 4, 8, 12)}
    (_, latent) = results("RecordPath", model=sd3.model, latent_image=size, **inputs)
    assert latent["samples"].shape == (1, 16, 8, 12)


def controlled(conditioning: list, seed: int) -> list:
    """The conditioning through ComfyUI's own node for ControlNets, with a random hint."""
    import nodes as comfy_nodes

    hint = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(seed))
    apply = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet
    with torch.inference_mode():
        return apply(conditioning, conditioning, tiny_models.controlnet(), hint, 1.0, 0.0, 1.0)[0]


def test_a_controlnet_steers_the_edit_as_it_steers_comfyuis_sampler(sd15: Family):
    path, target = sd15.invert(), controlled(sd15.target, 0)
    mine = sd15.edit(path, positive=target)
    no_noise = torch.zeros_like(path.clean)
    theirs = comfy_sample(sd15, no_noise, path.latents[0], target, CFG, path.sigmas)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert_changed(mine, sd15.edit(path))
    assert_changed(mine, sd15.edit(path, positive=controlled(sd15.target, 1)), by=8e-5)


def test_a_controlnet_steers_the_inversion_too(sd15: Family):
    path = sd15.invert(positive=controlled(sd15.source, 0))
    assert_changed(path.latents[0], sd15.invert().latents[0])
    same = sd15.edit(path, positive=path.positive, edits=edit_of("MDPEpsilon", weight=1.0))
    torch.testing.assert_close(same, path.clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_sample_as_they_do_in_comfyui(comfy: Path, dtype: torch.dtype):
    full = family_of("sd15")
    half = full._replace(model=tiny_models.sd15(dtype=dtype))
    path = half.invert()
    assert path.latents.dtype == torch.float32
    no_noise = torch.zeros_like(path.clean)
    theirs = comfy_sample(half, no_noise, path.latents[0], half.target, CFG, path.sigmas)
    torch.testing.assert_close(half.edit(path), theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(path.latents, full.invert().latents, rtol=0.05, atol=0.05)


def test_a_source_that_no_edit_reads_costs_nothing_whatever_its_areas(sd15: Family):
    area = [[sd15.source[0][0], {"area": (4, 6, 0, 0), "strength": 1.0}]]
    path = sd15.invert(positive=[*sd15.source, *area])
    with network_calls(sd15.model) as asked:
        latent = sd15.edit(path)
    assert asked.evaluations == 2 * STEPS
    plain = path._replace(positive=sd15.source)
    assert torch.equal(latent, sd15.edit(plain))
