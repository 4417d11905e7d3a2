"""Nodes with which sampling with CFG reproduces the source: null-text and negative-prompt."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..core.path import DiffusionPath
from ..edits.flow_edit import is_independent
from ..edits.null_text import NullText
from ..edits.proximal import NORMS, Proximal
from ..host.conditions import scheduled
from ..host.denoiser import ComfyDenoiser
from ..host.guider import run
from ..host.model import with_gradients
from ..inversion.null_text import OPTIMIZERS, null_text_inversion, threshold
from ..samplers.solvers import STOCHASTIC, by_ddim
from .pictures import loss_plot
from .sampler import own_negative
from .support import (
    AUTO,
    CATEGORY,
    Path,
    auto_cfg,
    cfg_input,
    check_conditioning,
    check_path,
    check_sampled,
    counted,
    fraction_input,
    known_before,
    names_itself,
    tell,
)

STARTS = ["source", "negative"]

CHOSEN = {"source": (10, 8e-6), "negative": (3, 1e-5)}
"""What 0 means for inner_steps and early_stop: measured to reconstruct as the reference does, and,
from the negative, to edit as it does."""


def check_source(path: DiffusionPath) -> None:
    """Raise if `path` is not one that was inverted under a prompt and without guidance."""
    if own_negative(path) is not None:
        raise ValueError(
            "the path has embeddings for its negative already; "
            "connect the path that DDIM Inversion has made"
        )
    if path.cfg != 1:
        raise ValueError(
            f"the path was made at guidance {path.cfg:g}, and only one that was inverted at 1 has "
            "anything to make up for; set cfg of DDIM Inversion to 1"
        )
    if not path.positive:
        raise ValueError(
            "the path holds no source prompt to be guided by; make it again with DDIM Inversion"
        )


def check_guided(cfg: float) -> None:
    """Raise if there is no guidance to make up for."""
    if cfg == 1:
        raise ValueError(
            "cfg is 1, which is no guidance, and there is nothing to optimise; "
            "choose the scale that you will edit with, such as 7.5"
        )


class NullTextInversion(io.ComfyNode):
    """Make guidance retrace an inverted path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_NullTextInversion",
            display_name="Exact Inversion (Null-Text)",
            category=f"{CATEGORY}/path",
            description="Finds, for each step of an inverted path, a negative embedding with "
            "which sampling with CFG reproduces the picture. The sampler uses these "
            "embeddings by itself.",
            search_aliases=["null text", "null-text optimization", "NTI", "real image editing"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that made the path, or a fine-tune of it."
                ),
                Path.Input("path", tooltip="A path of DDIM Inversion, made with cfg 1."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="The empty prompt. Used only if start_from is negative.",
                ),
                cfg_input(
                    "The CFG that you will edit with. Another CFG needs another run. -1 = the "
                    "value that suits the model."
                ),
                io.Int.Input(
                    "inner_steps",
                    default=0,
                    min=0,
                    max=500,
                    tooltip="Maximum optimisation iterations per step. Most steps stop earlier. "
                    "0 = 10 if start_from is source, 3 if it is negative.",
                    display_name="iterations per step",
                ),
                io.Float.Input(
                    "learning_rate",
                    display_name="learning rate",
                    default=0.01,
                    min=0.0001,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Learning rate of adam. Not used by line search.",
                    advanced=True,
                ),
                io.Float.Input(
                    "early_stop",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    round=False,
                    tooltip="Stops optimising a step below this error. Lower is more accurate "
                    "and slower. The paper uses 1e-5. 0 = 8e-6 if start_from is source, "
                    "1e-5 if it is negative.",
                    advanced=True,
                    display_name="stop at error",
                ),
                io.Combo.Input(
                    "start_from",
                    options=STARTS,
                    default="source",
                    tooltip="Initial embedding. source: the source prompt (fast, default). "
                    "negative: the negative prompt (as in the paper; edits better).",
                    advanced=True,
                    display_name="start embedding",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default="line search",
                    tooltip="line search needs few iterations. adam is the paper's.",
                    advanced=True,
                ),
            ],
            outputs=[
                Path.Output(
                    display_name="path",
                    tooltip="The path with its embeddings. The Diffusion Path Sampler uses them "
                    "instead of its negative.",
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The embeddings, each for its own steps. For ComfyUI's samplers: use "
                    "euler, the same noise levels, and the noise output of DDIM "
                    "Inversion.",
                ),
                io.Image.Output(
                    display_name="loss_plot", tooltip="The error of each step, before and after."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @known_before
    def validate_inputs(cls, cfg) -> None:
        check_guided(cfg)

    @classmethod
    @names_itself
    def execute(
        cls,
        model,
        path,
        negative,
        cfg,
        inner_steps,
        learning_rate,
        early_stop,
        start_from,
        optimizer,
    ) -> io.NodeOutput:
        check_path(model, path)
        check_source(path)
        if path.solver in STOCHASTIC or is_independent(path):
            raise ValueError(
                "null-text optimisation needs a path of DDIM Inversion, and this one has noise of "
                "its own at each level; connect such a path"
            )
        check_conditioning(model, negative, "negative")
        given, cfg = cfg, auto_cfg(model, cfg)
        chosen = CHOSEN[start_from]
        inner_steps, early_stop = inner_steps or chosen[0], early_stop or chosen[1]
        model = with_gradients(model)
        check_guided(cfg)
        from_source = start_from == "source"
        null = path.positive if from_source else negative
        if len(null) != 1:
            raise ValueError(
                f"the prompt to start from has {len(null)} parts, of which only one can have its "
                "embedding replaced; connect the output of a single CLIP Text Encode"
            )

        def invert(denoiser: ComfyDenoiser, conditions, progress):
            found = null_text_inversion(
                denoiser,
                path.latents,
                path.sigmas,
                conditions["positive"],
                conditions["negative"],
                from_source=from_source,
                cfg=cfg,
                inner_steps=inner_steps,
                optimizer=optimizer,
                learning_rate=learning_rate,
                early_stop=early_stop,
                bring=denoiser.latent_in,
                progress=progress,
            )
            return found, denoiser.evaluations

        prompts = {"positive": path.positive, "negative": null}
        found, evaluations = run(
            model, prompts, path.clean, path.sigmas, invert, steps=path.steps * inner_steps
        )
        embeddings = check_sampled(found.embeddings)
        own = NullText(embeddings=embeddings, cfg=cfg)
        path = path._replace(
            negative=null, cfg=cfg, edits=(own, *path.edits), solver=by_ddim(path.solver)
        )
        errors = [torch.stack(tried).mean(dim=1).tolist() for tried in found.losses]
        limits = [threshold(early_stop, i, path.steps) for i in range(path.steps)]
        plot = loss_plot([tried[0] for tried in errors], [tried[-1] for tried in errors], limits)
        idle = sum(len(tried) == 1 for tried in errors)
        exact = sum(tried[-1] <= limit for tried, limit in zip(errors, limits, strict=True))
        text = (
            f"Exact in {exact} of {counted(path.steps, 'step')}"
            + "; raise inner_steps" * (exact < path.steps)
            + f"\n{counted(evaluations, 'model call')}, {counted(found.gradients, 'gradient')}"
        )
        figures = {
            "steps": path.steps,
            "evaluations": evaluations,
            "gradients": found.gradients,
            "exact": exact,
            "without_optimisation": idle,
            "last_error": errors[-1][-1],
        }
        text += f"; cfg {cfg:g} (auto)" * (given == AUTO)
        negative = scheduled(model, null, embeddings, path.sigmas)
        return io.NodeOutput(path, negative, plot, ui=tell(cls, text, plot, figures))


class NegativePromptInversion(io.ComfyNode):
    """Use the source prompt as the negative."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_NegativePromptInversion",
            display_name="Quick Exact Inversion (Negative-Prompt)",
            category=f"{CATEGORY}/path",
            description="Uses the source prompt as the negative prompt, so that CFG changes only "
            "what the new prompt changes. Costs nothing. Null-Text Inversion is more "
            "accurate.",
            search_aliases=["NPI", "proximal guidance", "ProxEdit", "ProxNPI", "null text"],
            inputs=[
                Path.Input("path", tooltip="A path of DDIM Inversion, made with cfg 1."),
                io.Combo.Input(
                    "proximal",
                    options=["none", *NORMS],
                    default="none",
                    tooltip="Proximal guidance: suppresses guidance where the two prompts hardly "
                    "differ. l0 suppresses it there only; l1 also weakens the rest.",
                    display_name="keep what is equal (proximal)",
                ),
                fraction_input(
                    "quantile",
                    0.7,
                    "Fraction of the guidance to suppress. Higher keeps more of the source; 0.5 "
                    "and below suppresses nothing. No effect if proximal is none.",
                    label="how much to keep (quantile)",
                ),
                fraction_input(
                    "reconstruction",
                    0.6,
                    "From this point of the schedule on, suppressed regions are replaced by the "
                    "source. 1 = never.",
                    advanced=True,
                    label="restore source from",
                ),
                io.Int.Input(
                    "dilation",
                    default=1,
                    min=0,
                    max=32,
                    optional=True,
                    tooltip="Before that, widens the region that may change by this many latent "
                    "pixels (8 picture pixels each in Stable Diffusion). The authors use "
                    "1 or 2.",
                    advanced=True,
                    display_name="widen edited region",
                ),
            ],
            outputs=[
                Path.Output(
                    display_name="path",
                    tooltip="The path with its negative. The Diffusion Path Sampler uses it "
                    "instead of its own.",
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The source prompt, as the negative of ComfyUI's samplers.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, path, proximal, quantile, reconstruction, dilation=1) -> io.NodeOutput:
        check_source(path)
        if len(path.positive) != 1:
            raise ValueError(
                f"the source prompt has {len(path.positive)} parts, of which only one can become "
                "the negative; invert with the output of a single CLIP Text Encode"
            )
        own: tuple = (NullText(embeddings=path.positive[0][0].float()[None]),)
        if proximal != "none":
            settings = {"quantile": quantile, "reconstruction": reconstruction}
            own = (*own, Proximal(norm=proximal, dilation=dilation, **settings))
        path = path._replace(negative=path.positive, edits=(*own, *path.edits))
        return io.NodeOutput(path, path.negative)
