"""A node that says in figures and a picture what an edit has changed."""

from __future__ import annotations

import math

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from .pictures import heat_colours, side_by_side
from .support import CATEGORY, names_itself, tell


def psnr(error: Tensor, where: Tensor) -> float | None:
    """The peak signal-to-noise ratio in dB of squared errors (B, H, W), over `where` (B, H, W);
    infinite without an error, None without a pixel."""
    if not where.any():
        return None
    mean = (error * where).sum() / where.sum()
    return float(-10 * torch.log10(mean))


def decibels(value: float | None) -> str:
    """A PSNR in words."""
    if value is None:
        return "no pixels"
    return f"{value:.1f} dB" if math.isfinite(value) else "identical"


class EditReport(io.ComfyNode):
    """Compare an image before and after an edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_EditReport",
            display_name="Edit Report",
            category=CATEGORY,
            description="Reports how much an edit changed a picture, inside and outside a mask, "
            "and shows before, after and the difference side by side.",
            search_aliases=["compare images", "PSNR", "difference", "before after"],
            inputs=[
                io.Image.Input("before", tooltip="The picture before the edit."),
                io.Image.Input("after", tooltip="The edited picture, of the same size."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the edit belongs. Everything outside counts as background.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The figures as text."),
                io.Image.Output(
                    display_name="image",
                    tooltip="Before, after, and their difference as a heat map.",
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, before, after, mask=None) -> io.NodeOutput:
        if before.shape[1:3] != after.shape[1:3]:
            raise ValueError(
                f"before is {before.shape[2]} x {before.shape[1]}, after is {after.shape[2]} x "
                f"{after.shape[1]}; give two images of one size"
            )
        for name, images in (("before", before), ("after", after)):
            if not bool(torch.isfinite(images).all()):
                raise ValueError(
                    f"{name} holds NaN or infinite values; decode it with the VAE in fp32 "
                    "(--fp32-vae), or look at what made it"
                )
        if len(before) not in (1, len(after)):
            raise ValueError(
                f"before holds {len(before)} images, after {len(after)}; give 1 or {len(after)}"
            )
        before = before[..., :3].cpu().expand(len(after), -1, -1, -1)
        after = after[..., :3].cpu()
        error = (after - before).square().mean(dim=-1)
        ratios = {"psnr": psnr(error, torch.ones_like(error))}
        if mask is not None:
            inside = comfy.utils.reshape_mask(mask.cpu(), (len(after), 1, *error.shape[1:]))[:, 0]
            inside = (inside.expand_as(error) > 0.5).to(error)
            ratios |= {"inside": psnr(error, inside), "background": psnr(error, 1 - inside)}
        changed = float((error.sqrt() > 0.1).float().mean())
        names = {"psnr": "PSNR", "inside": "inside the mask", "background": "background"}
        told = [f"{names[name]} {decibels(value)}" for name, value in ratios.items()]
        text = f"{changed:.0%} of the pixels changed visibly\n" + "; ".join(told)
        finite = {name: value if value != math.inf else None for name, value in ratios.items()}
        figures = {"changed": changed, "identical": not error.any(), **finite}
        difference = heat_colours(
            error.sqrt() / error.sqrt().amax((1, 2), keepdim=True).clamp(min=0.1)
        )
        picture = side_by_side(before, after, difference)
        return io.NodeOutput(text, picture, ui=tell(cls, text, picture, figures))
