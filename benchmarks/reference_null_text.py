"""Null-text inversion as published (Mokady et al., CVPR 2023), on diffusers: what ours is held to.

Written from the paper and its settings: 50 steps, guidance 7.5, a new Adam for each step with the
rate `1e-2 * (1 - i / 100)`, at most 10 iterations, until the loss is below `1e-5 + i * 2e-5`. One
network call for each condition, one picture at a time, float32. Its weights are told to need no
gradient, which the authors' notebook forgets: that is to the reference's advantage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

STEPS, GUIDANCE, INNER_STEPS = 50, 7.5, 10


@dataclass
class Reference:
    """The algorithm on a pipeline, counting what it asks of the network.

    Attributes:
        forward, backward: network evaluations so far; one is one latent under one prompt.
    """

    pipeline: StableDiffusionPipeline
    forward: int = 0
    backward: int = 0

    def __post_init__(self) -> None:
        self.pipeline.unet.requires_grad_(False)
        self.pipeline.scheduler.set_timesteps(STEPS)
        self.timesteps = self.pipeline.scheduler.timesteps.tolist()
        alphas = self.pipeline.scheduler.alphas_cumprod
        self.alphas = [float(alphas[t]) for t in self.timesteps] + [float(alphas[0])]

    def encode(self, prompt: str) -> Tensor:
        """A prompt's embedding (1, tokens, width)."""
        with torch.no_grad():
            return self.pipeline.encode_prompt(prompt, "cpu", 1, False)[0]

    def noise(self, x: Tensor, i: int, embedding: Tensor) -> Tensor:
        """The noise predicted for step `i`."""
        self.forward += 1
        return self.pipeline.unet(x, self.timesteps[i], encoder_hidden_states=embedding).sample

    def move(self, x: Tensor, noise: Tensor, here: float, there: float) -> Tensor:
        """A DDIM step from one level of signal to another."""
        clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
        return there**0.5 * clean + (1 - there) ** 0.5 * noise

    def optimize(
        self, path: list[Tensor], source: Tensor, null: Tensor, steps: int = STEPS
    ) -> tuple[list[Tensor], list[list[float]]]:
        """The embedding of each step, and the losses on the way to it.

        Args:
            path: latents of unit variance from noisy to clean, by DDIM inversion at guidance 1.
            steps: only the first ones.
        """
        embeddings: list[Tensor] = []
        losses: list[list[float]] = []
        x = path[0]
        for i in range(steps):
            null = null.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
            with torch.no_grad():
                conditional = self.noise(x, i, source)
            losses.append([])
            for _ in range(INNER_STEPS):
                unconditional = self.noise(x, i, null)
                guided = unconditional + GUIDANCE * (conditional - unconditional)
                landed = self.move(x, guided, self.alphas[i], self.alphas[i + 1])
                loss = F.mse_loss(landed, path[i + 1])
                optimizer.zero_grad()
                loss.backward()
                self.backward += 1
                optimizer.step()
                losses[-1].append(loss.item())
                if losses[-1][-1] < 1e-5 + i * 2e-5:
                    break
            embeddings.append(null.detach())
            x = self.step(x, i, source, null)
        return embeddings, losses

    @torch.no_grad()
    def step(self, x: Tensor, i: int, prompt: Tensor, null: Tensor) -> Tensor:
        """One guided step."""
        unconditional, conditional = self.noise(x, i, null), self.noise(x, i, prompt)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        return self.move(x, guided, self.alphas[i], self.alphas[i + 1])
