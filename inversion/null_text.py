"""Null-text inversion (Mokady et al., CVPR 2023, arXiv 2211.09794): guidance that leads back.

A path inverted without guidance is not retraced with guidance. For each step of it, from noisy to
clean, an embedding is found for the unconditional prediction such that the guided step lands on
the path's next latent (algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ..samplers.diffusion import Condition, Denoiser, Progress, derivative, guidance, no_progress

Optimizer = Literal["line search", "adam"]
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)


@dataclass(frozen=True, kw_only=True)
class NullText:
    """What null-text inversion has found.

    Attributes:
        embeddings: one for each step (N, B, tokens, width), float32.
        losses: for each step the losses (B,) of the embeddings that were tried, in their order;
            the last is that of the embedding kept.
        gradients: how many backward evaluations it took.
    """

    embeddings: Tensor
    losses: list[list[Tensor]]
    gradients: int


def null_text_inversion(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    condition: Condition,
    null: Condition,
    *,
    cfg: float = 7.5,
    inner_steps: int = 10,
    optimizer: Optimizer = "line search",
    learning_rate: float = 1e-2,
    early_stop: float = 1e-5,
    progress: Progress = no_progress,
) -> NullText:
    """Find the embeddings with which guidance retraces a path that was inverted without it.

    Each step starts from the latent that was reached, so that later steps repair what earlier
    ones have missed; and from the embedding of the step before, as in the paper. But if `null` is
    the source prompt itself, every step starts from that again: it is nearly right, and its
    estimate is there already, since it is the conditional one (negative-prompt inversion, Miyake
    et al. 2023, arXiv 2305.16807).

    Args:
        latents: the path (N + 1, B, C, ...), from noisy to clean, or only its noisy part.
        sigmas: the noise levels of the whole path (N + 1,), strictly falling.
        condition: the source prompt.
        null: what to start from: the paper's is the empty prompt; or `condition`, the same object.
        inner_steps: at most as many iterations a step.
        optimizer: "adam" is the reference's; "line search" needs a fraction of its evaluations.
        learning_rate: Adam's at the noisy end; at the clean end it is half of this.
        early_stop: the mean squared error at which a step is done, in latents of unit variance,
            at the noisy end; it grows along a line to 101 times as much at the clean end.
        progress: told of each inner iteration; each step has `inner_steps` of them.
    """
    optimize = adam if optimizer == "adam" else LineSearch()
    steps, levels = len(sigmas) - 1, sigmas.tolist()
    embeddings, losses = [], []
    with denoiser.differentiable(), torch.no_grad():
        latents = latents.clone()
        x = latents[0]
        start = embedding = denoiser.embedding(null).clone().expand(len(x), -1, -1)
        current = null
        for i in range(len(latents) - 1):
            if null is condition:
                embedding, current = start, null
            cond, uncond = denoiser(x, levels[i], [condition, current])
            below = levels[i + 1]
            step = GuidedStep(denoiser, x, latents[i + 1], levels[i], below, cond, null, cfg)
            found, uncond, tried = optimize(
                step,
                embedding,
                uncond,
                inner_steps=inner_steps,
                learning_rate=learning_rate * (1 - 0.5 * i / steps),
                stop=threshold(early_stop, i, steps),
                tell=partial(tell, progress, step, range(i * inner_steps, (i + 1) * inner_steps)),
            )
            if found is not embedding:
                embedding, current = found, denoiser.with_embedding(null, found)
            x = step.land(uncond)
            embeddings.append(embedding)
            losses.append(tried)
            progress((i + 1) * inner_steps - 1, guidance(uncond, cond, cfg), x)
    return NullText(
        embeddings=torch.stack(embeddings),
        losses=losses,
        gradients=sum(len(tried) - 1 for tried in losses),
    )


def threshold(early_stop: float, i: int, steps: int) -> float:
    """The loss at which step `i` is done: 1e-5 + i * 2e-5 for the reference's 1e-5 and 50 steps."""
    return early_stop * (1 + 100 * i / steps)


