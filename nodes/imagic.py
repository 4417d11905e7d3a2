"""Imagic as a node: a prompt's embedding, optimised to give a picture."""

from __future__ import annotations

import nodes as comfy_nodes
import torch
from comfy_api.latest import io

from ..host.denoiser import ComfyDenoiser
from ..host.guider import run
from ..host.model import with_gradients
from ..inversion.imagic import CHECKED, Fitted, Level, fit_embedding, levels_of, random_places
from .support import (
    CATEGORY,
    check_conditioning,
    check_latent,
    check_sampled,
    counted,
    fraction_input,
    names_itself,
    seed_input,
    tell,
)


class OptimizePrompt(io.ComfyNode):
    """Fit the new prompt's embedding to a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_OptimizePrompt",
            display_name="Fit Prompt to Picture (Imagic)",
            category=f"{CATEGORY}/path",
            description="Optimises the embedding of the new prompt until the model reconstructs "
            "your picture with it, and mixes the two. Sampling with the mixture changes what the "
            "prompt says, also a pose or a shape, and keeps what the picture shows.",
            search_aliases=[
                "imagic",
                "textual inversion",
                "optimize embedding",
                "optimise prompt",
                "change pose",
                "non-rigid edit",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that you will also edit with."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt of the result you want. One prompt from CLIP Text Encode.",
                ),
                io.Latent.Input("latent_image", tooltip="The picture, through VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=10000,
                    tooltip="Optimisation steps. Each costs a model call and its gradient. More "
                    "fits the picture better. The paper uses 100 with Imagen, diffusers 500 with "
                    "SD1.5.",
                ),
                fraction_input(
                    "strength",
                    0.6,
                    "How much of the new prompt is in the output positive. 0 = the optimised "
                    "embedding, 1 = the new prompt. The paper finds 0.6 to 0.8 best. Changing it "
                    "optimises again; use Conditioning Average to try several.",
                    label="strength (alpha)",
                ),
                seed_input("Seed of the noise. The same seed gives the same embedding."),
                io.Float.Input(
                    "learning_rate",
                    display_name="learning rate",
                    default=0.001,
                    min=0.00001,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Learning rate of Adam. Higher fits faster; too high gives an "
                    "embedding that the new prompt does not mix with.",
                    advanced=True,
                ),
                io.Int.Input(
                    "batch",
                    display_name="noise levels per step",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Noise levels that each step looks at. More makes each step steadier "
                    "and as many times slower.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The mixture: the positive of KSampler, Record Path or the Diffusion "
                    "Path Sampler.",
                ),
                io.Conditioning.Output(
                    display_name="source",
                    tooltip="The optimised embedding, which gives the picture: the source prompt "
                    "of DDIM Inversion or Straight Path.",
                ),
                io.String.Output(display_name="report", tooltip="The figures as text."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @names_itself
    def execute(
        cls, model, positive, latent_image, steps, strength, seed, learning_rate, batch
    ) -> io.NodeOutput:
        samples = check_latent(model, latent_image)
        check_conditioning(model, positive, "positive")
        check_one_prompt(positive, len(samples))
        model = with_gradients(model, distilled=True)
        sigma_at = model.get_model_object("model_sampling").percent_to_sigma
        generator = torch.Generator().manual_seed(seed)
        where = samples.shape, sigma_at, generator
        fixed = levels_of((torch.arange(CHECKED) + 0.5) / CHECKED, *where)

        def draw(step: int) -> list[Level]:
            return fixed if step < 0 else levels_of(random_places(batch, generator), *where)

        def fit(denoiser: ComfyDenoiser, conditions, progress):
            condition = conditions["positive"]
            if denoiser.embedding(condition).shape[1:] != positive[0][0].shape[1:]:
                raise ValueError(
                    "this model computes another embedding from the prompt's before it reads it, "
                    "and that cannot be a prompt again; use Straight Path with FlowEdit"
                )
            fitted = fit_embedding(
                denoiser,
                denoiser.latent_in(samples),
                condition,
                draw,
                steps=steps,
                learning_rate=learning_rate,
                progress=progress,
            )
            return fitted, denoiser.evaluations

        visited = torch.tensor([sigma_at(1 - 1e-4), *(sigma for sigma, _ in fixed)])
        levels = visited.sort(descending=True).values
        prompts = {"positive": positive, "negative": None}
        fitted, evaluations = run(model, prompts, samples, levels, fit, steps=steps, seed=seed)
        found = check_sampled(fitted.embedding).to(positive[0][0].device)
        source = [[found, dict(positive[0][1])]]
        (mixed,) = comfy_nodes.ConditioningAverage().addWeighted(positive, source, strength)
        text, figures = said(fitted, steps, evaluations)
        if "noise_mask" in latent_image:
            text += "\nThe latent's mask is not used"
        return io.NodeOutput(mixed, source, text, ui=tell(cls, text, figures=figures))


def check_one_prompt(positive, pictures: int) -> None:
    """Raise if `positive` is not one prompt, for all pictures or with one row for each."""
    if len(positive) != 1:
        raise ValueError(
            f"positive has {len(positive)} parts, of which only one can be optimised; connect the "
            "output of a single CLIP Text Encode"
        )
    rows = len(positive[0][0])
    if rows not in (1, pictures):
        raise ValueError(
            f"positive holds {rows} prompts for {counted(pictures, 'picture')}; give one prompt, "
            "or one for each picture"
        )


def said(fitted: Fitted, steps: int, evaluations: int) -> tuple[str, dict[str, float | int]]:
    """What to tell of an optimisation, in words and in figures."""
    before, after = float(fitted.before.mean()), float(fitted.after.mean())
    text = (
        f"Error {before:.3g} to {after:.3g} ({after / before - 1:+.0%})\n"
        f"{counted(steps, 'step')}, {counted(evaluations, 'model call')}"
    )
    return text, {"steps": steps, "evaluations": evaluations, "before": before, "after": after}
