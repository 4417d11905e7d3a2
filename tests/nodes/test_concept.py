"""The node Concept: on the demo models, and on every family of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, network_calls, refused, results, state, text

STEPS = 6
APPLE, PEAR = "a red apple on a blue background", "a red pear on a blue background"


class Demo(NamedTuple):
    """A demo model, two pictures of an apple, and no prompt."""

    model: Any
    clip: Any
    path: Any
    empty: list

    def pair(self, target: str) -> tuple:
        return results("PromptPair", clip=self.clip, source_prompt=APPLE, target_prompt=target)

    def concept(self, prompt: str = "a pear", edits: tuple = (), **inputs: Any) -> tuple:
        return results("Concept", clip=self.clip, prompt=prompt, edits=edits, **inputs)[0]

    def inputs(self, edits: tuple, **inputs: Any) -> dict[str, Any]:
        given = {"model": self.model, "path": self.path, "cfg": 1.0, "edits": edits}
        return given | {"positive": self.empty, "negative": self.empty} | inputs

    def edit(self, edits: tuple = (), **inputs: Any) -> Tensor:
        return edited(**self.inputs(edits, **inputs))

    def moved(self, start: float, edits: tuple) -> Tensor:
        """Where the first step of a walk ends elsewhere because of the edits (B, H, W)."""
        with_them, without = (
            results("Sampler", **self.inputs(one, start=start))[2].latents[1] for one in (edits, ())
        )
        return ((with_them - without).abs() > 1e-4).any(dim=1)


def demo_of(**kind: Any) -> Demo:
    model, clip, *_ = results("DemoModel", **kind)
    pair = {"clip": clip, "source_prompt": APPLE, "target_prompt": ""}
    if kind:
        source, empty = (
            clip.encode_from_tokens_scheduled(clip.tokenize(one)) for one in (APPLE, "")
        )
    else:
        source, empty, _ = results("PromptPair", **pair)
    channels = model.get_model_object("latent_format").latent_channels
    size = {"samples": torch.zeros(2, channels, 16, 16)}
    inputs = {"positive": source, "negative": empty, "latent_image": size, "steps": STEPS}
    path = results("RecordPath", model=model, cfg=4.0, **inputs)[0]
    return Demo(model, clip, path, empty)


@pytest.fixture(scope="module")
def demo(comfy: Path) -> Demo:
    return demo_of()


# where it acts


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_both_masks_are_the_intersection_and_at_the_noisy_end_attention_alone(
    demo: Demo, start: float
):
    both, attention, guidance = (
        demo.moved(start, demo.concept(threshold=0.7, mask=mask))
        for mask in ("auto", "attention", "guidance")
    )
    assert torch.equal(both, attention & guidance if start else attention)
    for mask in (attention, guidance):
        assert 0.25 < float(mask.float().mean()) < 0.35
    assert not torch.equal(attention, guidance)
    assert demo.moved(start, demo.concept(mask="none")).all()


def test_each_picture_of_a_batch_has_its_own_mask(demo: Demo):
    both = demo.edit(demo.concept())
    for i in range(2):
        alone = demo.path._replace(latents=demo.path.latents[:, i : i + 1])
        latent = demo.edit(demo.concept(), path=alone)
        away = (latent - both[i : i + 1]).norm() / latent.norm()
        assert float(away) < 1e-4  # under the other picture's mask it is 1


@pytest.mark.parametrize(("height", "width"), [(8, 24), (13, 19), (2, 3)])
def test_pictures_need_not_be_square_nor_even(demo: Demo, height: int, width: int):
    size = {"samples": torch.zeros(1, 4, height, width)}
    inputs = {"positive": demo.empty, "negative": demo.empty, "latent_image": size, "steps": STEPS}
    plain, made = (
        results("RecordPath", model=demo.model, edits=edits, **inputs)[0].clean
        for edits in ((), demo.concept())
    )
    assert float((made - plain).norm() / plain.norm()) > 0.01


def test_the_model_stays_as_it_was(demo: Demo):
    before, plain = state(demo.model), demo.edit()
    assert float((demo.edit(demo.concept()) - plain).norm() / plain.norm()) > 0.05
    assert state(demo.model) == before
    assert torch.equal(demo.edit(), plain)


# what it costs


@pytest.mark.parametrize(
    ("mask", "given", "evaluations", "calls"),
    [
        ("guidance", {}, 2, 1),
        ("auto", {}, 2, 2),  # who looks at the attention has a call of its own
        ("guidance", {"cfg": 3.0}, 3, 1),
        ("auto", {"cfg": 3.0}, 3, 2),
    ],
)
def test_a_concept_costs_one_evaluation_a_step(
    demo: Demo, mask: str, given: dict, evaluations: int, calls: int
):
    with network_calls(demo.model, 2) as asked:
        output = call("Sampler", **demo.inputs(demo.concept(mask=mask), **given))
    assert asked.evaluations == evaluations * STEPS
    assert asked.calls == calls * STEPS
    assert f"{evaluations * STEPS} model calls" in text(output)


# beside others


def test_a_function_of_guidance_finds_the_targets_attention_and_not_the_concepts(demo: Demo):
    """Perturbed-attention guidance asks the network again, with prompt-to-prompt in it."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    _, target, prompts = demo.pair(PEAR)
    injected = results("PromptToPrompt", prompts=prompts)[0]
    model = PerturbedAttentionGuidance.execute(demo.model, 3.0).args[0]
    given = {"model": model, "positive": target, "cfg": 4.0}
    alone = demo.edit(injected, **given)
    latent = demo.edit(demo.concept(scale=1e-9, edits=injected), **given)
    torch.testing.assert_close(latent, alone, rtol=0, atol=1e-4)


