"""The node that walks a path again, under another prompt and with a chain of edits."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.edit import Edits
from ..core.path import Conditioning, DiffusionPath
from ..edits.null_text import NullText
from ..edits.prompt_to_prompt import PromptToPrompt
from ..edits.proximal import Proximal
from ..host.guider import PathGuider, PathSampler, sample
from ..host.model import fingerprint, mixing_of
from ..host.networks import traits_of
from ..inversion.straight import residuals_from
from ..samplers.solvers import by_ddim, check_eta
from .support import (
    AUTO,
    CATEGORY,
    Path,
    PathEdits,
    auto_cfg,
    cfg_input,
    check_conditioning,
    check_edits,
    check_path,
    check_sampled,
    check_steps,
    cost,
    downscale_ratio,
    first_step,
    fraction_input,
    frame_ratio,
    known_before,
    names_itself,
    seed_input,
    show,
    tell,
    words,
)

ALMOST_NOTHING, A_LITTLE, A_LOT = 0.05, 0.2, 1.0
"""The verdicts' limits: relative changes of the latent. In benchmarks/results/verdicts.md no edit
below the second is what it should be, and above the third the background is a new one."""


def check_start(start: float) -> None:
    """Raise if `start` leaves nothing of any path."""
    if start >= 1:
        raise ValueError("start is 1, which leaves no step to sample; lower start")


def walk_inputs() -> list[io.Input]:
    """What a path is walked with: the model, the path, the new prompt and its guidance."""
    return [
        io.Model.Input("model", tooltip="The model that made the path, or a fine-tune of it."),
        Path.Input(
            "path",
            tooltip="The path of the source picture: from Straight Path, an inversion, Record "
            "Path or Load Path.",
        ),
        io.Conditioning.Input(
            "positive", tooltip="A prompt that describes the result, not the change."
        ),
        io.Conditioning.Input(
            "negative",
            tooltip="What the result should not show. Ignored for paths from Null-Text or "
            "Negative-Prompt Inversion: they bring their own negative.",
        ),
        cfg_input(
            "Guidance scale of the new prompt. Higher follows it more closely. -1 = the value "
            "that suits FlowEdit or Uni-Edit in the chain, or else the model."
        ),
    ]


def own_negative(path: DiffusionPath) -> NullText | None:
    """What a path has in place of a negative, if it has."""
    return next((edit for edit in path.edits if isinstance(edit, NullText)), None)


def brought(path: DiffusionPath, first: int) -> Edits:
    """Those of a path's own edits that its edited path, from step `first` on, has too."""
    kept = (edit.after(first) if isinstance(edit, NullText) else edit for edit in path.edits)
    return tuple(edit for edit in kept if not isinstance(edit, Proximal))


def guider_for(
    model: ModelPatcher,
    path: DiffusionPath,
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
    start: float,
    edits: Edits,
) -> tuple[PathGuider, int]:
    """The guider that walks a path with edits, and the step to begin at; all of it checked."""
    check_path(model, path)
    check_conditioning(model, positive, "positive")
    check_conditioning(model, negative, "negative")
    if own_negative(path) is not None and path.negative is not None:
        negative = path.negative
    edits = settle(model, edits, start)
    cfg = cfg_of(model, path, cfg, edits)
    check_edits(model, (*path.edits, *edits), path, positive, recorded=False)
    if any(edit.by_ddim for edit in edits):
        path = path._replace(solver=by_ddim(path.solver))
    follows = max((edit.follows for edit in edits), default=0.0)
    name = f"start {start}" if start >= follows else f"an edit's start {follows:g}"
    first = first_step(model, path.sigmas, max(start, follows), name, "lower it")
    check_steps(model, edits, path, first)
    if path.solver == "sde-dpm++" and path.residuals is not None:
        latent_in = model.model.process_latent_in
        residuals = residuals_from(mixing_of(model), path, latent_in, first)
        path = path._replace(residuals=residuals)
    return PathGuider(model, path, positive, negative, cfg, edits), first


