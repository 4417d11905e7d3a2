"""Null-text inversion on the demo model: against the published algorithm, and in ComfyUI's own
samplers."""

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
from diffusion_path.tests.calls import call, edited, results

STEPS, CFG, COMPARED = 50, 7.5, 10


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)


@pytest.fixture(scope="module")
def case(comfy: Path, pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    """A picture, its prompts, and the model, loaded as the executor loads it."""
    from diffusion_path.demo.loader import load_demo_model

    edit = random_edit(np.random.default_rng(0), "held_out", "replace")
    picture = torch.from_numpy(edit.before.copy()).float().movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        latent = pipeline.vae.encode(picture).latent_dist.mean
        source, empty = pipeline.encode_prompt(edit.source_prompt, "cpu", 1, True)
    with torch.inference_mode():
        model, _, _ = load_demo_model()
    prompts = {"source": [[source, {}]], "empty": [[empty, {}]]}
    return {"model": model, "latent": {"samples": latent}, **prompts}


def invert(case: dict, **inputs: Any) -> tuple[Any, dict]:
    ways = {"positive": case["source"], "latent_image": case["latent"], "steps": STEPS} | inputs
    return results("DDIMInversion", model=case["model"], **ways)


def null_text(case: dict, path: Any, **inputs: Any) -> Any:
    return call(
        "NullTextInversion", model=case["model"], path=path, negative=case["empty"], **inputs
    )


def error_in_dB(latent: Tensor, path: Any) -> float:
    error = (latent - path.clean).square().mean() / path.clean.square().mean()
    return float(10 * error.log10())


def test_its_own_setting_reproduces_the_published_algorithm(
    case: dict, pipeline: StableDiffusionPipeline
):
    """Embeddings and losses, over the first ten steps."""
    from diffusion_path.benchmarks.reference_null_text import Reference
    from diffusion_path.host.guider import run
    from diffusion_path.inversion.null_text import null_text_inversion

    path, _ = invert(case)
    shrink = (1 + path.sigmas**2).sqrt().view(-1, 1, 1, 1, 1)
    latents = list(path.latents * pipeline.vae.config.scaling_factor / shrink)
    source, empty = case["source"][0][0], case["empty"][0][0]
    theirs, losses = Reference(pipeline).optimize(latents, source, empty, COMPARED)

    def loop(denoiser: Any, conditions: dict, progress: Any) -> Any:
        part = torch.stack([denoiser.latent_in(one) for one in path.latents[: COMPARED + 1]])
        prompts = conditions["source"], conditions["empty"]
        published = {"optimizer": "adam", "learning_rate": 0.01, "early_stop": 1e-5}
        return null_text_inversion(denoiser, part, path.sigmas, *prompts, **published)

    prompts = {"source": case["source"], "empty": case["empty"]}
    with torch.inference_mode():
        ours = run(case["model"], prompts, path.clean, path.sigmas, loop, steps=10 * COMPARED)
    for i in range(COMPARED):
        difference = float((ours.embeddings[i] - theirs[i]).norm() / theirs[i].norm())
        assert difference <= 1e-3, f"step {i}: {difference}"
        tried = [float(loss[0]) for loss in ours.losses[i]][: len(losses[i])]
        assert tried == pytest.approx(losses[i], rel=1e-3), f"step {i}"


@pytest.mark.parametrize("start", ["source", "negative"])
def test_sampler_custom_reconstructs_as_our_sampler_does(case: dict, start: str):
    import nodes
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom

    assert nodes
    path, noise = invert(case, steps=20)
    path, negative, _ = null_text(case, path, start_from=start, inner_steps=2).args
    ours = edited(case["model"], path, case["source"], case["empty"], cfg=CFG)
    with torch.inference_mode():
        euler = KSamplerSelect.execute("euler").args[0]
        prompts = (case["source"], negative)
        theirs, _ = SamplerCustom.execute(
            case["model"], False, 0, CFG, *prompts, euler, path.sigmas, noise
        ).args
    assert error_in_dB(theirs["samples"], path) <= error_in_dB(ours, path) + 0.5


@pytest.mark.parametrize("scheduler", ["normal", "karras"])
def test_ksampler_reconstructs_as_our_sampler_does(case: dict, scheduler: str):
    import nodes

    path, noise = invert(case, steps=20, spacing=scheduler)
    path, negative, _ = null_text(case, path, inner_steps=2).args
    ours = edited(case["model"], path, case["source"], case["empty"], cfg=CFG)
    with torch.inference_mode():
        (theirs,) = nodes.KSamplerAdvanced().sample(
            model=case["model"],
            add_noise="disable",
            noise_seed=0,
            steps=20,
            cfg=CFG,
            sampler_name="euler",
            scheduler=scheduler,
            positive=case["source"],
            negative=negative,
            latent_image=noise,
            start_at_step=0,
            end_at_step=10000,
            return_with_leftover_noise="disable",
        )
    assert error_in_dB(theirs["samples"], path) <= error_in_dB(ours, path) + 0.5
