"""Changes of attention in ComfyUI's transformers, by the option that takes over every attention.

`transformer_options["optimized_attention_override"]` sees queries and keys behind their norms and
rotations. What it does not see is which of them are the picture's: that is what `FAMILIES` knows.
A network that is not there, or that does not call ComfyUI's attention, is refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from comfy.model_patcher import create_model_options_clone
from torch import Tensor, nn

from ..attention.plan import Maps, Watch, coverage
from ..core.families import Block
from .attention import AttentionControl, Call, Layer, copied

COMFY = "comfy.ldm."
OVERRIDE = "optimized_attention_override"
ARGUMENTS = ("q", "k", "v", "heads", "mask", "attn_precision")
"""Of ComfyUI's attention functions, in their order."""

MAX = -30.0
"""The logarithm of a factor of 0: what is left of a word's attention then."""

UNREACHED = (
    "the attention of {} cannot be reached, because its network does not call ComfyUI's; use "
    "FlowEdit, MDP Epsilon, or DiffEdit Mask with Mask Blend, which work with it"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the tokens are in a kind of network, as ComfyUI 0.30 has it.

    Attributes:
        name: what users call it.
        blocks: its blocks with attention, by their kind: the names of the lists in the network.
        joint: whether text and picture share one attention; else self- and cross-attention.
        picture_first: whether the picture stands before the text.
        text_ends: whether the prompt's tokens are the last of the text, behind others or padding.
        fills: the name of the network's number of which the picture's tokens are a multiple.
        marked: whether the network does not say which block calls, but lets each be replaced.
        counted: whether it does neither, so that calls are counted.
        other_text: whether the network reads another text than the prompt's tokens, so that its
            words have no place in the attention.
        maps: the blocks whose maps to look at, by the number of all blocks: the papers'.
    """

    name: str
    blocks: dict[str, str]
    joint: bool = True
    picture_first: bool = False
    text_ends: bool = False
    fills: str = ""
    other_text: bool = False
    marked: bool = False
    counted: bool = False
    maps: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


BOTH = {"double": "double_blocks", "single": "single_blocks"}
FLUX_MAPS = {57: (18, 17, 12, 14, 11), 8: (6, 7)}
FAMILIES = {
    "flux.model.Flux": Family(name="Flux", blocks=BOTH, text_ends=True, maps=FLUX_MAPS),
    "chroma.model.Chroma": Family(name="Chroma", blocks=BOTH, maps=FLUX_MAPS),
    "modules.diffusionmodules.mmdit.MMDiT": Family(
        name="SD3, SD3.5",
        blocks={"block": "joint_blocks"},
        marked=True,
        maps={24: (7, 9, 8, 5, 10), 38: (18, 21, 20, 24, 16)},
    ),
    "qwen_image.model.QwenImageTransformer2DModel": Family(
        name="Qwen-Image", blocks={"block": "transformer_blocks"}
    ),
    "lumina.model.NextDiT": Family(
        name="Lumina 2, Z-Image", blocks={"block": "layers"}, fills="pad_tokens_multiple"
    ),
    "hunyuan_video.model.HunyuanVideo": Family(name="HunyuanVideo", blocks=BOTH),
    "hidream.model.HiDreamImageTransformer2DModel": Family(
        name="HiDream-I1",
        blocks={"double": "double_stream_blocks", "single": "single_stream_blocks"},
        picture_first=True,
        counted=True,
    ),
    "wan.model.WanModel": Family(name="Wan", blocks={"block": "blocks"}, joint=False),
    "lightricks.model.LTXVModel": Family(
        name="LTXV", blocks={"block": "transformer_blocks"}, joint=False, marked=True
    ),
    "cosmos.predict2.MiniTrainDIT": Family(
        name="Anima", blocks={"block": "blocks"}, joint=False, other_text=True
    ),
}
"""The kinds of networks by the names of their classes behind `COMFY`. The maps are those of arXiv
2508.07519; SD3 and SD3.5 Medium have as many blocks, and the paper's five of the latter serve
both. Those of the demo's flow model, of eight blocks, are measured (`benchmarks/word_maps.py`)."""


def family_of(network: nn.Module) -> Family | None:
    """The kind of a network; None if it is not known, or not ComfyUI's own."""
    if not type(network).__module__.startswith(COMFY):
        return None
    kinds = (f"{one.__module__}.{one.__name__}" for one in type(network).__mro__)
    found = (FAMILIES.get(kind.removeprefix(COMFY)) for kind in kinds)
    return next((family for family in found if family), None)


def blocks_of(network: nn.Module) -> tuple[Block, ...]:
    """The blocks of a network of a known kind, in the order of their call."""
    family = family_of(network)
    named = family.blocks if family else {}
    return tuple(
        (kind, i) for kind, name in named.items() for i in range(len(getattr(network, name)))
    )


def maps_of(network: nn.Module) -> frozenset[Block]:
    """The blocks whose maps to look at: the published ones, or five in the middle third."""
    family, blocks = family_of(network), blocks_of(network)
    chosen = family.maps.get(len(blocks)) if family else None
    if chosen is None:
        first, last = len(blocks) / 3, 2 * len(blocks) / 3
        chosen = tuple(int(first + (last - first) * (i + 0.5) / 5) for i in range(5))
    return frozenset(blocks[i] for i in chosen)


def grid_of(network: nn.Module, latent: Sequence[int]) -> tuple[int, ...]:
    """How many tokens the picture has along each dimension of a latent (frames, height, width)."""
    patch: Any = getattr(network, "patch_size", None)
    if patch is None and hasattr(network, "x_embedder"):
        patch = getattr(network.x_embedder, "patch_size", None)
        if patch is None:
            patch = (network.patch_temporal, network.patch_spatial, network.patch_spatial)
    sides = list(patch) if isinstance(patch, (tuple, list)) else [patch or 1] * 2
    sides = [1] * (len(latent) - len(sides)) + sides[-len(latent) :]
    return tuple(-(-size // side) for size, side in zip(latent, sides, strict=True))


class Marked:
    """A block of a network that does not say its number itself."""

    def __init__(self, number: int, theirs: Callable[..., Any] | None) -> None:
        """Keep the number, and another pack's patch."""
        self.number, self.theirs = number, theirs

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> Any:
        """What ComfyUI calls in place of the block."""
        options = {**args["transformer_options"], "block_index": self.number}
        args = {**args, "transformer_options": options}
        return extra["original_block"](args) if self.theirs is None else self.theirs(args, extra)


class TransformerControl(AttentionControl):
    """What changes a transformer's attention in one run.

    Attributes:
        text_ends: whether the prompt's tokens are the last of the text.
    """

    def __init__(self, network: nn.Module, family: Family) -> None:
        """Find the blocks."""
        self.family, self.blocks = family, blocks_of(network)
        super().__init__(network, [(*block, 0) for block in self.blocks])
        self._maps = maps_of(network)
        self._shown: Sequence[int] = ()
        self._grid: tuple[int, ...] = ()
        self._calls: dict[Any, int] = {}
        self._entered = self._reached = self._crossed = 0
        self._theirs: Callable[..., Tensor] | None = None
        # HunyuanVideo 1.5, which has this, puts other texts before the prompt's.
        typed = getattr(network, "cond_type_embedding", None) is not None
        self.text_ends = family.text_ends or typed
        # Whoever compiles has imported this already; it takes a second, and others do not need it.
        compiles = "torch._dynamo" in sys.modules
        self._override = torch.compiler.disable(self.override) if compiles else self.override

    def enter(self, x: Tensor) -> None:
        self._shown, self._grid = x.shape, grid_of(self.network, x.shape[2:])
        self._calls = {}
        self._entered += 1

    def check_reached(self) -> None:
        if self._entered and not self._reached:
            raise ValueError(UNREACHED.format(type(self.network).__name__))
        about_words = self.attention.changes_cross or bool(self.attention.watched)
        if not self.family.joint and about_words and not self._crossed:
            raise ValueError(
                f"{self.family.name} reads another text than its prompt's tokens, so its words "
                "have no place in the attention; use Source Features, Keep Background or FlowEdit"
            )

    def check(self, watch: Watch) -> None:
        height, width = grid_of(self.network, self._shape[2:])[-2:]
        watch.size([(height, width)], min(self._shape[-2:]))

    def looks(self, watch: Watch, layer: Layer, size: Sequence[int]) -> bool:
        return layer[:2] in self._maps

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        options = create_model_options_clone(model_options)
        transformer = options.setdefault("transformer_options", {})
        before = transformer.get(OVERRIDE)
        if before is not self._override:
            self._theirs = before
        transformer[OVERRIDE] = self._override
        if self.family.marked:
            replaced = transformer.setdefault("patches_replace", {})
            theirs = replaced.get("dit", {})
            ours = {
                ("double_block", i): Marked(i, theirs.get(("double_block", i)))
                for _, i in self.blocks
            }
            replaced["dit"] = {**theirs, **ours}
        return options

    def override(self, attention: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
        """What ComfyUI calls in place of every attention of a network."""
        self._reached += 1
        theirs = self._theirs

        def inner(*args: Any, **named: Any) -> Tensor:
            if theirs is None:
                return attention(*args, **named)
            return theirs(attention, *args, **named)

        if self.idle or not (self.attention and (self._target or self._source)):
            return inner(*args, **named)
        given = dict(zip(ARGUMENTS, args, strict=False)) | named
        q, k, v, heads, options = (given[name] for name in (*ARGUMENTS[:4], "transformer_options"))
        v = v.reshape(*v.shape[:2], -1) if v.ndim > q.ndim else v  # SD3's have a dimension of heads
        layer, kind = self._layer(q.shape[-2], k.shape[-2], options)
        if layer is None or given.get("skip_output_reshape") or given.get("enable_gqa"):
            return inner(*args, **named)
        others = {name: value for name, value in given.items() if name not in ARGUMENTS[:5]}

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            return inner(q, k, v, heads, mask=mask, **others | {"skip_reshape": q.ndim == 4})

        return self._change(layer, kind, q, k, v, heads, given.get("mask"), attend, options)

    def _layer(self, queries: int, keys: int, options: dict[str, Any]) -> tuple[Layer | None, str]:
        """Which layer calls, and whether it is of joint, self- or cross-attention; None is another:
        a refiner of the text, or an attention of the picture alone beside a joint one."""
        places = math.prod(self._grid)
        if self.family.joint:
            kind = "joint" if queries == keys > self._filled(places) else ""
        elif queries == keys >= places:
            kind = "self"
        else:
            of_text = keys in self._tokens or not self._tokens
            kind = "cross" if queries >= places and of_text else ""
        number = options.get("block_index")
        if not kind or (number is None and not self.family.counted):
            return None, ""
        if number is None:
            number = self._count(kind)
            if number >= len(self.blocks):
                return None, ""
            block = self.blocks[number]
        elif len(self.family.blocks) == 1:
            block = self.blocks[0][0], number
        else:
            block = options["block_type"], number
        # Parallel networks, such as VACE's, call under the same number.
        return (*block, self._count((kind, block))), kind

    def _count(self, key: Any) -> int:
        self._calls[key] = self._calls.get(key, -1) + 1
        return self._calls[key]

    def _filled(self, places: int) -> int:
        """How many tokens the picture's are with those that fill them up."""
        multiple = getattr(self.network, self.family.fills, None) if self.family.fills else None
        return places + -places % multiple if multiple else places

    @property
    def _tokens(self) -> set[int]:
        """How many tokens the prompts have; none if nothing refers to them."""
        prompts = self.attention.target, self.attention.source
        return {len(prompt.tokens) for prompt in prompts if prompt}

    def _change(
        self,
        layer: Layer,
        kind: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None,
        attend: Callable[..., Tensor],
        options: dict[str, Any],
    ) -> Tensor:
        """A layer's output with the changes in it."""
        target, source = self.parts(options, q, self._shown)
        if not target and source is None:
            return attend(q, k, v, mask)
        place, text = self._places(kind, q.shape[-2], options)
        call: Call

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if kind == "joint" and self._biases and target:
                return self._biased(q, k, v, call, place, target)
            return attend(q, k, v, mask)

        call = Call(
            q=q,
            k=k,
            v=v,
            whole=whole,
            attend=attend,
            heads=heads,
            target=target,
            source=source,
            size=self._grid,
            place=place,
            text=text,
            text_ends=self.text_ends,
            mask=mask,
        )
        injections = self.injections(layer[:2], self._grid)
        if kind == "cross":
            self._crossed += 1
            return self.crossed(layer, call, attend(q, k, v, mask), injections, added=False)
        out, made = self.injected(layer, call, injections)
        if kind == "joint" and self.attention.watched:
            for part in target:
                self.watch(layer, made, self.biased(made, part), part, of_source=False)
            if source is not None:
                self.watch(layer, call, call.maps(source), source, of_source=True)
        return out

    def _places(
        self, kind: str, tokens: int, options: dict[str, Any]
    ) -> tuple[slice, slice | None]:
        """Where the picture's tokens and the text's are among those of a call."""
        places = math.prod(self._grid)
        if kind != "joint":
            # A picture to refer to stands before the latent's first frame in Wan.
            more = tokens - places
            before = more if more and getattr(self.network, "ref_conv", None) is not None else 0
            return slice(before, before + places), None
        if self.family.picture_first:
            return slice(0, places), slice(places, tokens)
        references = sum(options.get("reference_image_num_tokens", ()))
        first = tokens - references - self._filled(places)
        return slice(first, first + places), slice(0, first)

    @property
    def _biases(self) -> bool:
        return self.attention.scale is not None or bool(self.attention.painted)

    def biased(self, call: Call, part: slice) -> Maps:
        if not self._biases or (call.text is None and not self.attention.painted):
            return call.maps(part)
        q, k, mask = call.picture(call.q[part]), call.k[part], call.mask_of(part)
        rows = [slice(0, len(q))]

        def maps(values: Tensor) -> Tensor:
            values = copied(values, k)
            return self._biased(q, k, values, call, slice(None), rows, mask)

        return maps

    def attended(self, call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if call.text is None or not self._biases:
            return call.attend(q, k, v, mask)
        return self._biased(q, k, v, call, call.place, [slice(0, len(q))], mask)

    def _biased(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: Call,
        place: slice,
        rows: Sequence[slice],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attention with what is added to the scores between places and words.

        What is added is a sum of few products, of a number for each place and one for each token:
        so queries and keys get further channels for it, and no map is needed.

        Args:
            place: the queries that are the picture's.
            rows: those whose scores get it.
        """
        q, k, v = (_by_heads(x, call.heads) for x in (q, k, v))
        width, factors = q.shape[-1], []
        for part in rows:
            factors.append(self._added(q[part][..., place, :], k[part], call))
        channels = -(-factors[0][0].shape[-1] // 8) * 8
        scale = math.sqrt((width + channels) / width)
        more_q, more_k = (x.new_zeros(*x.shape[:-1], channels) for x in (q, k))
        for part, (of_places, of_tokens) in zip(rows, factors, strict=True):
            rank = of_places.shape[-1]
            more_q[part][..., place, :rank] = of_places.to(q) * math.sqrt(width + channels)
            more_k[part][..., :rank] = of_tokens.to(k)
        q, k = torch.cat([q * scale, more_q], dim=-1), torch.cat([k, more_k], dim=-1)
        out = call.attend(q, k, F.pad(v, (0, channels)), call.mask if mask is None else mask)
        return out.unflatten(-1, (call.heads, width + channels))[..., :width].flatten(-2)

    def _added(self, q: Tensor, k: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """What is added to the scores, as products: for each place (B, heads or 1, places, rank)
        and for each key (1, 1, keys, rank)."""
        attention, places = self.attention, q.shape[-2]
        of_places, of_tokens = [], []
        if attention.scale is not None and call.text is not None:
            of_places.append(q.new_ones(len(q), 1, places))
            of_tokens.append(attention.scale.log().clamp(min=MAX))
        if attention.painted:
            peak = _row_peaks(q, k)
            for phrase, strength in attention.painted:
                covered = coverage(phrase.mask, call.size).to(peak)
                covered = F.pad(covered, (0, places - covered.shape[1]))[:, None]
                of_places.append(strength * peak * covered)
                of_tokens.append(phrase.tokens)
        ranks = [one.expand(len(q), q.shape[1], places) for one in of_places]
        weights = torch.stack([one.float() for one in of_tokens], dim=-1)
        return torch.stack(ranks, dim=-1), call.over_keys(weights, k.shape[-2])[None, None]


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, width) as (rows, heads, tokens, width of a head)."""
    return x if x.ndim == 4 else x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _row_peaks(q: Tensor, k: Tensor) -> Tensor:
    """The largest score of each query (B, heads, places), a part of the queries at a time."""
    scale, keys = q.shape[-1] ** -0.5, k.transpose(-1, -2)
    parts = [(some @ keys).amax(dim=-1) for some in q.split(1024, dim=-2)]
    return torch.cat(parts, dim=-1).float() * scale
