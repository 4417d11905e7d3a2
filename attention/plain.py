"""A prompt as plain values, which a CONDITIONING carries and a path's file keeps."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from .align import Prompt, Special, Word
from .words import digest

VECTOR = "#"
"""What the text of a token begins with that is the digest of an embedding's vector."""


def to_plain(prompt: Prompt) -> dict[str, Any]:
    """All of a prompt but its embedding, of which there is only the digest."""
    return {
        "text": prompt.text,
        "tokens": [_plain(token) for token in prompt.tokens],
        "words": [_plain_word(word) for word in prompt.words],
        "embedding": digest(prompt.embedding).hex(),
    }


def from_plain(plain: Any, embedding: Tensor) -> Prompt | None:
    """The prompt of which `to_plain` has made `plain`, if `embedding` is its own.

    None for another embedding, such as a mixture with another prompt, and for what a damaged file
    may hold.
    """
    try:
        if plain["embedding"] != digest(embedding).hex():
            return None
        tokens = tuple(_token(token) for token in plain["tokens"])
        words = tuple(_word(*word) for word in plain["words"])
        text = str(plain["text"])
    except (KeyError, TypeError, ValueError):
        return None
    columns = {column for word in words for column in word.tokens}
    if len(tokens) != embedding.shape[1] or not columns <= {*range(len(tokens))}:
        return None
    return Prompt(text=text, tokens=tokens, words=words, embedding=embedding)


def _plain_word(word: Word) -> list[Any]:
    """Without `others` if there are none, as the files of earlier versions have it."""
    others = [[*word.others]] if word.others else []
    return [word.text, [*word.tokens], *others]


def _word(text: Any, tokens: Any, others: Any = ()) -> Word:
    return Word(str(text), tuple(tokens), tuple(others))


def _plain(token: Hashable) -> Any:
    if isinstance(token, tuple):
        return [_plain(one) for one in token]
    if isinstance(token, bytes):
        return VECTOR + token.hex()
    return token.value if isinstance(token, Special) else token


def _token(plain: Any) -> Hashable:
    if isinstance(plain, list):
        one, two = plain
        return _single(one), _single(two)
    return _single(plain)


def _single(plain: Any) -> Hashable:
    if isinstance(plain, str):
        of_vector = plain.startswith(VECTOR)
        return bytes.fromhex(plain.removeprefix(VECTOR)) if of_vector else Special(plain)
    return int(plain)