def settle(model: ModelPatcher, edits: Edits, start: float = 0.0) -> Edits:
    """Edits with what was left to the model decided.

    Args:
        start: the fraction of the schedule where the walk is to begin; an edit may have a later
            one.
    """
    traits = traits_of(model)
    begins = max([start, *(edit.settled(traits).follows for edit in edits)])
    return tuple(edit.settled(traits._replace(begins=begins)) for edit in edits)


def cfg_of(model: ModelPatcher, path: DiffusionPath, cfg: float, edits: Edits) -> float:
    """The target's guidance: what the path's negative was made for, or suits the edits or the
    model, if it was left open."""
    own = own_negative(path)
    if cfg == AUTO and own is not None and own.cfg != 1:
        return own.cfg
    return auto_cfg(model, cfg, edits)


def on_wire(latent: Tensor) -> dict[str, Any]:
    """A path's latent as a LATENT, where ComfyUI keeps those."""
    return {"samples": latent.to(comfy.model_management.intermediate_device())}


def mask_of(model: ModelPatcher, mask: Tensor | None, edited: DiffusionPath) -> Tensor:
    """A MASK (B, H, W) in the picture's size of where the edits let the image change; of videos one
    for each frame (B * frames, H, W)."""
    rows, columns = edited.clean.shape[-2:]
    frames = math.prod(edited.clean.shape[2:-2])
    if mask is None:
        mask = torch.ones(1, 1, rows, columns)
    mask = mask.reshape(len(mask), -1, rows, columns).float().cpu()
    mask = mask.expand(len(edited.clean), frames, -1, -1)
    held = torch.tensor([1] + [frame_ratio(model)] * (frames - 1))
    mask = mask.repeat_interleave(held, dim=1).flatten(0, 1)[:, None]
    return F.interpolate(mask, scale_factor=downscale_ratio(model), mode="nearest")[:, 0]


def moved(before: Tensor, after: Tensor) -> Tensor:
    """How far each latent (B, C, ...) has moved, in norms of the one before (B,)."""
    change, norm = ((one.flatten(1).norm(dim=1)) for one in (after - before, before))
    return change / norm.clamp(min=1e-12)


def verdict(change: float, edits: Edits, cfg: float) -> str:
    """What a relative change of the latent means, and what in this chain makes it more or less."""
    if change < A_LITTLE:
        hints = [edit.hint for edit in edits if edit.hint] + ["raise cfg"] * (cfg <= 1)
        more = "; or ".join(dict.fromkeys(hints)) or "lower start, or change more of the prompt"
        if change < ALMOST_NOTHING:
            return f"Almost nothing changed: {more}"
        return f"Changed a little. To change more: {more}"
    if change < A_LOT:
        return "Changed clearly"
    keeps = [edit.keeps for edit in edits if edit.keeps] or ["raise start, or add MDP Epsilon"]
    return f"Changed a lot. To keep more: {keeps[0]}"


def reconstruction(change: float) -> str:
    """What a relative change of the latent means under the source's own prompt, without an edit."""
    if change < A_LITTLE:
        return "Reconstructed: the prompt is the source's"
    return "Not exact, though the prompt is the source's: use Null-Text Inversion, or cfg 1"


def says_the_same(a: Conditioning, b: Conditioning) -> bool:
    """Whether two CONDITIONINGs hold the same embeddings."""
    return len(a) == len(b) and all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))


