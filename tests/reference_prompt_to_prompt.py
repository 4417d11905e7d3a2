"""Prompt-to-prompt (Hertz et al., arXiv 2208.01626) on diffusers: what ours is held to.

Written from the paper, the plain way: the attention probabilities of every layer and head are
tensors, which are edited and then multiplied with the values. One network call for each condition,
one picture at a time, float32. Latents are diffusers' own, of unit variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

STEPS, GUIDANCE = 50, 7.5

Window = tuple[float, float]
Change = Callable[[str, Tensor], Tensor]
"""From a layer's name and its probabilities (heads, pixels, tokens) to those that are used."""


def inside(i: int, window: Window, steps: int) -> bool:
    """Whether step `i` is in a window given by fractions of the path."""
    start, end = (int(edge * steps + 1e-6) for edge in window)
    return start <= i < end


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text without start, end and padding."""
    return tokenizer(text).input_ids[1:-1]


def words_as_tokens(tokenizer: Any, prompt: str) -> list[list[int]]:
    """Each word's positions among the tokens of a padded prompt; 0 is the start."""
    words, at = [], 1
    for word in prompt.split():
        count = len(token_ids(tokenizer, word))
        words.append(list(range(at, at + count)))
        at += count
    assert at - 1 == len(token_ids(tokenizer, prompt)), prompt
    return words


def word_tokens(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """The positions of all occurrences of a word, which is what stands between two spaces."""
    words = zip(prompt.split(), words_as_tokens(tokenizer, prompt), strict=True)
    found = [token for text, tokens in words if text == word for token in tokens]
    if not found:
        raise ValueError(f"no word {word!r} in {prompt!r}")
    return found


def replace_mapper(tokenizer: Any, source: str, target: str) -> tuple[Tensor, Tensor]:
    """Word by word, for prompts with the same number of words.

    Returns:
        The mapper (source tokens, target tokens), and which target tokens keep their own map.
    """
    befores, afters = (words_as_tokens(tokenizer, prompt) for prompt in (source, target))
    if len(befores) != len(afters):
        raise ValueError(f"{source!r} and {target!r} differ in their number of words")
    mapper = _ends_and_padding(tokenizer, source, target)
    for before, after in zip(befores, afters, strict=True):
        if len(before) == len(after):
            for i, j in zip(before, after, strict=True):
                mapper[i, j] = 1
        else:
            for i in before:
                for j in after:
                    mapper[i, j] = 1 / len(after)
    return mapper, mapper.sum(dim=0) == 0


def refine_mapper(
    tokenizer: Any, source: str, target: str, padding: str = "from padding"
) -> tuple[Tensor, Tensor]:
    """Token by token along the best alignment, for prompts with words added.

    Args:
        padding: "by position" is that of the authors' code: each column from its own place.

    Returns what `replace_mapper` does.
    """
    mapper = _ends_and_padding(tokenizer, source, target)
    if padding == "by position":
        first = 2 + len(token_ids(tokenizer, target))
        mapper[:, first:] = torch.eye(len(mapper))[:, first:]
    for i, j in align(token_ids(tokenizer, source), token_ids(tokenizer, target)):
        mapper[1 + i, 1 + j] = 1
    return mapper, mapper.sum(dim=0) == 0


def align(x: list[int], y: list[int]) -> list[tuple[int, int]]:
    """Needleman-Wunsch with gap 0, match 1, mismatch -1: the pairs of equal tokens.

    Of alignments that are as good, the one of the authors' code: going back from the end, it leaves
    out a token of `y` if it can, else one of `x`, else it makes a pair.
    """
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            diagonal = score[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], diagonal)
    pairs, i, j = [], len(x), len(y)
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _ends_and_padding(tokenizer: Any, source: str, target: str) -> Tensor:
    """A mapper that so far has start to start, end to end and k-th padding to k-th padding."""
    length = tokenizer.model_max_length
    mapper = torch.zeros(length, length)
    mapper[0, 0] = 1
    i, j = (1 + len(token_ids(tokenizer, prompt)) for prompt in (source, target))
    while i < length and j < length:
        mapper[i, j] = 1
        i, j = i + 1, j + 1
    return mapper


