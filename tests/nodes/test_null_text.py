"""Null-text and negative-prompt inversion on networks in the real ComfyUI."""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.core.denoiser import guided
from diffusion_path.edits.null_text import NullText
from diffusion_path.edits.proximal import Proximal
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import (
    Calls,
    call,
    edited,
    graphs,
    network_calls,
    results,
    state,
    text,
)

STEPS, CFG, TOKENS = 3, 3.0, 8
ADAM = {"optimizer": "adam", "start_from": "negative", "learning_rate": 0.1}
WAYS: dict[str, dict] = {"source": {}, "negative": {"start_from": "negative"}, "adam": ADAM}
each_way = pytest.mark.parametrize("way", WAYS)

LEFT = {
    "SD15": (0.98, 0.83, 0.87),
    "TinyV": (0.97, 0.96, 0.993),
    "SDXL": (0.965, 0.77, 0.85),
    "SD3": (0.996, 0.979, 0.992),
}
"""What may be left of the distance to the source in each of the ways: half-way between what there
is and what embeddings moved as far at random, or the other way, leave."""


class Way(NamedTuple):
    """What a node has made, what it asked of the network, and the model before and after."""

    output: Any
    calls: Calls
    before: dict
    after: dict

    @property
    def path(self) -> Any:
        return self.output.args[0]


class Family(NamedTuple):
    """A tiny model of a family with prompts for it, and the path of two pictures."""

    model: Any
    source: list
    negative: list
    path: Any
    noise: dict
    ways: dict[str, Way]

    def way(self, name: str) -> Way:
        """Null-text inversion in one of the ways, made once."""
        if name not in self.ways:
            before = state(self.model)
            with network_calls(self.model, 2) as calls:
                output = self.invert(**WAYS[name])
            self.ways[name] = Way(output, calls, before, state(self.model))
        return self.ways[name]

    def invert(self, path: Any = None, **inputs: Any) -> Any:
        """Null-text inversion, exact enough to be seen in these models of random weights."""
        defaults = {"model": self.model, "negative": self.negative, "cfg": CFG}
        defaults |= {"early_stop": 1e-9, "inner_steps": 3, "path": path or self.path}
        return call("NullTextInversion", **(defaults | inputs))

    def retrace(self, path: Any, **inputs: Any) -> Tensor:
        """The picture that the sampler makes of the path under its own prompt."""
        model = inputs.pop("model", self.model)
        return edited(model, path, self.source, self.negative, **({"cfg": CFG} | inputs))

    def missed(self, path: Any, **inputs: Any) -> float:
        return float((self.retrace(path, **inputs) - path.clean).norm())


def family_of(name: str, batch: int = 2, **options: Any) -> Family:
    width = {"sd15": 16, "sd2_v": 24, "sdxl": 16, "sd3": 32}[name]
    pooled = {"sdxl": 1280, "sd3": 2048}.get(name)
    source, negative = (
        tiny_models.conditioning(width, TOKENS, pooled, seed=seed) for seed in (0, 1)
    )
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(batch, 16 if name == "sd3" else 4, 8, 12, generator=generator)
    with torch.inference_mode():  # as the executor loads models: their weights cannot be trained
        model = getattr(tiny_models, name)(**options)
    inputs = {"positive": source, "latent_image": {"samples": picture}, "steps": STEPS}
    path, noise = results("DDIMInversion", model=model, **inputs)
    return Family(model, source, negative, path, noise, {})


def own(path: Any) -> NullText:
    """The embeddings that a path begins with."""
    (found,) = (edit for edit in path.edits if isinstance(edit, NullText))
    return found


def bare(path: Any, start: list) -> Any:
    """The path with the embedding that the search began with."""
    return path._replace(edits=(NullText(embeddings=start[0][0][None], cfg=path.cfg),))


@pytest.fixture(scope="module")
def families(comfy: Path) -> Callable[[str], Family]:
    return functools.cache(family_of)


