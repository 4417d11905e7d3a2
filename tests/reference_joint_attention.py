"""Prompt-to-prompt on joint attention (Shin et al., arXiv 2508.07519): what ours is held to.

Written from the paper for diffusers' Flux, the plain way: the attention probabilities of every
block and head are tensors. One network call for each condition, one picture at a time, float32.
Latents are diffusers' own, of unit variance, and the noise levels have no shift.

Beside the paper's swap of queries and keys there are a bias that weights words, and that of Paint
with Words (Balaji et al., arXiv 2211.01324).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffusion_path.demo import FLOW_TOKENS
from diffusion_path.demo.flow import PATCH, velocity
from diffusion_path.demo.tokenizer import tokenize, train_tokenizer
from diffusion_path.tests import reference_prompt_to_prompt
from diffusion_path.tests.reference_prompt_to_prompt import (
    Window,
    blend_mask,
    inside,
    word_tokens,
)

STEPS, GUIDANCE, TAU = 20, 4.0, 0.2

Text = tuple[Tensor, Tensor]
"""A prompt's embedding (1, tokens, width) and its pooled vector (1, width)."""

Bias = Callable[[Tensor], Tensor]
"""From the image tokens' scores (heads, image tokens, text and image tokens) to what is added."""


@cache
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer()


def word_columns(prompt: str, word: str) -> list[int]:
    """Where a word's tokens are among the text's, all occurrences; 0 is the start."""
    columns = word_tokens(tokenizer(), prompt, word)
    assert max(columns) < FLOW_TOKENS, prompt
    return columns


@dataclass
class Injection:
    """What becomes the source's at the image tokens.

    Attributes:
        parts: of "q", "k", "v" and "out", the attention's output. Queries and keys are those after
            their norm and the rotation of their places.
        blocks: double blocks are counted first, then single ones; None is all of them.
    """

    parts: Sequence[str] = ("q", "k")
    blocks: set[int] | None = None
    window: Window = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not set(self.parts) <= {"q", "k", "v", "out"}:
            raise ValueError(f"unknown parts in {self.parts}")


def prompt_to_prompt(steps: int, tau: float = TAU) -> Injection:
    """The paper's: queries and keys, in all blocks, in the first steps."""
    return Injection(("q", "k"), None, (0.0, max(int(tau * steps + 1e-6), 1) / steps))


@dataclass
class LocalBlend(reference_prompt_to_prompt.LocalBlend):
    """Where the edit may show. Of no use here: `resolution`; all maps have one.

    Attributes:
        blocks: those whose maps are used, or None for all.
    """

    blocks: set[int] | None = None


@dataclass
class Phrase:
    """Paint with Words: a phrase's columns, and where it is to be seen (1, 1, H, W)."""

    columns: list[int]
    mask: Tensor
    strength: float
    window: Window = (0.0, 1.0)


@dataclass
class Controls:
    """What is done to the target's attention over the path. The defaults do nothing.

    Attributes:
        factors: of the target's text tokens (tokens,), above 0.
        reweight: the window of `factors`.
    """

    injections: Sequence[Injection] = ()
    factors: Tensor | None = None
    reweight: Window = (0.0, 1.0)
    phrases: Sequence[Phrase] = ()
    blend: LocalBlend | None = None


@dataclass
class Seen:
    """A block's attention as it was used, at the image tokens.

    Attributes:
        parts: "q", "k", "v" and "out" (heads, image tokens, width).
        probabilities: (heads, image tokens, text and image tokens).
    """

    parts: dict[str, Tensor]
    probabilities: Tensor


@dataclass
class Control:
    """What is done in one network call. The defaults do nothing.

    Attributes:
        source: what the source's call has seen, by block.
    """

    source: dict[int, Seen] = field(default_factory=dict)
    injections: Sequence[Injection] = ()
    biases: Sequence[Bias] = ()

    def injected(self, block: int) -> dict[str, Tensor]:
        """The source's parts that replace a block's own."""
        chosen = [i for i in self.injections if i.blocks is None or block in i.blocks]
        return {part: self.source[block].parts[part] for i in chosen for part in i.parts}


