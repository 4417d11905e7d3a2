"""Edits that follow a difference, against the published algorithms on diffusers' networks.

The algorithms stand here anew, as their papers have them and their authors' code runs them. A
reference asks its network for `velocity(x, sigma, prompt)`, which is dx/dsigma of
`x = signal x0 + sigma noise`, the predicted noise of a UNet (signal 1) and a flow's velocity
(signal 1 - sigma). Where the paper is about a UNet's variance-preserving latents, the reference is
diffusers' own scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor

from diffusion_path.demo import MODEL, flow
from diffusion_path.demo.world import random_edit
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import node, results

STEPS, CLOSE = 10, 1e-4
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = BETAS | {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
LOWEST = 1e-3
"""Where ours asks for the slope at a flow's level 0, at which a clean estimate has none."""

Velocity = Callable[[Tensor, float, list], Tensor]


class Case(NamedTuple):
    """A picture to edit, and one network as ComfyUI's MODEL and as a reference asks it."""

    model: Any
    velocity: Velocity
    flow: bool
    latent: dict[str, Tensor]
    source: list
    target: list
    empty: list

    @property
    def spacing(self) -> str:
        """Steps of even length in the model's own schedule."""
        return "simple" if self.flow else "leading"

    @property
    def x0(self) -> Tensor:
        """The picture in the model's own scale."""
        return self.scaled(self.latent["samples"])

    def scaled(self, latent: Tensor) -> Tensor:
        """What lies on a wire, in the model's own scale."""
        return self.model.model.process_latent_in(latent)

    def signal(self, sigma: float) -> float:
        return 1 - sigma if self.flow else 1.0

    def noised(self, noise: Tensor, sigma: float) -> Tensor:
        return self.signal(sigma) * self.x0 + sigma * noise

    def noises(self, path: Any) -> list[Tensor]:
        """The noise that each latent of a path holds."""
        levels = path.sigmas.tolist()[:-1]
        return [
            (self.scaled(latent) - self.signal(sigma) * self.x0) / sigma
            for latent, sigma in zip(path.latents, levels, strict=False)
        ]

    def guided(self, x: Tensor, sigma: float, prompt: list, negative: list, cfg: float) -> Tensor:
        """Classifier-free guidance."""
        unguided = self.velocity(x, sigma, negative)
        return unguided + cfg * (self.velocity(x, sigma, prompt) - unguided)

    def path(self, name: str, **inputs: Any) -> Any:
        inputs = {"positive": self.source, "latent_image": self.latent, "steps": STEPS} | inputs
        inputs = {"spacing": self.spacing} | inputs
        return results(name, model=self.model, **inputs)[0]

    def sampled(self, path: Any, **inputs: Any) -> Any:
        """The edited path."""
        inputs = {"positive": self.target, "negative": self.empty, "path": path} | inputs
        return results("Sampler", model=self.model, **inputs)[2]


@torch.inference_mode()
def demo_case(kind: str) -> Case:
    """The demo models, whose references are diffusers'."""
    from diffusion_path.demo.loader import load_demo_model

    model, clip, vae = load_demo_model(kind)
    edit = random_edit(np.random.default_rng(0), "held_out", "replace")
    latent = {"samples": vae.encode(torch.from_numpy(edit.before.copy()).float()[None] / 255)}
    prompts = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text))
        for text in (edit.source_prompt, edit.target_prompt, "")
    )
    velocity = unet_velocity() if kind == "unet" else flux_velocity()
    return Case(model, velocity, kind == "flow", latent, *prompts)


def unet_velocity() -> Velocity:
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet")
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
    table = ((1 - alphas) / alphas).sqrt()

    def velocity(x: Tensor, sigma: float, prompt: list) -> Tensor:
        t = (table.log() - np.log(sigma)).abs().argmin()
        return unet(x / (1 + sigma**2) ** 0.5, t, prompt[0][0]).sample

    return velocity


