"""The node that walks a path again, under another prompt and with a chain of edits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..edits.base import Edits
from ..inversion.path import DiffusionPath
from ..samplers.denoiser import ComfyDenoiser, fingerprint, run
from ..samplers.path_sampler import sample_path
from .support import (
    CATEGORY,
    Path,
    PathEdits,
    cfg_input,
    check_attention,
    check_conditioning,
    check_path,
    downscale_ratio,
    fraction_input,
    last_steps,
    names_itself,
    seed_input,
    tell,
    words,
)

ALMOST_NOTHING, ALMOST_ALL = 0.05, 1.2
"""Relative changes of the latent at which people say that nothing, or everything, has changed."""


class Walk(NamedTuple):
    """What the sampler brings back: latents and mask, network evaluations, bytes kept of maps."""

    latents: Tensor
    mask: Tensor | None
    evaluations: int
    kept: int


def mask_of(model: ModelPatcher, mask: Tensor | None, edited: DiffusionPath) -> Tensor:
    """A MASK (B, H, W) in the picture's size of where the edits let the image change."""
    rows, columns = edited.clean.shape[-2:]
    if mask is None:
        mask = torch.ones(1, 1, rows, columns)
    mask = mask.reshape(len(mask), -1, rows, columns)[:, :1].float().cpu()
    mask = mask.expand(len(edited.clean), -1, -1, -1)
    return F.interpolate(mask, scale_factor=downscale_ratio(model), mode="nearest")[:, 0]


def report(path: DiffusionPath, edited: DiffusionPath, edits: Edits, cfg: float, walk: Walk) -> str:
    """What the sampler did, how far the edit moved, and the knob to turn if that is not right."""
    moved = float((edited.clean - path.clean).norm() / path.clean.norm().clamp(min=1e-12))
    lines = [
        f"{edited.steps} steps, {walk.evaluations} network evaluations; "
        f"the edit moved the latent by {moved:.0%} of the source"
    ]
    if walk.kept:
        lines.append(
            f"Source and edit did not fit into one call: {walk.kept / 2**20:.1f} MB of the "
            "source's attention were kept at each step"
        )
    first = path.steps - edited.steps
    for edit in edits:
        if edit.steps(path).stop <= first:
            lines.append(f"{words(type(edit).__name__)} did nothing: its window ends before start")
    if path.null_embeddings is not None:
        made = "" if path.cfg in (1, cfg) else f", made for cfg {path.cfg:g}"
        lines.append(f"In place of negative: the path's own embeddings{made}")
    if moved < ALMOST_NOTHING:
        hints = [edit.hint for edit in edits if edit.hint] + ["raise cfg"] * (cfg <= 1)
        hints = hints or ["lower start, or make the two prompts differ more"]
        lines.append("Almost nothing changed: " + "; or ".join(dict.fromkeys(hints)))
    elif moved > ALMOST_ALL:
        lines.append("Little of the source is left: raise start, lower cfg, or add MDP Epsilon")
    return ". ".join(lines)


class Sampler(io.ComfyNode):
    """Edit the image of a path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Sampler",
            display_name="Diffusion Path Sampler",
            category=CATEGORY,
            description="Walks a path again under another prompt, applying a chain of edits at "
            "every step. Without edits it samples the new prompt from the source's own noise.",
            search_aliases=["edit image", "MDP", "DiffEdit", "path sampler", "image editing"],
            inputs=[
                io.Model.Input("model", tooltip="The model the path was made with, or a relative."),
                Path.Input("path", tooltip="The source: from DDIM Inversion or Record Path."),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt that describes the result, not the change."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What the result should not show. A path from Null-Text or "
                    "Negative-Prompt Inversion has its own, which goes first.",
                ),
                cfg_input("Guidance scale of the new prompt. Higher follows it more closely."),
                fraction_input(
                    "start",
                    0.0,
                    "Skip this much of the path at its noisy end: higher keeps more of the "
                    "source's composition. DiffEdit's encoding ratio r is start = 1 - r.",
                ),
                fraction_input(
                    "eta",
                    0.0,
                    "Fresh noise at each step: 0 is deterministic DDIM, 1 is DDPM.",
                    advanced=True,
                ),
                seed_input("Seed of the fresh noise; without effect when eta is 0.", advanced=True),
                PathEdits.Input(
                    "edits",
                    optional=True,
                    tooltip="The chain of edits, from any of the edit nodes.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The edited image."),
                io.Latent.Output(
                    display_name="source_latent", tooltip="The source image, for comparison."
                ),
                Path.Output(
                    display_name="path", tooltip="The edited image's own path, to edit further."
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where the edits have let the image change: the mask that Local Blend "
                    "has found, or that of Mask Blend; white everywhere without them.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(
        cls, model, path, positive, negative, cfg, start, eta, seed, edits=()
    ) -> io.NodeOutput:
        check_path(model, path)
        check_conditioning(model, positive, "positive")
        check_conditioning(model, negative, "negative")
        if path.null_embeddings is not None:
            negative = path.negative
        steps = last_steps(path.steps, 1 - start, f"start {start}")
        first = path.steps - steps
        for edit in edits:
            edit.check(path)
        check_attention(model, edits, positive, path.positive)

        def sample(denoiser: ComfyDenoiser, conditions, progress):
            sampled = sample_path(
                denoiser,
                denoiser.path_in(path),
                conditions["positive"],
                conditions["negative"],
                conditions["source"],
                conditions["source_negative"],
                cfg=cfg,
                edits=edits,
                first=first,
                eta=eta,
                generator=torch.Generator().manual_seed(seed),
                progress=progress,
            )
            return Walk(
                denoiser.latents_out(sampled.latents),
                sampled.mask,
                denoiser.evaluations,
                denoiser.kept,
            )

        # Only where needed: the guider evaluates each prompt's areas for all the others too.
        uses_source = any(edit.uses_source for edit in edits)
        prompts = {
            "positive": positive,
            "negative": negative,
            "source": path.positive if uses_source else None,
            "source_negative": path.negative if uses_source else None,
        }
        levels = path.sigmas[first:]
        walk = run(model, prompts, path.clean, levels, sample, steps=steps, seed=seed)
        edited = DiffusionPath(
            sigmas=levels,
            latents=walk.latents,
            positive=positive,
            negative=negative,
            cfg=cfg,
            fingerprint=fingerprint(model),
            null_embeddings=path.null_embeddings_from(first),
        )
        return io.NodeOutput(
            {"samples": edited.clean},
            {"samples": path.clean},
            edited,
            mask_of(model, walk.mask, edited),
            ui=tell(cls, report(path, edited, edits, cfg, walk)),
        )