@dataclass
class LocalBlend:
    """Where the edit may show: tokens of both prompts, and of what to subtract.

    Attributes:
        resolution: side of the maps that are used.
    """

    source: list[int]
    target: list[int]
    subtract_source: list[int] = field(default_factory=list)
    subtract_target: list[int] = field(default_factory=list)
    resolution: int = 16
    threshold: float = 0.3
    start: float = 0.2


@dataclass
class Controls:
    """What is done to the target's attention. The defaults do nothing.

    Attributes:
        mapper, keeps_own: as `replace_mapper` and `refine_mapper` give them.
        cross, self_attention, reweight: windows as fractions of the path.
        ends: another end of the window of cross-attention for some target tokens.
        self_limit: side of the largest maps whose self-attention is replaced.
        factors: of the target tokens (tokens,).
    """

    mapper: Tensor | None = None
    keeps_own: Tensor | None = None
    cross: Window = (0.0, 0.0)
    ends: dict[int, float] = field(default_factory=dict)
    self_attention: Window = (0.0, 0.0)
    self_limit: int = 32
    factors: Tensor | None = None
    reweight: Window = (0.0, 1.0)
    blend: LocalBlend | None = None

    def alpha(self, i: int, steps: int) -> Tensor:
        """The share of the injected map for each target token (tokens,)."""
        start, end = self.cross
        own = self.keeps_own.tolist()
        windows = [(start, self.ends.get(j, end)) for j in range(len(own))]
        shares = [inside(i, w, steps) and not o for w, o in zip(windows, own, strict=True)]
        return torch.tensor(shares, dtype=torch.float32)