@pytest.fixture(scope="module", params=["sd15", "sd2_v", "sdxl", "sd3"])
def family(request: pytest.FixtureRequest, families: Callable) -> Family:
    return families(request.param)


@pytest.fixture(scope="module")
def sd15(families: Callable) -> Family:
    return families("sd15")


@each_way
def test_guidance_comes_closer_to_the_source_and_the_model_stays_as_it_was(
    family: Family, way: str
):
    found = family.way(way)
    assert found.before == found.after
    path, negative, plot = found.output.args
    embeddings = own(path).embeddings
    assert embeddings.shape == (STEPS, 2, *family.source[0][0].shape[1:])
    assert embeddings.dtype == torch.float32 and not embeddings.requires_grad
    assert bool(torch.isfinite(embeddings).all())
    start = family.source if way == "source" else family.negative
    assert path.negative is start and path.cfg == own(path).cfg == CFG
    limit = LEFT[type(family.model.model.model_config).__name__][list(WAYS).index(way)]
    assert family.missed(path) < limit * family.missed(bare(path, start))
    assert len(negative) == STEPS
    assert plot.ndim == 4 and plot.shape[-1] == 3 and float(plot.min()) < float(plot.max()) <= 1


def test_weights_are_the_very_same_tensors_afterwards(sd15: Family):
    before = list(sd15.model.model.diffusion_model.state_dict(keep_vars=True).values())
    assert any(weight.is_inference() for weight in before)
    sd15.invert(**WAYS["negative"], inner_steps=1)
    after = sd15.model.model.diffusion_model.state_dict(keep_vars=True).values()
    assert all(a is b for a, b in zip(after, before, strict=True))
    assert all(weight.grad is None for weight in before)


def live_bytes() -> int:
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("way", ["source", "adam"])
def test_nothing_is_kept_alive_but_the_outputs(sd15: Family, way: str):
    sd15.invert(**WAYS[way], inner_steps=1)
    before = live_bytes()
    output = sd15.invert(**WAYS[way], inner_steps=1)
    assert live_bytes() > before
    assert not graphs()
    del output
    assert live_bytes() <= before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_will_do(comfy: Path, dtype: torch.dtype):
    """The loss that is left is of the size that such weights round to."""
    half = family_of("sd15", batch=1, dtype=dtype)
    assert half.model.model.get_dtype() == dtype
    path, _, _ = half.invert(start_from="negative", cfg=7.5).args
    assert own(path).embeddings.dtype == torch.float32
    plain = half.missed(bare(path, half.negative), cfg=7.5)
    assert half.missed(path, cfg=7.5) < 0.65 * plain  # it is 0.38; at random 4.3


