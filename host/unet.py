"""Changes of attention as patches of the attention layers of ComfyUI's UNets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from comfy.model_patcher import create_model_options_clone
from torch import Tensor, nn

from ..attention.plan import FEATURES, Maps, Watch
from .attention import AttentionControl, Call, Layer, Rows, copied

T = TypeVar("T")

Patch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
"""From queries, keys and values (rows, tokens, width) to a layer's output."""

RESIDUAL = "forward_timestep_embed_patch"
"""The option of a MODEL that takes over a kind of layer: pairs of a class and a function."""

MIDDLE = "middle_block_after_patch"
"""The option of a MODEL that changes the output of its middle block: a list of functions."""

NOT_KEPT = (
    "a prompt of h-space does not act at every step; connect it without a range of steps, "
    "such as that of ConditioningSetTimestepRange"
)

REGROUPED_TOKENS = (
    "something on the model merges or regroups the picture's tokens (ToMe, HyperTile), and the "
    "source's attention then belongs to other places; take it off the model, or set self_replace "
    "to 0"
)


class LayerPatch:
    """The patch of one layer, or of a block of layers, the same object in all calls of a run.

    What it does runs outside of what torch.compile compiles, so that its state may change from step
    to step.
    """

    def __init__(self, change: Callable[..., Tensor], block: tuple[str, int]) -> None:
        """Keep what to do; another pack's patch comes later."""
        self.change = uncompiled(change)
        self.block = block
        self.theirs: Patch | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        """What ComfyUI calls in place of the layer's attention."""
        return self.change((*self.block, options["block_index"]), self.theirs, q, k, v, options)


def uncompiled(change: Callable[..., T]) -> Callable[..., T]:
    """The function outside of what torch.compile compiles."""
    # Whoever compiles has imported this already; it takes a second, and others do not need it.
    compiles = "torch._dynamo" in sys.modules
    return torch.compiler.disable(change) if compiles else change


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


class UNetControl(AttentionControl):
    """What changes a UNet's attention in one run: a patch for each layer, whose state changes."""

    def __init__(self, network: nn.Module) -> None:
        """Find the layers."""
        super().__init__(network, attention_layers(network))
        self._sizes: dict[tuple[Watch, tuple[int, int]], tuple[int, int]] = {}
        self._changes = {"attn1": self.self_attention, "attn2": self.cross_attention}
        self._patches: dict[tuple[str, Any], LayerPatch] = {}
        self._middle = uncompiled(self.middle)

    def check(self, watch: Watch) -> None:
        latent = (self._shape[-2], self._shape[-1])
        if (watch, latent) not in self._sizes:
            sizes = map_sizes(self.network, *latent)
            self._sizes[watch, latent] = watch.size(sizes, min(latent))

    def looks(self, watch: Watch, layer: Layer, size: Sequence[int]) -> bool:
        return self._sizes[watch, (self._shape[-2], self._shape[-1])] == tuple(size)

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        options = create_model_options_clone(model_options)
        transformer = options.setdefault("transformer_options", {})
        replaced = transformer.setdefault("patches_replace", {})
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
        patches = transformer.setdefault("patches", {})
        theirs = [one for one in patches.get(MIDDLE, []) if one != self._middle]
        patches[MIDDLE] = [*theirs, self._middle]
        if self.with_features:
            theirs = [one for one in patches.get(RESIDUAL, []) if one[1] != self.residual]
            patches[RESIDUAL] = [*theirs, (ResBlock, self.residual)]
        return options

    def residual(
        self,
        layer: ResBlock,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None,
        options: dict[str, Any],
        *_: Any,
    ) -> Tensor:
        """A residual block's output; what it adds to its input is the source's."""
        out = layer(x, emb)
        block = options["block"]
        injections = [
            one for one in self.attention.injections if FEATURES in one.parts and one.at(block)
        ]
        if self.idle or not injections:
            return out
        target, source = self.parts(options, out, options["original_shape"])
        size = (out.shape[-2], out.shape[-1])
        skipped = layer.skip_connection(x)
        added = (out - skipped).flatten(2).mT  # as tokens, like an attention's output
        rows = Rows(target=target, source=source, size=size)
        changed = self.outputs((block, id(layer)), rows, injections, added.contiguous(), FEATURES)
        return skipped + changed.mT.unflatten(2, size)

    def middle(self, given: dict[str, Any]) -> dict[str, Any]:
        """What goes on from the middle block, after other packs' patches of it; the target's part
        is kept and changed."""
        bottleneck = self.attention.bottleneck
        if self.idle or bottleneck is None:
            return given
        options, h = given["transformer_options"], given["h"]
        target, _ = self.parts(options, h, options["original_shape"])
        if not target:
            return given
        out = h.clone()
        for part in target:
            if bottleneck.kept is not None:
                self._bottlenecks[bottleneck.kept] = h[part].clone()
            try:
                out[part] = bottleneck.changed(h[part], self._bottlenecks)
            except KeyError:
                raise ValueError(NOT_KEPT) from None
        return {**given, "h": out}

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
        size = size_of(options)
        injections = () if self.idle else self.injections(layer[:2], size)
        if not injections or not (self._target or self._source):
            return unchanged(theirs, q, k, v, options)
        call = self._call(theirs, q, k, v, size, options)
        if q.shape[1] != size[0] * size[1] and (call.target or call.source is not None):
            raise ValueError(REGROUPED_TOKENS)
        return self.injected(layer, call, injections)[0]

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
        size = size_of(options)
        call = self._call(theirs, q, k, v, size, options)
        injections = self.injections(layer[:2], size)
        return self.crossed(layer, call, out, injections, added=theirs is not None)

    def _call(
        self,
        theirs: Patch | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        size: tuple[int, int],
        options: dict[str, Any],
    ) -> Call:
        target, source = self.parts(options, q, options["original_shape"])

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return unchanged(theirs, q, k, v, options)

        def product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            return attend(q, k, v, options, mask)

        return Call(
            q=q,
            k=k,
            v=v,
            whole=whole,
            attend=product,
            heads=options["n_heads"],
            target=target,
            source=source,
            size=size,
        )

    def biased(self, call: Call, part: slice) -> Maps:
        if not self.attention.painted:
            return call.maps(part)
        q, k = call.q[part], call.k[part]
        mask = self._bias(q, k, call)
        return lambda values: call.attend(q, k, copied(values, k), mask)

    def _bias(self, q: Tensor, k: Tensor, call: Call) -> Tensor:
        """What is added to the scores (B, heads, pixels, tokens) for the painted phrases."""
        width = q.shape[-1] // call.heads
        queries = q.unflatten(-1, (call.heads, width)).float()
        keys = k.unflatten(-1, (call.heads, width)).float()
        scores = torch.einsum("bphd,bthd->bhpt", queries, keys) * width**-0.5
        peak = scores.amax(dim=(2, 3))
        painted = [w * phrase.scores(peak, call.size) for phrase, w in self.attention.painted]
        added = torch.stack(painted).sum(dim=0)
        return added.repeat(1, 1, 1, k.shape[1] // added.shape[3]).to(q.dtype)
