"""A node that puts the photograph's own pixels back outside a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..edits.diffedit import blurred
from .support import CATEGORY, masks_of, names_itself

CROPPED = 64
"""VAEs make a picture smaller by less than as many pixels."""

TOLERANCE = 0.02
"""How far the proportions of a mask may be off."""


def feathered(mask: Tensor, feather: int) -> Tensor:
    """A mask (B, H, W) that is whole where it was, and falls to 0 within `feather` pixels."""
    if not feather:
        return mask
    side, reach = 2 * (feather // 2) + 1, feather - feather // 2
    wider = F.max_pool2d(mask[:, None], side, stride=1, padding=side // 2)[:, 0]
    return torch.maximum(blurred(wider, reach), mask)


class Composite(io.ComfyNode):
    """The edited picture inside a mask, the original outside."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Composite",
            display_name="Put the Original Back (Composite Edit)",
            category=CATEGORY,
            description="Puts the original pixels back outside the mask. Without it, the VAE "
            "changes the whole picture a little.",
            search_aliases=["paste back", "keep background", "image composite masked", "stitch"],
            inputs=[
                io.Image.Input("original", tooltip="The photo that you connected to VAE Encode."),
                io.Image.Input("edited", tooltip="The edited picture, from VAE Decode."),
                io.Mask.Input(
                    "mask",
                    tooltip="White = edited, black = original. The sampler's mask output fits.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Width of the soft edge around the mask, in pixels.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The composite."),
                io.Mask.Output(display_name="mask", tooltip="The mask with its soft edge."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, original, edited, mask, feather) -> io.NodeOutput:
        frames, height, width = original.shape[:3]
        if len(edited) != frames:
            raise ValueError(
                f"original holds {frames} pictures and edited {len(edited)}; connect as many"
            )
        if original.shape[-1] != edited.shape[-1]:
            raise ValueError(
                f"original has {original.shape[-1]} channels and edited {edited.shape[-1]}; "
                "connect pictures of one kind"
            )
        rows, columns = edited.shape[1:3]
        if not (0 <= height - rows < CROPPED and 0 <= width - columns < CROPPED):
            raise ValueError(
                f"original is {width} x {height} pixels and edited {columns} x {rows}; resize one "
                "of them"
            )
        # VAE Encode crops a picture around its centre to whole cells of the latent.
        top, left = (height - rows) // 2, (width - columns) // 2
        inner = original[:, top : top + rows, left : left + columns]
        masks = masks_of(mask).to(original.device)
        if len(masks) not in (1, frames):
            raise ValueError(
                f"there are {len(masks)} masks for {frames} pictures; give one, or one for each"
            )
        if masks.shape[-2:] == (height, width):
            masks = masks[:, top : top + rows, left : left + columns]
        elif abs(masks.shape[-1] * rows - masks.shape[-2] * columns) > TOLERANCE * rows * columns:
            raise ValueError(
                f"the mask is {masks.shape[-1]} x {masks.shape[-2]} pixels and edited {columns} x "
                f"{rows}; give a mask of the same proportions"
            )
        else:
            masks = F.interpolate(masks[:, None], (rows, columns), mode="bilinear")[:, 0]
        masks = feathered(masks, feather)[..., None]
        image = original.clone()
        image[:, top : top + rows, left : left + columns] = torch.where(
            masks == 0, inner, torch.lerp(inner, edited.to(inner), masks)
        )
        whole = F.pad(
            masks[..., 0], (left, width - columns - left, top, height - rows - top)
        ).expand(frames, -1, -1)
        return io.NodeOutput(image, whole)