def test_both_kinds_of_memory_give_the_same_embeddings(sd15: Family):
    from diffusion_path.host.guider import run
    from diffusion_path.inversion.null_text import null_text_inversion

    kept: dict[bool, int] = {}

    def loop(sparing: bool) -> Callable:
        def loop(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
            roomy = denoiser.differentiable
            denoiser.differentiable = lambda: roomy(sparing)
            alive: dict[int, int] = {}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                alive[storage.data_ptr()] = storage.nbytes()
                return tensor.detach()  # itself it would keep the graph that it is in

            latents = torch.stack([denoiser.latent_in(one) for one in sd15.path.latents])
            options = {"cfg": CFG, "inner_steps": 1, "early_stop": 1e-9}
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                prompts = conditions["positive"], conditions["negative"]
                found = null_text_inversion(
                    denoiser, latents, sd15.path.sigmas, *prompts, **options
                )
            weights = denoiser.model.diffusion_model.parameters()
            own = {weight.untyped_storage().data_ptr() for weight in weights}
            kept[sparing] = sum(size for place, size in alive.items() if place not in own)
            return found.embeddings

        return loop

    prompts = {"positive": sd15.source, "negative": sd15.negative}
    with torch.inference_mode():
        both = [
            run(sd15.model, prompts, sd15.path.clean, sd15.path.sigmas, loop(sparing), steps=STEPS)
            for sparing in (False, True)
        ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
    assert kept[True] < kept[False] / 3


@each_way
def test_the_negative_drives_comfyuis_own_sampler(family: Family, way: str):
    import comfy.sample
    import comfy.samplers

    path, negative, _ = family.way(way).output.args
    noise = family.noise["samples"]
    euler = comfy.samplers.sampler_object("euler")
    arguments = (euler, path.sigmas, family.source, negative, noise)
    with torch.inference_mode():
        theirs = comfy.sample.sample_custom(
            family.model, torch.zeros_like(noise), CFG, *arguments, seed=0
        )
    torch.testing.assert_close(theirs, family.retrace(path), rtol=1e-3, atol=1e-3)


def test_it_costs_what_it_says(sd15: Family):
    for name in WAYS:
        way = sd15.way(name)
        said = re.search(r"(\d+) model calls, (\d+) gradient", text(way.output))
        assert said and int(said[1]) == way.calls.evaluations
    with network_calls(sd15.model, 2) as calls:
        output = sd15.invert(early_stop=1.0)
    assert calls.evaluations == STEPS
    assert text(output) == f"Exact in {STEPS} of {STEPS} steps\n{STEPS} model calls, 0 gradients"
    (figures,) = output.ui["report"]
    assert figures["evaluations"] == STEPS and figures["without_optimisation"] == STEPS


def test_where_a_patch_may_tell_a_negative_from_a_positive_the_source_is_asked_as_both(
    sd15: Family,
):
    patched = sd15.model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **args["c"])
    )
    with network_calls(patched, 2) as calls:
        sd15.invert(model=patched, early_stop=1.0)
    assert calls.evaluations == 2 * STEPS


def test_the_sampler_uses_the_embeddings_by_itself_in_place_of_its_negative(sd15: Family):
    path = sd15.way("negative").path
    other = tiny_models.conditioning(16, TOKENS, seed=7)
    prompts = {"positive": sd15.source, "negative": other}
    output = call("Sampler", model=sd15.model, path=path, cfg=7.5, **prompts)
    latent = output.args[0]["samples"]
    assert torch.equal(latent, edited(sd15.model, path, sd15.source, sd15.negative, cfg=7.5))
    assert "The path's negative was made for cfg 3" in text(output)
    output = call("Sampler", model=sd15.model, path=path, **prompts)
    assert "negative is not used: the path has its own" in text(output)
    late = results(
        "Sampler",
        model=sd15.model,
        path=path,
        positive=sd15.source,
        negative=other,
        cfg=CFG,
        start=0.4,
    )[2]
    assert late.steps == STEPS - 1
    assert torch.equal(own(late).embeddings, own(path).embeddings[1:])


def test_an_edited_path_can_be_walked_again_as_it_was(sd15: Family):
    path = sd15.way("negative").path
    target = tiny_models.conditioning(16, TOKENS, seed=7)
    inputs = {"model": sd15.model, "positive": target, "negative": sd15.negative, "cfg": CFG}
    once = results("Sampler", path=path, **inputs)[2]
    assert torch.equal(results("Sampler", path=once, **inputs)[2].latents, once.latents)


def test_a_file_keeps_embeddings_and_proximal_guidance(sd15: Family, tmp_path: Path):
    from diffusion_path.inversion.path_file import load_path, save_path

    for path in (
        sd15.way("adam").path,
        results("NegativePromptInversion", path=sd15.path, proximal="l1", quantile=0.6)[0],
    ):
        save_path(path, tmp_path / "path.safetensors")
        loaded = load_path(tmp_path / "path.safetensors")
        assert torch.equal(own(loaded).embeddings, own(path).embeddings)
        kept = [
            [edit for edit in one.edits if isinstance(edit, Proximal)] for one in (loaded, path)
        ]
        assert kept[0] == kept[1]
        assert torch.equal(sd15.retrace(loaded), sd15.retrace(path))


