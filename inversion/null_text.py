"""Null-text inversion (Mokady et al., CVPR 2023, arXiv 2211.09794): CFG that reproduces.

A path inverted without guidance is not retraced with guidance. For each step of it, from noisy to
clean, an embedding is found for the unconditional prediction such that the guided step lands on
the path's next latent (algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser, Query
from ..core.diffusion import Progress, as_it_is, derivative, no_progress

Optimizer = Literal["line search", "adam"]
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)


@dataclass(frozen=True, kw_only=True)
class Found:
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
    from_source: bool = False,
    cfg: float = 7.5,
    inner_steps: int = 10,
    optimizer: Optimizer = "line search",
    learning_rate: float = 1e-2,
    early_stop: float = 8e-6,
    bring: Callable[[Tensor], Tensor] = as_it_is,
    progress: Progress = no_progress,
) -> Found:
    """Find the embeddings with which guidance retraces a path that was inverted without it.

    Each step starts from the latent that was reached, so that later steps repair what earlier
    ones have missed; and from the embedding of the step before, as in the paper. But from the
    source prompt, every step starts again: it is nearly right (negative-prompt inversion, Miyake
    et al. 2023, arXiv 2305.16807), and its estimate is there already where a model does not tell
    a negative from a positive.

    Args:
        latents: the path (N + 1, B, C, ...), from noisy to clean, or only its noisy part.
        sigmas: the noise levels of the whole path (N + 1,), strictly falling.
        condition: the source prompt.
        null: the negative to start from: the paper's is the empty prompt.
        from_source: whether that is the source prompt itself.
        cfg: the CFG to reproduce the picture with; made by the model's own guidance functions.
        inner_steps: at most as many iterations a step.
        optimizer: "adam" is the reference's; "line search" needs a fraction of its evaluations.
        learning_rate: Adam's at the noisy end; at the clean end it is half of this.
        early_stop: the mean squared error at which a step is done, in latents of unit variance,
            at the noisy end; it grows along a line to 101 times as much at the clean end. The
            reference's is 1e-5.
        bring: makes of one of the latents what the denoiser reads, such as a copy on its device.
        progress: told of each inner iteration; each step has `inner_steps` of them.
    """
    optimize = adam if optimizer == "adam" else LineSearch()
    steps, levels = len(sigmas) - 1, sigmas.tolist()
    embeddings, losses = [], []
    known = denoiser.same(condition, null)
    with denoiser.differentiable(), torch.no_grad():
        x = bring(latents[0]).clone()
        start = embedding = denoiser.embedding(null).clone().expand(len(x), -1, -1)
        for i in range(len(latents) - 1):
            query, target = Query(x, condition), bring(latents[i + 1]).clone()
            step = GuidedStep(denoiser, query, target, levels[i], levels[i + 1], null, cfg)
            if not (from_source and known):
                (step.cond,) = denoiser.predict([query], levels[i]).denoised
            look = step.look(start if from_source else embedding)
            look, tried = optimize(
                step,
                look,
                inner_steps=inner_steps,
                learning_rate=learning_rate * (1 - 0.5 * i / steps),
                stop=threshold(early_stop, i, steps),
                tell=partial(tell, progress, step, range(i * inner_steps, (i + 1) * inner_steps)),
            )
            embedding, uncond = look.embedding, look.uncond
            del look  # and what it stores for the backward pass
            x = step.land(uncond)
            embeddings.append(embedding.cpu())
            losses.append(tried)
            progress((i + 1) * inner_steps - 1, step.guided(uncond), x)
    return Found(
        embeddings=torch.stack(embeddings),
        losses=losses,
        gradients=sum(len(tried) - 1 for tried in losses),
    )


def threshold(early_stop: float, i: int, steps: int) -> float:
    """The loss at which step `i` is done: 1e-5 + i * 2e-5 for the reference's 1e-5 and 50 steps."""
    return early_stop * (1 + 100 * i / steps)


@dataclass
class GuidedStep:
    """One step of the path under guidance, as a function of its unconditional embedding.

    Attributes:
        query: the step's latent and the source prompt.
        cond: the conditional estimate (B, C, ...); None until the first embedding looked at, which
            is then the prompt's own.
    """

    denoiser: Denoiser
    query: Query
    target: Tensor
    sigma: float
    sigma_next: float
    null: Condition
    cfg: float
    cond: Tensor | None = None

    def look(self, embedding: Tensor) -> Look:
        """Try an embedding, and store what the backward pass needs."""
        with torch.enable_grad():
            embedding = embedding.detach().clone().requires_grad_()
            null = self.denoiser.with_embedding(self.null, embedding)
            (uncond,) = self.denoiser.predict([Query(self.query.x, null)], self.sigma).denoised
            if self.cond is None:
                self.cond = uncond.detach()
            miss = self.denoiser.mixing.rescale(self.land(uncond) - self.target, self.sigma_next, 0)
            return Look(embedding, uncond, miss.flatten(1))

    def guided(self, uncond: Tensor) -> Tensor:
        """The estimate under guidance (B, C, ...)."""
        assert self.cond is not None
        return self.denoiser.guide(self.cond, uncond, self.cfg, self.query, self.null, self.sigma)

    def land(self, uncond: Tensor) -> Tensor:
        """Where the guided step ends (B, C, ...)."""
        slope = derivative(self.query.x, self.guided(uncond), self.sigma)
        return self.query.x + (self.sigma_next - self.sigma) * slope