def flux_velocity() -> Velocity:
    transformer = FluxTransformer2DModel.from_pretrained(
        MODEL / "transformer", torch_dtype=torch.float32
    )

    def velocity(x: Tensor, sigma: float, prompt: list) -> Tensor:
        ((embedding, options),) = prompt
        levels = x.new_full((1,), sigma)
        return flow.velocity(transformer, x, levels, embedding, options["pooled_output"])

    return velocity


def sd3_case() -> Case:
    """A network of random weights on latents of 16 channels, with a shifted schedule."""
    model = tiny_models.sd3()

    def velocity(x: Tensor, sigma: float, prompt: list) -> Tensor:
        ((embedding, options),) = prompt
        given = {"c_crossattn": embedding, "y": options["pooled_output"]}
        return (x - model.model.apply_model(x, x.new_full((1,), sigma), **given)) / sigma

    prompts = (tiny_models.prompt("sd3", seed) for seed in range(3))
    return Case(model, velocity, True, tiny_models.picture("sd3", height=8, width=8), *prompts)


@pytest.fixture(scope="module", params=["unet", "flow", "sd3"])
def case(request: pytest.FixtureRequest, comfy: Path) -> Case:
    return sd3_case() if request.param == "sd3" else demo_case(request.param)


@pytest.fixture(scope="module")
def unet(comfy: Path) -> Case:
    return demo_case("unet")


