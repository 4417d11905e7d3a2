"""Fit Prompt to Picture (Imagic) on networks in the real ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.demo import MODEL
from diffusion_path.inversion.imagic import levels_of, random_places
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import (
    call,
    during_call,
    edited,
    graphs,
    network_calls,
    refused,
    results,
    state,
    text,
)

STEPS, CHECKS = 3, 20
"""The steps of a short optimisation, and the calls that measure it."""

FAMILIES = ["sd2_v", "sdxl", "sd3", "flux_dev"]


class Demo(NamedTuple):
    """A demo model, loaded as the executor loads it, with two pictures and a prompt."""

    kind: str
    model: Any
    clip: Any
    prompt: list
    picture: dict[str, Tensor]
    made: list

    @property
    def plain(self) -> Any:
        """What the node makes with few steps, made once."""
        if not self.made:
            self.made.append(self.fit())
        return self.made[0]

    def fit(self, **inputs: Any) -> Any:
        """The node with few steps."""
        ways = {"model": self.model, "positive": self.prompt, "latent_image": self.picture}
        return call("OptimizePrompt", **ways | {"steps": STEPS} | inputs)


def encode(clip: Any, prompt: str) -> list:
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, prompt)[0]


@pytest.fixture(scope="module", params=["unet", "flow"])
def demo(comfy: Path, request: pytest.FixtureRequest) -> Demo:
    import nodes

    with torch.inference_mode():
        model, clip, vae, _ = results("DemoModel", kind=request.param)
        pictures = [results("ExamplePicture", picture=name)[0] for name in ("fish", "horse")]
        picture = nodes.VAEEncode().encode(vae, torch.cat(pictures))[0]
    prompt = encode(clip, "a rocket on a white background")
    return Demo(request.param, model, clip, prompt, picture, [])


def own_levels(model: Any, shape: Any) -> list[tuple[float, Tensor]]:
    """The level of each step with seed 0: those that measure the loss are drawn first."""
    generator = torch.Generator().manual_seed(0)
    torch.randn(CHECKS // 2, 1, *shape[1:], generator=generator)
    where = shape, model.get_model_object("model_sampling").percent_to_sigma, generator
    return [levels_of(random_places(1, generator), *where)[0] for _ in range(STEPS)]


def network_of(demo: Demo) -> Callable[[Tensor, float, Tensor, Tensor], Tensor]:
    """What the network of diffusers predicts of a latent, from the same files as ours."""
    from diffusers import DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel

    if demo.kind == "flow":
        from diffusion_path.demo.flow import velocity

        transformer = FluxTransformer2DModel.from_pretrained(MODEL, subfolder="transformer")
        transformer.requires_grad_(False)

        def flow(x: Tensor, sigma: float, embedding: Tensor, pooled: Tensor) -> Tensor:
            levels = torch.full((len(x),), sigma)
            return velocity(transformer.float(), x, levels, embedding, pooled)

        return flow
    unet = UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet").float()
    unet.requires_grad_(False)
    kept = DDPMScheduler.from_pretrained(MODEL, subfolder="scheduler").alphas_cumprod
    log_sigmas = ((1 - kept) / kept).sqrt().log()

    def eps(x: Tensor, sigma: float, embedding: Tensor, pooled: Tensor) -> Tensor:
        level = torch.tensor(sigma).log()
        below = int((log_sigmas <= level).sum()) - 1
        part = (level - log_sigmas[below]) / (log_sigmas[below + 1] - log_sigmas[below])
        scaled = x / (sigma**2 + 1) ** 0.5
        return unet(scaled, below + part, embedding).sample

    return eps


def test_it_is_the_published_loop_on_the_network_itself(demo: Demo):
    """Stage A as diffusers' community pipeline writes it, without ComfyUI."""
    network, prompt = network_of(demo), demo.prompt[0]
    x0 = demo.model.model.process_latent_in(demo.picture["samples"]).clone()
    pooled = prompt[1]["pooled_output"].clone().expand(2, -1)
    embedding = torch.nn.Parameter(prompt[0].clone().expand(2, -1, -1).clone())
    optimizer = torch.optim.Adam([embedding], lr=1e-3)
    for sigma, noise in own_levels(demo.model, x0.shape):
        noise = noise.expand_as(x0)
        flow = demo.kind == "flow"
        x = (1 - sigma) * x0 + sigma * noise if flow else x0 + sigma * noise
        wanted = noise - x0 if flow else noise
        loss = (network(x, sigma, embedding, pooled) - wanted).square().mean(dim=(1, 2, 3)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = demo.plain.args[1][0][0]
    assert not torch.allclose(found, prompt[0].expand_as(found), atol=1e-4)
    # Adam's first steps are of one length; where a gradient is nearly none, its sign is anyone's.
    off = (found - embedding.detach()).abs()
    assert float(off.mean()) < 2e-5
    assert float((off > 3e-4).float().mean()) < 0.01


def test_strength_1_is_the_prompt_bit_for_bit_and_0_the_optimised_embedding(demo: Demo):
    whole, none = demo.fit(strength=1.0).args, demo.fit(strength=0.0).args
    ((embedding, options),) = demo.prompt
    for one in whole[0][0][0]:
        assert torch.equal(one, embedding[0])
    assert torch.equal(none[0][0][0], none[1][0][0])
    assert torch.equal(none[1][0][0], whole[1][0][0])
    assert not torch.allclose(none[0][0][0], embedding, atol=1e-4)
    for conditioning in (*whole[:2], *none[:2]):
        assert torch.equal(conditioning[0][1]["pooled_output"], options["pooled_output"])


def test_conditioning_average_mixes_the_outputs_as_strength_does(demo: Demo):
    import nodes

    mixed, source, _ = demo.plain.args
    (average,) = nodes.ConditioningAverage().addWeighted(demo.prompt, source, 0.6)
    assert torch.equal(average[0][0], mixed[0][0])
    torch.testing.assert_close(average[0][1]["pooled_output"], mixed[0][1]["pooled_output"])


def test_each_picture_gets_the_embedding_that_it_gets_alone(demo: Demo):
    together = demo.plain.args[1][0][0]
    assert together.shape == (2, *demo.prompt[0][0].shape[1:])
    assert not torch.allclose(together[0], together[1], atol=1e-4)
    alone = {"samples": demo.picture["samples"][1:]}
    found = demo.fit(latent_image=alone).args[1][0][0]
    assert float((found[0] - together[1]).abs().mean()) < 2e-5


def test_a_seed_gives_one_embedding_and_another_seed_another(demo: Demo):
    found, again, other = (one.args[1][0][0] for one in (demo.plain, demo.fit(), demo.fit(seed=1)))
    assert torch.equal(found, again)
    assert not torch.allclose(found, other, atol=1e-4)


def test_the_picture_is_reconstructed_better_under_the_optimised_embedding(demo: Demo):
    one = {"samples": demo.picture["samples"][:1]}
    output = demo.fit(latent_image=one, steps=12, learning_rate=2e-2)
    (figures,) = output.ui["report"]
    assert figures["after"] < 0.93 * figures["before"]
    assert figures["steps"] == 12
    said = text(output)
    assert f"Error {figures['before']:.3g} to {figures['after']:.3g}" in said
    assert output.args[2] == said


def test_it_costs_what_it_says_and_the_model_stays_as_it_was(demo: Demo):
    before = state(demo.model)
    with network_calls(demo.model, 2) as calls:
        output = demo.fit(batch=2)
    assert calls.evaluations == 2 * STEPS + CHECKS
    assert f"{STEPS} steps, {2 * STEPS + CHECKS} model calls" in text(output)
    assert state(demo.model) == before


def test_the_outputs_are_prompts_like_any_others(demo: Demo):
    """In KSampler; and the source as the prompt of an inversion, under which it is walked again."""
    import nodes

    mixed, source, _ = demo.plain.args
    empty = encode(demo.clip, "")
    with torch.inference_mode():
        (latent,) = nodes.KSampler().sample(
            demo.model, 0, 1, 3.0, "euler", "simple", mixed, empty, demo.picture, 1.0
        )
    assert bool(torch.isfinite(latent["samples"]).all())
    ways = {"model": demo.model, "positive": source, "latent_image": demo.picture}
    path = results("DDIMInversion", **ways, steps=2, solver="euler")[0]
    assert path.positive is source
    again, other = (edited(demo.model, path, one, empty, cfg=1.0) for one in (source, mixed))
    assert not torch.allclose(again, other, atol=1e-3)


def test_the_mixture_lies_between_the_picture_and_the_new_prompt(demo: Demo):
    """From one noise: the more strength, the further from what the optimised embedding gives."""
    import nodes

    one = {"samples": demo.picture["samples"][:1]}
    source = demo.fit(latent_image=one, learning_rate=0.05).args[1]
    empty, made = encode(demo.clip, ""), []
    for strength in (0.0, 0.5, 1.0):
        (mixed,) = nodes.ConditioningAverage().addWeighted(demo.prompt, source, strength)
        inputs = {"model": demo.model, "positive": mixed, "negative": empty, "steps": 2}
        made.append(results("RecordPath", latent_image=one, **inputs)[1]["samples"])
    half, whole = ((one - made[0]).norm() for one in made[1:])
    assert 0 < half < whole


def test_an_interruption_ends_it_at_once_and_leaves_nothing_behind(demo: Demo):
    from comfy.model_management import InterruptProcessingException, interrupt_current_processing

    one = {"samples": demo.picture["samples"][:1]}
    undisturbed, before = demo.plain.args[1][0][0], state(demo.model)
    weights = list(demo.model.model.diffusion_model.state_dict(keep_vars=True).values())
    with (
        network_calls(demo.model) as calls,
        during_call(demo.model, CHECKS // 2 + 2, interrupt_current_processing),
        pytest.raises(InterruptProcessingException),
    ):
        demo.fit(latent_image=one)
    assert calls.calls == CHECKS // 2 + 2
    assert state(demo.model) == before
    after = demo.model.model.diffusion_model.state_dict(keep_vars=True).values()
    assert all(a is b for a, b in zip(after, weights, strict=True))
    assert not graphs()
    assert torch.equal(demo.fit().args[1][0][0], undisturbed)


def tiny(name: str, **inputs: Any) -> Any:
    """The node on a tiny model of a family."""
    if name in ("sd2_v", "sdxl", "sd3"):
        width = {"sd2_v": 24, "sdxl": 16, "sd3": 32}[name]
        pooled = {"sdxl": 1280, "sd3": 2048}.get(name)
        prompt = tiny_models.conditioning(width, 8, pooled)
        channels = 16 if name == "sd3" else 4
        generator = torch.Generator().manual_seed(0)
        picture = {"samples": torch.randn(1, channels, 8, 12, generator=generator)}
    else:
        prompt, picture = tiny_models.prompt(name), tiny_models.picture(name)
    with torch.inference_mode():
        model = getattr(tiny_models, name)()
    ways = {"model": model, "positive": prompt, "latent_image": picture, "steps": 20}
    return call("OptimizePrompt", **ways | {"learning_rate": 0.05} | inputs), prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_fitted_and_its_pooled_vector_kept(comfy: Path, name: str):
    output, prompt = tiny(name)
    (figures,) = output.ui["report"]
    assert figures["after"] < figures["before"]
    mixed, source, _ = output.args
    pooled = prompt[0][1].get("pooled_output")
    for conditioning in (mixed, source):
        kept = conditioning[0][1].get("pooled_output")
        assert kept is None if pooled is None else torch.allclose(kept, pooled)


def test_half_precision_finds_what_full_precision_does(comfy: Path):
    prompt = tiny_models.conditioning(16, 8)
    picture = {"samples": torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))}
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_models.sd15(dtype=dtype)
        ways = {"model": model, "positive": prompt, "latent_image": picture, "steps": 10}
        moved = results("OptimizePrompt", **ways, learning_rate=0.02)[1][0][0] - prompt[0][0]
        assert moved.dtype == torch.float32
        found.append(moved.flatten())
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.8


