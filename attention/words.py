"""Words, out of what ComfyUI's tokenizers return and out of what a user lists in a text box."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

from torch import Tensor

from .align import END, PAD, START, Special, Word

Chunks = Sequence[Sequence[tuple[Any, float, int]]]
"""What a tokenizer of ComfyUI makes of a text: (token, weight, piece) for each token of each chunk.
A token is its number, or a vector of a textual-inversion embedding. The piece is 0 for a special
token, and otherwise the same for a stretch of text of one weight, or for an embedding."""

OTHER_CLIP = "use the CLIP of an SD 1.x, SD 2.x or SDXL checkpoint"
EMBEDDING = "embedding:"
"""The text of a word that is an embedding, as long as its name is not known."""
_END_OF_WORD = "</w>"


class Tokenizer(Protocol):
    """What is read of `comfy.sd1_clip.SDTokenizer`."""

    inv_vocab: Mapping[int, str]
    start_token: int
    end_token: int
    embedding_size: int

    def decode(self, token_ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Reading:
    """A text's tokens, one for each column of the cross-attention, and its words."""

    tokens: tuple[Hashable, ...]
    words: tuple[Word, ...]

    def cut(self, length: int) -> Reading:
        """The first columns, and the words that lie in them."""
        words = (word for word in self.words if word.tokens[-1] < length)
        return Reading(self.tokens[:length], tuple(words))

    def spelling(self, word: Word) -> tuple[Hashable, ...]:
        """The tokens of a word."""
        return tuple(self.tokens[column] for column in word.tokens)


def read(text: Mapping[str, Chunks], tokenizers: Mapping[str, Tokenizer | None]) -> Reading:
    """What all tokenizers of a CLIP make of a text.

    Args:
        text: the chunks by the tokenizer's name: "l" for SD 1.x, "g" and "l" for SDXL.
        tokenizers: by the same names.
    """
    readings = []
    for name, chunks in text.items():
        tokenizer = tokenizers.get(name)
        if tokenizer is None or not _spells_words(tokenizer):
            raise ValueError(
                f"the CLIP's text encoder {name} is not a CLIP text model, and models that use "
                f"it have no cross-attention to control; {OTHER_CLIP}"
            )
        readings.append(_read_one(chunks, name, tokenizer))
    # SDXL puts both encodings side by side, as far as the shorter one goes.
    length = min(len(one.tokens) for one in readings)
    first, *others = (one.cut(length) for one in readings)
    tokens = first.tokens
    for other in others:
        if first.words != other.words or _specials(first) != _specials(other):
            raise ValueError(
                f"the CLIP's tokenizers ({', '.join(text)}) divide the prompt differently, so its "
                "words have no common place in the attention; take out embeddings that are longer "
                "for one than for the other"
            )
        # A token has the same number in both; a vector of an embedding differs.
        pairs = zip(tokens, other.tokens, strict=True)
        tokens = tuple(one if one == two else (one, two) for one, two in pairs)
    return Reading(tokens, first.words)


def _spells_words(tokenizer: Tokenizer) -> bool:
    """Whether its byte-pair tokens say where a word ends, as CLIP's do and T5's do not."""
    vocabulary = getattr(tokenizer, "inv_vocab", {})
    return any(str(token).endswith(_END_OF_WORD) for token in vocabulary.values())


def _specials(reading: Reading) -> list[Special | None]:
    return [token if isinstance(token, Special) else None for token in reading.tokens]


def _read_one(chunks: Chunks, name: str, tokenizer: Tokenizer) -> Reading:
    tokens: list[Hashable] = []
    content: list[tuple[int, int, Any]] = []
    for chunk in chunks:
        specials = iter((START, END))
        for token, _, piece in chunk:
            if piece == 0:
                tokens.append(next(specials, PAD))
                continue
            content.append((piece, len(tokens), token))
            if isinstance(token, Tensor):
                if token.shape[-1] != tokenizer.embedding_size:
                    raise ValueError(
                        f"an embedding in the prompt is {token.shape[-1]} wide, and the text "
                        f"encoder {name} reads {tokenizer.embedding_size}; take it out, or use one "
                        "that was made for this model"
                    )
                tokens.append(digest(token))
            else:
                tokens.append(int(token))
    words: list[Word] = []
    for _, group in groupby(content, key=itemgetter(0)):
        stretch = [(column, token) for _, column, token in group]
        if isinstance(stretch[0][1], Tensor):
            words.append(Word(EMBEDDING, tuple(column for column, _ in stretch)))
        else:
            words += _spelt(stretch, tokenizer)
    return Reading(tuple(tokens), tuple(words))


def _spelt(stretch: list[tuple[int, int]], tokenizer: Tokenizer) -> Iterator[Word]:
    """The words of a stretch of text, given as (column, number)."""
    word: list[tuple[int, int]] = []
    for last, (column, token) in enumerate(stretch, 1 - len(stretch)):
        word.append((column, token))
        spelling = tokenizer.inv_vocab[token]
        # "<|endoftext|>", if a user writes it, is a word by itself.
        special = token in (tokenizer.start_token, tokenizer.end_token)
        if spelling.endswith(_END_OF_WORD) or special or last == 0:
            text = spelling if special else tokenizer.decode([token for _, token in word]).strip()
            yield Word(text, tuple(column for column, _ in word))
            word = []


def digest(vector: Tensor) -> bytes:
    """The same for the same numbers."""
    return hashlib.sha256(vector.detach().cpu().float().contiguous().numpy().tobytes()).digest()


def embedding_names(text: str) -> list[str]:
    """What in a prompt looks like an embedding, "embedding:name", without its weight."""
    found = re.findall(rf"{EMBEDDING}[^\s()<\[]+", text)
    return list(dict.fromkeys(re.sub(r":[\d.]+$", "", name).strip(",") for name in found))


def word_list(text: str) -> list[str]:
    """The words and phrases of a text box, one per line or with commas between them."""
    return [word.strip() for word in re.split(r"[,\n]", text) if word.strip()]


def word_values(text: str) -> list[tuple[str, float]]:
    """(word, number) of each line `word: 1.5`."""
    values = []
    for word, value in _lines(text, "word: 1.5"):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f'"{value}", after "{word}", is not a number; write a line such as "{word}: 1.5"'
            )
        values.append((word, number))
    return values


def word_windows(text: str) -> list[tuple[str, float, float]]:
    """(word, start, end) of each line `word: 0.2-0.6`, or `word: 0.6`, which starts at 0."""
    windows = []
    for word, value in _lines(text, "word: 0.2-0.6"):
        fraction = r"(\d+\.?\d*|\.\d+)"
        match = re.fullmatch(rf"(?:{fraction}\s*[-–]\s*)?{fraction}", value)
        start, end = (float(match[1] or 0), float(match[2])) if match else (1.0, 0.0)
        if not start <= end <= 1:
            raise ValueError(
                f'"{value}", after "{word}", is not a part of the path, which goes from 0 to 1; '
                f'write a line such as "{word}: 0.6" or "{word}: 0.2-0.6"'
            )
        windows.append((word, start, end))
    return windows


def _lines(text: str, example: str) -> Iterator[tuple[str, str]]:
    """What stands before and after the last colon of each line that is not empty."""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, value = line.rpartition(":")
        if not word.strip() or not value.strip():
            raise ValueError(
                f'"{line}" is not a word and its value; write a line such as "{example}"'
            )
        yield word.strip(), value.strip()
