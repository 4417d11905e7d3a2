"""What the mathematics asks of a model, and what it gets: queries, answers, guidance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .diffusion import Mixing, derivative

Condition = Any
"""What a denoiser is conditioned on. Opaque here: only the denoiser knows what is inside."""

Patch = Any
"""What to change inside the network during one query, such as `attention.plan.Attention`."""

Seen = Mapping[Any, Tensor]
"""What patches have measured, by the name they asked for."""


@dataclass(frozen=True, eq=False)
class Query:
    """The denoised estimate of a latent under a condition. Equal if latent, condition and patch
    are the same objects.

    Attributes:
        x: the latent (B, C, ...).
        condition: the prompt.
        patch: what to change inside the network; None is nothing.
        is_source: whether a patch of another query takes the source's attention from this one.
    """

    x: Tensor
    condition: Condition
    patch: Patch = None
    is_source: bool = False

    @property
    def identity(self) -> tuple[int, int, int]:
        """What makes two queries one."""
        return id(self.x), id(self.condition), id(self.patch)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


def distinct(queries: Iterable[Query]) -> list[Query]:
    """Each query once, in order; one that is asked for as a source too is a source."""
    found: dict[Query, Query] = {}
    for query in queries:
        if query not in found or query.is_source:
            found[query] = query
    return list(found.values())


class Answers(NamedTuple):
    """What a denoiser answers to queries.

    Attributes:
        denoised: the estimate (B, C, ...) of each, in the order of the queries.
        seen: what their patches have looked at.
    """

    denoised: list[Tensor]
    seen: Seen = MappingProxyType({})


class Denoiser(Protocol):
    """A model as the mathematics sees it: D(x, sigma, c), its guidance, how it mixes noise in.

    Attributes:
        mixing: how signal and noise mix for this model.
    """

    mixing: Mixing

    @property
    def evaluations(self) -> int:
        """Network evaluations so far; one is one latent batch under one condition."""
        ...

    def predict(self, queries: Sequence[Query], sigma: float) -> Answers:
        """The plain estimates, without any guidance, in as few network calls as can be.

        Equal queries are evaluated once.
        """
        ...

    def guides(self, scale: float) -> bool:
        """Whether guidance of that scale reads the negative's estimate."""
        ...

    def guide(
        self,
        cond: Tensor,
        uncond: Tensor | None,
        scale: float,
        query: Query,
        negative: Condition,
        sigma: float,
    ) -> Tensor:
        """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6), with whatever
        guidance functions the model has.

        Args:
            cond: the estimate of `query`, perhaps edited (B, C, ...).
            uncond: the same under `negative`; None where `guides(scale)` is false.
        """
        ...

    def same(self, a: Condition, b: Condition) -> bool:
        """Whether the network answers alike under both, also if one of them is a negative."""
        ...

    def mixes(self, a: Condition, b: Condition) -> bool:
        """Whether there is a condition between the two."""
        ...

    def mix(self, a: Condition, b: Condition, weight: float) -> Condition:
        """The condition `(1 - weight) * a + weight * b`, where `mixes(a, b)`."""
        ...

    def embedding(self, condition: Condition) -> Tensor:
        """The text embedding of a condition (B or 1, tokens, width), float32."""
        ...

    def with_embedding(self, condition: Condition, embedding: Tensor) -> Condition:
        """The condition with another embedding in all its parts; all else stays as it is."""
        ...

    def percent_to_sigma(self, percent: float) -> float:
        """The noise level at which that part of the model's own schedule begins, 0 to 1."""
        ...

    def differentiable(self) -> AbstractContextManager[None]:
        """Inside, and where gradients are enabled, estimates carry them back to the embeddings.

        What is made inside is ordinary, also under inference mode; afterwards nothing is left.
        """
        ...


def guided(
    denoiser: Denoiser,
    x: Tensor,
    sigma: float,
    condition: Condition,
    negative: Condition = None,
    scale: float = 1.0,
) -> Tensor:
    """The estimate (B, C, ...) under guidance; at 1 the plain one, and nothing is guided."""
    query = Query(x, condition)
    if scale == 1.0:
        return denoiser.predict([query], sigma).denoised[0]
    queries = [query, Query(x, negative)] if denoiser.guides(scale) else [query]
    cond, *uncond = denoiser.predict(queries, sigma).denoised
    return denoiser.guide(cond, uncond[0] if uncond else None, scale, query, negative, sigma)


def ddim_sampling(
    denoiser: Denoiser, x: Tensor, levels: Sequence[float], condition: Condition
) -> Tensor:
    """The image (B, C, ...) that noise `x` at `levels[0]` becomes, without guidance.

    Deterministic DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with eta = 0).
    """
    for sigma, sigma_next in pairwise(levels):
        (denoised,) = denoiser.predict([Query(x, condition)], sigma).denoised
        x = x + (sigma_next - sigma) * derivative(x, denoised, sigma)
    return x
