"""A byte-pair tokenizer of CLIP's kind, with a vocabulary made for the demo world's captions."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise, product

from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTokenizer

from .world import BACKGROUNDS, OBJECTS, Object, Scene, caption

LENGTH = 77
"""Tokens per text, start, end and padding included."""

_END_OF_WORD = "</w>"


def train_tokenizer() -> CLIPTokenizer:
    """Every word of the captions becomes one token; any other text falls back to bytes."""
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join(_captions())))
    merges = _train_merges(words)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *letters,
        *(letter + _END_OF_WORD for letter in letters),
        *("".join(pair) for pair in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocabulary, merges, model_max_length=LENGTH)


def tokenize(texts: list[str]) -> Tensor:
    """int (N, LENGTH)"""
    tokenizer = train_tokenizer()
    return tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids


def _train_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016, 1508.07909), until every word is one piece."""
    pieces = {word: [*word[:-1], word[-1] + _END_OF_WORD] for word in words}
    merges = []
    while any(len(parts) > 1 for parts in pieces.values()):
        counts: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts of a word with every occurrence of the pair made one."""
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _captions() -> list[str]:
    """One and two objects, every name and background."""
    ones = [
        caption(Scene((Object(name, (64, 64), 64),), background))
        for name, background in product(OBJECTS, BACKGROUNDS)
    ]
    twos = [
        caption(Scene((Object(left, (32, 64), 56), Object(right, (96, 64), 56)), "white"))
        for left, right in product(OBJECTS, OBJECTS)
    ]
    return ones + twos
