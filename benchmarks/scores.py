"""How near an edited picture is to the rendered truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..demo.judge import Judge, truth
from ..demo.world import Edit
from .batch import to_uint8
from .techniques import Edited

LATENT_GRID = 16
"""Masks are compared on the cells that a technique can tell apart: the latent's."""


@dataclass(frozen=True)
class Score:
    """One edited picture against the truth.

    Attributes:
        psnr: over the whole picture, in dB.
        inside, outside: over the pixels that the edit changes, and over the rest.
        confirmed: whether the judge sees the target scene, all of it and nothing else.
        iou: of the mask found and the true one; None for techniques without a mask.
        direction: CLIP's directional similarity, -1 to 1; None where it was not measured.
    """

    psnr: float
    inside: float
    outside: float
    confirmed: bool
    iou: float | None
    direction: float | None = None


@torch.no_grad()
def score(edited: Edited, edits: list[Edit], judge: Judge) -> list[Score]:
    """The scores of a batch of edits."""
    pictures = to_uint8(edited.images)
    verdicts = judge.verdict(pictures)
    masks = [None] * len(edits) if edited.masks is None else list(edited.masks)
    turned = directions(pictures, edits)
    scores = []
    for picture, verdict, mask, edit, direction in zip(
        pictures, verdicts, masks, edits, turned, strict=True
    ):
        error = ((picture.astype(float) - edit.after) / 255) ** 2
        scores.append(
            Score(
                psnr=psnr(error),
                inside=psnr(error[edit.mask]),
                outside=psnr(error[~edit.mask]),
                confirmed=verdict == truth(edit.target),
                iou=None if mask is None else iou(mask, torch.from_numpy(edit.mask)),
                direction=direction,
            )
        )
    return scores


def directions(pictures: np.ndarray, edits: Sequence[Edit]) -> list[float]:
    """How much each picture has changed as its prompt has: the cosine between the two differences
    in the demo CLIP's space, 0 where nothing has changed (StyleGAN-NADA, arXiv 2108.00946,
    section 4)."""
    before = picture_vectors(np.stack([edit.before for edit in edits]))
    source = torch.cat([prompt_vector(edit.source_prompt) for edit in edits])
    target = torch.cat([prompt_vector(edit.target_prompt) for edit in edits])
    return F.cosine_similarity(picture_vectors(pictures) - before, target - source).tolist()


def picture_vectors(pictures: np.ndarray) -> Tensor:
    """The demo CLIP's unit vectors of uint8 pictures (N, H, W, 3)."""
    images = torch.from_numpy(pictures).float() / 255
    return F.normalize(_vision().encode_image(images)["image_embeds"].float(), dim=-1)


@cache
def prompt_vector(prompt: str) -> Tensor:
    """The demo CLIP's unit vector of a prompt, (1, width)."""
    from ..host.clip import text_vector

    return text_vector(_clip(), prompt, _vision().config["projection_dim"]).cpu()


@cache
def _clip() -> Any:
    from ..demo.loader import load_clip

    return load_clip()


@cache
def _vision() -> Any:
    from ..demo.loader import load_clip_vision

    return load_clip_vision()


def mean(scores: list[Score], name: str) -> float | None:
    """The mean of one figure; None if there is none."""
    values = [getattr(one, name) for one in scores]
    return fmean(values) if None not in values else None


def psnr(squared_error: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, infinite where there is no error."""
    error = float(squared_error.mean())
    return float(-10 * np.log10(error)) if error else float("inf")


def iou(found: Tensor, true: Tensor) -> float:
    """Intersection over union of two masks (height, width), each of any size.

    Both are averaged over the latent's cells; a cell belongs to a mask that covers half of it.
    """
    a, b = (
        F.adaptive_avg_pool2d(one[None, None].float(), LATENT_GRID) >= 0.5 for one in (found, true)
    )
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