class Attention:
    """A layer's attention for diffusers: edits its probabilities, and leaves them in `maps`."""

    def __init__(self, owner: PromptToPrompt, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        inputs = (attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context)
        # (1, pixels or tokens, heads * width) -> (heads, pixels or tokens, width)
        query, key, value = (
            layer(x)[0].unflatten(-1, (attn.heads, -1)).movedim(1, 0) for layer, x in inputs
        )
        probabilities = torch.softmax(query @ key.mT * attn.scale, dim=-1)
        if self.owner.edit is not None:
            probabilities = self.owner.edit(self.name, probabilities)
        self.owner.maps[self.name] = probabilities
        out = (probabilities @ value).movedim(0, 1).flatten(1)[None]
        return attn.to_out[0](out)


class PromptToPrompt:
    """The algorithm on a pipeline, whose attention it takes over.

    Attributes:
        maps: the probabilities of the last network call, by layer.
        edit: what is done to those of the next, or None.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, steps: int = STEPS) -> None:
        self.pipeline, self.steps = pipeline, steps
        self.maps: dict[str, Tensor] = {}
        self.edit: Change | None = None
        unet = pipeline.unet
        unet.set_attn_processor({name: Attention(self, name) for name in unet.attn_processors})
        pipeline.scheduler.set_timesteps(steps)
        self.timesteps = pipeline.scheduler.timesteps.tolist()
        alphas = pipeline.scheduler.alphas_cumprod
        self.alphas = [float(alphas[t]) for t in self.timesteps] + [float(alphas[0])]

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """A prompt's embedding (1, tokens, width)."""
        return self.pipeline.encode_prompt(prompt, "cpu", 1, False)[0]

    @torch.no_grad()
    def noise(self, x: Tensor, i: int, embedding: Tensor, edit: Change | None = None) -> Tensor:
        """The noise predicted for step `i`."""
        self.maps, self.edit = {}, edit
        return self.pipeline.unet(x, self.timesteps[i], encoder_hidden_states=embedding).sample

    def move(self, x: Tensor, noise: Tensor, i: int) -> Tensor:
        """The DDIM step `i`."""
        here, there = self.alphas[i], self.alphas[i + 1]
        clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
        return there**0.5 * clean + (1 - there) ** 0.5 * noise

    def record(
        self, x: Tensor, source: Tensor, null: Tensor | Sequence[Tensor], guidance: float = GUIDANCE
    ) -> list[Tensor]:
        """The path of a synthetic picture: guided sampling from noise."""
        path = [x]
        for i in range(self.steps):
            conditional = self.noise(path[-1], i, source)
            unconditional = self.noise(path[-1], i, at_step(null, i))
            guided = unconditional + guidance * (conditional - unconditional)
            path.append(self.move(path[-1], guided, i))
        return path

    def run(
        self,
        path: Sequence[Tensor],
        source: Tensor,
        target: Tensor,
        null: Tensor | Sequence[Tensor],
        controls: Controls,
        guidance: float = GUIDANCE,
    ) -> list[Tensor]:
        """The target's latents, as many as the path has.

        Args:
            path: the source's latents (1, C, H, W) from noisy to clean.
            null: the unconditional embedding (1, tokens, width), or one for each step.
        """
        assert len(path) == self.steps + 1, "the path has another number of steps"
        latents = [path[0]]
        seen: list[Tensor] | None = None
        for i in range(self.steps):
            x = latents[-1]
            self.noise(path[i], i, source)
            before = self.maps
            conditional = self.noise(x, i, target, self.control(before, controls, i))
            after = self.maps
            unconditional = self.noise(x, i, at_step(null, i))
            x = self.move(x, unconditional + guidance * (conditional - unconditional), i)
            if controls.blend is not None:
                maps = [mean_map(maps, controls.blend.resolution) for maps in (before, after)]
                seen = maps if seen is None else [a + b for a, b in zip(seen, maps, strict=True)]
                if inside(i, (controls.blend.start, 1.0), self.steps):
                    mask = blend_mask(*seen, controls.blend, x.shape[-2:])
                    x = path[i + 1] + mask * (x - path[i + 1])
            latents.append(x)
        return latents

    def control(self, source_maps: dict[str, Tensor], controls: Controls, i: int) -> Change:
        """The edit of the target's probabilities at step `i`."""

        def edit(name: str, own: Tensor) -> Tensor:
            if is_cross(name):
                return edit_cross(source_maps[name], own, controls, i, self.steps)
            small = own.shape[-1] <= controls.self_limit**2
            if small and inside(i, controls.self_attention, self.steps):
                return source_maps[name]
            return own

        return edit


def is_cross(name: str) -> bool:
    """Whether a layer of diffusers is one of cross-attention."""
    return ".attn2." in name


def at_step(null: Tensor | Sequence[Tensor], i: int) -> Tensor:
    """The unconditional embedding of a step: a tensor (1, tokens, width) serves for all of them."""
    return null if isinstance(null, Tensor) and null.ndim == 3 else null[i]


def edit_cross(source: Tensor, own: Tensor, controls: Controls, i: int, steps: int) -> Tensor:
    """The target's map (heads, pixels, tokens): injected, then reweighted."""
    if controls.mapper is not None:
        alpha = controls.alpha(i, steps)
        own = alpha * (source @ controls.mapper) + (1 - alpha) * own
    if controls.factors is not None and inside(i, controls.reweight, steps):
        own = own * controls.factors
    return own


def mean_map(maps: dict[str, Tensor], side: int) -> Tensor:
    """The mean over heads and layers of the cross-attention of one size (tokens, side, side)."""
    chosen = [m for name, m in maps.items() if is_cross(name) and m.shape[1] == side**2]
    return torch.cat(chosen).mean(dim=0).mT.unflatten(-1, (side, side))


def blend_mask(source: Tensor, target: Tensor, blend: LocalBlend, size: Sequence[int]) -> Tensor:
    """Where the edit may show (1, 1, H, W), from the maps of all steps so far."""

    def mask(maps: Tensor, tokens: list[int], wider: bool = True) -> Tensor:
        words = maps[tokens].sum(dim=0)[None, None]
        if wider:
            words = F.max_pool2d(words, 3, stride=1, padding=1)
        words = F.interpolate(words, tuple(size), mode="nearest")
        return words / words.max() > blend.threshold

    shown = mask(source, blend.source) | mask(target, blend.target)
    # A mask of no words is 0 / 0, which is not above the threshold.
    hidden = mask(source, blend.subtract_source, wider=False)
    hidden |= mask(target, blend.subtract_target, wider=False)
    return (shown & ~hidden).float()
