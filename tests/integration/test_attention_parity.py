"""Attention control on the demo model, against prompt-to-prompt as published; and whether the
reference itself does what is known in advance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from diffusion_path.demo import MODEL
from diffusion_path.tests.reference_prompt_to_prompt import (
    Controls,
    LocalBlend,
    PromptToPrompt,
    align,
    refine_mapper,
    replace_mapper,
    word_tokens,
)

STEPS, CFG = 50, 7.5
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
    kept = [
        float((x == right).all(dim=1).float().mean())
        for x, right in zip(latents, recorded, strict=True)
    ]
    assert max(kept[1:11]) == 0, "blended too early"
    assert all(0.2 < share < 0.9 for share in kept[11:]), kept

    tokens = word_tokens(reference.pipeline.tokenizer, HORSE, "horse")
    nowhere = blend(reference, ZEBRA, subtract_source=tokens, subtract_target=tokens)
    latents = reference.run(
        recorded, horse, zebra, null, controls(reference, ZEBRA, blend=nowhere), CFG
    )
    assert largest_error(latents[11:], recorded[11:]) == 0


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
