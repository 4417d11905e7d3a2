"""TurboEdit (Deutch et al. 2024, arXiv 2408.00735) from our pieces, against the algorithm itself.

Straight Path with shifted noise, FlowEdit with strength w, and eta 1. The reference below is
written from the paper, in diffusers' coordinates, and follows what the authors' code does; it
leaves out their bound of 15.5 on the last correction, which ours has not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from diffusion_path.demo import MODEL
from diffusion_path.demo.world import random_edit
from diffusion_path.tests.calls import edited, results

TIMESTEPS = [799, 599, 399, 199]
W = 1.5


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)


@pytest.fixture(scope="module")
def case(comfy: Path, pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    """A picture, its prompts, the model, and the path of shifted noise."""
    from diffusion_path.demo.loader import load_demo_model

    edit = random_edit(np.random.default_rng(1), "tune", "replace")
    picture = torch.from_numpy(edit.before.copy()).float().movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        latent = pipeline.vae.encode(picture).latent_dist.mean
        source, empty = pipeline.encode_prompt(edit.source_prompt, "cpu", 1, True)
        target, _ = pipeline.encode_prompt(edit.target_prompt, "cpu", 1, True)
    with torch.inference_mode():
        model, _, _ = load_demo_model()
    prompts = {"source": [[source, {}]], "target": [[target, {}]], "empty": [[empty, {}]]}
    alphas = pipeline.scheduler.alphas_cumprod[TIMESTEPS]
    sigmas = torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1)])
    (path,) = results(
        "StraightPath",
        model=model,
        positive=prompts["source"],
        latent_image={"samples": latent},
        noise="shifted",
        sigmas=sigmas,
        seed=3,
    )
    return {"model": model, "path": path, **prompts}


def in_vp(path: Any, scale: float) -> list[Tensor]:
    """The path's latents as diffusers has them."""
    shrink = (1 + path.sigmas**2).sqrt().view(-1, 1, 1, 1, 1)
    return list(path.latents * scale / shrink)


def test_the_image_is_noised_to_one_step_less(case: dict, pipeline: StableDiffusionPipeline):
    latents = in_vp(case["path"], pipeline.vae.config.scaling_factor)
    clean, alphas = latents[-1], pipeline.scheduler.alphas_cumprod
    for x, timestep in zip(latents[:3], TIMESTEPS[1:], strict=False):
        alpha = alphas[timestep]
        noise = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        assert float(noise.std()) == pytest.approx(1, abs=0.1)
        assert abs(float(noise.mean())) < 0.1
    torch.testing.assert_close(latents[3], clean, rtol=1e-4, atol=1e-4)


def test_it_is_the_published_algorithm(case: dict, pipeline: StableDiffusionPipeline):
    path, alphas = case["path"], pipeline.scheduler.alphas_cumprod
    given = in_vp(path, pipeline.vae.config.scaling_factor)
    source, target = case["source"][0][0], case["target"][0][0]

    def step(x: Tensor, prompt: Tensor, i: int) -> Tensor:
        """The mean of DDPM's posterior (Ho et al. 2020, eq. 7)."""
        alpha = alphas[TIMESTEPS[i]]
        before = alphas[TIMESTEPS[i + 1]] if i + 1 < len(TIMESTEPS) else torch.ones(())
        with torch.no_grad():
            noise = pipeline.unet(x, TIMESTEPS[i], prompt).sample
        clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        kept = (alpha / before).sqrt() * (1 - before) / (1 - alpha)
        return before.sqrt() * (1 - alpha / before) / (1 - alpha) * clean + kept * x

    x = given[0]
    for i in range(len(TIMESTEPS)):
        of_path, of_source, of_target = (
            step(given[i], source, i),
            step(x, source, i),
            step(x, target, i),
        )
        x = given[i + 1] + (of_source - of_path) + W * (of_target - of_source)
    (edits,) = results("FlowEdit", strength=W, source_cfg=1.0, start=0.0)
    ours = edited(case["model"], path, case["target"], case["empty"], cfg=1.0, eta=1.0, edits=edits)
    ours = ours * pipeline.vae.config.scaling_factor
    assert float((ours - x).norm() / x.norm()) < 1e-4


def test_the_source_prompt_gives_the_source_back(case: dict):
    (edits,) = results("FlowEdit", strength=W, source_cfg=1.0, start=0.0)
    ours = edited(
        case["model"],
        case["path"],
        case["source"],
        case["empty"],
        cfg=1.0,
        eta=1.0,
        edits=edits,
    )
    torch.testing.assert_close(ours, case["path"].clean, rtol=1e-4, atol=1e-3)
