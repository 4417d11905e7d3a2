"""Changes of attention as patches of the attention layers of ComfyUI's UNets.

The patches live in the options that are handed to one prediction, never on a model: there is
nothing to take away again, also not after an interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from comfy.model_patcher import create_model_options_clone
from torch import Tensor, nn

from ..attention.plan import Attention, Maps, Watch, edited, side
from ..core.denoiser import Seen

Layer = tuple[str, int, int]
"""A layer by ComfyUI's names: the block's kind and number, and the number within it."""

Chunk = tuple[int, Any]
"""A part of a call's batch: the number of its condition among those of the call, and its id."""

Patch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
"""From queries, keys and values (rows, tokens, width) to a layer's output."""

REGROUPED_TOKENS = (
    "something on the model merges or regroups the picture's tokens (ToMe, HyperTile), and the "
    "source's attention then belongs to other places; take it off the model, or set self_replace "
    "to 0"
)

IN_PIECES = (
    "something on the model shows the network {} in place of {} (tiled diffusion), and no piece "
    "has the attention of the whole; take it off the model, or use MDP Epsilon"
)


class LayerPatch:
    """The patch of one layer, or of a block of layers, the same object in all calls of a run.

    What it does runs outside of what torch.compile compiles, so that its state may change from step
    to step.
    """

    def __init__(self, change: Callable[..., Tensor], block: tuple[str, int]) -> None:
        """Keep what to do; another pack's patch comes later."""
        # Whoever compiles has imported this already; it takes a second, and others do not need it.
        compiles = "torch._dynamo" in sys.modules
        self.change = torch.compiler.disable(change) if compiles else change
        self.block = block
        self.theirs: Patch | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        """What ComfyUI calls in place of the layer's attention."""
        return self.change((*self.block, options["block_index"]), self.theirs, q, k, v, options)


def attention_layers(network: nn.Module) -> list[Layer]:
    """The layers of a UNet that have both kinds of attention; none for another network."""
    return [
        (name, number, index)
        for name, number, block in _blocks(network)
        for index in range(_depth(block))
    ]


def map_sizes(network: nn.Module, height: int, width: int) -> list[tuple[int, int]]:
    """The sizes of a UNet's maps for a latent of that size, each once, the largest first."""
    sizes = []
    for name, _, block in _blocks(network):
        if name == "input" and any(isinstance(part, Downsample) for part in block):
            height, width = (height + 1) // 2, (width + 1) // 2
        if name != "output" and _depth(block):
            sizes.append((height, width))
    return list(dict.fromkeys(sizes))


def _blocks(network: nn.Module) -> Iterator[tuple[str, int, Sequence[nn.Module]]]:
    """A UNet's blocks under ComfyUI's names, in the order of their call."""
    if isinstance(network, UNetModel):
        parts = {"input": network.input_blocks, "middle": [network.middle_block or ()]}
        for name, blocks in (parts | {"output": network.output_blocks}).items():
            for number, block in enumerate(blocks):
                yield name, number, block


def _depth(block: Sequence[nn.Module]) -> int:
    """How many layers of self- and cross-attention a block has."""
    transformers = [part for part in block if isinstance(part, SpatialTransformer)]
    return sum(
        layer.attn2 is not None and not layer.disable_self_attn
        for part in transformers
        for layer in part.transformer_blocks
    )


def size_of(options: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the pictures that a layer works on."""
    height, width = options["activations_shape"][-2:]
    return height, width


def unchanged(
    theirs: Patch | None, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]
) -> Tensor:
    """A layer's output as it is without us: another pack's patch, or ComfyUI's attention."""
    return (attend if theirs is None else theirs)(q, k, v, options)


def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], mask: Any = None) -> Tensor:
    """ComfyUI's attention, and whatever other packs have put in its place."""
    named = {"attn_precision": options["attn_precision"], "transformer_options": options}
    return optimized_attention(q, k, v, options["n_heads"], mask=mask, **named)


