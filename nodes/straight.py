"""Nodes that make a path of noise and the image alone, with or without DDPM's noise maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.path import DiffusionPath
from ..core.schedules import SPACINGS
from ..edits.flow_edit import FAMILIES
from ..host.denoiser import ComfyDenoiser
from ..host.guider import run
from ..host.model import family, fingerprint, mixing_of
from ..inversion.straight import KINDS, Kind, ddpm_residuals, straight
from ..samplers.solvers import STOCHASTIC
from .support import (
    CATEGORY,
    MASKED,
    Path,
    cfg_input,
    check_conditioning,
    check_guidance,
    check_latent,
    check_sampled,
    cost,
    names_itself,
    own_mask,
    path_sigmas,
    seed_input,
    settings_input,
    sigmas_input,
    spacing_input,
    steps_input,
    tell,
)


def draws(latent_image: dict[str, Any], samples: Tensor, seed: int) -> Callable[[], Tensor]:
    """Fresh noise at each call; the first one is that of ComfyUI's samplers for the seed."""
    first = comfy.sample.prepare_noise(samples, seed, latent_image.get("batch_index")).float()
    generator, begun = torch.Generator().manual_seed(seed ^ 0x5EED), [first]

    def draw() -> Tensor:
        return begun.pop() if begun else torch.randn(first.shape, generator=generator)

    return draw


def straight_path(
    model: ModelPatcher,
    latent_image: dict[str, Any],
    levels: Tensor,
    seed: int,
    kind: Kind = "fresh",
) -> Tensor:
    """The latents (N + 1, B, C, ...) of a straight path, in the scale of the wires."""
    samples = check_latent(model, latent_image)
    inner = model.model
    x0 = inner.process_latent_in(samples.float().cpu())
    latents = straight(mixing_of(model), x0, levels, draws(latent_image, samples, seed), kind)
    ended = [inner.process_latent_out(latent).float() for latent in latents[:-1]]
    return torch.stack([*ended, samples.float().cpu()])


