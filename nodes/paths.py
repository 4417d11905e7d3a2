"""Nodes that make a path: DDIM inversion of an image, and recording while sampling."""

from __future__ import annotations

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.edit import Edits
from ..core.path import DiffusionPath
from ..core.schedules import SPACINGS
from ..host.denoiser import ComfyDenoiser
from ..host.guider import PathGuider, PathSampler, run, sample
from ..host.model import family, fingerprint, mixing_of, usual
from ..inversion.ddim import INVERSIONS, ddim_inversion
from .sampler import on_wire, settle
from .support import (
    AUTO,
    CATEGORY,
    MASKED,
    Path,
    PathEdits,
    auto_cfg,
    cfg_input,
    check_conditioning,
    check_edits,
    check_guidance,
    check_latent,
    check_sampled,
    check_steps,
    cost,
    first_step,
    fraction_input,
    known_before,
    names_itself,
    own_mask,
    path_sigmas,
    seed_input,
    sigmas_input,
    spacing_input,
    steps_input,
    tell,
)


class DDIMInversion(io.ComfyNode):
    """Find the path that leads from noise to a real image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_DDIMInversion",
            display_name="Invert Picture (DDIM Inversion)",
            category=f"{CATEGORY}/path",
            description="Finds the diffusion path that leads from noise to your picture. Edit "
            "the picture by sampling from this path with another prompt.",
            search_aliases=[
                "unsampler",
                "noise inversion",
                "invert image",
                "rf inversion",
                "ledits",
                "reverse ode",
                "AIDI",
                "real image edit",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that you will also edit with."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="A prompt that describes the picture as it is. The better it fits, "
                    "the better the reconstruction.",
                ),
                io.Latent.Input("latent_image", tooltip="The picture, through VAE Encode."),
                steps_input(),
                spacing_input(),
                fraction_input(
                    "strength",
                    1.0,
                    "How much noise to go up to, as a fraction of the model's schedule. 1 = full "
                    "noise. 0.5 saves half of the steps, but large changes are then out of "
                    "reach.",
                ),
                io.Int.Input(
                    "fixed_point_iterations",
                    default=0,
                    min=0,
                    max=50,
                    tooltip="Refines every inversion step this many times (fixed-point "
                    "iterations). 2 or 3 gives a much more accurate reconstruction. Each "
                    "adds one model call per step.",
                    advanced=True,
                    display_name="refinements",
                ),
                cfg_input(
                    "CFG during inversion. Leave it at 1: higher values amplify the error. Other "
                    "values need a negative and double the model calls.",
                    default=1.0,
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt. Used only if cfg is not 1."
                ),
                sigmas_input(),
                io.Int.Input(
                    "average",
                    default=1,
                    min=1,
                    max=51,
                    optional=True,
                    tooltip="Averages the last N refinements of a step (ReNoise). 1 = off. Use "
                    "it when refinement oscillates.",
                    advanced=True,
                    display_name="average of refinements",
                ),
                io.Combo.Input(
                    "solver",
                    options=["auto", *INVERSIONS],
                    default="auto",
                    optional=True,
                    tooltip="How each step is computed. The sampler takes the same solver. euler "
                    "= DDIM. uni = Uni-Inv, same cost, more accurate. midpoint = "
                    "RF-Solver, two model calls per step. reuse = FireFlow, the most "
                    "accurate for its cost. auto = reuse for flow models, euler for "
                    "others.",
                    advanced=True,
                ),
                fraction_input(
                    "gamma",
                    0.0,
                    "RF-Inversion: how strongly each step is pulled toward random noise. 0 = "
                    "off. The paper uses 0.5, together with Pull to Source.",
                    advanced=True,
                    optional=True,
                    label="pull to noise (gamma)",
                ),
                seed_input(
                    "Seed of the noise for gamma. No effect when gamma is 0.",
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[
                Path.Output(
                    display_name="path",
                    tooltip="The picture's path: for the sampler, Save Path, Path Preview.",
                ),
                io.Latent.Output(
                    display_name="noise",
                    tooltip="The noise at the path's start, for ComfyUI's samplers with "
                    "add_noise off and the same noise levels. With a flow model, only if "
                    "the first level is below 1. A noise mask is not passed on.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @known_before
    def validate_inputs(cls, strength, fixed_point_iterations, average=1) -> None:
        if strength == 0:
            raise ValueError("strength is 0, which leaves no step; raise strength")
        if average > 1 and not fixed_point_iterations:
            raise ValueError(
                f"average is {average} but fixed_point_iterations is 0, so there is nothing to "
                "average; raise fixed_point_iterations or set average to 1"
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
        strength,
        fixed_point_iterations,
        cfg,
        negative=None,
        sigmas=None,
        average=1,
        solver="auto",
        gamma=0.0,
        seed=0,
    ) -> io.NodeOutput:
        samples = check_latent(model, latent_image)
        solver = solver_for(model, solver, fixed_point_iterations, average, gamma)
        check_conditioning(model, positive, "positive")
        check_guidance(model, cfg, negative)
        levels = path_sigmas(model, steps or usual(model).steps, spacing, sigmas)
        advice = "raise strength, or use more steps"
        levels = levels[first_step(model, levels, 1 - strength, f"strength {strength}", advice) :]
        own, noise = own_mask(latent_image), None
        if gamma:
            noise = comfy.sample.prepare_noise(samples, seed, latent_image.get("batch_index"))

        def invert(denoiser: ComfyDenoiser, conditions, progress):
            latents = ddim_inversion(
                denoiser,
                denoiser.latent_in(samples),
                levels,
                conditions["positive"],
                negative=conditions["negative"],
                cfg=cfg,
                fixed_point_iterations=fixed_point_iterations,
                average=average,
                solver=solver,
                gamma=gamma,
                noise=None if noise is None else noise.to(denoiser.device, torch.float32),
                store=denoiser.latent_out,
                progress=progress,
            )
            return check_sampled(latents), denoiser.evaluations

        prompts = {"positive": positive, "negative": None if cfg == 1 else negative}
        latents, evaluations = run(model, prompts, samples, levels, invert, steps=len(levels) - 1)
        path = DiffusionPath(
            sigmas=levels,
            latents=latents,
            positive=positive,
            negative=prompts["negative"],
            cfg=cfg,
            fingerprint=fingerprint(model),
            edits=own,
            solver="euler" if solver == "uni" else solver,
        )
        lines = [f"Inverted: {cost(path.steps, evaluations)}{auto_steps(model, steps, sigmas)}"]
        if own:
            lines.append(MASKED)
        signal = mixing_of(model).signal(float(levels[0]))
        if signal <= 0:
            lines.append("The output noise needs a strength below 1")
        start = model.model.process_latent_in(latents[0]) / (signal if signal > 0 else 1.0)
        noise = {name: value for name, value in latent_image.items() if name != "noise_mask"}
        noise |= on_wire(model.model.process_latent_out(start))
        figures = {"steps": path.steps, "evaluations": evaluations, "solver": solver}
        return io.NodeOutput(path, noise, ui=tell(cls, "\n".join(lines), figures=figures))


def auto_steps(model: ModelPatcher, steps: int, sigmas: Tensor | None) -> str:
    """What to say of the number of steps if it was left to the model."""
    return "" if steps or sigmas is not None else f"; as many as suit {family(model)}"


def solver_for(
    model: ModelPatcher, solver: str, iterations: int, average: int, gamma: float
) -> str:
    """The solver of an inversion; by "auto" Euler's for what was published with it."""
    refined = iterations > 0 or average > 1
    if solver == "auto":
        return "reuse" if mixing_of(model).flow and not refined and not gamma else "euler"
    if refined and solver != "euler":
        name = "fixed_point_iterations" if iterations else "average"
        raise ValueError(
            f"{name} is {iterations or average}, which is for the solver euler, and solver is "
            f"{solver}; set {name} to {0 if iterations else 1}, or solver to euler"
        )
    return solver


