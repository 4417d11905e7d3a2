"""Attention control on the demo model, against prompt-to-prompt as published; and whether the
reference itself does what is known in advance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from diffusion_path.demo import MODEL
from diffusion_path.tests.calls import results
from diffusion_path.tests.reference_prompt_to_prompt import (
    Controls,
    LocalBlend,
    PromptToPrompt,
    align,
    refine_mapper,
    replace_mapper,
    word_tokens,
)

STEPS, CFG, TOLERANCE = 20, 7.5, 1e-3
HORSE, ZEBRA = "a horse on a blue background", "a zebra on a blue background"


@pytest.fixture(scope="module")
def reference() -> PromptToPrompt:
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    return PromptToPrompt(pipeline, STEPS)


@pytest.fixture(scope="module")
def recorded(reference: PromptToPrompt) -> list[Tensor]:
    """A picture of a horse, sampled with guidance."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return reference.record(noise, reference.encode(HORSE), reference.encode(""), CFG)


def largest_error(latents: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(latents, expected, strict=True)
    return max(float((ours - right).norm() / right.norm()) for ours, right in pairs)


def controls(reference: PromptToPrompt, target: str, **more: Any) -> Controls:
    """A word of the horse's prompt replaced."""
    mapper, keeps_own = replace_mapper(reference.pipeline.tokenizer, HORSE, target)
    return Controls(mapper, keeps_own, (0.0, 0.8), self_attention=(0.0, 0.4), **more)


def blend(reference: PromptToPrompt, target: str, **more: Any) -> LocalBlend:
    """Around the animal; at 0.3 the demo model's maps cover nearly everything."""
    tokenizer = reference.pipeline.tokenizer
    words = [word_tokens(tokenizer, prompt, prompt.split()[1]) for prompt in (HORSE, target)]
    return LocalBlend(*words, threshold=0.5, **more)


def test_the_reference_samples_as_diffusers_does(reference: PromptToPrompt, recorded: list[Tensor]):
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        HORSE,
        latents=recorded[0],
        num_inference_steps=STEPS,
        guidance_scale=CFG,
        output_type="latent",
    ).images
    assert largest_error(recorded[-1:], [theirs]) <= 1e-4


def test_the_reference_gives_the_recorded_picture_for_its_own_prompt(
    reference: PromptToPrompt, recorded: list[Tensor]
):
    horse, null = reference.encode(HORSE), reference.encode("")
    everything = controls(reference, HORSE, blend=blend(reference, HORSE))
    latents = reference.run(recorded, horse, horse, null, everything, CFG)
    assert largest_error(latents, recorded) <= 1e-4


def test_the_reference_without_control_samples_plainly(
    reference: PromptToPrompt, recorded: list[Tensor]
):
    horse, zebra, null = (reference.encode(prompt) for prompt in (HORSE, ZEBRA, ""))
    mapper, keeps_own = replace_mapper(reference.pipeline.tokenizer, HORSE, ZEBRA)
    nulls = [null] * STEPS
    latents = reference.run(recorded, horse, zebra, nulls, Controls(mapper, keeps_own), CFG)
    assert largest_error(latents, reference.record(recorded[0], zebra, null, CFG)) <= 1e-6


def test_the_reference_blends_into_the_recorded_picture(
    reference: PromptToPrompt, recorded: list[Tensor]
):
    horse, zebra, null = (reference.encode(prompt) for prompt in (HORSE, ZEBRA, ""))
    around = controls(reference, ZEBRA, blend=blend(reference, ZEBRA))
    latents = reference.run(recorded, horse, zebra, null, around, CFG)

    def kept(latents: list[Tensor]) -> list[float]:
        pairs = zip(latents, recorded, strict=True)
        return [float((x == right).all(dim=1).float().mean()) for x, right in pairs]

    shares = kept(latents)
    first = STEPS // 5 + 1
    assert max(shares[1:first]) == 0, "blended too early"
    assert all(0.2 < share < 0.9 for share in shares[first:]), shares

    tokens = word_tokens(reference.pipeline.tokenizer, HORSE, "horse")
    border = blend(reference, ZEBRA, subtract_source=tokens, subtract_target=tokens)
    latents = reference.run(
        recorded, horse, zebra, null, controls(reference, ZEBRA, blend=border), CFG
    )
    assert min(kept(latents)[first:]) > 0.6  # without the word itself its border is left