class StraightPath(io.ComfyNode):
    """Noise an image to each level, without asking the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_StraightPath",
            display_name="Path without Inversion (Straight Path)",
            category=f"{CATEGORY}/path",
            description="Makes a path without inversion: adds noise to the picture at every "
            "level, without a model call. Use it with FlowEdit, on any model. Start "
            "here.",
            search_aliases=["FlowEdit", "inversion free", "flow edit", "InfEdit", "no inversion"],
            inputs=[
                io.Model.Input("model", tooltip="The model that you will also edit with."),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt that describes the picture as it is."
                ),
                io.Latent.Input("latent_image", tooltip="The picture, through VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="Steps from noise to picture. 0 = use the number in settings.",
                ),
                io.Combo.Input(
                    "spacing",
                    options=["auto", *SPACINGS, *comfy.samplers.SCHEDULER_NAMES],
                    default="auto",
                    tooltip="Which noise levels the steps visit. auto = use the one in settings. "
                    "leading, trailing and linspace are diffusers' spacings, the others are "
                    "ComfyUI's schedulers.",
                    advanced=True,
                ),
                seed_input("Seed of the noise. Another seed gives another edit."),
                io.Combo.Input(
                    "noise",
                    options=list(KINDS),
                    default="fresh",
                    tooltip="fresh: new noise at every level, as in the FlowEdit paper. one: the "
                    "same noise at every level, for samplers other than euler. shifted: one "
                    "step less noise, as in TurboEdit, for models of few steps such as SDXL Turbo.",
                    advanced=True,
                ),
                settings_input(FAMILIES, "Model family whose steps and spacing are used."),
                sigmas_input(),
            ],
            outputs=[Path.Output(display_name="path", tooltip="The image's path: for FlowEdit.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @names_itself
    def execute(
        cls,
        model,
        positive,
        latent_image,
        steps,
        spacing,
        seed,
        noise,
        settings="auto",
        sigmas=None,
    ) -> io.NodeOutput:
        check_conditioning(model, positive, "positive")
        name = family(model) if settings == "auto" else settings
        theirs = FAMILIES[name]
        chosen = theirs.spacing if spacing == "auto" else spacing
        levels = path_sigmas(model, steps or theirs.steps, chosen, sigmas)
        path = DiffusionPath(
            sigmas=levels,
            latents=straight_path(model, latent_image, levels, seed, noise),
            positive=positive,
            negative=None,
            cfg=1.0,
            fingerprint=fingerprint(model),
            edits=own_mask(latent_image),
        )
        text = f"Ready: {cost(path.steps, 0)}"
        if sigmas is None and not (steps and spacing != "auto"):
            text += f"\nSettings of {name}"
        if path.edits:
            text += f"\n{MASKED}"
        return io.NodeOutput(path, ui=tell(cls, text, figures={"steps": path.steps}))


class DDPMInversion(io.ComfyNode):
    """Find the noise maps with which DDPM makes an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_DDPMInversion",
            display_name="Invert with Noise (DDPM Inversion)",
            category=f"{CATEGORY}/path",
            description="Edit-friendly DDPM inversion: finds the noise that DDPM sampling must "
            "add at each step to give the picture. Set the sampler's eta to 1 and "
            "start to about 0.36.",
            search_aliases=["edit friendly", "DDPM inversion", "LEDITS++", "noise maps", "invert"],
            inputs=[
                io.Model.Input("model", tooltip="The model that you will also edit with."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A prompt that describes the picture as it is. It may be empty.",
                ),
                io.Latent.Input("latent_image", tooltip="The picture, through VAE Encode."),
                steps_input(100, "the paper uses 100"),
                cfg_input(
                    "CFG of the source prompt. Other than 1 it needs a negative and doubles the "
                    "model calls. The paper uses 3.5 here and 15 on the sampler.",
                    default=3.5,
                ),
                seed_input("Seed of the noise. Another seed gives another edit."),
                spacing_input(),
                io.Combo.Input(
                    "solver",
                    options=list(STOCHASTIC),
                    default="ddpm",
                    tooltip="Sampling method. ddpm: as in the paper. sde-dpm++: of second order, "
                    "as in LEDITS++; it needs fewer steps.",
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt. Used only if cfg is not 1."
                ),
                sigmas_input(),
            ],
            outputs=[
                Path.Output(
                    display_name="path",
                    tooltip="The image's path with its noise. Set the sampler's eta to 1.",
                )
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @names_itself
    def execute(
        cls,
        model,
        positive,
        latent_image,
        steps,
        cfg,
        seed,
        spacing,
        solver,
        negative=None,
        sigmas=None,
    ) -> io.NodeOutput:
        check_conditioning(model, positive, "positive")
        check_guidance(model, cfg, negative)
        levels = path_sigmas(model, steps, spacing, sigmas)
        latents = straight_path(model, latent_image, levels, seed)

        def find(denoiser: ComfyDenoiser, conditions, progress):
            residuals = ddpm_residuals(
                denoiser,
                latents,
                levels,
                conditions["positive"],
                conditions["negative"],
                cfg,
                solver=solver,
                latent_in=denoiser.latent_in,
                progress=progress,
            )
            return check_sampled(residuals), denoiser.evaluations

        prompts = {"positive": positive, "negative": None if cfg == 1 else negative}
        steps = len(levels) - 1
        residuals, evaluations = run(
            model, prompts, latents[-1], levels, find, steps=steps, seed=seed
        )
        path = DiffusionPath(
            sigmas=levels,
            latents=latents,
            positive=positive,
            negative=prompts["negative"],
            cfg=cfg,
            fingerprint=fingerprint(model),
            edits=own_mask(latent_image),
            solver=solver,
            residuals=residuals,
        )
        text = f"Ready: {cost(path.steps, evaluations)}\nSet the sampler's eta to 1"
        if path.edits:
            text += f"\n{MASKED}"
        figures = {"steps": path.steps, "evaluations": evaluations}
        return io.NodeOutput(path, ui=tell(cls, text, figures=figures))