class Look:
    """An embedding that was tried.

    Attributes:
        embedding: (B, tokens, width).
        uncond: the unconditional estimate under it (B, C, ...).
        miss: how far from the path that leads (B, numbers), at unit variance.
        loss: the mean square of that (B,).
        mixed: of which two it is made, and for which pictures (B,) the first counts.
    """

    def __init__(
        self,
        embedding: Tensor,
        uncond: Tensor,
        miss: Tensor,
        mixed: tuple[Tensor, Look, Look] | None = None,
    ) -> None:
        self._embedding, self._miss, self._mixed = embedding, miss, mixed
        self.embedding, self.uncond, self.miss = embedding.detach(), uncond.detach(), miss.detach()
        self.loss = self.miss.square().mean(dim=1)

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of the loss (B, tokens, width); the backward pass can run once.

        Backwards goes a vector of the size that half precision likes best.
        """
        if self._mixed is not None:
            better, one, other = self._mixed
            return pick(better, one.gradient, other.gradient)
        if not self._miss.requires_grad:  # the negative is not in use at this noise level
            return torch.zeros_like(self.embedding)
        size = self.loss.sqrt().clamp(min=1e-12)[:, None]
        (gradient,) = torch.autograd.grad(self._miss, self._embedding, self.miss / size)
        return gradient * (2 * size / self.miss.shape[1])[..., None]

    def or_else(self, other: Look, better: Tensor) -> Look:
        """This one for the pictures that are `better` (B,), for the rest the other."""
        if bool(better.all()):
            return self
        return Look(
            pick(better, self.embedding, other.embedding),
            pick(better, self.uncond, other.uncond),
            pick(better, self.miss, other.miss),
            mixed=(better, self, other),
        )


def pick(better: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` for the pictures `better` (B,), `b` for the others."""
    return torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b)


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
        look: Look,
        *,
        inner_steps: int,
        learning_rate: float,
        stop: float,
        tell: Tell,
    ) -> tuple[Look, list[Tensor]]:
        """What was found, and the losses on the way; the learning rate is not read."""
        losses = [look.loss]
        for iteration in range(inner_steps):
            if bool((look.loss < stop).all()):
                break
            gradient = look.gradient
            if not bool(gradient.any()):
                break
            size = gradient.square().mean(dim=(1, 2), keepdim=True).sqrt()
            direction = -gradient / (gradient.abs() + size).clamp(min=1e-30)
            fall = -(gradient * direction).sum(dim=(1, 2))
            length = self.scale * look.loss / fall.clamp(min=1e-30)
            direction = length[:, None, None] * direction
            trial = step.look(look.embedding + direction)
            change = trial.miss - look.miss
            best = -(look.miss * change).sum(dim=1) / change.square().sum(dim=1).clamp(min=1e-30)
            far = (best - 1).abs() > CLOSE_ENOUGH
            if bool(far.any()):
                best = torch.where(far, best.clamp(0.05, 4), 1.0)
                self.scale = self.scale * best
                del trial  # the memory of two ways back is not needed
                trial = step.look(look.embedding + best[:, None, None] * direction)
            better = (trial.loss < look.loss) & (look.loss >= stop)
            if bool(better.any()):
                look = trial.or_else(look, better)
            losses.append(look.loss)
            tell(iteration, look.uncond)
            if not bool(better.any()):
                break
        return look, losses


def adam(
    step: GuidedStep,
    look: Look,
    *,
    inner_steps: int,
    learning_rate: float,
    stop: float,
    tell: Tell,
) -> tuple[Look, list[Tensor]]:
    """The reference's: a new Adam for each step, whose first iteration is always taken."""
    parameter = look.embedding.clone()
    optimizer = torch.optim.Adam([parameter], lr=learning_rate)
    losses = [look.loss]
    going_on = torch.ones_like(look.loss, dtype=torch.bool)
    for iteration in range(inner_steps):
        before, parameter.grad = parameter.clone(), look.gradient
        optimizer.step()
        parameter.copy_(pick(going_on, parameter, before))
        going_on = going_on & (look.loss >= stop)
        tell(iteration, look.uncond)
        look = step.look(parameter)
        losses.append(look.loss)
        if not bool(going_on.any()):
            break
    return look, losses


def tell(progress: Progress, step: GuidedStep, part: range, iteration: int, uncond: Tensor) -> None:
    """Report an iteration as progress, but for the last one, which is reported with the step."""
    if iteration < len(part) - 1:
        progress(part[iteration], step.guided(uncond), step.query.x)