@pytest.mark.parametrize(
    "words", [("zebra", "horse"), ("xylophones", "horse"), ("qz", "xylophones")]
)
def test_replacing_keeps_the_mass_of_attention(reference: PromptToPrompt, words: tuple[str, str]):
    tokenizer = reference.pipeline.tokenizer
    prompts = [f"a {word} on a blue background" for word in words]
    before, after = (len(tokenizer(prompt).input_ids) for prompt in prompts)
    mapper, keeps_own = replace_mapper(tokenizer, *prompts)
    probabilities = torch.rand(2, 64, 77, generator=torch.Generator().manual_seed(0)).softmax(-1)
    dropped = probabilities[..., 77 - max(after - before, 0) :].sum(-1)
    torch.testing.assert_close((probabilities @ mapper).sum(-1), 1 - dropped)
    assert keeps_own.sum() == max(before - after, 0)
    tail = probabilities[..., before - 4 : before], (probabilities @ mapper)[..., after - 4 : after]
    torch.testing.assert_close(*tail)


def test_refining_keeps_own_maps_for_new_words_only(reference: PromptToPrompt):
    tokenizer = reference.pipeline.tokenizer
    prompts = "a heart on a white background", "a red heart on a white background"
    mapper, keeps_own = refine_mapper(tokenizer, *prompts)
    assert keeps_own.nonzero().flatten().tolist() == word_tokens(tokenizer, prompts[1], "red")
    assert torch.equal(mapper[:2, :2], torch.eye(2))
    assert torch.equal(mapper[2:76, 3:], torch.eye(74))
    assert mapper.sum() == 76


def test_alignment_skips_what_is_not_in_both():
    assert align([1, 2, 3], [1, 9, 3]) == [(0, 0), (2, 2)]
    assert align([1, 2, 3, 4], [3, 4]) == [(2, 0), (3, 1)]


# --- the pack against the reference, over the whole run ---

REFINED = "a blue horse on a blue background"


class Side:
    """A path of the pack's and the same for the reference, whose coordinates are diffusers'."""

    def __init__(self, path: Any, pipeline: StableDiffusionPipeline) -> None:
        self.path, self.scale = path, pipeline.vae.config.scaling_factor
        self.latents = self.in_diffusers(path)

    def in_diffusers(self, path: Any) -> list[Tensor]:
        shrink = (1 + path.sigmas**2).sqrt().view(-1, 1, 1, 1, 1)
        return list((path.latents * self.scale / shrink).clone())


@pytest.fixture(scope="module")
def demo(comfy: Path) -> tuple[Any, Any]:
    from diffusion_path.demo.loader import load_demo_model

    with torch.inference_mode():
        model, clip, _ = load_demo_model()
    return model, clip


@pytest.fixture(scope="module", params=["recorded", "inverted"])
def side(request: pytest.FixtureRequest, demo: tuple, reference: PromptToPrompt) -> Side:
    """A horse, sampled with guidance; and the same picture, inverted without."""
    model, clip = demo
    horse, _, _ = results("PromptPair", clip=clip, source_prompt=HORSE, target_prompt=HORSE)
    empty, _, _ = results("PromptPair", clip=clip, source_prompt="", target_prompt="")
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    prompts = {"positive": horse, "negative": empty}
    path, image = results(
        "RecordPath", model=model, latent_image=latent, seed=1, steps=STEPS, **prompts
    )
    if request.param == "inverted":
        inverse = {"positive": horse, "latent_image": image, "steps": STEPS}
        path, _ = results("DDIMInversion", model=model, **inverse)
    return Side(path, reference.pipeline)


def edit_nodes(prompts: Any, *nodes: tuple[str, dict]) -> tuple:
    edits: tuple = ()
    for name, inputs in nodes:
        (edits,) = results(name, prompts=prompts, edits=edits, **inputs)
    return edits


