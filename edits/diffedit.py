"""DiffEdit (Couairon et al., ICLR 2023, arXiv 2210.11427): find what changes, keep the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from ..core.denoiser import Condition, Denoiser, Query, ddim_sampling
from ..core.diffusion import Progress, no_progress
from ..core.edit import Edit, Step, WeightCurve
from ..core.masks import latent_masks
from ..core.path import Source

Method = Literal["noise", "x0", "denoise"]
METHODS: tuple[str, ...] = get_args(Method)
CLAMP = 3.0
"""Differences above 3 times their mean count as 3 times (diffusers' `mask_thresholding_ratio`)."""


def difference(
    denoiser: Denoiser,
    x0: Tensor,
    noises: Sequence[Tensor],
    sigmas: Tensor,
    source: Condition,
    target: Condition,
    method: Method = "noise",
    progress: Progress = no_progress,
) -> Tensor:
    """How much two prompts disagree about each place of an image (section 3.1, step 1).

    The clean estimates under both prompts are compared. At one noise level the predicted noise
    differs from them by a constant factor only, which `heat` divides out; so the methods "noise"
    and "x0" share this part. "denoise" compares the images sampled all the way under each prompt.

    Args:
        x0: clean latent (B, C, ..., H, W).
        noises: a draw of unit variance like `x0` for each of the n maps to average over.
        sigmas: noise levels, strictly falling; the image is noised to the first one.
    Returns:
        The mean absolute difference over maps and channels, and over frames (B, H, W).
    Cost:
        2n network evaluations; for "denoise" 2n for each step of `sigmas`.
    """
    levels = sigmas.tolist()
    sigma, total = levels[0], torch.zeros(len(x0), *x0.shape[-2:], device=x0.device)
    for i, noise in enumerate(noises):
        x = denoiser.mixing.noised(x0, noise, sigma)
        if method == "denoise":
            a, b = (ddim_sampling(denoiser, x, levels, c) for c in (source, target))
        else:
            a, b = denoiser.predict([Query(x, source), Query(x, target)], sigma).denoised
        total += (b - a).abs().flatten(1, -3).mean(dim=1)
        progress(i, b, x)
    return total / len(noises)


def heat(difference: Tensor, method: Method = "noise") -> Tensor:
    """The difference (B, H, W) as 0 to 1, so that 0.5 is each method's published threshold.

    "noise" and "denoise" divide by 3 times the mean, as diffusers does (mask: above 1.5 means).
    "x0" maps the z-scores -3 to 3, as FastDiffEdit thresholds z > 0 (mask: above the mean).
    """
    mean = difference.mean(dim=(1, 2), keepdim=True)
    if method == "x0":
        deviation = difference.std(dim=(1, 2), keepdim=True, correction=0)
        return (0.5 + (difference - mean) / (6 * deviation).clamp(min=1e-12)).clamp(0, 1)
    return (difference / (CLAMP * mean).clamp(min=1e-12)).clamp(max=1)


def threshold_mask(heat: Tensor, threshold: float, blur: int = 0) -> Tensor:
    """1 where `heat` (B, H, W) is above the threshold, else 0; then a Gaussian blur of that radius.

    The kernel has 2 * blur + 1 pixels a side; blur 1 is FastDiffEdit's 3 x 3.
    """
    mask = (heat > threshold).float()
    return blurred(mask, blur) if blur else mask


def blurred(mask: Tensor, radius: int) -> Tensor:
    """A mask (B, H, W) after a Gaussian blur of a radius of 1 pixel or more."""
    offsets = torch.arange(-radius, radius + 1, dtype=mask.dtype, device=mask.device)
    kernel = torch.exp(-0.5 * (2 * offsets / radius) ** 2)
    kernel = kernel / kernel.sum()
    for size in ((1, 1, -1, 1), (1, 1, 1, -1)):
        weights = kernel.view(size)
        edge = (0, 0, radius, radius) if size[2] == -1 else (radius, radius, 0, 0)
        mask = F.conv2d(F.pad(mask[:, None], edge, mode="replicate"), weights)[:, 0]
    return mask


@dataclass(frozen=True, kw_only=True)
class MaskBlend(Edit):
    """Keep the source outside the mask: `x* = m x + (1 - m) x_A` after each step (section 3.1, 3).

    Attributes:
        mask: (masks, height, width), 0 (source) to 1 (edit), of the picture's proportions: 1, or
            one for each picture, of a video also for each frame. Prepared, it is the latent's.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
        weight_curve: how much of the source to put back outside the mask, over that schedule;
            None is all.
    """

    hint: ClassVar[str] = "make the mask larger, or lower start of the sampler"
    keeps: ClassVar[str] = "make the mask smaller"

    mask: Tensor
    start: float = 0.0
    end: float = 1.0
    weight_curve: WeightCurve | None = None

    @property
    def masks(self) -> Sequence[Tensor]:
        return (self.mask,)

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end)

    def prepare(self, source: Source, device: torch.device, dtype: torch.dtype) -> Self:
        mask = self.mask.to(device, torch.float32)
        return replace(self, mask=latent_masks(mask, source.path.clean.shape))

    def latent(self, step: Step, x: Tensor) -> Tensor:
        if step.index not in self.steps(step.source):
            return x
        mask = self.changes(step)
        return mask * x + (1 - mask) * step.after

    def changes(self, step: Step) -> Tensor:
        if self.weight_curve is None:
            return self.mask
        return 1 - self.weight_curve(step.source.fraction(step.index)) * (1 - self.mask)
