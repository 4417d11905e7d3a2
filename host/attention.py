"""Control of a network's attention: what all kinds of networks share.

Whose rows of a call are whose, what is kept of the source, what a layer takes of it, what is looked
at. How a network lets its attention be changed is in a file for each kind: `unet.py` and `dit.py`.
Changes live in the options that are handed to one prediction, never on a model: there is nothing to
take away again, also not after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.plan import (
    KEYS,
    OUTPUT,
    QUERIES,
    VALUES,
    Attention,
    Injection,
    Maps,
    Watch,
    coverage,
    edited,
    side,
)
from ..core.denoiser import Seen
from ..core.families import Block

Layer = tuple[str, int, int]
"""A layer: its block's kind and number, and its number within the block."""

Chunk = tuple[int, Any]
"""A part of a call's batch: the number of its condition among those of the call, and its id."""

INPUTS = (QUERIES, KEYS, VALUES)
MASK = "mask"

IN_PIECES = (
    "something on the model shows the network {} in place of {} (tiled diffusion), and no piece "
    "has the attention of the whole; take it off the model, or use MDP Epsilon"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Whose the rows of a layer's call are.

    Attributes:
        target: the parts of the rows that are the target's.
        source: that which is the source's; None if it is not in this call.
        size: the size of the pictures that the layer works on, (frames,) height, width.
        place: where the picture's tokens are; those of a text may stand before or behind it.
    """

    target: list[slice]
    source: slice | None
    size: tuple[int, ...]
    place: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True, eq=False, kw_only=True)
class Call(Rows):
    """One call of a layer's attention.

    Attributes:
        q, k, v: queries, keys and values, (rows, tokens, width) or (rows, heads, tokens, width).
        whole: the layer's output (rows, tokens, width) as it is without us, for other queries, keys
            and values of all rows.
        attend: the network's attention for some rows: of queries, keys, values and a mask.
        heads: how many.
        text: where the text is among the keys, if those are not all.
        text_ends: whether the prompt's tokens are the last of the text; else they are the first.
        mask: of the scores, as the network gives it; None is none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    whole: Callable[[Tensor, Tensor, Tensor], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    heads: int
    text: slice | None = None
    text_ends: bool = False
    mask: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Queries, keys and values by their names in an `Injection`."""
        return dict(zip(INPUTS, (self.q, self.k, self.v), strict=True))

    def picture(self, x: Tensor) -> Tensor:
        """What of queries, keys or values is the picture's; a view."""
        return x[..., self.place, :]

    def over_keys(self, weights: Tensor, keys: int) -> Tensor:
        """A prompt's weights (tokens, n), spread over all keys (keys, n), 0 at those of a picture;
        a prompt's copies have the same. Keys of another picture may stand behind the call's own."""
        tokens = len(weights)
        if self.text is None:
            return weights.repeat(keys // tokens, 1)
        before = self.text.stop - tokens if self.text_ends else self.text.start
        return F.pad(weights, (0, 0, before, keys - before - tokens))

    def mask_of(self, part: slice) -> Tensor | None:
        """The mask of some rows."""
        several = self.mask is not None and self.mask.ndim > 2 and len(self.mask) == len(self.q)
        return self.mask[part] if self.mask is not None and several else self.mask

    def maps(self, part: slice) -> Maps:
        """The maps of some rows at the places of the picture, as a function of values."""
        q, k, mask = self.picture(self.q[part]), self.k[part], self.mask_of(part)
        return lambda values: self.attend(q, k, copied(values, k), mask)


class Kept:
    """What is kept of the source from one call to the next: on the device while a quarter of its
    free memory has room, then in ordinary memory.

    Attributes:
        most: the most bytes that were kept at a time.
    """

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self.most, self._bytes, self._room = 0, 0, 0.0
        self._tensors: dict[Any, dict[str, Tensor]] = {}

    def clear(self) -> None:
        """Let go of everything."""
        self._tensors, self._bytes, self._room = {}, 0, 0.0

    def put(self, key: Any, found: dict[str, Tensor]) -> None:
        """Keep tensors under a key, beside those that it has already."""
        device = next(iter(found.values())).device
        if not self._tensors:
            self._room = comfy.model_management.get_free_memory(device) / 4
        before = self._tensors.get(key, {})
        self._bytes += _size(found) - _size(
            {part: before[part] for part in found if part in before}
        )
        self.most = max(self.most, self._bytes)
        where = device if self._bytes <= self._room else torch.device("cpu")
        there = {part: one.to(where, copy=True) for part, one in found.items()}
        self._tensors[key] = before | there

    def get(self, key: Any, device: torch.device) -> dict[str, Tensor] | None:
        """What is kept under a key, on the device; None is nothing."""
        found = self._tensors.get(key)
        return found and {part: one.to(device) for part, one in found.items()}


class AttentionControl:
    """What changes a network's attention in one run.

    The source's part may come in the same call of the network as the target's, in an earlier one,
    or too late: ComfyUI groups conditions by what memory allows. What is taken of it is kept only
    where some of the target is still to come.

    Attributes:
        layers: of the network, in the order of their call.
        missed: whether the target came before the source; then its prediction is void.
        apart: whether the source has to have a call of its own, because it was missed before.
        idle: whether everything is left as it is.
        with_features: whether a UNet's residual blocks are changed too.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer]) -> None:
        """Keep the layers."""
        self.network, self.layers = network, layers
        self.attention = Attention()
        self.missed = self.idle = self.apart = self.with_features = False
        self._target: set[Chunk] = set()
        self._source: Chunk | None = None
        self._keeps = False
        self._limit = 0
        self._shape: Sequence[int] = ()
        self._weights: dict[tuple[Watch, int], Tensor] = {}
        self._looking = False
        self._kept = Kept()
        self._seen: dict[Watch, list[Tensor]] = {}
        self._bottlenecks: dict[object, Tensor] = {}

    @property
    def kept(self) -> int:
        """The most bytes of the source that were kept at a time."""
        return self._kept.most

    def begin(
        self,
        attention: Attention,
        shape: Sequence[int],
        target: Sequence[Chunk] = (),
        source: Chunk | None = None,
        keeps: bool = False,
        goes_on: bool = False,
    ) -> None:
        """Set what the next calls of the network change.

        Args:
            shape: of the latent.
            target, source: the parts of a call that are theirs.
            keeps: whether what is taken of the source is needed after its call.
            goes_on: whether what is kept already is what to use.
        Raises:
            ValueError: no layer has the resolution of a map that is asked for.
        """
        shorter = min(shape[-2:])
        self.attention, self._target, self._source = attention, set(target), source
        self._keeps, self._shape = keeps or not target, shape
        self._limit = side(attention.self_limit, shorter) if attention.self_limit else 0
        self.missed = False
        self.with_features |= attention.features
        if not goes_on:
            self.forget()
        self._seen, self._looking = {}, True
        if attention.bottleneck is not None:  # what an earlier step has kept is no more true
            self._bottlenecks.pop(attention.bottleneck.kept, None)
        for watch in attention.watched:
            self.check(watch)

    def forget(self) -> None:
        """Let go of what is kept of the source."""
        self._kept.clear()

    def end_watching(self) -> None:
        """What guidance functions ask of the network from here on is changed, but not looked at."""
        self._looking = False

    @property
    def seen(self) -> Seen:
        """What was watched: the mean over the layers; and the output of a UNet's middle block."""
        kept = self.attention.bottleneck and self.attention.bottleneck.kept
        found: dict[Any, Tensor] = {
            name: h for name, h in self._bottlenecks.items() if name is kept
        }
        return found | {watch: torch.stack(maps).mean(dim=0) for watch, maps in self._seen.items()}

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """The options with the changes in them; those given stay as they are."""
        raise NotImplementedError

    def enter(self, x: Tensor) -> None:
        """A call of the network begins, on latents x (rows, C, ...)."""

    def check_reached(self) -> None:
        """Raise ValueError if the network was called and its attention was not reached."""

    def check(self, watch: Watch) -> None:
        """Raise ValueError if no layer has the resolution of a map."""

    def looks(self, watch: Watch, layer: Layer, size: Sequence[int]) -> bool:
        """Whether a layer's map is one of those to look at."""
        raise NotImplementedError

    def biased(self, call: Call, part: slice) -> Maps:
        """The maps of some rows at the places of the picture, with what is added to their
        scores."""
        raise NotImplementedError

    def parts(
        self, options: dict[str, Any], q: Tensor, shown: Sequence[int]
    ) -> tuple[list[slice], slice | None]:
        """Which rows of a call are the target's and the source's.

        Args:
            shown: the shape of what the network was shown.
        Raises:
            ValueError: the call is not of whole latents, one batch of them for each condition.
        """
        chunks = list(zip(options["cond_or_uncond"], options["uuids"], strict=True))
        rows = len(q) // len(chunks)
        parts = {chunk: slice(i * rows, (i + 1) * rows) for i, chunk in enumerate(chunks)}
        target = [part for chunk, part in parts.items() if chunk in self._target]
        source = parts.get(self._source) if self._source else None
        if target or source is not None:
            self._check_whole(len(chunks), shown)
        return target, source

    def _check_whole(self, conditions: int, shown: Sequence[int]) -> None:
        rows, size = conditions * self._shape[0], list(self._shape[2:])
        if shown[0] != rows or (self.attention.has_places and list(shown[2:]) != size):
            there, whole = (
                f"{batch} latents of {' x '.join(map(str, reversed(sizes)))}"
                for batch, sizes in ((shown[0], list(shown[2:])), (rows, size))
            )
            raise ValueError(IN_PIECES.format(there, whole))

    def _taken(
        self, key: Any, rows: Rows, here: dict[str, Tensor], device: torch.device
    ) -> dict[str, Tensor] | None:
        """What a layer takes of the source: `here`, or what is kept if it is not in this call; None
        if it is not there yet."""
        if rows.source is None:
            kept = self._kept.get(key, device)
            self.missed |= kept is None and bool(rows.target)
            return kept
        if here and (self._keeps or len(rows.target) < len(self._target)):
            self._kept.put(key, here)
        return here

    def injections(self, block: Block, size: Sequence[int]) -> list[Injection]:
        """What a block's self-attention takes of the source."""
        found = [one for one in self.attention.injections if one.at(block)]
        if self.attention.self_limit and min(size[-2:]) <= self._limit:
            weight = self.attention.self_weight
            found.insert(0, Injection(parts=(QUERIES, KEYS), weight=weight))
        return found

    def injected(
        self, layer: Layer, call: Call, injections: Sequence[Injection]
    ) -> tuple[Tensor, Call]:
        """A layer's output with what the target takes of the source, and the call that made it.
        Elsewhere in the call all is the layer's own.

        Of several injections in a block each changes what those before it have made, and the
        smallest of their weights is that of all.
        """
        if not injections or not (call.target or call.source):
            return call.whole(call.q, call.k, call.v), call
        wanted = {part for one in injections for part in one.parts}
        wanted |= {QUERIES, KEYS} if any(one.aligned for one in injections) else set()
        wanted |= {KEYS, VALUES} if any(one.beside for one in injections) else set()
        inputs = {part: x for part, x in call.inputs.items() if part in wanted}
        taken: dict[str, Tensor] | None = {}
        if any(not one.first for one in injections):
            rows = call.source or slice(0)
            here = {part: call.picture(x[rows]) for part, x in inputs.items()}
            taken = self._taken(layer, call, here, call.q.device)
        if taken is None or not call.target:
            return self.outputs(layer, call, injections, call.whole(call.q, call.k, call.v)), call

        q, k, v = (x.clone() if part in inputs else x for part, x in call.inputs.items())
        changed = replace(call, q=q, k=k, v=v)
        for injection in injections:
            inside = self._inside(injection, call, call.picture(call.q))
            for part in call.target:
                theirs = _first(call, part) if injection.first else taken
                _put(injection, changed, part, theirs, inside)
        out = changed.whole(changed.q, changed.k, changed.v)
        for injection in injections:
            for part in call.target if injection.beside else ():
                theirs = _first(changed, part) if injection.first else taken
                out[part] = self._beside(changed, part, theirs)
        out = self.outputs(layer, changed, injections, out)
        weight = min(injection.weight for injection in injections)
        if weight < 1:
            out = torch.lerp(call.whole(call.q, call.k, call.v), out, weight)
        return out, changed

    def _beside(self, call: Call, part: slice, theirs: dict[str, Tensor]) -> Tensor:
        """The output of some rows that attend to the source's picture as well as to their own."""
        k, v = (
            torch.cat([x[part], theirs[name]], dim=-2)
            for name, x in ((KEYS, call.k), (VALUES, call.v))
        )
        mask = call.mask_of(part)
        if mask is not None:
            mask = F.pad(mask, (0, theirs[KEYS].shape[-2]), value=mask.dtype == torch.bool)
        return self.attended(call, call.q[part], k, v, mask)

    def attended(self, call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The attention of some of the target's rows, with what is added to their scores."""
        return call.attend(q, k, v, mask)

    def outputs(
        self,
        key: Any,
        rows: Rows,
        injections: Sequence[Injection],
        out: Tensor,
        kind: str = OUTPUT,
    ) -> Tensor:
        """A layer's output (rows, tokens, width), which is the source's in the target's rows at the
        places of the picture where an injection of this kind asks for it."""
        for injection in injections:
            if kind not in injection.parts:
                continue
            inside = self._inside(injection, rows, out[:, rows.place])
            here = {} if rows.source is None else {kind: out[rows.source][:, rows.place]}
            taken = None
            if not injection.first:
                taken = self._taken((kind, key), rows, here, out.device)
                if taken is None:
                    continue
            for part in rows.target:
                own = out[part][:, rows.place]
                _replace(own, taken[kind] if taken else own[:1].expand_as(own), inside)
        return out

    @staticmethod
    def _inside(injection: Injection, rows: Rows, x: Tensor) -> Tensor | None:
        """Which of a picture's tokens, such as those of x (rows, ..., tokens, width), keep their
        own (1 or B, tokens, 1); None is none."""
        if injection.outside is None:
            return None
        inside = (coverage(injection.outside, rows.size) >= 0.5).to(x.device)[..., None]
        more = x.shape[-2] - inside.shape[1]
        return F.pad(inside, (0, 0, 0, more))  # tokens that only fill up are of no place

    def crossed(
        self, layer: Layer, call: Call, out: Tensor, injections: Sequence[Injection], added: bool
    ) -> Tensor:
        """A layer's output `out` where pictures attend to a text, with the target's maps edited.

        Args:
            added: whether something else has added to the output, which then stays.
        """
        injected: Maps | None = None
        if self.attention.mapper is not None:
            here = {}
            if call.source is not None:
                here = {QUERIES: call.q[call.source], KEYS: call.k[call.source]}
                mask = call.mask_of(call.source)
                here |= {} if mask is None else {MASK: mask}
            taken = self._taken((MASK, layer), call, here, out.device)
            if taken is None and call.target:
                return out
            if taken is not None:
                injected = partial(_of_source, call, taken)
        for part in call.target:
            maps = edited(self.attention, self.biased(call, part), injected)
            if self.attention.changes_cross:
                before = out[part] - call.maps(part)(call.v[part]) if added else 0
                out[part] = maps(call.v[part]) + before
            self.watch(layer, call, maps, part, of_source=False)
        if call.source is not None:
            self.watch(layer, call, call.maps(call.source), call.source, of_source=True)
        return self.outputs((MASK, layer), call, injections, out)

    def watch(self, layer: Layer, call: Call, maps: Maps, part: slice, of_source: bool) -> None:
        """Look at a layer's maps of some rows: with values that are 1 at a word's tokens. Where
        picture and text share an attention, in parts of all that it gives to the text."""
        for watch in self.attention.watched if self._looking else ():
            if watch.source != of_source or not self.looks(watch, layer, call.size):
                continue
            tokens = call.k.shape[-2]
            if (watch, tokens) not in self._weights:
                # Where the text's tokens are not the only ones, all of them stand behind.
                weights = F.pad(watch.weights, (0, int(call.text is not None)), value=1.0)
                self._weights[watch, tokens] = call.over_keys(weights, tokens).to(call.q)
            found = _products(maps, self._weights[watch, tokens], call, part)
            if call.text is not None:
                *words, text = found.unbind(dim=-1)
                found = torch.stack(words, dim=-1) / text.clamp(min=1e-12)[..., None]
            places = math.prod(call.size)
            found = found[:, :places].movedim(-1, 1).unflatten(-1, call.size)
            self._seen.setdefault(watch, []).append(found)


def _size(tensors: dict[str, Tensor]) -> int:
    """The bytes of some tensors."""
    return sum(one.numel() * one.element_size() for one in tensors.values())


def copied(values: Tensor, k: Tensor) -> Tensor:
    """Values for each token, or for the first copy of them, for all of a prompt's copies."""
    copies = k.shape[-2] // values.shape[-2]
    return values if copies == 1 else values.repeat(*[1] * (values.ndim - 2), copies, 1)


def _of_source(call: Call, taken: dict[str, Tensor], values: Tensor) -> Tensor:
    """The source's maps, times values."""
    return call.attend(taken[QUERIES], taken[KEYS], copied(values, taken[KEYS]), taken.get(MASK))


def _products(maps: Maps, weights: Tensor, call: Call, part: slice) -> Tensor:
    """Maps times weights (tokens, n): the mean over the heads (B, places, n)."""
    v, heads = call.v[part], call.heads
    width = v.shape[-1] // (1 if v.ndim == 4 else heads)
    seen = []
    for some in weights.split(width, dim=1):
        values = v.new_zeros(len(v), len(weights), heads, width)
        values[..., : some.shape[1]] = some[:, None]
        values = values.transpose(1, 2) if v.ndim == 4 else values.flatten(2)
        product = maps(values).unflatten(-1, (heads, width))
        seen.append(product[..., : some.shape[1]].float().mean(dim=2))
    return torch.cat(seen, dim=-1)


def _first(call: Call, part: slice) -> dict[str, Tensor]:
    """What the first picture of some rows has, at the places of the picture, for all of them."""
    rows = part.stop - part.start
    return {
        name: call.picture(x[part][:1]).expand(rows, *[-1] * (x.ndim - 1))
        for name, x in call.inputs.items()
    }


def _put(
    injection: Injection,
    call: Call,
    part: slice,
    theirs: dict[str, Tensor],
    inside: Tensor | None,
) -> None:
    """Put the source's queries, keys and values in the place of the target's."""
    for name, x in call.inputs.items():
        own = call.picture(x[part])
        if injection.aligned and name in (QUERIES, KEYS):
            own.copy_(adain(own, theirs[name]))
        elif name in injection.parts and not injection.beside:
            _replace(own, theirs[name], inside)


def _replace(x: Tensor, by: Tensor, inside: Tensor | None) -> None:
    """Replace `x` in place, but not where it is `inside` (1 or B, tokens, 1)."""
    if inside is not None and x.ndim == 4:
        inside = inside[:, None]
    x.copy_(by if inside is None else torch.where(inside, x, by))


def adain(x: Tensor, like: Tensor) -> Tensor:
    """Queries or keys (..., tokens, width) with the mean and deviation over the tokens that `like`
    has (Huang and Belongie 2017, arXiv 1703.06868, eq. 8)."""
    mean, deviation = x.mean(dim=-2, keepdim=True), x.std(dim=-2, keepdim=True)
    scaled = (x - mean) / (deviation + 1e-5)
    return scaled * like.std(dim=-2, keepdim=True) + like.mean(dim=-2, keepdim=True)