class AttentionControl:
    """What changes a UNet's attention in one run: a patch for each layer, whose state changes.

    The source's part may come in the same call of the network as the target's, in an earlier one,
    or too late: ComfyUI groups conditions by what memory allows. Its queries and keys are kept only
    where some of the target is still to come.

    Attributes:
        kept: the most bytes of the source's queries and keys that were kept at a time.
        missed: whether the target came before the source; then its prediction is void.
        apart: whether the source has to have a call of its own, because it was missed before.
        idle: whether the patches leave everything as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        """Find the layers."""
        self.network = network
        self.layers = attention_layers(network)
        self.attention = Attention()
        self.kept, self.missed = 0, False
        self._target: set[Chunk] = set()
        self._source: Chunk | None = None
        self._keeps = False
        self._limit = 0
        self._shape: Sequence[int] = ()
        self._weights: dict[tuple[Watch, int], Tensor] = {}
        self._watched: dict[Watch, tuple[int, int]] = {}
        self._sizes: dict[tuple[Watch, tuple[int, int]], tuple[int, int]] = {}
        self._store: dict[tuple[str, Layer], tuple[Tensor, Tensor]] = {}
        self._seen: dict[Watch, list[Tensor]] = {}
        self.idle = self.apart = False
        self._changes = {"attn1": self.self_attention, "attn2": self.cross_attention}
        self._patches: dict[tuple[str, Any], LayerPatch] = {}

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
            keeps: whether the source's queries and keys are needed after its call.
            goes_on: whether those that are kept already are the ones to use.
        """
        latent = (shape[-2], shape[-1])
        self.attention, self._target, self._source = attention, set(target), source
        self._keeps, self._shape = keeps or not target, shape
        self._limit = side(attention.self_limit, min(latent)) if attention.self_limit else 0
        self.missed = False
        if not goes_on:
            self.forget()
        self._seen = {}
        self._watched = {watch: self._size(watch, latent) for watch in attention.watched}

    def forget(self) -> None:
        """Let go of what is kept of the source."""
        self._store = {}

    def end_watching(self) -> None:
        """What guidance functions ask of the network from here on is changed, but not looked at."""
        self._watched = {}

    def _size(self, watch: Watch, latent: tuple[int, int]) -> tuple[int, int]:
        if (watch, latent) not in self._sizes:
            sizes = map_sizes(self.network, *latent)
            self._sizes[watch, latent] = watch.size(sizes, min(latent))
        return self._sizes[watch, latent]

    @property
    def seen(self) -> Seen:
        """What was watched: the mean over the layers."""
        return {watch: torch.stack(maps).mean(dim=0) for watch, maps in self._seen.items()}

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """The options with the patches in them; those given stay as they are."""
        options = create_model_options_clone(model_options)
        replaced = options.setdefault("transformer_options", {}).setdefault("patches_replace", {})
        for name, change in self._changes.items():
            theirs = replaced.get(name, {})
            ours: dict[Any, LayerPatch] = {}
            for layer in self.layers:
                # A layer's own patch goes before its block's, for ComfyUI and for guidance
                # functions that put a block's there later on.
                at = layer if layer in theirs else layer[:2]
                if at in ours:
                    continue
                if (name, at) not in self._patches:
                    self._patches[name, at] = LayerPatch(change, layer[:2])
                patch, before = self._patches[name, at], theirs.get(at)
                patch.theirs = None if before is patch else before
                ours[at] = patch
            replaced[name] = {**theirs, **ours}
        return options

    def self_attention(
        self,
        layer: Layer,
        theirs: Patch | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """The target's maps are the source's if its queries and keys are. Elsewhere in the call
        `injected` and `own` are the same."""
        if self.idle:
            return unchanged(theirs, q, k, v, options)
        size = size_of(options)
        if self.attention.injects and (self._target or self._source) and min(size) <= self._limit:
            target, source = self._parts(q, options)
            if q.shape[1] != size[0] * size[1] and (target or source is not None):
                raise ValueError(REGROUPED_TOKENS)
            injection = self._injection("attn1", layer, q, k, target, source)
            if injection is not None and target:
                weight = self.attention.self_weight
                own = None if weight == 1 else unchanged(theirs, q, k, v, options)
                q, k = q.clone(), k.clone()
                for part in target:
                    q[part], k[part] = injection
                injected = unchanged(theirs, q, k, v, options)
                return injected if own is None else torch.lerp(own, injected, weight)
        return unchanged(theirs, q, k, v, options)

    def cross_attention(
        self,
        layer: Layer,
        theirs: Patch | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """The target's maps as edited; what another pack's patch adds to a layer stays."""
        out = unchanged(theirs, q, k, v, options)
        if self.idle:
            return out
        target, source = self._parts(q, options)
        injected = None
        if self.attention.mapper is not None:
            injection = self._injection("attn2", layer, q, k, target, source)
            if injection is None and target:
                return out
            if injection is not None:
                injected = partial(_product, *injection, options=options)
        size = size_of(options)
        for part in target:
            own = partial(_product, q[part], k[part], options=options)
            biased = own
            if self.attention.painted:
                mask = self._bias(q[part], k[part], size, options)
                biased = partial(own, mask=mask)
            maps = edited(self.attention, biased, injected)
            if self.attention.changes_cross:
                out[part] = maps(v[part]) + (0 if theirs is None else out[part] - own(v[part]))
            self._watch(maps, q[part], k, size, options, of_source=False)
        if source is not None:
            maps = partial(_product, q[source], k[source], options=options)
            self._watch(maps, q[source], k, size, options, of_source=True)
        return out

    def _parts(self, q: Tensor, options: dict[str, Any]) -> tuple[list[slice], slice | None]:
        """Which rows of a call are the target's and the source's.

        Raises:
            ValueError: the call is not of whole latents, one batch of them for each condition.
        """
        chunks = list(zip(options["cond_or_uncond"], options["uuids"], strict=True))
        rows = len(q) // len(chunks)
        parts = {chunk: slice(i * rows, (i + 1) * rows) for i, chunk in enumerate(chunks)}
        target = [part for chunk, part in parts.items() if chunk in self._target]
        source = parts.get(self._source) if self._source else None
        if target or source is not None:
            self._check_whole(len(chunks), options["original_shape"])
        return target, source

    def _check_whole(self, conditions: int, shown: Sequence[int]) -> None:
        rows, size = conditions * self._shape[0], list(self._shape[2:])
        if shown[0] != rows or (self.attention.has_places and list(shown[2:]) != size):
            there, whole = (
                f"{batch} latents of {width} x {height}"
                for batch, height, width in ((shown[0], *shown[2:]), (rows, *size))
            )
            raise ValueError(IN_PIECES.format(there, whole))

    def _injection(
        self,
        kind: str,
        layer: Layer,
        q: Tensor,
        k: Tensor,
        target: list[slice],
        source: slice | None,
    ) -> tuple[Tensor, Tensor] | None:
        """The source's queries and keys in a layer; None if they are not there yet."""
        if source is None:
            here = self._store.get((kind, layer))
            self.missed |= here is None and bool(target)
            return here
        here = q[source], k[source]
        if self._keeps or len(target) < len(self._target):
            self._store[kind, layer] = here[0].clone(), here[1].clone()
            kept = (one for pair in self._store.values() for one in pair)
            self.kept = max(self.kept, sum(one.numel() * one.element_size() for one in kept))
        return here

    def _bias(self, q: Tensor, k: Tensor, size: tuple[int, int], options: dict[str, Any]) -> Tensor:
        """What is added to the scores (B, heads, pixels, tokens) for the painted phrases."""
        heads, width = options["n_heads"], options["dim_head"]
        queries = q.unflatten(-1, (heads, width)).float()
        keys = k.unflatten(-1, (heads, width)).float()
        scores = torch.einsum("bphd,bthd->bhpt", queries, keys) * width**-0.5
        peak = scores.amax(dim=(2, 3))
        painted = [w * phrase.scores(peak, size) for phrase, w in self.attention.painted]
        added = torch.stack(painted).sum(dim=0)
        return added.repeat(1, 1, 1, k.shape[1] // added.shape[3]).to(q.dtype)

    def _watch(
        self,
        maps: Maps,
        q: Tensor,
        k: Tensor,
        size: tuple[int, int],
        options: dict[str, Any],
        of_source: bool,
    ) -> None:
        """Look at a layer's maps: with values that are 1 at a word's tokens."""
        heads, width = options["n_heads"], options["dim_head"]
        for watch, watched in self._watched.items():
            if watch.source != of_source or size != watched:
                continue
            if (watch, k.shape[1]) not in self._weights:
                copies = k.shape[1] // len(watch.weights)
                self._weights[watch, k.shape[1]] = watch.weights.to(q).repeat(copies, 1)
            weights = self._weights[watch, k.shape[1]]
            seen = []
            for some in weights.split(width, dim=1):
                values = q.new_zeros(len(q), len(weights), heads, width)
                values[..., : some.shape[1]] = some[:, None]
                product = maps(values.flatten(2)).unflatten(-1, (heads, width))
                seen.append(product[..., : some.shape[1]].float().mean(dim=2))
            found = torch.cat(seen, dim=-1).movedim(-1, 1).unflatten(-1, size)
            self._seen.setdefault(watch, []).append(found)


def _product(
    q: Tensor, k: Tensor, values: Tensor, options: dict[str, Any], mask: Tensor | None = None
) -> Tensor:
    """The maps of `q` and `k`, times values for each token, or for the first copy of them."""
    values = values.repeat(1, k.shape[1] // values.shape[1], 1)
    return attend(q, k, values, options, mask)