def report(
    path: DiffusionPath, edited: DiffusionPath, guider: PathGuider, eta: float
) -> tuple[str, dict[str, Any]]:
    """What the sampler says: how far the edit went, what had no effect, what it cost; and the
    figures of it."""
    outcome, own = guider.outcome, own_negative(path)
    change = float(moved(path.clean, edited.clean).mean())
    idle = [words(type(edit).__name__) for edit in outcome.idle]
    edits = guider.edits
    as_source = not edits and says_the_same(path.positive, edited.positive)
    lines = [reconstruction(change) if as_source else verdict(change, edits, guider.cfg)]
    lines += [f"{name} had no effect on these steps" for name in idle]
    lines += [edit.note for edit in edits if edit.note]
    if sum(isinstance(edit, PromptToPrompt) for edit in edits) > 1:
        lines.append("Of several Prompt-to-Prompt only the last counts")
    if own is not None and own.cfg not in (1, guider.cfg):
        lines.append(f"The path's negative was made for cfg {own.cfg:g}")
    elif own is not None:
        lines.append("negative is not used: the path has its own")
    if path.residuals is not None and not eta:
        lines.append("The path's noise is not used: set eta to 1")
    lines.append(cost(edited.steps, outcome.evaluations))
    figures = {
        "steps": edited.steps,
        "evaluations": outcome.evaluations,
        "cfg": guider.cfg,
        "moved": change,
        "without_effect": idle,
        "kept_bytes": outcome.kept,
    }
    return "\n".join(lines), figures


class Sampler(io.ComfyNode):
    """Edit the image of a path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Sampler",
            display_name="Edit Picture (Diffusion Path Sampler)",
            category=CATEGORY,
            description="Samples the path of a picture again with a new prompt and applies a "
            "chain of edits at every step. Without edits it samples the new prompt "
            "from the source's own noise.",
            search_aliases=[
                "edit image",
                "edit photo",
                "change prompt",
                "replace object",
                "image to image",
                "img2img",
                "SDEdit",
                "MDP",
                "DiffEdit",
                "path sampler",
                "image editing",
            ],
            inputs=[
                *walk_inputs(),
                fraction_input(
                    "start",
                    0.0,
                    "Skips the noisiest part of the path, up to this fraction. Higher keeps more "
                    "of the source and is faster. DiffEdit's encoding ratio r is start = 1 - r.",
                    label="start at",
                ),
                fraction_input(
                    "eta",
                    0.0,
                    "Fresh noise added at each step: 0 = deterministic (DDIM), 1 = DDPM. A path "
                    "of DDPM Inversion needs 1.",
                    advanced=True,
                    label="fresh noise (eta)",
                ),
                seed_input(
                    "Seed of the fresh noise, and of the noise that Resample adds. No effect when "
                    "eta is 0 and there is no Resample.",
                    advanced=True,
                ),
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
                    tooltip="Where the edits let the picture change: the mask of Local Blend, "
                    "Mask Blend or Keep the Background; white everywhere without them. For a "
                    "video, one mask per frame.",
                ),
                io.String.Output(
                    display_name="report", tooltip="The text that the node shows after a run."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @known_before
    def validate_inputs(cls, start) -> None:
        check_start(start)

    @classmethod
    @names_itself
    def execute(
        cls, model, path, positive, negative, cfg, start, eta, seed, edits=()
    ) -> io.NodeOutput:
        check_eta(path.residuals is not None, eta)
        guider, first = guider_for(model, path, positive, negative, cfg, start, edits)
        sampler = PathSampler(eta=eta, seed=seed, first=first, keeps=True)
        levels = path.sigmas[first:]
        end = sample(guider, sampler, path.clean, levels, seed=seed)
        latents = torch.stack([*sampler.latents[:-1], end.to("cpu", torch.float32)])
        residuals = guider.path.residuals
        edited = DiffusionPath(
            sigmas=levels,
            latents=check_sampled(latents),
            positive=positive,
            negative=guider.given["negative"],
            cfg=guider.cfg,
            fingerprint=fingerprint(model),
            edits=brought(path, first),
            solver=by_ddim(guider.path.solver) if eta else guider.path.solver,
            residuals=None if residuals is None or not eta else residuals[first:],
        )
        told, figures = report(path, edited, guider, eta)
        for edit in guider.edits:
            if edit.note:  # an empty one would wipe out what the node has said itself
                show(edit.told_at, edit.note)
        told += f", cfg {guider.cfg:g} (auto)" * (cfg == AUTO)
        return io.NodeOutput(
            on_wire(edited.clean),
            on_wire(path.clean),
            edited,
            mask_of(model, guider.outcome.mask, edited),
            told,
            ui=tell(cls, told, figures=figures),
        )