def test_a_lora_acts_and_is_gone_afterwards(sd15: Family):
    patched = sd15.model.clone()
    weights = sd15.model.model.state_dict()
    keys = [key for key in weights if key.endswith("attn2.to_k.weight")]
    patched.add_patches({key: (torch.ones_like(weights[key]),) for key in keys}, 3.0)
    before = state(sd15.model)
    own_model = sd15.way("negative").path
    plain = own(own_model).embeddings
    found = sd15.invert(model=patched, start_from="negative").args[0]
    assert not torch.allclose(own(found).embeddings, plain)
    unfound = sd15.missed(bare(found, sd15.negative), model=patched)
    assert sd15.missed(found, model=patched) < 0.85 * unfound
    assert sd15.missed(found, model=patched) < 0.98 * sd15.missed(own_model, model=patched)
    assert torch.equal(own(sd15.invert(start_from="negative").args[0]).embeddings, plain)
    assert state(sd15.model) == before


def test_it_goes_through_a_controlnet_too(sd15: Family):
    control = tiny_models.controlnet()
    hint = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    import nodes

    with torch.inference_mode():
        apply = nodes.ControlNetApplyAdvanced().apply_controlnet
        source, negative = apply(sd15.source, sd15.negative, control, hint, 1.0, 0.0, 1.0)
    weights = [weight.clone() for weight in control.control_model.parameters()]
    picture = {"samples": sd15.path.clean}
    inputs = {"model": sd15.model, "positive": source, "latent_image": picture, "steps": STEPS}
    path = results("DDIMInversion", **inputs)[0]
    assert not torch.allclose(path.latents[0], sd15.path.latents[0])
    before = state(sd15.model)
    found = sd15.invert(path, negative=negative, start_from="negative").args[0]

    def missed(path: Any) -> float:
        return float((edited(sd15.model, path, source, negative, cfg=CFG) - path.clean).norm())

    assert missed(found) < 0.69 * missed(bare(found, negative))  # without the ControlNet 0.71
    assert state(sd15.model) == before
    after = control.control_model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(after, weights, strict=True))


def test_the_pooled_vector_stays_that_of_the_prompt_it_starts_from(families: Callable):
    family = families("sdxl")
    for start, prompt in (("source", family.source), ("negative", family.negative)):
        _, negative, _ = family.way(start).output.args
        pooled = prompt[0][1]["pooled_output"]
        assert all(torch.equal(options["pooled_output"], pooled) for _, options in negative)


def test_reading_the_source_off_its_path_is_direct_inversions_rectification(sd15: Family):
    """PnP inversion (Ju et al., ICLR 2024, algorithm 1): at each step the source branch is moved
    by its distance from the stored latent, o_i = x_A[i+1] - step(x_A[i]); so it is the path."""
    from diffusion_path.host.guider import run

    path = sd15.path

    def rectified(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
        stored = [denoiser.latent_in(one) for one in path.latents]
        sigmas = path.sigmas.tolist()
        x, walked = stored[0], [stored[0]]
        prompts = conditions["positive"], conditions["negative"]

        def step(x: Tensor, i: int) -> Tensor:
            denoised = guided(denoiser, x, sigmas[i], *prompts, CFG)
            return x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i]

        for i in range(path.steps):
            offset = stored[i + 1] - step(stored[i], i)
            x = step(x, i) + offset
            walked.append(x)
        return torch.stack([denoiser.latent_out(one) for one in walked])

    prompts = {"positive": sd15.source, "negative": sd15.negative}
    with torch.inference_mode():
        walked = run(sd15.model, prompts, path.clean, path.sigmas, rectified, steps=STEPS)
    torch.testing.assert_close(walked, path.latents, rtol=1e-4, atol=1e-4)
    source = results(
        "Sampler", model=sd15.model, path=path, positive=sd15.source, negative=sd15.negative
    )[1]["samples"]
    assert torch.equal(source, path.clean)