def reweighted(factors: Tensor) -> Bias:
    """The logarithm of each text token's factor (tokens,), which thus multiplies its odds."""

    def bias(scores: Tensor) -> Tensor:
        added = torch.zeros_like(scores)
        added[..., : len(factors)] = factors.log()
        return added

    return bias


def painted(
    columns: list[int], mask: Tensor, strength: float, sigma: float, size: tuple[int, int]
) -> Bias:
    """A share of each row's largest score, for a phrase's columns, where the mask is.

    Args:
        mask: (1, 1, H, W) of any size.
        size: rows and columns of image tokens.
    """
    weight = strength * math.log(1 + sigma)
    places = F.interpolate(mask.float(), size, mode="area").flatten()

    def bias(scores: Tensor) -> Tensor:
        added = torch.zeros_like(scores)
        added[..., columns] = (weight * scores.amax(dim=-1) * places)[..., None]
        return added

    return bias


class Attention:
    """A block's attention for diffusers: edited, and left in `seen`. Text tokens come first."""

    def __init__(self, owner: JointReference, block: int) -> None:
        self.owner, self.block = owner, block

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def by_head(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (attn.heads, -1))

        # (1, tokens, heads, width)
        query = attn.norm_q(by_head(attn.to_q(hidden_states)))
        key = attn.norm_k(by_head(attn.to_k(hidden_states)))
        value = by_head(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:  # in single blocks the text is there already
            text_query = attn.norm_added_q(by_head(attn.add_q_proj(encoder_hidden_states)))
            text_key = attn.norm_added_k(by_head(attn.add_k_proj(encoder_hidden_states)))
            text_value = by_head(attn.add_v_proj(encoder_hidden_states))
            query = torch.cat([text_query, query], dim=1)
            key = torch.cat([text_key, key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        # (heads, tokens, width)
        out = self.attend(*(x[0].movedim(1, 0) for x in (query, key, value)))
        out = out.movedim(0, 1).flatten(1)[None]
        if encoder_hidden_states is None:
            return out
        text = self.owner.tokens
        return attn.to_out[0](out[:, text:]), attn.to_add_out(out[:, :text])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(width)) v, each (heads, text and image tokens, width)."""
        text, control = self.owner.tokens, self.owner.control
        injected = control.injected(self.block)

        def replaced(part: str, own: Tensor) -> Tensor:
            return torch.cat([own[:, :text], injected[part]], dim=1) if part in injected else own

        query, key, value = replaced("q", query), replaced("k", key), replaced("v", value)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        added = [bias(scores[:, text:]) for bias in control.biases]
        scores = torch.cat([scores[:, :text], sum(added, scores[:, text:])], dim=1)
        probabilities = torch.softmax(scores, dim=-1)
        out = replaced("out", probabilities @ value)
        parts = {"q": query, "k": key, "v": value, "out": out}
        self.owner.seen[self.block] = Seen(
            {name: part[:, text:] for name, part in parts.items()}, probabilities[:, text:]
        )
        return out


class JointReference:
    """The algorithm on a transformer, whose attention it takes over.

    Attributes:
        sigmas: from 1 to 0, one more than there are steps.
        seen: the attention of the last network call, by block.
        control: what is done in the next.
        tokens: how many text tokens that has.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        text_encoder: CLIPTextModel,
        steps: int = STEPS,
    ) -> None:
        self.transformer, self.text_encoder, self.steps = transformer, text_encoder, steps
        self.sigmas: list[float] = torch.linspace(1, 0, steps + 1).tolist()
        self.seen: dict[int, Seen] = {}
        self.control, self.tokens = Control(), 0
        self.blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]

    @torch.no_grad()
    def encode(self, prompt: str) -> Text:
        ids = tokenize([prompt])
        assert (ids[0, FLOW_TOKENS:] == ids[0, -1]).all(), f"{prompt!r} is too long"
        text = self.text_encoder(ids[:, :FLOW_TOKENS])
        return text.last_hidden_state, text.pooler_output

    @torch.no_grad()
    def velocity(
        self, x: Tensor, sigma: float, prompt: str | Text, control: Control | None = None
    ) -> Tensor:
        """The flow's velocity at a latent (1, 4, H, W), noise minus picture."""
        embedding, pooled = self.encode(prompt) if isinstance(prompt, str) else prompt
        self.seen, self.control, self.tokens = {}, control or Control(), embedding.shape[1]
        for number, block in enumerate(self.blocks):
            block.attn.set_processor(Attention(self, number))
        return velocity(self.transformer, x, torch.tensor([sigma]), embedding, pooled)

    def move(self, x: Tensor, velocity: Tensor, i: int) -> Tensor:
        """Euler's step `i`."""
        return x + (self.sigmas[i + 1] - self.sigmas[i]) * velocity

    def record(
        self,
        noise: Tensor,
        source: str | Text,
        null: str | Text = "",
        guidance: float = GUIDANCE,
    ) -> list[Tensor]:
        """The path of a synthetic picture: guided sampling from noise."""
        path = [noise]
        for i, sigma in enumerate(self.sigmas[:-1]):
            conditional = self.velocity(path[-1], sigma, source)
            unconditional = self.velocity(path[-1], sigma, null)
            guided = unconditional + guidance * (conditional - unconditional)
            path.append(self.move(path[-1], guided, i))
        return path

    def run(
        self,
        path: Sequence[Tensor],
        source: str | Text,
        target: str | Text,
        null: str | Text = "",
        controls: Controls | None = None,
        guidance: float = GUIDANCE,
    ) -> list[Tensor]:
        """The target's latents, as many as the path has.

        Args:
            path: the source's latents (1, 4, H, W) from noisy to clean.
        """
        assert len(path) == self.steps + 1, "the path has another number of steps"
        controls = controls or Controls()
        latents = [path[0]]
        sums: list[Tensor] | None = None
        for i, sigma in enumerate(self.sigmas[:-1]):
            x = latents[-1]
            size = image_tokens(x)
            self.velocity(path[i], sigma, source)
            before = self.seen
            control = self.at_step(controls, before, i, size)
            conditional = self.velocity(x, sigma, target, control)
            after = self.seen
            unconditional = self.velocity(x, sigma, null)
            x = self.move(x, unconditional + guidance * (conditional - unconditional), i)
            if controls.blend is not None:
                maps = [token_maps(seen, size, controls.blend.blocks) for seen in (before, after)]
                sums = maps if sums is None else [a + b for a, b in zip(sums, maps, strict=True)]
                if inside(i, (controls.blend.start, 1.0), self.steps):
                    mask = blend_mask(*sums, controls.blend, x.shape[-2:])
                    x = path[i + 1] + mask * (x - path[i + 1])
            latents.append(x)
        return latents

    def at_step(
        self, controls: Controls, source: dict[int, Seen], i: int, size: tuple[int, int]
    ) -> Control:
        """What is done in the target's call at step `i`."""
        biases = []
        if controls.factors is not None and inside(i, controls.reweight, self.steps):
            biases.append(reweighted(controls.factors))
        for phrase in controls.phrases:
            if inside(i, phrase.window, self.steps):
                biases.append(
                    painted(phrase.columns, phrase.mask, phrase.strength, self.sigmas[i], size)
                )
        now = [one for one in controls.injections if inside(i, one.window, self.steps)]
        return Control(source, now, biases)


def image_tokens(latent: Tensor) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    rows, columns = (side // PATCH for side in latent.shape[-2:])
    return rows, columns


def token_maps(
    seen: dict[int, Seen], size: tuple[int, int], blocks: set[int] | None = None
) -> Tensor:
    """Each text token's share of the attention to all text (text tokens, rows, columns).

    Mean over heads, then the share, then the mean over blocks.
    """
    shares = []
    for number, block in seen.items():
        if blocks is None or number in blocks:
            rows, every = block.probabilities.shape[1:]
            mass = block.probabilities.mean(dim=0)[:, : every - rows]
            shares.append(mass / mass.sum(dim=-1, keepdim=True))
    return torch.stack(shares).mean(dim=0).mT.unflatten(-1, size)


def word_map(maps: Tensor, columns: list[int]) -> Tensor:
    """A word's map (rows, columns), from those of `token_maps`."""
    return maps[columns].sum(dim=0)
