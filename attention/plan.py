"""What a step changes in the attention of its prediction: a description, and its algebra.

A layer's output is `M v`, maps times values, and every edit of maps here is linear in them:

    M' = M_source A + M_own diag(b)   gives   M' v = M_source (A v) + M_own (b v)

So no map is ever needed as such. What would be done to the maps is done to the values, and any
attention, however it is computed, does the rest. Even looking at a map is such a product: with
values that are 1 at a word's tokens, `M' v` is the map of that word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.denoiser import Seen
from ..core.families import Block
from .align import Prompt

__all__ = [
    "Attention",
    "Bottleneck",
    "Injection",
    "Maps",
    "Painted",
    "Seen",
    "Watch",
    "edited",
    "marks",
    "of",
    "side",
]

QUERIES, KEYS, VALUES, OUTPUT, FEATURES = "queries", "keys", "values", "output", "features"
"""What an injection may take: the three inputs of an attention, its output, and the features that
a UNet's residual block adds."""


def marks(prompt: Prompt, words: Sequence[Sequence[int]]) -> Tensor:
    """1 at each of a prompt's tokens that is one of the word's, else 0 (tokens, n), for n words.

    Where a word has columns behind the prompt's own, the tokens reach as far.
    """
    last = max((column for columns in words for column in columns), default=0)
    weights = torch.zeros(max(len(prompt.tokens), last + 1), len(words))
    for i, columns in enumerate(words):
        weights[list(columns), i] = 1
    return weights