def both(
    demo: tuple,
    side: Side,
    reference: PromptToPrompt,
    target: str,
    nodes: list[tuple[str, dict]],
    controls: Controls,
) -> tuple[list[Tensor], list[Tensor]]:
    """The edited latents of the pack and of the reference."""
    model, clip = demo
    _, positive, prompts = results(
        "PromptPair", clip=clip, source_prompt=HORSE, target_prompt=target
    )
    empty, _, _ = results("PromptPair", clip=clip, source_prompt="", target_prompt="")
    _, _, edited, *_ = results(
        "Sampler",
        model=model,
        path=side.path,
        positive=positive,
        negative=empty,
        edits=edit_nodes(prompts, *nodes),
    )
    words = [reference.encode(text) for text in (HORSE, target, "")]
    theirs = reference.run(side.latents, *words, controls, CFG)
    plain = reference.run(side.latents, *words, Controls(), CFG)
    assert (
        largest_error(theirs[-1:], plain[-1:]) > 10 * TOLERANCE
    )  # there is something to agree about
    return side.in_diffusers(edited), theirs


def test_replace_is_the_references(demo: tuple, side: Side, reference: PromptToPrompt):
    nodes = [("PromptToPrompt", {"mode": "replace", "cross_replace": 0.8, "self_replace": 0.4})]
    ours, theirs = both(demo, side, reference, ZEBRA, nodes, controls(reference, ZEBRA))
    assert largest_error(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("padding", ["by position", "from padding"])
def test_refine_is_the_references(demo: tuple, side: Side, reference: PromptToPrompt, padding: str):
    mapper, own = refine_mapper(reference.pipeline.tokenizer, HORSE, REFINED, padding)
    wanted = Controls(mapper, own, (0.0, 0.4), self_attention=(0.0, 0.6), self_limit=8)
    settings = {"mode": "refine", "cross_replace": 0.4, "self_replace": 0.6, "self_limit": 8}
    nodes = [("PromptToPrompt", settings | {"padding": padding})]
    ours, theirs = both(demo, side, reference, REFINED, nodes, wanted)
    assert largest_error(ours, theirs) <= TOLERANCE


def test_a_words_own_window_is_the_references(demo: tuple, side: Side, reference: PromptToPrompt):
    tokenizer = reference.pipeline.tokenizer
    mapper, own = replace_mapper(tokenizer, HORSE, ZEBRA)
    ends = dict.fromkeys(word_tokens(tokenizer, ZEBRA, "zebra"), 0.2)
    wanted = Controls(mapper, own, (0.0, 0.8), ends=ends)
    settings = {"cross_replace": 0.8, "self_replace": 0.0, "word_overrides": "zebra: 0.2"}
    ours, theirs = both(demo, side, reference, ZEBRA, [("PromptToPrompt", settings)], wanted)
    assert largest_error(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("injected", [True, False], ids=["on injected maps", "on its own maps"])
@pytest.mark.parametrize("factor", [2.0, -1.0])
def test_reweighting_is_the_references(
    demo: tuple, side: Side, reference: PromptToPrompt, factor: float, injected: bool
):
    factors = torch.ones(77)
    factors[word_tokens(reference.pipeline.tokenizer, ZEBRA, "zebra")] = factor
    window = {"reweight": (0.0, 0.8), "factors": factors}
    nodes = [("Reweight", {"words": f"zebra: {factor}", "end": 0.8})]
    wanted = Controls(**window)
    if injected:
        wanted = controls(reference, ZEBRA, **window)
        nodes += [("PromptToPrompt", {"cross_replace": 0.8, "self_replace": 0.4})]
    ours, theirs = both(demo, side, reference, ZEBRA, nodes, wanted)
    assert largest_error(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("subtract", ["", "blue"])
def test_local_blend_is_the_references(
    demo: tuple, side: Side, reference: PromptToPrompt, subtract: str
):
    tokenizer = reference.pipeline.tokenizer
    more = {}
    if subtract:
        more["subtract_source"] = word_tokens(tokenizer, HORSE, subtract)
        more["subtract_target"] = word_tokens(tokenizer, ZEBRA, subtract)
    wanted = controls(reference, ZEBRA, blend=blend(reference, ZEBRA, **more))
    words = {"source_words": "horse", "target_words": "zebra", "subtract_words": subtract}
    nodes = [
        ("PromptToPrompt", {"cross_replace": 0.8, "self_replace": 0.4}),
        ("LocalBlend", {"threshold": 0.5, **words}),
    ]
    ours, theirs = both(demo, side, reference, ZEBRA, nodes, wanted)
    assert largest_error(ours, theirs) <= TOLERANCE
    kept = (theirs[-1] == side.latents[-1]).float().mean()
    assert 0.1 < kept < 0.9
