"""A byte-pair tokenizer of CLIP's kind, with a vocabulary made for the demo world's captions."""

from __future__ import annotations

import json
from itertools import product

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .world import BACKGROUNDS, OBJECTS, Object, Scene, caption

LENGTH = 77
"""Tokens per text, start, end and padding included."""

_END_OF_WORD = "</w>"
_MERGES = 400


def train_tokenizer() -> CLIPTokenizer:
    """Every word of the captions becomes one token; any other text falls back to bytes."""
    trainee = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
    trainee.normalizer = normalizers.Lowercase()
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_MERGES, end_of_word_suffix=_END_OF_WORD, show_progress=False
    )
    trainee.train_from_iterator(_captions(), trainer)
    merges = [tuple(pair) for pair in _merges(trainee)]

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + _END_OF_WORD for letter in letters)]
    words += ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocabulary, merges, model_max_length=LENGTH)


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


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    """The merges of a BPE tokenizer, in order."""
    return json.loads(tokenizer.to_str())["model"]["merges"]