def side(published: int, latent: int) -> int:
    """The side of maps that `published`, said of a picture of 512 x 512, means for another.

    It grows with the picture, as the maps of a network's layers do; for smaller ones it stays.

    Args:
        latent: the latent's shorter side; 64 for 512 pixels.
    """
    return max(published, -(-published * latent // 64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """Maps to look at: the mean over heads, and over the cross-attention layers of one size.

    Attributes:
        weights: how much each of the prompt's tokens counts in each of n maps (tokens, n).
        resolution: the shorter side of the layers that count, in their pixels; 0 is the papers'
            16 for 512 pixels, or the nearest there is.
        source: whether to look at the source's maps; else at the target's, as edited.
    """

    weights: Tensor
    resolution: int
    source: bool = False

    def size(self, sizes: Sequence[tuple[int, int]], latent: int) -> tuple[int, int]:
        """Height and width of the layers that count, out of those that the model has.

        Args:
            latent: the latent's shorter side.
        Raises:
            ValueError: none has this resolution.
        """
        sides = {min(size): size for size in sizes}
        if self.resolution == 0:
            return sides[min(sides, key=lambda one: abs(one - side(16, latent)))]
        if self.resolution not in sides:
            there = ", ".join(map(str, sides))
            raise ValueError(
                f"no attention layer has resolution {self.resolution} for a picture of this size; "
                f"choose one of {there}, or 0 for the default"
            )
        return sides[self.resolution]


@dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
    """A phrase and where in the picture it belongs.

    Attributes:
        tokens: 1 for each of the prompt's tokens that is the phrase's, else 0 (tokens,).
        mask: where, 0 to 1, of the picture's proportions; of the shape that `coverage` takes.
        places: the mask in the layers' sizes, times the tokens, made once for each.
    """

    tokens: Tensor
    mask: Tensor
    places: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def scores(self, peak: Tensor, size: tuple[int, ...]) -> Tensor:
        """What a layer of that size adds to its scores (B, heads, pixels, tokens), at strength 1.

        Args:
            peak: the largest score of each picture and head (B, heads).
        """
        if size not in self.places:
            mask = coverage(self.mask, size).to(peak)
            self.places[size] = (mask[:, :, None] * self.tokens.to(peak))[:, None]
        return peak[:, :, None, None] * self.places[size]


def coverage(mask: Tensor, size: Sequence[int]) -> Tensor:
    """How much of each of a layer's places (1 or B, places) a mask covers.

    Args:
        mask: (1 or B, 1, height, width), of a video also (1 or B, 1, frames, height, width).
        size: height and width of the layer's pictures, behind the number of frames of a video.
    """
    if mask.ndim < len(size) + 2:
        mask = mask[:, :, None]
    return F.interpolate(mask, tuple(size), mode="area").flatten(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Injection:
    """What some blocks' self-attention takes of the source; a joint attention's at the places of
    the picture, and never at those of the text.

    Attributes:
        parts: of `QUERIES`, `KEYS`, `VALUES`, `OUTPUT` and `FEATURES`.
        blocks: which; None is all.
        weight: how much of the result is the injected one; the rest is the target's own.
        outside: a mask (1 or B, 1, ..., height, width) of the picture's proportions: only where it
            is below one half; None is everywhere.
        beside: whether the source's keys and values stand beside the target's own, so that it
            attends to both.
        aligned: whether the target's queries and keys get the source's mean and deviation.
        first: whether what is taken is that of the target's first picture, in place of the
            source's.
    """

    parts: Collection[str]
    blocks: Collection[Block] | None = None
    weight: float = 1.0
    outside: Tensor | None = None
    beside: bool = False
    aligned: bool = False
    first: bool = False

    def at(self, block: Block) -> bool:
        """Whether it is for that block."""
        return self.blocks is None or block in self.blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class Bottleneck:
    """What becomes of h, the output of a UNet's middle block (B, C, height, width).

    `h' = h + scale * (towards - base) + added`; the names are those that queries before it, of the
    same step, have kept their own h under.

    Attributes:
        kept: the name to keep h under, before any change; `Answers.seen` has it too. None is not
            to.
        towards, base: names; a base of None is h itself, and nothing is towards if that is None.
        scale: of the difference.
        added: what is added beside it (1 or B, C, height, width); None is nothing.
    """

    kept: object | None = None
    towards: object | None = None
    base: object | None = None
    scale: float = 1.0
    added: Tensor | None = None

    def changed(self, h: Tensor, kept: Mapping[object, Tensor]) -> Tensor:
        """h', given what is kept by name.

        Raises:
            KeyError: with the name of what is not kept.
        """
        if self.towards is not None:
            base = h if self.base is None else kept[self.base]
            h = h + self.scale * (kept[self.towards] - base)
        return h if self.added is None else h + self.added.to(h)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """What one step changes; the default changes nothing. S and T are source and target tokens.

    Attributes:
        source, target: the prompts whose tokens are meant; None if nothing refers to it.
        mapper: what the target's maps take of the source's: `M_source @ mapper` (S, T).
        own: what they keep of their own beside it (T,), 0 to 1; None is nothing.
        scale: a factor for each of the target's tokens (T,); None is 1.
        self_limit: self-attention maps up to this side, for 512 x 512 pixels, are the source's.
        self_weight: how much of these maps is the source's; the rest is their own.
        injections: what else blocks take of the source.
        painted: phrases that are told their places, and how hard: what is added to the scores
            there, in parts of each head's largest score.
        watched: what to look at.
        bottleneck: what becomes of the output of a UNet's middle block; None is nothing.
    """

    source: Prompt | None = None
    target: Prompt | None = None
    mapper: Tensor | None = None
    own: Tensor | None = None
    scale: Tensor | None = None
    self_limit: int = 0
    self_weight: float = 1.0
    injections: tuple[Injection, ...] = ()
    painted: tuple[tuple[Painted, float], ...] = ()
    watched: tuple[Watch, ...] = ()
    bottleneck: Bottleneck | None = None

    @property
    def injects(self) -> bool:
        """Whether the target's prediction takes something of the source's."""
        taken = any(not injection.first for injection in self.injections)
        return self.mapper is not None or self.self_limit > 0 or taken

    @property
    def needs_source(self) -> bool:
        """Whether the source's prediction has to be made as well."""
        return self.injects or any(watch.source for watch in self.watched)

    @property
    def changes_cross(self) -> bool:
        """Whether the target's cross-attention is another than its own."""
        return self.mapper is not None or self.scale is not None or bool(self.painted)

    @property
    def has_places(self) -> bool:
        """Whether it is for places of the picture, and not for all of them alike."""
        listed = self.injections or self.painted or self.watched
        return self.injects or bool(listed) or self.bottleneck is not None

    @property
    def features(self) -> bool:
        """Whether some of a UNet's residual blocks take what they add of the source."""
        return any(FEATURES in injection.parts for injection in self.injections)

    def __bool__(self) -> bool:
        listed = self.injections or self.watched
        changed = self.changes_cross or self.bottleneck is not None
        return self.needs_source or changed or bool(listed)


def of(patch: Attention | None) -> Attention:
    """A query's patch as a change of attention, to add to."""
    return patch or Attention()


Maps = Callable[[Tensor], Tensor]
"""Maps as a function of the values they are multiplied with: (B, ..., tokens, width) to (B, pixels,
width)."""


def edited(attention: Attention, own: Maps, source: Maps | None) -> Maps:
    """The target's maps `M'` as edited, from its own and the source's.

    A call may hold a prompt's tokens several times over, one copy behind the other, which leaves
    attention as it is; then their maps are shared out among the copies.
    """

    def maps(values: Tensor) -> Tensor:
        values = _columns(values, attention.scale)
        if attention.mapper is None or source is None:
            return own(values)
        mapper = attention.mapper.to(values)
        first = values[..., : mapper.shape[1], :]
        injected = source(torch.einsum("st,...tw->...sw", mapper, first))
        if attention.own is None:
            return injected
        return own(_columns(values, attention.own)) + injected

    return maps


def _columns(values: Tensor, factors: Tensor | None) -> Tensor:
    """`values` (B, ..., tokens, width), those of each token times its factor."""
    if factors is None:
        return values
    copies = values.shape[-2] // len(factors)
    return values * factors.to(values).repeat(copies)[:, None]
