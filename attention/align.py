"""Which tokens of one prompt belong to which of another, for prompt-to-prompt.

A cross-attention map has one column for each token, special tokens included. Hertz et al. (ICLR
2023, arXiv 2208.01626) give the target's columns the source's maps: word by word where both
prompts have as many words (`replace`), or where their tokens agree (`refine`). `automatic` does
both at once: equal words belong together, and so do the words that take the place of others.
"""

from __future__ import annotations

import difflib
import enum
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, zip_longest
from textwrap import shorten

import torch
from torch import Tensor


class Special(enum.Enum):
    """A token that belongs to no word."""

    START = "start"
    END = "end"
    PAD = "padding"
    TEMPLATE = "template"
    """What a text encoder puts around the prompt, such as the marks of a chat."""


START, END, PAD, TEMPLATE = Special.START, Special.END, Special.PAD, Special.TEMPLATE

_SMALL_WORDS = """
a an the this that its his her their of in on at by to for from with without and or under over near
behind beside between above below into onto through around inside against wearing holding
ein eine einer eines einem einen der die das dem den des und oder mit ohne auf im am an zu zum zur
von vom vor bei aus unter über neben hinter zwischen
un une le la les l du de d des et ou avec sans sur sous dans à au aux en devant derrière
el los las una unos unas del y o con sin sobre bajo por para junto al
um uma os da do e com sem no na em il lo gli uno di della nel nella su sul sulla
"""
"""Articles, prepositions and the like of six languages. They divide a run of words into phrases."""

Words = tuple["Word", ...]


