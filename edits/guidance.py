"""Guidance by a gradient: what the predicted picture should look like pulls at every step.

Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 2) with an energy of the
predicted clean picture in place of a classifier of noisy ones, as CLIP guidance has it in diffusers
and SDG (Liu et al. 2023, arXiv 2112.05744) with pictures to refer to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.denoiser import Query
from ..core.diffusion import noise_level
from ..core.edit import Edit, Need, Step
from ..core.path import DiffusionPath, Source

Energy = Callable[[Tensor, Step], Tensor]
"""How far predicted clean latents (B, C, H, W), in the model's own scale, are from what is wanted
(B,), at a step; with a gradient."""


@dataclass(frozen=True, kw_only=True)
class Guidance(Edit):
    """`eps* = eps + scale s grad_x E(D(x, sigma, c))`, s being the noise in parts of the signal.

    The gradient goes through the network, as in the published codes, at guidance 1. It costs one
    evaluation a step, and a backward pass.

    Attributes:
        energy: what is to become small.
        models: what of the host's computes it.
        scale: how hard it pulls; 0 is not at all.
        start, end: the window as fractions of the model's schedule, 0 is its noisy end.
    """

    hint: ClassVar[str] = "raise the scale or the end of CLIP Guidance"
    keeps: ClassVar[str] = "lower the scale or raise the start of CLIP Guidance"
    needs: ClassVar[Need] = Need.GRADIENTS

    energy: Energy
    models: Sequence[Any] = ()
    scale: float = 100.0
    start: float = 0.0
    end: float = 1.0

    def check(self, path: DiffusionPath) -> None:
        if path.clean.ndim != 4:
            raise ValueError(
                "CLIP Guidance sees pictures, and this model's latents are a video's; use FlowEdit "
                "or MDP Epsilon"
            )

    def steps(self, source: Source) -> range:
        return source.window(self.start, self.end)

    def prediction(self, step: Step, d: Tensor) -> Tensor:
        if not self.scale or step.index not in self.steps(step.source):
            return d
        with step.denoiser.differentiable(), torch.enable_grad():
            x = step.x.clone().requires_grad_()
            (clean,) = step.denoiser.predict([Query(x, step.condition)], step.sigma).denoised
            (gradient,) = torch.autograd.grad(self.energy(clean, step).sum(), x)
        level = noise_level(step.sigma, step.denoiser.mixing.flow)
        return d + self.scale * level * gradient