def distance(latents: Tensor, reference: Tensor) -> float:
    """The largest relative one of any step (N + 1, B, C, H, W)."""
    assert latents.shape == reference.shape
    away = (latents - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return float(away.max())


def assert_same_edit(case: Case, walked: Any, reference: Tensor, within: float = CLOSE) -> None:
    """The same latents at each step, and another picture than the source."""
    assert distance(case.scaled(walked.latents), reference) <= within
    assert distance(reference[-1:], case.x0[None]) > 0.02, "nothing was edited"


# FlowEdit, FlowSlider, FlowAlign


@torch.inference_mode()
def flow_edit(
    case: Case,
    path: Any,
    *,
    first: int,
    cfg: float,
    source_cfg: float,
    last: int = STEPS,
    strength: float = 1.0,
    average: int = 1,
) -> Tensor:
    """FlowEdit (arXiv 2412.08629, algorithm 1), with noise that the path's latents hold.

    From step `last` on the target is sampled alone, which is their n_min. With a `strength` the
    difference is FlowSlider's (arXiv 2604.02088).

    Returns:
        Where the target is predicted at each step, and the picture.
    """
    noises, x0, z = case.noises(path), case.x0, case.x0
    predicted = []
    for i, (sigma, below) in enumerate(pairwise(path.sigmas.tolist())):
        if i < first:
            continue
        others = [noises[(i + k * STEPS // average) % STEPS] for k in range(average)]
        sources = [case.noised(noise, sigma) for noise in others]
        if i == last:
            z = z + sources[0] - x0  # from here on it is a latent and no longer a picture
        if i >= last:
            predicted.append(z)
            z = z + (below - sigma) * case.guided(z, sigma, case.target, case.empty, cfg)
            continue
        predicted.append(z + sources[0] - x0)
        difference = torch.zeros_like(z)
        for source in sources:
            target = z + source - x0
            wanted = case.guided(target, sigma, case.target, case.empty, cfg)
            if strength != 1:
                here = case.guided(target, sigma, case.source, case.empty, source_cfg)
                wanted = here + strength * (wanted - here)
            had = case.guided(source, sigma, case.source, case.empty, source_cfg)
            difference += (wanted - had) / average
        z = z + (below - sigma) * difference
    return torch.stack([*predicted, z])


SETTINGS = {
    "guided source": {},
    "unguided source": {"source_cfg": 1.0},
    "free at the end": {"last": 8},
    "averaged": {"last": 8, "average": 2},
    "half": {"strength": 0.5},
    "opposite": {"strength": -1.0, "source_cfg": 1.0},
}


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
def test_flow_edit_is_the_authors_at_every_step(case: Case, given: dict):
    given = {"source_cfg": 3.5, "cfg": 5.5, "first": 3} | given
    path = case.path("StraightPath")
    reference = flow_edit(case, path, **given)
    inputs = {key: given[key] for key in ("source_cfg", "strength", "average") if key in given}
    edits = results("FlowEdit", start=0.3, end=given.get("last", STEPS) / STEPS, **inputs)[0]
    assert_same_edit(case, case.sampled(path, cfg=given["cfg"], edits=edits), reference)


@torch.inference_mode()
def flow_align(case: Case, path: Any, *, first: int, omega: float, zeta: float) -> Tensor:
    """FlowAlign (arXiv 2505.23145, eq. 15), as `flow_edit` gives it."""
    noises, x0, z = case.noises(path), case.x0, case.x0
    predicted = []
    for i, (sigma, below) in enumerate(pairwise(path.sigmas.tolist())):
        if i < first:
            continue
        q = case.noised(noises[i], sigma)
        p = z + q - x0
        predicted.append(p)
        v_p = case.guided(p, sigma, case.target, case.source, omega)
        v_q = case.velocity(q, sigma, case.source)
        z = z + (below - sigma) * (v_p - v_q) + zeta * ((q - sigma * v_q) - (p - sigma * v_p))
    return torch.stack([*predicted, z])


def test_with_the_source_as_negative_and_an_anchor_it_is_flow_align(case: Case):
    path = case.path("StraightPath")
    reference = flow_align(case, path, first=3, omega=7.5, zeta=0.01)
    edits = results("FlowEdit", source_cfg=1.0, anchor=0.01, start=0.3)[0]
    walked = case.sampled(path, negative=case.source, cfg=7.5, edits=edits)
    assert_same_edit(case, walked, reference)


# Uni-Inv and Uni-Edit


@torch.inference_mode()
def uni_edit(case: Case, levels: list[float], alpha: float, omega: float) -> Tensor:
    """The authors' for Flux (arXiv 2504.13109, algorithms 1 and 2): the latents from the highest
    level on that alpha inverts to."""
    x = case.x0
    rising = levels[::-1][: round(alpha * STEPS) + 1]
    v = case.velocity(x, max(rising[0], LOWEST), case.source)
    for sigma, above in pairwise(rising):
        v = case.velocity(x + (above - sigma) * v, above, case.source)
        x = x + (above - sigma) * v
    latents = [x]
    for sigma, below in pairwise(rising[::-1]):
        v_target, v_source = (case.velocity(x, sigma, one) for one in (case.target, case.source))
        mask = (v_target - v_source).abs().mean(dim=1, keepdim=True)
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        fused = mask * v_target + (1 - mask) * v_source
        x = x + (below - sigma) * (fused + omega * (mask + 1) * (v_target - v_source))
        latents.append(x)
    return torch.stack(latents)


@pytest.mark.parametrize(("alpha", "omega"), [(0.6, 5.0), (0.8, 2.0)])
def test_uni_edit_is_the_authors_at_every_step(case: Case, alpha: float, omega: float):
    path = case.path("DDIMInversion", solver="uni")
    reference = uni_edit(case, path.sigmas.tolist(), alpha, omega)
    edits = results("UniEdit", alpha=alpha, omega=omega)[0]
    # Its mask is a ratio of small differences.
    assert_same_edit(case, case.sampled(path, cfg=1.0, edits=edits), reference, within=2 * CLOSE)


# Edit-friendly DDPM inversion, SDE-DPM-Solver++, direct inversion


def preserving(case: Case, path: Any) -> Tensor:
    """A path's latents in diffusers' coordinates, of unit variance."""
    shrink = (1 + path.sigmas**2) ** 0.5
    return case.scaled(path.latents) / shrink.reshape(-1, 1, 1, 1, 1)


def noise_of(case: Case, scheduler: Any, x: Tensor, t: Tensor, prompt: list, cfg: float) -> Tensor:
    """The noise that diffusers' UNet predicts, from a latent in its coordinates."""
    alpha = float(scheduler.alphas_cumprod[t])
    return case.guided(x / alpha**0.5, ((1 - alpha) / alpha) ** 0.5, prompt, case.empty, cfg)


DDPM_STEPS, DDPM_SKIP, DDPM_CFG = 50, 0.36, 15.0


@pytest.fixture(scope="module")
def noisy(unet: Case) -> Any:
    """A path with the noise maps of edit-friendly DDPM inversion."""
    return unet.path("DDPMInversion", steps=DDPM_STEPS, negative=unet.empty, seed=1)


@torch.inference_mode()
def edit_friendly(case: Case, path: Any) -> Tensor:
    """The authors' `inversion_forward_process` and `inversion_reverse_process` (arXiv 2304.06140,
    algorithm 1), but for that they set the last noise map to 0, and so miss the picture.

    The independent noisings are our path's.
    """
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(DDPM_STEPS)
    nothing = torch.zeros_like(case.x0)
    maps, noised = [], preserving(case, path)
    for t, x, after in zip(scheduler.timesteps, noised[:-1], noised[1:], strict=True):
        noise = noise_of(case, scheduler, x, t, case.source, 3.5)
        mean = scheduler.step(noise, t, x, eta=1.0, variance_noise=nothing).prev_sample
        deviation = scheduler._get_variance(t, t - 1000 // DDPM_STEPS) ** 0.5
        maps.append((after - mean) / deviation)
    first = round(DDPM_SKIP * DDPM_STEPS)
    x = noised[first]
    latents = [x]
    for t, z in zip(scheduler.timesteps[first:], maps[first:], strict=True):
        noise = noise_of(case, scheduler, x, t, case.target, DDPM_CFG)
        x = scheduler.step(noise, t, x, eta=1.0, variance_noise=z).prev_sample
        latents.append(x)
    return torch.stack(latents)


def test_ddpm_inversion_is_the_authors_at_every_step(unet: Case, noisy: Any):
    reference = edit_friendly(unet, noisy)
    walked = unet.sampled(noisy, cfg=DDPM_CFG, start=DDPM_SKIP, eta=1.0)
    assert distance(preserving(unet, walked), reference) <= CLOSE
    assert distance(walked.clean[None], noisy.clean[None]) > 0.05


def test_ddpm_inversion_has_the_authors_defaults():
    defaults = {
        one.id: one.default
        for one in node("DDPMInversion").GET_SCHEMA().inputs
        if hasattr(one, "default")
    }
    assert (defaults["steps"], defaults["cfg"], defaults["solver"]) == (100, 3.5, "ddpm")


@pytest.mark.parametrize("start", [0.0, DDPM_SKIP])
@pytest.mark.parametrize("solver", ["ddpm", "sde-dpm++"])
def test_its_own_prompt_gives_the_picture_back(case: Case, solver: str, start: float):
    path = case.path("DDPMInversion", negative=case.empty, solver=solver)
    walked = case.sampled(path, positive=case.source, cfg=3.5, start=start, eta=1.0)
    part = path.latents[-len(walked.latents) :]
    assert distance(case.scaled(walked.latents), case.scaled(part)) <= CLOSE


@pytest.mark.parametrize("solver", ["ddpm", "sde-dpm++"])
def test_an_edited_path_gives_its_own_picture_back(unet: Case, solver: str):
    """Its noise is what has been added, which is another where a walk begins later."""
    path = unet.path("DDPMInversion", negative=unet.empty, solver=solver)
    once = unet.sampled(path, cfg=5.0, start=DDPM_SKIP, eta=1.0)
    again = unet.sampled(once, cfg=5.0, eta=1.0)
    assert distance(again.latents, once.latents) <= CLOSE


def test_flow_edit_adds_nothing_to_ddpm_inversion(unet: Case, noisy: Any):
    """What the source's step is short of its path is the noise of that path."""
    edits = results("FlowEdit", source_cfg=3.5, start=DDPM_SKIP)[0]
    plain = unet.sampled(noisy, cfg=7.5, start=DDPM_SKIP, eta=1.0)
    walked = unet.sampled(noisy, cfg=7.5, eta=1.0, edits=edits)
    assert distance(walked.latents, plain.latents) <= CLOSE
    assert distance(walked.clean[None], noisy.clean[None]) > 0.05


@torch.inference_mode()
def sde_dpm_solver(case: Case, path: Any, cfg: float) -> Tensor:
    """Diffusers' second order solver, with what it is short of the path under the source's prompt
    as its noise."""
    settings = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    ways = {"timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"}
    there, back = (DPMSolverMultistepScheduler(**BETAS, **settings, **ways) for _ in range(2))
    noised, nothing = preserving(case, path), torch.zeros_like(case.x0)
    for scheduler in (there, back):
        scheduler.set_timesteps(path.steps)
    x = noised[0]
    latents = [x]
    for i, t in enumerate(there.timesteps):
        noise = noise_of(case, there, noised[i], t, case.source, 3.5)
        mean = there.step(noise, t, noised[i], variance_noise=nothing).prev_sample
        h = (there.sigmas[i] / there.sigmas[i + 1]).log()
        deviation = (1 - there.alphas_cumprod[path_timestep(there, i + 1)]) ** 0.5
        z = (noised[i + 1] - mean) / (deviation * (1 - (-2 * h).exp()) ** 0.5)
        noise = noise_of(case, back, x, t, case.target, cfg)
        x = back.step(noise, t, x, variance_noise=z).prev_sample
        latents.append(x)
    return torch.stack(latents)


def path_timestep(scheduler: Any, i: int) -> int:
    """The timestep of a level of diffusers' solver; the last level is the model's lowest."""
    return int(scheduler.timesteps[i]) if i < len(scheduler.timesteps) else 0


def test_a_path_of_second_order_is_walked_as_by_diffusers_solver(unet: Case):
    inputs = {"solver": "sde-dpm++", "negative": unet.empty, "spacing": "linspace", "steps": 20}
    path = unet.path("DDPMInversion", **inputs)
    reference = sde_dpm_solver(unet, path, 5.0)
    walked = unet.sampled(path, cfg=5.0, eta=1.0)
    assert distance(preserving(unet, walked), reference) <= CLOSE
    assert distance(walked.clean[None], path.clean[None]) > 0.05


@torch.inference_mode()
def direct_inversion(case: Case, path: Any, shared: bool, cfg: float) -> tuple[Tensor, Tensor]:
    """PnPInversion (arXiv 2310.01506, algorithm 1): the latents of its two branches.

    Args:
        shared: whether the target's branch gets the source's offset too, as in the authors'
            ablation "add-source".
    """
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(path.steps)
    inverted = preserving(case, path)

    def step(x: Tensor, t: Tensor, prompt: list) -> Tensor:
        noise = noise_of(case, scheduler, x, t, prompt, cfg)
        return scheduler.step(noise, t, x).prev_sample

    source = target = inverted[0]
    sources, targets = [source], [target]
    for i, t in enumerate(scheduler.timesteps):
        offset = inverted[i + 1] - step(inverted[i], t, case.source)
        source = step(source, t, case.source) + offset
        target = step(target, t, case.target) + shared * offset
        sources.append(source)
        targets.append(target)
    return torch.stack(sources), torch.stack(targets)


def test_direct_inversion_is_sampling_along_a_path_and_the_path_its_source(unet: Case):
    path = unet.path("DDIMInversion")
    source, target = direct_inversion(unet, path, shared=False, cfg=7.5)
    assert distance(preserving(unet, path), source) <= CLOSE
    assert distance(preserving(unet, unet.sampled(path, cfg=7.5)), target) <= CLOSE


def test_flow_edit_on_an_inverted_path_gives_the_target_the_offset_too(unet: Case):
    path = unet.path("DDIMInversion")
    _, target = direct_inversion(unet, path, shared=True, cfg=7.5)
    edits = results("FlowEdit", source_cfg=7.5, start=0.0)[0]
    walked = unet.sampled(path, cfg=7.5, edits=edits)
    assert distance(preserving(unet, walked), target) <= CLOSE
    assert distance(walked.clean[None], path.clean[None]) > 0.05