@dataclass(frozen=True)
class GuidedStep:
    """One step of the path under guidance, as a function of its unconditional embedding."""

    denoiser: Denoiser
    x: Tensor
    target: Tensor
    sigma: float
    sigma_next: float
    cond: Tensor
    null: Condition
    cfg: float

    def uncond(self, embedding: Tensor) -> Tensor:
        """The unconditional estimate (B, C, ...)."""
        null = self.denoiser.with_embedding(self.null, embedding)
        return self.denoiser(self.x, self.sigma, [null])[0]

    def land(self, uncond: Tensor) -> Tensor:
        """Where the guided step ends (B, C, ...): an affine function of the estimate."""
        slope = derivative(self.x, guidance(uncond, self.cond, self.cfg), self.sigma)
        return self.x + (self.sigma_next - self.sigma) * slope

    def miss(self, uncond: Tensor) -> Tensor:
        """How far from the path that is (B, numbers), at unit variance."""
        miss = self.land(uncond) - self.target
        return self.denoiser.mixing.rescale(miss, self.sigma_next, 0).flatten(1)

    def gradient(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional estimate, and the gradient of the mean squared miss.

        Backwards goes a vector of the size that half precision likes best.
        """
        with torch.enable_grad():
            embedding = embedding.detach().clone().requires_grad_()
            uncond = self.uncond(embedding)
            miss = self.miss(uncond)
        uncond = uncond.detach()
        size = miss.detach().square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        (gradient,) = torch.autograd.grad(miss, embedding, miss.detach() / size)
        return uncond, gradient * (2 * size / miss.shape[1])[..., None]


def mean_square(miss: Tensor) -> Tensor:
    """The loss of each picture (B,)."""
    return miss.square().mean(dim=1)


Found = tuple[Tensor, Tensor, list[Tensor]]
"""An embedding, the unconditional estimate under it, and the losses of all that were tried."""

Tell = Callable[[int, Tensor], None]
"""Called with each iteration's number and its unconditional estimate."""

CLOSE_ENOUGH = 0.35
"""A trial of the line search is taken if the minimum lies within this part of its length."""


class LineSearch:
    """Nearly sign descent, each iteration to the minimum along its direction.

    Large numbers of the gradient count alike, which spreads the change over all tokens: each
    changes little, and there the miss is nearly affine, so that a trial tells where the minimum
    is. Its length is Polyak's, known because the loss can fall to 0, times what the last ones
    were short of. What does not lower a picture's loss is not taken.
    """

    def __init__(self) -> None:
        self.scale: Tensor | float = 1.0

    def __call__(
        self,
        step: GuidedStep,
        embedding: Tensor,
        uncond: Tensor,
        *,
        inner_steps: int,
        learning_rate: float,
        stop: float,
        tell: Tell,
    ) -> Found:
        """The learning rate is not read."""
        miss = step.miss(uncond)
        losses = [mean_square(miss)]
        for iteration in range(inner_steps):
            loss = losses[-1]
            if bool((loss < stop).all()):
                break
            _, gradient = step.gradient(embedding)
            size = gradient.square().mean(dim=(1, 2), keepdim=True).sqrt()
            direction = -gradient / (gradient.abs() + size).clamp(min=1e-30)
            slope = -(gradient * direction).sum(dim=(1, 2))
            direction = (self.scale * loss / slope.clamp(min=1e-30))[:, None, None] * direction
            trial = embedding + direction
            trial_uncond = step.uncond(trial)
            change = step.miss(trial_uncond) - miss
            best = -(miss * change).sum(dim=1) / change.square().sum(dim=1).clamp(min=1e-30)
            far = (best - 1).abs() > CLOSE_ENOUGH
            if bool(far.any()):
                best = torch.where(far, best.clamp(0.05, 4), 1.0)
                trial = embedding + best[:, None, None] * direction
                trial_uncond = step.uncond(trial)
                self.scale = self.scale * best
            trial_miss = step.miss(trial_uncond)
            better = (mean_square(trial_miss) < loss) & (loss >= stop)
            embedding = torch.where(better[:, None, None], trial, embedding)
            uncond = torch.where(better.view(-1, *[1] * (uncond.ndim - 1)), trial_uncond, uncond)
            miss = torch.where(better[:, None], trial_miss, miss)
            losses.append(mean_square(miss))
            tell(iteration, uncond)
            if not bool(better.any()):
                break
        return embedding, uncond, losses


def adam(
    step: GuidedStep,
    embedding: Tensor,
    uncond: Tensor,
    *,
    inner_steps: int,
    learning_rate: float,
    stop: float,
    tell: Tell,
) -> Found:
    """The reference's: a new Adam for each step, whose first iteration is always taken."""
    parameter = embedding.clone()
    optimizer = torch.optim.Adam([parameter], lr=learning_rate)
    losses: list[Tensor] = []
    going_on = torch.ones(len(embedding), 1, 1, dtype=torch.bool, device=embedding.device)
    for iteration in range(inner_steps):
        before = parameter.clone()
        uncond, parameter.grad = step.gradient(parameter)
        losses.append(mean_square(step.miss(uncond)))
        optimizer.step()
        parameter.copy_(torch.where(going_on, parameter, before))
        going_on = going_on & (losses[-1] >= stop)[:, None, None]
        tell(iteration, uncond)
        if not bool(going_on.any()):
            break
    uncond = step.uncond(parameter)
    return parameter, uncond, [*losses, mean_square(step.miss(uncond))]


def tell(progress: Progress, step: GuidedStep, part: range, iteration: int, uncond: Tensor) -> None:
    """Report an iteration as progress, but for the last one, which is reported with the step."""
    if iteration < len(part) - 1:
        progress(part[iteration], guidance(uncond, step.cond, step.cfg), step.x)