def test_under_a_sampler_of_comfyuis_it_is_the_same(demo: Demo):
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustomAdvanced

    edits = demo.concept()
    inputs = demo.inputs(edits)
    guider, noise, sigmas, latent = results("Guider", **inputs)[:4]
    with torch.inference_mode():
        euler = KSamplerSelect.execute("euler").args[0]
        theirs = SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent).args[0]
    torch.testing.assert_close(theirs["samples"], demo.edit(edits), rtol=0, atol=1e-3)


# any family


@pytest.mark.parametrize("name", ["sd15", "sd2_v", "sdxl", "sd3"])
def test_on_every_family_one_without_a_mask_is_guidance_towards_its_prompt(comfy: Path, name: str):
    from diffusion_path.edits.concept import Concept

    model = getattr(tiny_models, name)()
    width, pooled = {"sd2_v": 24, "sd3": 32}.get(name, 16), {"sdxl": 1280, "sd3": 2048}.get(name)
    source, empty, prompt = (
        tiny_models.conditioning(width, pooled=pooled, seed=seed) for seed in range(3)
    )
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(2, 16 if name == "sd3" else 4, 8, 12, generator=generator)
    inputs = {"positive": source, "latent_image": {"samples": picture}, "steps": STEPS}
    path = results("DDIMInversion", model=model, **inputs)[0]
    edit = Concept(conditioning=prompt, scale=4.0, guided=False)
    latent = edited(model, path, empty, empty, cfg=1.0, edits=(edit,))
    guided = edited(model, path, prompt, empty, cfg=4.0)
    torch.testing.assert_close(latent, guided, rtol=1e-3, atol=1e-3)


def test_on_a_flow_model_the_mask_is_of_the_words_too(comfy: Path):
    flow = demo_of(kind="flow")
    output = call("Concept", clip=flow.clip, prompt="a pear")
    assert text(output) == "Limited by attention and guidance"
    auto, attention = (flow.moved(0.0, flow.concept(mask=mask)) for mask in ("auto", "attention"))
    assert torch.equal(auto, attention)  # at the noisy end
    assert not torch.equal(auto, flow.moved(0.0, flow.concept(mask="guidance")))
    assert 0.05 < float(auto.float().mean()) < 0.35


def test_a_model_whose_attention_is_not_known_has_the_mask_of_the_guidance(comfy: Path):
    from diffusion_path.nodes.sampler import settle

    (edit,) = demo_of(kind="flow").concept()
    for name, words in (("ernie_image", None), ("flux_dev", edit.words)):
        model = getattr(tiny_models, name)()
        assert settle(model, (edit,))[0].words is words


def test_what_limits_it_is_told(demo: Demo):
    def told(mask: str) -> str:
        return text(call("Concept", clip=demo.clip, prompt="a pear", mask=mask))

    assert told("auto") == "Limited by attention and guidance"
    assert told("attention") == "Limited by attention"
    assert told("none") == "Not limited to a place"


def test_refusals(demo: Demo):
    given = {"clip": demo.clip, "prompt": "a pear"}
    refused("Concept", "prompt is empty", **(given | {"prompt": " \n"}))
    refused("Concept", "there is no CLIP", **(given | {"clip": None}))
    refused("Concept", "warm_up 0.5 is not before end 0.5", warm_up=0.5, end=0.5, **given)
    other = tiny_models.conditioning(24)
    (edit,) = demo.concept()
    edits = (replace(edit, conditioning=other),)
    said = ("the prompt of Concept was encoded 24 wide", "this model reads 128")
    refused("Sampler", *said, **demo.inputs(edits))
