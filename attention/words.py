"""Words, out of what ComfyUI's tokenizers return and out of what a user lists in a text box."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import count, groupby, product, takewhile
from operator import itemgetter
from typing import Any, Protocol

from torch import Tensor

from .align import END, PAD, START, TEMPLATE, Special, Word

Chunks = Sequence[Sequence[tuple[Any, ...]]]
"""What a tokenizer of ComfyUI makes of a text: (token, weight, piece) for each token of each chunk.
A token is its number, or a vector of a textual-inversion embedding. The piece is 0 for a special
token, and otherwise the same for a stretch of text of one weight, or for an embedding. The tokens
of a template, such as a chat's, have a piece like other text, or none."""

OTHER_CLIP = "connect the CLIP as ComfyUI's own loader returns it"
EMBEDDING = "embedding:"
"""The text of a word that is an embedding, as long as its name is not known."""
_END_OF_WORD = "</w>"
_SPACE, _SPACE_BYTE = "▁", "Ġ"
"""How SentencePiece and byte-level tokenizers write a space."""
_UNKNOWN = "\ufffd"
"""The text of a token that stands for what the tokenizer does not know."""
_CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b", re.IGNORECASE)
_IDEOGRAPH = re.compile(
    r"[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""A letter of Chinese or Japanese, which have no spaces: each may be a word."""


class Tokenizer(Protocol):
    """What is read of `comfy.sd1_clip.SDTokenizer`."""

    inv_vocab: Mapping[int, str]
    start_token: int | None
    end_token: int | None
    pad_token: int
    embedding_size: int

    def decode(self, token_ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Reading:
    """A text's tokens, one for each column of the attention, and its words."""

    tokens: tuple[Hashable, ...]
    words: tuple[Word, ...]

    def cut(self, length: int) -> Reading:
        """The first columns, and the words that lie in them."""
        words = (word for word in self.words if word.tokens[-1] < length)
        return Reading(self.tokens[:length], tuple(words))

    def spelling(self, word: Word) -> tuple[Hashable, ...]:
        """The tokens of a word."""
        return tuple(self.tokens[column] for column in word.tokens)

    def fitted(self, length: int) -> Reading:
        """The columns of an embedding that has `length` of them.

        A text encoder may leave out the beginning of its template, and at the end padding or more
        of the template.

        Raises:
            ValueError: if the embedding has more columns, or lacks some of the text.
        """
        surplus = max(0, len(self.tokens) - length)
        template = sum(1 for _ in takewhile(lambda token: token is TEMPLATE, self.tokens))
        start = min(surplus, template)
        kept, rest = self.tokens[start : start + length], self.tokens[start + length :]
        if len(kept) != length or not {*rest} <= {TEMPLATE, PAD}:
            advice = f"take chat marks such as <|im_end|> out of it, or {OTHER_CLIP}"
            raise ValueError(
                f"the CLIP encodes the prompt as {length} tokens, which are not the "
                f"{len(self.tokens)} of its tokenizer; {advice if template else OTHER_CLIP}"
            )
        return Reading(kept, tuple(_moved(word, -start) for word in self.words))

    def after(self, front: Reading) -> Reading:
        """These columns after those of another text encoder, as SD3 has T5's after CLIP's.

        The words stay these; their `others` are the columns in front. The tokens in front become
        pairs, so that none of them equals one of these.
        """
        words = (
            replace(_moved(word, len(front.tokens)), others=columns)
            for word, columns in zip(self.words, _counterparts(self, front), strict=True)
        )
        tokens = ((one, one) if isinstance(one, int) else one for one in front.tokens)
        return Reading((*tokens, *self.tokens), tuple(words))

    def followed_by(self, other: Reading, times: int) -> Reading:
        """The same columns; the words' `others` are those of a text encoder that comes after them.

        Args:
            other: what that text encoder reads.
            times: how many times in a row the network has its columns.
        """
        starts = [len(self.tokens) + time * len(other.tokens) for time in range(times)]
        words = (
            replace(word, others=tuple(start + column for start in starts for column in columns))
            for word, columns in zip(self.words, _counterparts(self, other), strict=True)
        )
        return Reading(self.tokens, tuple(words))


def made_of(
    text: Mapping[str, Chunks],
    tokenizers: Mapping[str, Tokenizer | None],
    length: int,
    missing: frozenset[str],
) -> tuple[str, ...]:
    """The names of the text encoders whose tokens are the columns of an embedding.

    They are all CLIPs if there is nothing else, and otherwise the first that is none: models with
    both use the CLIPs' pooled output alone. Only SD3 has the CLIPs' columns too, in front of T5's,
    or by themselves if it was loaded without T5.

    Args:
        text: the chunks by the tokenizer's name, in ComfyUI's order.
        tokenizers: by the same names.
        length: of the embedding, in columns.
        missing: the encoders that were not loaded.
    """
    lengths = {name: sum(map(len, chunks)) for name, chunks in text.items()}
    clips = [name for name in text if _is_clip(tokenizers.get(name))]
    others = [name for name in text if name not in clips]
    if not others:
        return tuple(clips)
    main = others[0]
    loaded = tuple(name for name in clips if name not in missing)
    side = min((lengths[name] for name in loaded), default=0)
    if main in missing and length == side:
        return loaded
    return (*loaded, main) if length == side + lengths[main] else (main,)


def probe(text: str) -> str:
    """A letter that a text does not have. Both are tokenized: what they share is the template."""
    letters = map(chr, count(ord("a")))
    return next(one for one in letters if one.isalpha() and one not in text.lower())


def read(
    text: Mapping[str, Chunks],
    tokenizers: Mapping[str, Tokenizer | None],
    written: str = "",
    probed: Mapping[str, Chunks] | None = None,
) -> Reading:
    """What the tokenizers of those text encoders that an embedding is made of make of a text.

    CLIPs lie side by side, and another text encoder comes after them.

    Args:
        text: the chunks by the tokenizer's name: "l" for SD 1.x, "g" and "l" for SDXL.
        tokenizers: by the same names.
        written: the text, which CLIPs do not need.
        probed: the chunks of its `probe`, by which a template is found.

    Raises:
        ValueError: if the words cannot be found, or have no common place.
    """
    sides, whole = [], None
    for name, chunks in text.items():
        tokenizer = tokenizers.get(name)
        spell = _speller(tokenizer)
        if tokenizer is not None and _is_clip(tokenizer):
            sides.append(_read_clip(_columns(chunks, name, tokenizer), tokenizer))
        elif tokenizer is not None and spell is not None:
            known = _columns((probed or {}).get(name, ()), name, tokenizer)
            whole = _read_text(_columns(chunks, name, tokenizer), known, spell, written)
        else:
            raise ValueError(
                f"the tokenizer of the CLIP's text encoder {name} does not say what its tokens "
                f"stand for, so the words of the prompt cannot be found; {OTHER_CLIP}"
            )
    if whole is None:
        return _side_by_side(sides, list(text))
    return whole.after(_side_by_side(sides, list(text))) if sides else whole


def _is_clip(tokenizer: Tokenizer | None) -> bool:
    """Whether the tokens say where a word ends, as only those of CLIPs do."""
    vocabulary = getattr(tokenizer, "inv_vocab", {})
    return any(str(token).endswith(_END_OF_WORD) for token in vocabulary.values())


@dataclass(frozen=True)
class _Columns:
    """A text's tokens, one for each column, and where its text lies.

    Attributes:
        pieces: of each stretch of text of one weight, and of each embedding, its columns.
    """

    tokens: tuple[Hashable, ...]
    pieces: tuple[tuple[int, ...], ...]

    def is_embedding(self, piece: tuple[int, ...]) -> bool:
        return isinstance(self.tokens[piece[0]], bytes)


def _columns(chunks: Chunks, name: str, tokenizer: Tokenizer) -> _Columns:
    """The columns of all chunks, one after the other.

    Padding in front of the text is put after it: text encoders drop it, or fill up at the end.
    """
    tokens: list[Hashable] = []
    content: list[tuple[Any, int]] = []
    for chunk in chunks:
        padding = sum(1 for _ in takewhile(lambda one: _is_padding(one, tokenizer), chunk))
        specials = {tokenizer.start_token: START, tokenizer.end_token: END}
        for token, _, *piece in (*chunk[padding:], *chunk[:padding]):
            if piece == [0]:
                tokens.append(specials.pop(token, PAD))
                continue
            content.append((piece, len(tokens)))
            tokens.append(_key(token, name, tokenizer))
    pieces = [
        tuple(column for _, column in group) for _, group in groupby(content, key=itemgetter(0))
    ]
    return _Columns(tuple(tokens), tuple(pieces))


def _is_padding(one: tuple[Any, ...], tokenizer: Tokenizer) -> bool:
    token, _, *piece = one
    return piece == [0] and token == tokenizer.pad_token


def _key(token: Any, name: str, tokenizer: Tokenizer) -> Hashable:
    """A token's number, or the digest of an embedding's vector."""
    if not isinstance(token, Tensor):
        return int(token)
    if token.shape[-1] != tokenizer.embedding_size:
        raise ValueError(
            f"an embedding in the prompt is {token.shape[-1]} wide, and the text "
            f"encoder {name} reads {tokenizer.embedding_size}; take it out, or use one "
            "that was made for this model"
        )
    return digest(token)


def _side_by_side(readings: Sequence[Reading], names: Sequence[str]) -> Reading:
    """What several CLIPs read, as SDXL has them: as far as the shortest goes."""
    length = min(len(one.tokens) for one in readings)
    first, *others = (one.cut(length) for one in readings)
    tokens = first.tokens
    for other in others:
        if first.words != other.words or _specials(first) != _specials(other):
            raise ValueError(
                f"the CLIP's tokenizers ({', '.join(names)}) divide the prompt differently, so its "
                "words have no common place in the attention; take out embeddings that are longer "
                "for one than for the other"
            )
        # A token has the same number in both; a vector of an embedding differs.
        pairs = zip(tokens, other.tokens, strict=True)
        tokens = tuple(one if one == two else (one, two) for one, two in pairs)
    return Reading(tokens, first.words)


def _specials(reading: Reading) -> list[Special | None]:
    return [token if isinstance(token, Special) else None for token in reading.tokens]


def _read_clip(columns: _Columns, tokenizer: Tokenizer) -> Reading:
    words: list[Word] = []
    for piece in columns.pieces:
        if columns.is_embedding(piece):
            words.append(Word(EMBEDDING, piece))
        else:
            words += _spelt([(one, columns.tokens[one]) for one in piece], tokenizer)
    return Reading(columns.tokens, tuple(words))


def _spelt(stretch: list[tuple[int, Any]], tokenizer: Tokenizer) -> Iterator[Word]:
    """The words of a stretch of text of a CLIP's, given as (column, number)."""
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


Speller = Callable[[Any], bytes]
"""The text that a token stands for, in UTF-8, of which it may be a part of a letter."""


def _speller(tokenizer: Tokenizer | None) -> Speller | None:
    """How a tokenizer that is no CLIP's spells its tokens, if it says so."""
    vocabulary = getattr(tokenizer, "inv_vocab", {})
    for space, spell in ((_SPACE, _sentence_piece), (_SPACE_BYTE, _byte_level)):
        if any(str(spelling).startswith(space) for spelling in vocabulary.values()):
            return lambda token: spell(vocabulary.get(token, _UNKNOWN))
    return None


def _sentence_piece(spelling: str) -> bytes:
    """The text of a SentencePiece token, such as "▁red", or "<0xE4>" for a byte."""
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", spelling):
        return bytes.fromhex(byte[1])
    return spelling.replace("<unk>", _UNKNOWN).replace(_SPACE, " ").encode()


def _byte_level(spelling: str) -> bytes:
    """The text of a byte-level token, such as "Ġred", which has a letter for each byte (GPT-2)."""
    return b"".join(
        bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in spelling
    )


_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTED} | {
    chr(0x100 + i): byte for i, byte in enumerate(sorted({*range(0x100)} - {*_PRINTED}))
}


def _read_text(columns: _Columns, probed: _Columns, spell: Speller, written: str) -> Reading:
    """What a text encoder that is no CLIP reads: words as they are written, without the template.

    Args:
        probed: the columns of a text that begins and ends otherwise, with the same template.
    """
    content = [column for piece in columns.pieces for column in piece]
    before, after = _template(
        [columns.tokens[column] for column in content],
        [probed.tokens[column] for piece in probed.pieces for column in piece],
        spell,
    )
    start = content[before - 1] + 1 if before else 0
    template = {*range(start), *content[len(content) - after :]}
    words = [Word(EMBEDDING, piece) for piece in columns.pieces if columns.is_embedding(piece)]
    embedded = {column for word in words for column in word.tokens}
    plain = [column for column in content if column not in template | embedded]
    words += _written_words(written, [(one, spell(columns.tokens[one])) for one in plain])
    tokens = (TEMPLATE if i in template else one for i, one in enumerate(columns.tokens))
    return Reading(tuple(tokens), tuple(sorted(words, key=lambda word: word.tokens)))


def _template(ours: Sequence[Any], theirs: Sequence[Any], spell: Speller) -> tuple[int, int]:
    """How many tokens a template has before and after the text: those that two texts share.

    A space that both begin with, as SentencePiece may put it there, is none.
    """
    before = _common(ours, theirs)
    if not b"".join(map(spell, ours[:before])).strip():
        return 0, 0
    return before, _common(ours[before:][::-1], theirs[before:][::-1])


def _common(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """How many tokens are the same in both, from the first on."""
    pairs = zip(ours, theirs, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _written_words(written: str, stretch: list[tuple[int, bytes]]) -> list[Word]:
    """The words as the user wrote them, from tokens given as (column, text).

    Words that share a token become one word. A token of spaces alone goes to the next word:
    SentencePiece puts one in front of a word that it divides.
    """
    words: list[tuple[int, int, set[int]]] = []
    for start, end, columns in _placed(written, stretch):
        if words and words[-1][2] & columns:
            start, _, shared = words.pop()
            columns = columns | shared
        words.append((start, end, columns))
    owned = {column for _, _, columns in words for column in columns}
    for column, _ in stretch:
        if words and column not in owned:
            later = (columns for _, _, columns in words if max(columns) > column)
            next(later, words[-1][2]).add(column)
    return [Word(written[i:j], tuple(sorted(columns))) for i, j, columns in words]


def _placed(written: str, stretch: list[tuple[int, bytes]]) -> Iterator[tuple[int, int, set[int]]]:
    """(start, end, columns) of each word of the text that has tokens.

    The letters of the tokens are aligned with those of the text, which can differ: the text has the
    parentheses of weights, tokenizers rewrite some letters, and they do not know others.
    """
    ours = [
        (part, i, word)
        for word, (start, end) in enumerate(_spans(written))
        for i in range(start, end)
        for part in _folded(written[i])
    ]
    theirs = [(part, own) for letter, own in _letters(stretch) for part in _folded(letter)]
    matcher = SequenceMatcher(None, [one[0] for one in ours], [one[0] for one in theirs], False)
    found: list[tuple[int, int, set[int]]] = []
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        pair = zip if tag == "equal" else product
        for (_, place, word), (_, own) in pair(ours[i:i_end], theirs[j:j_end]):
            found.append((word, place, own))
    for _, letters in groupby(found, key=itemgetter(0)):
        _, places, columns = zip(*letters, strict=True)
        yield min(places), max(places) + 1, set().union(*columns)


def _folded(letter: str) -> str:
    """The letters as which a letter is compared: "..." for "…"."""
    return unicodedata.normalize("NFKC", letter).casefold()


def _letters(stretch: list[tuple[int, bytes]]) -> Iterator[tuple[str, set[int]]]:
    """The letters that tokens make together, each with its columns."""
    owners = [column for column, part in stretch for _ in part]
    start = 0
    for letter in b"".join(part for _, part in stretch).decode(errors="surrogateescape"):
        end = start + len(letter.encode(errors="surrogateescape"))
        if not letter.isspace():
            yield letter, {*owners[start:end]}
        start = end


def _spans(text: str) -> list[tuple[int, int]]:
    """Where each word of a text begins and ends, and each run of punctuation marks, or of other
    signs. It is CLIP's own division, but for Chinese and Japanese, where a letter is a word."""
    kinds: list[Hashable] = []
    for place, letter in enumerate(text):
        kinds.append(_kind(letter, place, kinds[-1] if kinds else None))
    for match in _CONTRACTION.finditer(text):
        kinds[slice(*match.span())] = [match.span()] * len(match[0])
    runs = (list(run) for kind, run in groupby(range(len(text)), key=kinds.__getitem__) if kind)
    return [(run[0], run[-1] + 1) for run in runs]


def _kind(letter: str, place: int, before: Hashable) -> Hashable:
    """What may stand together in a word; None for a space."""
    if letter.isspace():
        return None
    category = unicodedata.category(letter)
    if category in _JOINED and before is not None:
        return before
    if category[0] == "N" or _IDEOGRAPH.match(letter):
        return (place,)
    return category[0] if category[0] in "LP" else "S"


_JOINED = {"Mn", "Mc", "Me", "Cf"}
"""Accents and the like, and what joins signs to one."""


def _counterparts(reading: Reading, other: Reading) -> list[tuple[int, ...]]:
    """For each word of one reading of a text, the columns in the other of the same word."""
    ours, theirs = ([_plain(word.text) for word in one.words] for one in (reading, other))
    found: list[tuple[int, ...]] = [() for _ in ours]
    for tag, i, i_end, j, j_end in SequenceMatcher(None, ours, theirs, False).get_opcodes():
        if tag == "equal":
            found[i:i_end] = [word.tokens for word in other.words[j:j_end]]
        elif "".join(ours[i:i_end]) == "".join(theirs[j:j_end]):
            run = tuple(column for word in other.words[j:j_end] for column in word.tokens)
            found[i:i_end] = [run] * (i_end - i)
    return found


def _plain(text: str) -> str:
    return "".join(text.casefold().split())


def _moved(word: Word, by: int) -> Word:
    return replace(word, tokens=tuple(column + by for column in word.tokens))


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
