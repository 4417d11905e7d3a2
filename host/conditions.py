"""ComfyUI's conditions: whose they are, between two of them, with another embedding."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import comfy.conds
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.align import Prompt
from ..attention.plain import from_plain, to_plain
from ..core.path import Conditioning
from ..core.schedules import boundaries

PROMPT = "diffusion_path_prompt"
"""The option of a CONDITIONING that says which text it was made of."""

WORDS = "diffusion_path_words"
"""The option of a CONDITIONING that says which words and tokens that text has."""

ALIKE, MADE_OF = 0.02, 0.1
"""How far a token's embedding may be off for a conditioning to be a prompt's own: what devices,
drivers and half precision make; and, where the conditioning says so itself, what keeps a mixture
with another prompt out."""

MASKS = ("mask", "ids", "num_tokens")
"""What in the name of a model's condition says that its numbers are no embedding."""


class Conds(list[dict[str, Any]]):
    """A condition as the guider has prepared it: a dict for each part of the picture.

    Attributes:
        negative: whether it takes the negative's place in a call.
    """

    def __init__(self, parts: Iterable[dict[str, Any]], negative: bool = False) -> None:
        """Keep the parts."""
        super().__init__(parts)
        self.negative = negative


def identity(prompt: Prompt) -> str:
    """The same for the same text, read by the same tokenizer."""
    return hashlib.sha256(repr((prompt.text, prompt.tokens)).encode()).hexdigest()


def signed(conditioning: Conditioning, prompt: Prompt) -> Conditioning:
    """A conditioning that says which prompt it was made of, and which words that has."""
    said = {PROMPT: identity(prompt), WORDS: to_plain(prompt)}
    return [[one, {**options, **said}] for one, options in conditioning]


def prompt_in(conditioning: Conditioning) -> Prompt | None:
    """The prompt that a conditioning says it was made of; None if it does not say, if its
    embedding was changed since, or if it was made of several."""
    prompts = [from_plain(options.get(WORDS), one) for one, options in conditioning]
    known = {identity(prompt): prompt for prompt in prompts if prompt is not None}
    return prompts[0] if len(known) == 1 and None not in prompts else None


def is_of(embedding: Tensor | None, options: dict[str, Any], prompt: Prompt | None) -> bool:
    """Whether a conditioning is a prompt's own; any is if there is no prompt."""
    if prompt is None:
        return True
    wanted = prompt.embedding
    if embedding is None or embedding.shape != wanted.shape:
        return False
    off = (embedding.to("cpu", torch.float32) - wanted.to("cpu", torch.float32)).norm(dim=-1)
    limit = MADE_OF if options.get(PROMPT) == identity(prompt) else ALIKE
    return bool((off <= limit * wanted.cpu().float().norm(dim=-1).clamp(min=1e-6)).all())


def same(a: Conds, b: Conds) -> bool:
    """Whether two conditions say the same to the network."""

    def said(conds: Conds) -> list[dict[str, Any]]:
        return [
            {
                **part,
                "uuid": None,
                "model_conds": {k: vars(v) for k, v in part["model_conds"].items()},
            }
            for part in conds
        ]

    return a is b or comfy.conds.is_equal(said(a), said(b))


def mixes(a: Conds, b: Conds) -> bool:
    """Whether embeddings between those of two conditions are a condition of the same model.

    They are for one part each, of as many tokens, or of any number where the network reads them by
    cross-attention alone; masks of tokens must agree.
    """
    if len(a) != 1 or len(b) != 1:
        return False
    ours, theirs = a[0]["model_conds"], b[0]["model_conds"]
    if ours.keys() != theirs.keys() or "c_crossattn" not in ours:
        return False
    regional = ("area", "mask", "control", "gligen", "hooks", "timestep_start", "timestep_end")
    if any(a[0].get(key) is not b[0].get(key) for key in regional):
        return False
    return all(_mixes(name, cond, theirs[name]) for name, cond in ours.items())


def _mixes(name: str, a: Any, b: Any) -> bool:
    x: Any = getattr(a, "cond", None)
    y: Any = getattr(b, "cond", None)
    if not _is_embedding(name, x) or not _is_embedding(name, y):
        return comfy.conds.is_equal(x, y)
    if isinstance(a, comfy.conds.CONDCrossAttn):
        return x.shape[2:] == y.shape[2:]
    return x.shape[1:] == y.shape[1:]


def _is_embedding(name: str, value: Any) -> bool:
    if not torch.is_tensor(value) or not value.is_floating_point():
        return False
    return not any(part in name for part in MASKS)


def mix(a: Conds, b: Conds, weight: float) -> Conds:
    """The condition `(1 - weight) * a + weight * b`, where `mixes(a, b)`.

    Where the token counts differ both are repeated to the least common multiple, which leaves the
    cross-attention of each alone exactly as it was.
    """
    ours, theirs = a[0]["model_conds"], b[0]["model_conds"]
    mixed = dict(ours)
    for name, cond in ours.items():
        x: Any = getattr(cond, "cond", None)
        y: Any = getattr(theirs[name], "cond", None)
        if not _is_embedding(name, x) or not torch.is_tensor(y):
            continue
        if x.ndim == 3 and x.shape[1] != y.shape[1]:
            tokens = math.lcm(x.shape[1], y.shape[1])
            x = x.repeat(1, tokens // x.shape[1], 1)
            y = y.repeat(1, tokens // y.shape[1], 1)
        mixed[name] = type(cond)(torch.lerp(x, y.to(x), weight))
    return Conds([{**a[0], "model_conds": mixed}], a.negative)


def embedding(condition: Conds) -> Tensor:
    """What the attention reads of a condition (B or 1, tokens, width).

    Raises:
        ValueError: there is none, or several parts of the picture have one each.
    """
    found = {id(_text(part).cond): _text(part).cond for part in condition}
    if len(found) != 1:
        raise ValueError(
            f"the prompt to start from has {len(found)} parts, of which only one can have "
            "its embedding replaced; connect the output of a single CLIP Text Encode"
        )
    return next(iter(found.values()))


def with_embedding(condition: Conds, embedding: Tensor) -> Conds:
    """The condition with another embedding in all its parts."""
    parts = [
        {
            **part,
            "model_conds": {**part["model_conds"], "c_crossattn": type(_text(part))(embedding)},
        }
        for part in condition
    ]
    return Conds(parts, condition.negative)


def _text(part: dict[str, Any]) -> comfy.conds.CONDRegular:
    cond = part["model_conds"].get("c_crossattn")
    if not isinstance(cond, comfy.conds.CONDRegular):
        raise ValueError(
            "the model reads no text, so there is no embedding to replace; "
            "use a text-to-image model"
        )
    return cond


def scheduled(
    model: ModelPatcher, negative: Conditioning, embeddings: Tensor, sigmas: Tensor
) -> Conditioning:
    """Embeddings (N, B, tokens, width) as CONDITIONING, each from its own noise level on."""
    ((_, options),) = negative
    options = {name: value for name, value in options.items() if name not in (PROMPT, WORDS)}
    percents = boundaries(sigmas, model.get_model_object("model_sampling").percent_to_sigma)
    return [
        [embedding, {**options, "start_percent": start, "end_percent": end}]
        for embedding, (start, end) in zip(embeddings, pairwise(percents), strict=True)
    ]
