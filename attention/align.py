"""Which tokens of one prompt belong to which of another, for prompt-to-prompt.

A cross-attention map has one column for each token, special tokens included. Hertz et al. (ICLR
2023, arXiv 2208.01626) give the target's columns the source's maps: word by word where both
prompts have as many words (`replace`), or where their tokens agree (`refine`).
"""

from __future__ import annotations

import difflib
import enum
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import shorten

import torch
from torch import Tensor


class Special(enum.Enum):
    """A token that belongs to no word."""

    START = "start"
    END = "end"
    PAD = "padding"


START, END, PAD = Special.START, Special.END, Special.PAD


@dataclass(frozen=True)
class Word:
    """A word, a punctuation mark or a textual-inversion embedding of a prompt.

    Attributes:
        text: as the user knows it, such as "horse", "," or "embedding:name".
        tokens: its columns in the cross-attention.
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A text as the cross-attention sees it.

    Attributes:
        text: what the user wrote.
        tokens: one for each column, all chunks of 77 one after the other: START, END or PAD, the
            token's id, or what `key` makes of an embedding's vector.
        words: in the order of the text.
        embedding: (1, tokens, width) what the text encoder made of it; its conditioning is
            recognised by this.
    """

    text: str
    tokens: tuple[Hashable, ...]
    words: tuple[Word, ...]
    embedding: Tensor

    def columns(self, words: str | Sequence[str]) -> tuple[int, ...]:
        """The columns of every occurrence of a word or phrase, or of each of several.

        Spaces and capitals do not count, so that "2024" and "horse's", which are several words to
        the tokenizer, are found as well.
        """
        if not isinstance(words, str):
            return tuple(sorted({column for one in words for column in self.columns(one)}))
        wanted = _plain(words)
        if not wanted:
            raise ValueError("a word to look for is empty; write a word of the prompt")
        found = {
            column
            for first in range(len(self.words))
            for word in self._span(first, wanted)
            for column in word.tokens
        }
        if not found:
            raise ValueError(
                f'"{words.strip()}" is not in the prompt "{shorten(self.text, 60)}"; '
                f"{self._advice(words)}"
            )
        return tuple(sorted(found))

    def _span(self, first: int, wanted: str) -> tuple[Word, ...]:
        """The words from `first` on that make `wanted`; none if they do not."""
        joined = ""
        for last in range(first, len(self.words)):
            joined += _plain(self.words[last].text)
            if joined == wanted:
                return self.words[first : last + 1]
            if not wanted.startswith(joined):
                break
        return ()

    def _advice(self, words: str) -> str:
        """What to write in place of `words`, which the prompt does not have."""
        texts = [word.text for word in self.words]
        length = len(words.split())
        phrases = [" ".join(texts[i : i + length]) for i in range(len(texts) - length + 1)]
        near = difflib.get_close_matches(words.strip().lower(), [*phrases, *texts], n=1)
        return f'the nearest there is "{near[0]}"' if near else "use words that it has"


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptPair:
    """The prompt of the source and the prompt of the edit."""

    source: Prompt
    target: Prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Which of the source's tokens each of the target's takes its map from.

    Attributes:
        mapper: (source tokens S, target tokens T) the source's maps (pixels, S) @ mapper are what
            the target's tokens get.
        new: (T,) bool, the target tokens without counterpart. They keep their own map; their
            column of the mapper is 0.
    """

    mapper: Tensor
    new: Tensor


def replace(pair: PromptPair) -> Alignment:
    """The i-th word to the i-th word, for prompts with as many words.

    A word of n tokens becomes one of m: each of them gets 1/m of the sum of the n columns, so that
    the attention which the word has stays the same. (The authors' code writes `mapper[j, j]` after
    the last change, which is wrong from there on if n and m differ.)
    """
    source, target = pair.source.words, pair.target.words
    if len(source) != len(target):
        raise ValueError(
            f"replace needs as many words in both prompts, and the source has {len(source)}, "
            f"the target {len(target)}; use refine"
        )
    mapper = _special_tokens(pair)
    for old, new in zip(source, target, strict=True):
        if len(old.tokens) == len(new.tokens):
            mapper[old.tokens, new.tokens] = 1
        else:
            for column in new.tokens:
                mapper[old.tokens, column] = 1 / len(new.tokens)
    return _alignment(mapper)


def refine(pair: PromptPair) -> Alignment:
    """Token to equal token, for prompts to which words were added or from which some were taken."""
    mapper = _special_tokens(pair)
    source, target = _content(pair.source.tokens), _content(pair.target.tokens)
    matched = needleman_wunsch(
        [pair.source.tokens[i] for i in source], [pair.target.tokens[j] for j in target]
    )
    for i, j in matched:
        mapper[source[i], target[j]] = 1
    return _alignment(mapper)


def automatic(pair: PromptPair) -> tuple[str, Alignment]:
    """ "replace" where the numbers of words allow it, else "refine", and its alignment."""
    if len(pair.source.words) == len(pair.target.words):
        return "replace", replace(pair)
    return "refine", refine(pair)


def needleman_wunsch(x: Sequence[Hashable], y: Sequence[Hashable]) -> list[tuple[int, int]]:
    """The pairs (i, j) with x[i] == y[j] of a best alignment, in order.

    A match counts 1, a mismatch -1, a gap 0 (Needleman and Wunsch 1970). A mismatch is thus worse
    than the two gaps in its place, and only equal ones are ever paired. Of several best alignments
    it is one that is the same with `x` and `y` exchanged; the earliest tokens of the longer are
    matched.
    """
    if (len(x), repr(x)) > (len(y), repr(y)):
        return [(i, j) for j, i in needleman_wunsch(y, x)]
    best = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(len(x)):
        for j in range(len(y)):
            diagonal = best[i][j] + (1 if x[i] == y[j] else -1)
            best[i + 1][j + 1] = max(best[i][j + 1], best[i + 1][j], diagonal)
    pairs = []
    i, j = len(x), len(y)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _content(tokens: Sequence[Hashable]) -> list[int]:
    """The columns that are not special, of all chunks."""
    return [i for i, token in enumerate(tokens) if not isinstance(token, Special)]


def _special_columns(tokens: Sequence[Hashable]) -> dict[tuple[int, Hashable, int], int]:
    """Column by chunk, kind, and number among its kind in the chunk."""
    columns: dict[tuple[int, Hashable, int], int] = {}
    chunk, padding = -1, 0
    for column, token in enumerate(tokens):
        if token is START:
            chunk, padding = chunk + 1, 0
        if token is PAD:
            padding += 1
        if isinstance(token, Special):
            columns[chunk, token, padding if token is PAD else 0] = column
    return columns


def _special_tokens(pair: PromptPair) -> Tensor:
    """A mapper (S, T) of the special tokens alone, each to its like in the same chunk."""
    source = _special_columns(pair.source.tokens)
    target = _special_columns(pair.target.tokens)
    mapper = torch.zeros(len(pair.source.tokens), len(pair.target.tokens))
    for place in source.keys() & target.keys():
        mapper[source[place], target[place]] = 1
    return mapper


def _alignment(mapper: Tensor) -> Alignment:
    return Alignment(mapper=mapper, new=~mapper.any(dim=0))


def _plain(text: str) -> str:
    """`text` as words are compared: without spaces and capitals."""
    return "".join(unicodedata.normalize("NFC", text).casefold().split())


def summary(pair: PromptPair) -> str:
    """What becomes of which word, line by line, under the alignment that `automatic` takes.

    `· horse → zebra` is a word that takes another's place, `+ red` one that is new, `− red` one
    that is gone; the others are as they were.
    """
    mode, alignment = automatic(pair)
    source, target = pair.source, pair.target
    owner = {column: i for i, word in enumerate(source.words) for column in word.tokens}
    told: list[tuple[str, str]] = []  # a sign, none for a word that is as it was, and the text
    added: list[tuple[str, str]] = []
    next_old = 0

    for word in target.words:
        columns = list(word.tokens)
        olds = sorted({owner[int(i)] for i in alignment.mapper[:, columns].sum(1).nonzero()})
        if not olds:
            added.append(("+ ", word.text))
            continue
        told += [("− ", old.text) for old in source.words[next_old : olds[0]]] + added
        text = " ".join(source.words[i].text for i in olds)
        same = text == word.text and not alignment.new[columns].any()
        told.append(("", text) if same else ("· ", f"{text} → {word.text}"))
        next_old, added = max(next_old, olds[-1] + 1), []
    told += [("− ", old.text) for old in source.words[next_old:]] + added

    lines = [
        f"{mode}: {len(source.words)} → {len(target.words)} words, "
        f"{len(_content(source.tokens))} → {len(_content(target.tokens))} tokens"
    ]
    for sign, run in groupby(told, key=lambda one: one[0]):
        texts = [text for _, text in run]
        lines += [sign + text for text in texts] if sign else [" ".join(texts)]
    return "\n".join(lines)