def record(
    model: ModelPatcher,
    unknown: DiffusionPath,
    samples: Tensor,
    edits: Edits,
    pure: bool | None,
    mask: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """Generate along a path of which only the noise and the levels are known.

    Args:
        samples: a LATENT's (B, C, ...), of which the size counts, and what a `mask` keeps.
        pure: as `PathSampler` has it.
    Returns:
        The path's latents (N + 1, B, C, ...), and how many evaluations it took.
    Raises:
        ValueError: an edit cannot work here, or the latents are no numbers.
    """
    positive, negative = unknown.positive, unknown.negative or []
    edits = settle(model, edits)
    check_edits(model, edits, unknown, positive, recorded=True)
    check_steps(model, edits, unknown)
    guider = PathGuider(model, unknown, positive, negative, unknown.cfg, edits)
    sampler = PathSampler(pure=pure, keeps=True)
    levels, noise = unknown.sigmas, unknown.latents[0]
    sample(guider, sampler, samples, levels, noise=noise, mask=mask, seed=seed)
    return check_sampled(torch.stack(sampler.latents)), guider.outcome.evaluations


class RecordPath(io.ComfyNode):
    """Sample an image from noise and keep its path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_RecordPath",
            display_name="Generate and Record (Record Path)",
            category=f"{CATEGORY}/path",
            description="Generates a picture as KSampler with euler does and records its path, "
            "so that the picture can be edited like an inverted one.",
            search_aliases=["text to image path", "synthetic image edit", "trajectory", "sample"],
            inputs=[
                io.Model.Input("model", tooltip="The model that you will also edit with."),
                io.Conditioning.Input("positive", tooltip="The prompt of the picture to generate."),
                io.Conditioning.Input("negative", tooltip="What the picture should not show."),
                io.Latent.Input("latent_image", tooltip="The size: an Empty Latent Image."),
                seed_input("Seed of the noise. The same seed gives the same path."),
                steps_input(),
                cfg_input(
                    "Guidance scale. Higher follows the prompt more closely. -1 = the value that "
                    "suits the model."
                ),
                spacing_input(),
                sigmas_input(),
                PathEdits.Input(
                    "edits",
                    optional=True,
                    tooltip="Edits that need no source: Paint with Words, Reweight, Resample, and "
                    "Source Features of the first picture.",
                ),
            ],
            outputs=[
                Path.Output(
                    display_name="path",
                    tooltip="The picture's path: for the sampler, Save Path, Path Preview.",
                ),
                io.Latent.Output(display_name="latent", tooltip="The image at the path's end."),
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
        negative,
        latent_image,
        seed,
        steps,
        cfg,
        spacing,
        sigmas=None,
        edits=(),
    ) -> io.NodeOutput:
        samples = check_latent(model, latent_image, empty=True)
        check_conditioning(model, positive, "positive")
        check_conditioning(model, negative, "negative")
        levels = path_sigmas(model, steps or usual(model).steps, spacing, sigmas)
        given, cfg = cfg, auto_cfg(model, cfg)
        noise = comfy.sample.prepare_noise(samples, seed, latent_image.get("batch_index"))
        # a path of which only the size and the levels are known
        unknown = DiffusionPath(
            sigmas=levels,
            latents=noise[None],
            positive=positive,
            negative=negative,
            cfg=cfg,
            fingerprint=fingerprint(model),
        )
        # diffusers' spacings begin with pure noise below the highest level, ComfyUI's at it
        pure = True if sigmas is None and spacing in SPACINGS else None
        mask = latent_image.get("noise_mask")
        latents, evaluations = record(model, unknown, samples, edits, pure, mask, seed)
        path = unknown._replace(latents=latents)
        text = f"Recorded: {cost(path.steps, evaluations)}{auto_steps(model, steps, sigmas)}"
        text += f", cfg {cfg:g} (auto)" * (given == AUTO)
        figures = {"steps": path.steps, "evaluations": evaluations, "cfg": cfg}
        told = tell(cls, text, figures=figures)
        return io.NodeOutput(path, {**latent_image, **on_wire(path.clean)}, ui=told)
