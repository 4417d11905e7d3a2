"""Concepts on a path of SDE-DPM-Solver++, against diffusers' LEDITS++ on the same weights.

Everything is compared end to end: the noise maps, the masks, the sum of the concepts. These are set
alike on purpose:

- the noise: both sides get the same noised latents;
- the last noise level: theirs ends at the model's smallest, as our paths do, and not at 0, where
  the noise map is dropped and the picture does not come back;
- the attention maps: theirs are of layers at a quarter of the latent's size, which the demo model
  does not have. It is told of a latent four times as large, and so takes those of 16 x 16, as ours;
- the words: with today's tokenizers theirs counts the padding too, and is told how many words there
  are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusion,
    StableDiffusionPipeline,
)
from PIL import Image
from torch import Tensor

from diffusion_path.demo import MODEL
from diffusion_path.demo.world import random_edit
from diffusion_path.tests.calls import results

STEPS, SKIP = 16, 0.15


class Case(NamedTuple):
    """A picture that both sides have inverted."""

    pipeline: Any
    model: Any
    clip: Any
    empty: list
    path: Any

    @property
    def scale(self) -> float:
        return self.pipeline.vae.config.scaling_factor

    def theirs(self, concepts: list[str], **settings: Any) -> Tensor:
        """The latent (1, 4, 16, 16) that diffusers ends with, in our coordinates."""
        with torch.no_grad():
            output = self.pipeline(editing_prompt=concepts, output_type="latent", **settings)
        return output.images * (1 + self.path.sigmas[-1] ** 2) ** 0.5 / self.scale

    def ours(self, concepts: dict[str, float], **settings: Any) -> Tensor:
        edits: tuple = ()
        for prompt, scale in concepts.items():
            given = {"clip": self.clip, "prompt": prompt, "scale": scale, "edits": edits}
            edits = results("Concept", **given, **settings)[0]
        prompts = {"positive": self.empty, "negative": self.empty, "cfg": 1.0}
        given = {"model": self.model, "path": self.path, "eta": 1.0, "edits": edits}
        return results("Sampler", **given, **prompts)[0]["samples"]


@pytest.fixture(scope="module")
def case(comfy: Path) -> Case:
    from diffusion_path.core.path import DiffusionPath
    from diffusion_path.host.guider import run
    from diffusion_path.host.model import fingerprint
    from diffusion_path.inversion.straight import ddpm_residuals

    plain = StableDiffusionPipeline.from_pretrained(MODEL)
    solver = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    scheduler = DPMSolverMultistepScheduler.from_config(
        plain.scheduler.config, final_sigmas_type="sigma_min", **solver
    )
    parts = plain.components | {"scheduler": scheduler}
    del parts["image_encoder"]
    pipeline = LEditsPPPipelineStableDiffusion(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    encode = pipeline.encode_prompt

    def with_its_tokens(**given: Any) -> Any:
        prompts = given.get("editing_prompt") or []
        counts = [len(plain.tokenizer(prompt).input_ids) - 2 for prompt in prompts]
        return *encode(**given)[:2], counts

    edit = random_edit(np.random.default_rng(0), "held_out", "replace")
    pipeline.invert(
        Image.fromarray(edit.before),
        num_inversion_steps=STEPS,
        skip=SKIP,
        generator=torch.Generator().manual_seed(3),
    )
    latents, levels = theirs_path(pipeline, edit.before)
    start = pipeline.init_latents
    pipeline.encode_prompt = with_its_tokens
    pipeline.prepare_latents = lambda *_: start
    pipeline.init_latents = torch.empty(1, 4, 64, 64)

    model, clip, *_ = results("DemoModel")
    (empty,) = results("PromptPair", clip=clip, source_prompt="", target_prompt="")[:1]

    def find(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
        given = (denoiser, latents, levels, conditions["positive"])
        return ddpm_residuals(*given, solver="sde-dpm++", latent_in=denoiser.latent_in)

    with torch.inference_mode():
        residuals = run(model, {"positive": empty}, latents[-1], levels, find, steps=STEPS)
    path = DiffusionPath(
        sigmas=levels,
        latents=latents,
        positive=empty,
        negative=None,
        cfg=1.0,
        fingerprint=fingerprint(model),
        solver="sde-dpm++",
        residuals=residuals,
    )
    return Case(pipeline, model, clip, empty, path)


def theirs_path(pipeline: Any, picture: np.ndarray) -> tuple[Tensor, Tensor]:
    """The noised latents of diffusers' inversion in our coordinates, and their noise levels.

    The noise is drawn once more, in its order: from the clean end. Diffusers keeps latents at unit
    variance: its x is ours, in the model's scale, over sqrt(1 + sigma^2).
    """
    scheduler, generator = pipeline.scheduler, torch.Generator().manual_seed(3)
    with torch.no_grad():
        x0, _ = pipeline.encode_image(Image.fromarray(picture), dtype=torch.float32)
    levels = scheduler.sigmas[-STEPS - 1 :].clone()
    latents = [x0 * (1 + levels[-1] ** 2) ** 0.5]
    for sigma in levels[:-1].flip(0):
        latents.insert(0, x0 + sigma * torch.randn(x0.shape, generator=generator))
    return torch.stack(latents) / pipeline.vae.config.scaling_factor, levels


def assert_close(latent: Tensor, reference: Tensor) -> None:
    error = float((latent - reference).norm() / reference.norm())
    assert error <= 1e-4, error


def test_without_concepts_both_lead_back_to_the_picture(case: Case):
    assert_close(case.ours({}), case.theirs([]))
    assert_close(case.ours({}), case.path.clean)


@pytest.mark.parametrize("threshold", [0.6, 0.9])
@pytest.mark.parametrize(
    ("mask", "settings"),
    [
        ("auto", {}),
        ("attention", {"use_intersect_mask": False, "use_cross_attn_mask": True}),
        ("guidance", {"use_intersect_mask": False}),
    ],
)
def test_a_concept_is_the_one_of_diffusers(case: Case, mask: str, settings: dict, threshold: float):
    reference = case.theirs(["a red apple"], edit_threshold=threshold, **settings)
    latent = case.ours({"a red apple": 5.0}, threshold=threshold, mask=mask)
    assert float((latent - case.path.clean).norm() / case.path.clean.norm()) > 0.02
    assert_close(latent, reference)


def test_several_concepts_some_of_them_removed_are_those_of_diffusers(case: Case):
    reference = case.theirs(
        ["a pear", "a blue background", "snow"],
        edit_guidance_scale=[4.0, 6.0, 2.0],
        reverse_editing_direction=[False, True, False],
        edit_threshold=0.8,
    )
    concepts = {"a pear": 4.0, "a blue background": -6.0, "snow": 2.0}
    assert_close(case.ours(concepts, threshold=0.8), reference)


def test_warm_up_and_end_are_those_of_diffusers(case: Case):
    """Theirs counts the steps that it takes, ours the model's whole schedule."""
    percents = 1 - case.pipeline.inversion_steps / 999
    first, last = 4, 12
    between = [float(percents[i - 1] + percents[i]) / 2 for i in (first, last)]
    reference = case.theirs(["a pear"], edit_warmup_steps=first, edit_cooldown_steps=last)
    assert_close(case.ours({"a pear": 5.0}, warm_up=between[0], end=between[1]), reference)
    assert float((reference - case.theirs(["a pear"])).norm()) > 1e-2