def test_bad_input_is_refused_in_a_sentence(demo: Demo):
    ways = {"model": demo.model, "positive": demo.prompt, "latent_image": demo.picture}
    refused(
        "OptimizePrompt", "positive has 2 parts", "a single", **ways | {"positive": demo.prompt * 2}
    )
    three = [[demo.prompt[0][0].repeat(3, 1, 1), demo.prompt[0][1]]]
    refused(
        "OptimizePrompt", "3 prompts for 2 pictures", "one for each", **ways | {"positive": three}
    )
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    refused("OptimizePrompt", "latent_image is empty", **ways | {"latent_image": empty})
    wide = [[torch.zeros(1, 77, 999), {"pooled_output": torch.zeros(1, 128)}]]
    refused("OptimizePrompt", "encoded 999 wide", **ways | {"positive": wide})
    refused("OptimizePrompt", "learning_rate is nan", **ways, learning_rate=float("nan"))


def test_a_quantised_model_is_refused(comfy: Path):
    quantised = tiny_models.sd15()
    quantised.model.diffusion_model.to(torch.float8_e4m3fn)
    picture = {"samples": torch.ones(1, 4, 8, 8)}
    prompt = tiny_models.conditioning(16)
    refused("OptimizePrompt", "quantised", model=quantised, positive=prompt, latent_image=picture)


def test_a_mask_of_the_latent_is_said_to_be_unused(demo: Demo):
    masked = {"samples": demo.picture["samples"][:1], "noise_mask": torch.ones(1, 16, 16)}
    assert "mask is not used" in text(demo.fit(latent_image=masked, steps=1))