@dataclass(frozen=True)
class Word:
    """A word, a punctuation mark or a textual-inversion embedding of a prompt.

    Attributes:
        text: as the user knows it, such as "horse", "," or "embedding:name".
        tokens: its columns in the attention.
        others: its columns of another text encoder, such as CLIP's in SD3. Columns that the
            network appends to the embedding are counted on from the embedding's end.
    """

    text: str
    tokens: tuple[int, ...]
    others: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A text as the attention sees it.

    Attributes:
        text: what the user wrote.
        tokens: one for each column of the embedding, all chunks one after the other: a `Special`,
            the token's id, or the digest of an embedding's vector; or a pair of them, for two text
            encoders, or to tell one's ids from another's.
        words: in the order of the text.
        embedding: (1, tokens, width) what the text encoder made of it; its conditioning is
            recognised by this.
    """

    text: str
    tokens: tuple[Hashable, ...]
    words: tuple[Word, ...]
    embedding: Tensor

    def spelling(self, word: Word) -> Hashable:
        """What is the same for the same word: its text, or the vectors of an embedding.

        The first word of a text may have other tokens than the same word after a space.
        """
        tokens = tuple(self.tokens[column] for column in word.tokens)
        return word.text if all(isinstance(token, int) for token in tokens) else tokens

    def columns(self, words: str | Sequence[str], everywhere: bool = False) -> tuple[int, ...]:
        """The columns of every occurrence of a word or phrase, or of each of several.

        Spaces and capitals do not count, so that "2024" and "horse's", which are several words to
        the tokenizer, are found as well.

        Args:
            everywhere: also the columns of another text encoder (`Word.others`).
        """
        if not isinstance(words, str):
            each = (self.columns(one, everywhere) for one in words)
            return tuple(sorted({column for columns in each for column in columns}))
        wanted = _plain(words)
        if not wanted:
            raise ValueError("one of the words is empty; write a word of the prompt")
        found = {
            column
            for first in range(len(self.words))
            for word in self._span(first, wanted)
            for column in (*word.tokens, *(word.others if everywhere else ()))
        }
        if not found:
            raise ValueError(
                f'"{words.strip()}" is not in the prompt "{shorten(self.text, 60)}"; '
                f"{self._advice(words)}"
            )
        return tuple(sorted(found))

    def has(self, words: str) -> bool:
        """Whether a word or phrase occurs."""
        wanted = _plain(words)
        return bool(wanted) and any(self._span(i, wanted) for i in range(len(self.words)))

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
            f"replace needs the same number of words in both prompts, but the source has "
            f"{len(source)}, the target {len(target)}; use auto"
        )
    mapper = _special_tokens(pair)
    _hand_over(mapper, source, target)
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


def automatic(pair: PromptPair) -> Alignment:
    """Word to equal word, and old words to the new ones in their place, as `changes` finds them.

    It is `replace` where words were only exchanged for ones that the source does not have, and
    `refine` where words were only added or only taken out. (There `refine` can also match a token
    inside of another word.)
    """
    mapper = _special_tokens(pair)
    for old, new in changes(pair):
        if old and new:
            _hand_over(mapper, old, new)
    return _alignment(mapper)


def changes(pair: PromptPair) -> list[tuple[Words, Words]]:
    """What becomes of which words: all words of both prompts, in order, as (old, new).

    Without new words the old ones are gone; without old words the new ones are new. Otherwise they
    belong together, and if one side has more words, as a phrase.

    The alignment is that of Needleman and Wunsch with other scores: an equal word counts 10, a word
    in the place of another 3, one without a partner 0. So an equal word outweighs three in the
    place of others, but not four. Of alignments as good it is one with the fewest small words among
    the equal ones. The runs between these are divided by `_run`.
    """
    source, target = pair.source, pair.target
    small = {source.spelling(word) for word in source.words if _is_small(word)}
    one = 1 + len(source.words)
    matched = needleman_wunsch(
        [source.spelling(word) for word in source.words],
        [target.spelling(word) for word in target.words],
        match=lambda word: 10 * one + (word not in small),
        mismatch=3 * one,
    )
    found: list[tuple[Words, Words]] = []
    i = j = 0
    for old, new in matched:
        found += _run(source.words[i:old], target.words[j:new])
        found.append(((source.words[old],), (target.words[new],)))
        i, j = old + 1, new + 1
    return found + _run(source.words[i:], target.words[j:])


def changed(pair: PromptPair) -> tuple[Words, Words]:
    """The words of the source that change or go, and those of the target that are new.

    Small words count only if nothing else changes.
    """
    pairs = [
        (old, new)
        for old, new in changes(pair)
        if [*map(pair.source.spelling, old)] != [*map(pair.target.spelling, new)]
    ]
    both = [tuple(word for side in sides for word in side) for sides in zip(*pairs, strict=True)]
    old, new = both or _NONE
    large = [tuple(word for word in side if not _is_small(word)) for side in (old, new)]
    return (large[0], large[1]) if any(large) else (old, new)


def _run(old: Words, new: Words) -> list[tuple[Words, Words]]:
    """`changes` for a run of words and the run in its place, which need not be as long.

    Runs of as many words belong together word by word. Others are divided into phrases and the
    small words before each. The first phrase goes with the first, and so on, and the small words
    before them one by one; what is left over is gone, or new: "man" becomes "old woman" in "old
    woman with a hat".
    """
    if len(old) == len(new):
        return _one_by_one(old, new)
    found: list[tuple[Words, Words]] = []
    for (few, phrase), (many, other) in zip_longest(_phrases(old), _phrases(new), fillvalue=_NONE):
        both = min(len(few), len(many))
        found += [*_one_by_one(few[:both], many[:both]), (few[both:], ()), ((), many[both:])]
        found += _one_by_one(phrase, other) if len(phrase) == len(other) else [(phrase, other)]
    return [(one, other) for one, other in found if one or other]


def _one_by_one(old: Words, new: Words) -> list[tuple[Words, Words]]:
    return [((one,), (other,)) for one, other in zip(old, new, strict=True)]


def _phrases(words: Words) -> Iterator[tuple[Words, Words]]:
    """The phrases, each with the small words before it; the last may be empty."""
    small: Words = ()
    for is_small, run in groupby(words, key=_is_small):
        if is_small:
            small = tuple(run)
        else:
            yield small, tuple(run)
            small = ()
    if small:
        yield small, ()


_NONE: tuple[Words, Words] = ((), ())


def _is_small(word: Word) -> bool:
    """Whether a word is a small one, or a punctuation mark other than a hyphen."""
    punctuation = all(unicodedata.category(letter) in _PUNCTUATION for letter in word.text)
    return punctuation or _plain(word.text) in _SMALL_WORDS.split()


_PUNCTUATION = {"Pe", "Pf", "Pi", "Po", "Ps"}


def _hand_over(mapper: Tensor, old: Words, new: Words) -> None:
    """Write into a mapper that new words take the attention of old ones.

    Of as many words each takes that of its own; otherwise all share that of all. What other text
    encoders make of the words is handed over too, where it is among the mapper's columns.
    """
    _give(mapper, [word.tokens for word in old], [word.tokens for word in new])
    givers, takers = (
        [[column for column in word.others if column < size] for word in words]
        for words, size in zip((old, new), mapper.shape, strict=True)
    )
    _give(mapper, givers, takers)


def _give(mapper: Tensor, givers: Sequence[Sequence[int]], takers: Sequence[Sequence[int]]) -> None:
    """Write into a mapper that columns take the attention of others, given word by word."""
    paired = len(givers) == len(takers)
    if not paired:
        givers, takers = [[*chain(*givers)]], [[*chain(*takers)]]
    for old, new in zip(givers, takers, strict=True):
        if paired and len(old) == len(new):
            mapper[list(old), list(new)] = 1
            continue
        for column in new:
            mapper[list(old), column] = 1 / len(new)


def padding_by_position(pair: PromptPair, alignment: Alignment) -> Alignment:
    """The alignment with each padding token of the target on the source's token in its place.

    So it is in the authors' code. In a longer source that place can hold words. (Without this,
    padding goes to padding by its number in the chunk, and what has no counterpart is its own.)
    """
    mapper = alignment.mapper.clone()
    for column, token in enumerate(pair.target.tokens):
        if token is PAD:
            mapper[:, column] = 0
            if column < len(mapper):
                mapper[column, column] = 1
    return _alignment(mapper)


def needleman_wunsch(
    x: Sequence[Hashable],
    y: Sequence[Hashable],
    match: Callable[[Hashable], int] = lambda _: 1,
    mismatch: int = -1,
) -> list[tuple[int, int]]:
    """The pairs (i, j) with x[i] == y[j] of a best alignment, in order.

    A gap counts 0 (Needleman and Wunsch 1970). A mismatch of -1 is worse than the two gaps in its
    place, so that only equal ones are ever paired. Of several best alignments it is one that is the
    same with `x` and `y` exchanged; the earliest of the longer are matched.

    Args:
        match: what a match counts.
        mismatch: what a mismatch counts.
    """
    if (len(x), repr(x)) > (len(y), repr(y)):
        return [(i, j) for j, i in needleman_wunsch(y, x, match, mismatch)]
    best = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(len(x)):
        for j in range(len(y)):
            diagonal = best[i][j] + (match(x[i]) if x[i] == y[j] else mismatch)
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
            if x[i] == y[j]:
                pairs.append((i, j))
    return pairs[::-1]


def _content(tokens: Sequence[Hashable]) -> list[int]:
    """The columns that are not special, of all chunks."""
    return [i for i, token in enumerate(tokens) if not isinstance(token, Special)]


def _special_columns(tokens: Sequence[Hashable]) -> dict[Hashable, int]:
    """Column by chunk, kind, and number among its kind in the chunk.

    A chunk ends with END and padding. In SD3 those of CLIP, which begin with START, are counted by
    themselves, so that T5's is the same one however many come before it.
    """
    columns: dict[Hashable, int] = {}
    chunks: Counter[bool] = Counter()
    numbers: Counter[Hashable] = Counter()
    started = False
    before: Hashable = END
    for column, token in enumerate(tokens):
        if before in (END, PAD) and token is not PAD:
            started = token is START
            chunks[started] += 1
            numbers.clear()
        if isinstance(token, Special):
            columns[started, chunks[started], token, numbers[token]] = column
            numbers[token] += 1
        before = token
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
    """What becomes of which word under the alignment of `automatic`, on one line.

    `horse → zebra` is a word, or a phrase, that takes another's place; words that are new or gone
    come after those.
    """
    source, target = pair.source, pair.target
    exchanged, fresh, gone = [], [], []
    for old, new in changes(pair):
        before, after = (" ".join(word.text for word in words) for words in (old, new))
        if not new:
            gone.append(before)
        elif not old:
            fresh.append(after)
        elif [*map(source.spelling, old)] != [*map(target.spelling, new)]:
            exchanged.append(f"{before} → {after}")
    told = [", ".join(exchanged)]
    told += [
        f"{name}: {' '.join(words)}" for name, words in (("new", fresh), ("gone", gone)) if words
    ]
    return "; ".join(filter(None, told)) or "The two prompts are the same"