def test_the_source_prompt_as_negative_is_free_and_leads_back(sd15: Family):
    picture = {"samples": sd15.path.clean}
    inputs = {"positive": sd15.source, "latent_image": picture, "steps": STEPS}
    exact = results("DDIMInversion", model=sd15.model, fixed_point_iterations=20, **inputs)[0]
    with network_calls(sd15.model) as calls:
        path, negative = results("NegativePromptInversion", path=exact)
    assert calls.calls == 0
    assert torch.equal(negative[0][0], sd15.source[0][0])
    torch.testing.assert_close(sd15.retrace(path), path.clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("proximal", ["l0", "l1"])
def test_proximal_guidance_holds_the_edit_back(sd15: Family, proximal: str):
    target = tiny_models.conditioning(16, TOKENS, seed=7)

    def moved(**inputs: Any) -> float:
        path, _ = results("NegativePromptInversion", path=sd15.path, **inputs)
        latent = edited(sd15.model, path, target, sd15.negative, cfg=CFG)
        return float((latent - path.clean).norm())

    free = moved()
    assert moved(proximal=proximal, quantile=0.95) < moved(proximal=proximal, quantile=0.7) < free


def test_averaging_is_that_of_the_last_estimates(sd15: Family):
    """With as many repeats, and only the last estimate, it is the plain fixed point."""
    inputs = {
        "model": sd15.model,
        "positive": sd15.source,
        "latent_image": {"samples": sd15.path.clean},
        "steps": 1,
        "fixed_point_iterations": 2,
    }
    start = {"steps": 1, "fixed_point_iterations": 0}
    estimates = [
        results("DDIMInversion", **(inputs | start | {"fixed_point_iterations": k}))[0].latents[0]
        for k in range(3)
    ]
    for average in (1, 2, 3):
        found = results("DDIMInversion", average=average, **inputs)[0].latents[0]
        wanted = torch.stack(estimates[-average:]).mean(dim=0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("start", "most"), [("source", 10), ("negative", 3)])
def test_0_takes_the_number_of_iterations_that_was_measured_for_the_start(
    comfy: Path, start: str, most: int
):
    from diffusion_path.nodes.null_text import CHOSEN, NullTextInversion

    assert CHOSEN[start][0] == most
    inputs = {one.id: one for one in NullTextInversion.GET_SCHEMA().inputs}
    assert inputs["inner_steps"].default == 0 and inputs["early_stop"].default == 0.0


@pytest.mark.parametrize("name", ["flux_schnell", "chroma"])
def test_a_model_that_adds_in_place_is_led_back_too_whatever_the_memory(
    comfy: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    from diffusion_path.host.denoiser import ComfyDenoiser

    model, prompt = getattr(tiny_models, name)(), tiny_models.prompt(name)
    inputs = {"positive": prompt, "latent_image": tiny_models.picture(name), "steps": STEPS}
    path = results("DDIMInversion", model=model, **inputs)[0]
    before, found = state(model), []
    for sparing in (False, True):
        monkeypatch.setattr(ComfyDenoiser, "_memory_is_short", lambda self, short=sparing: short)
        given = {"path": path, "negative": prompt, "cfg": CFG, "inner_steps": 3}
        found.append(results("NullTextInversion", model=model, early_stop=1e-9, **given)[0])
    torch.testing.assert_close(own(found[0]).embeddings, own(found[1]).embeddings)
    assert state(model) == before

    def missed(path: Any) -> float:
        return float((edited(model, path, prompt, prompt, cfg=CFG) - path.clean).norm())

    nothing_found = found[0]._replace(edits=(NullText(embeddings=prompt[0][0][None], cfg=CFG),))
    assert missed(found[0]) < 0.99 * missed(nothing_found)
