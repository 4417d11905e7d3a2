"""Masks of a picture or a video, in number and proportions, and in the size of its latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .path import DiffusionPath


def check_mask(mask: Tensor, path: DiffusionPath, frame_ratio: int | None = None) -> None:
    """Raise if a mask (masks, height, width) does not fit the images or videos of a path.

    Args:
        frame_ratio: how many frames of a video one of its latent's holds; the first one holds one.
            None lets every number of masks pass that is right for some ratio.
    """
    masks, (height, width) = len(mask), mask.shape[-2:]
    batch, sizes = path.latents.shape[1], path.latents.shape[3:]
    rows, columns = path.latents.shape[-2:]
    if not mask.numel():
        raise ValueError(
            f"the mask is {width} x {height}, {masks} of them, and so has no pixel; "
            "connect a mask of the picture's size"
        )
    if len(sizes) == 3 and sizes[0] > 1:
        _check_number(masks, batch, sizes[0], frame_ratio)
    elif masks not in (1, batch):
        raise ValueError(f"the mask holds {masks} masks for {batch} images; give 1 or {batch}")
    if abs(height * columns - width * rows) > max(height, width):
        raise ValueError(
            f"the mask is {width} x {height}, but the path's latent is "
            f"{columns} x {rows}; make the mask with the picture's proportions"
        )


def _check_number(masks: int, videos: int, frames: int, frame_ratio: int | None) -> None:
    """Raise if a number of masks does not fit videos of so many latent frames, two or more."""
    length = frames
    if frame_ratio is not None:
        length = frame_ratio * (frames - 1) + 1
    elif masks > frames and (masks - 1) % (frames - 1) == 0:
        length = masks
    fitting = {frames: "latent frame", length: "frame"}
    if unclear := videos in fitting:
        del fitting[videos]
    elif videos > 1:
        fitting[videos] = "video"
    if masks == 1 or masks in fitting:
        return
    what = "a video" if videos == 1 else f"{videos} videos"
    why = ", one for each video or one for each frame" if unclear and masks == videos else ""
    known = [f"{number} (one for each {one})" for number, one in sorted(fitting.items())]
    raise ValueError(
        f"the mask holds {masks} masks for {what} of {frames} latent frames{why}; "
        f"give {' or '.join(['1', *known])}"
    )


def latent_masks(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (masks, height, width) that `check_mask` has let pass, for a latent.

    The first latent frame of a video has the mask of the first frame; each of the others, where
    the masks are for frames, the largest values of the frames that it holds.

    Args:
        size: the latent's (B, C, ..., h, w).
    Returns:
        Their means over each latent pixel (1 or B, 1, h, w); for a video (1 or B, 1, 1 or T, h, w).
    """
    batch, frames, place = size[0], size[2:-2], size[-2:]
    if len(frames) != 1 or len(mask) in (1, batch):
        small = F.interpolate(mask[:, None], place, mode="area")
        return small.reshape(len(mask), 1, *[1] * len(frames), *place)
    later = mask[1:].unflatten(0, (frames[0] - 1, -1)).amax(dim=1)
    small = F.interpolate(torch.cat([mask[:1], later])[:, None], place, mode="area")
    return small.transpose(0, 1)[None]
