"""Step by step against diffusers, on the same weights.

Diffusers keeps latents at unit variance: its x is ours, in the model's scale, over
sqrt(1 + sigma^2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    StableDiffusionDiffEditPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor

from diffusion_path.demo import MODEL
from diffusion_path.demo.world import random_edit
from diffusion_path.tests.calls import call, results

STEPS, CFG, SEED = 50, 7.5, 3
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


class Case(NamedTuple):
    """A picture to edit, as both sides take it."""

    model: Any
    pipeline: StableDiffusionPipeline
    latent: dict[str, Tensor]
    source: Tensor
    target: Tensor
    empty: Tensor

    @property
    def scale(self) -> float:
        return self.pipeline.vae.config.scaling_factor

    def unet(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """Diffusers' network; `x` in its own coordinates."""
        with torch.no_grad():
            return self.pipeline.unet(x, t, encoder_hidden_states=prompt).sample


@pytest.fixture(scope="module")
def case(comfy: Path) -> Case:
    from diffusion_path.demo.loader import load_demo_model

    pipeline = StableDiffusionPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    edit = random_edit(np.random.default_rng(0), "held_out", "replace")
    picture = torch.from_numpy(edit.before.copy()).float().movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        latent = pipeline.vae.encode(picture).latent_dist.mean
        source, empty = pipeline.encode_prompt(edit.source_prompt, "cpu", 1, True)
        target, _ = pipeline.encode_prompt(edit.target_prompt, "cpu", 1, False)
    model, _, _ = load_demo_model()
    return Case(model, pipeline, {"samples": latent}, source, target, empty)


@pytest.fixture(scope="module")
def path(case: Case) -> Any:
    inputs = {"positive": [[case.source, {}]], "latent_image": case.latent, "steps": STEPS}
    return results("DDIMInversion", model=case.model, **inputs)[0]


def ours(case: Case, path: Any) -> Tensor:
    """The latents of a path in diffusers' coordinates."""
    shrink = (1 + path.sigmas**2) ** 0.5
    return path.latents * case.scale / shrink.reshape(-1, *[1] * (path.latents.ndim - 1))


def assert_close_at_every_step(latents: Tensor, reference: Tensor) -> None:
    assert latents.shape == reference.shape
    errors = (latents - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    assert float(errors.max()) <= 1e-4, errors


def test_inversion_is_ddim_inverse_scheduler_at_every_step(case: Case, path: Any):
    scheduler = DDIMInverseScheduler(**SCHEDULE)
    scheduler.set_timesteps(STEPS)
    x = ours(case, path)[-1]
    reference = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(case.unet(x, t, case.source), t, x).prev_sample
        reference.insert(0, x)
    assert_close_at_every_step(ours(case, path), torch.stack(reference))


def test_a_partial_inversion_is_the_clean_part_of_a_whole_one(case: Case, path: Any):
    inputs = {"positive": [[case.source, {}]], "latent_image": case.latent, "steps": STEPS}
    part = results("DDIMInversion", model=case.model, strength=0.2, **inputs)[0]
    assert torch.equal(part.sigmas, path.sigmas[-11:])
    assert torch.equal(part.latents, path.latents[-11:])


def test_sampling_is_ddim_scheduler_at_every_step(case: Case, path: Any):
    prompts = {"positive": [[case.target, {}]], "negative": [[case.empty, {}]]}
    edited = results("Sampler", model=case.model, path=path, cfg=CFG, **prompts)[2]
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(STEPS)
    x = ours(case, path)[0]
    reference = [x]
    for t in scheduler.timesteps:
        negative, positive = case.unet(
            torch.cat([x, x]), t, torch.cat([case.empty, case.target])
        ).chunk(2)
        x = scheduler.step(negative + CFG * (positive - negative), t, x).prev_sample
        reference.append(x)
    assert_close_at_every_step(ours(case, edited), torch.stack(reference))


@pytest.mark.parametrize("maps", [1, 10])
@pytest.mark.parametrize("guidance_scale", [3.0, 7.5])
def test_the_mask_is_the_one_of_diffusers(case: Case, maps: int, guidance_scale: float):
    """Guidance only scales the difference, which is divided out: ours needs no negative."""
    parts = {name: part for name, part in case.pipeline.components.items() if part is not None}
    schedulers = {
        "scheduler": DDIMScheduler(**SCHEDULE),
        "inverse_scheduler": DDIMInverseScheduler(**SCHEDULE),
    }
    nobody = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionDiffEditPipeline(**(parts | schedulers | nobody))
    reference = pipeline.generate_mask(
        image=case.latent["samples"] * case.scale,
        source_prompt_embeds=case.source,
        source_negative_prompt_embeds=case.empty,
        target_prompt_embeds=case.target,
        target_negative_prompt_embeds=case.empty,
        num_maps_per_mask=maps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    )
    prompts = {"source": [[case.source, {}]], "target": [[case.target, {}]]}
    inputs = {"latent_image": case.latent, "maps": maps, "seed": SEED}
    mask = call("DiffEditMask", model=case.model, **prompts, **inputs).args[0]
    mask = mask[:, 4::8, 4::8].bool()
    reference = torch.from_numpy(reference).reshape(mask.shape).bool()
    assert reference.any() and not reference.all()
    assert float((mask & reference).sum() / (mask | reference).sum()) >= 0.99
