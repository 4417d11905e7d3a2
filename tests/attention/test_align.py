"""Alignments of prompts that are spelt out by hand: a word is its pieces with "-" between them."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.attention.align import (
    END,
    PAD,
    START,
    Alignment,
    Prompt,
    PromptPair,
    Word,
    automatic,
    changes,
    needleman_wunsch,
    padding_by_position,
    refine,
    replace,
    summary,
)

ROOM = 6
"""Tokens of a chunk beside its start and end."""


def prompt(text: str) -> Prompt:
    """In chunks of 8; a word goes on in the next chunk where it does not fit; "|" starts one."""
    tokens: list[Hashable] = []
    words = []
    chunk: list[Hashable] = [START]
    for word in text.split():
        if word == "|":
            tokens += [*chunk, END, *[PAD] * (ROOM + 1 - len(chunk))]
            chunk = [START]
            continue
        columns = []
        for piece in word.split("-"):
            if len(chunk) > ROOM:
                tokens += [*chunk, END]
                chunk = [START]
            columns.append(len(tokens) + len(chunk))
            chunk.append(piece)
        words.append(Word(word.replace("-", ""), tuple(columns)))
    tokens += [*chunk, END, *[PAD] * (ROOM + 1 - len(chunk))]
    embedding = torch.zeros(1, len(tokens), 4)
    return Prompt(text=text, tokens=tuple(tokens), words=tuple(words), embedding=embedding)


def pair(source: str, target: str) -> PromptPair:
    return PromptPair(source=prompt(source), target=prompt(target))


def sources(alignment: Alignment) -> list[dict[int, float]]:
    """For each target token, where its map comes from and how much of it."""
    return [{int(i): float(column[i]) for i in column.nonzero()} for column in alignment.mapper.T]


def maps(tokens: int, seed: int = 0) -> Tensor:
    """Attention (9 pixels, tokens), each pixel's adding up to 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(9, tokens, generator=generator).softmax(dim=1)


@pytest.mark.parametrize("way", [automatic, replace, refine])
@pytest.mark.parametrize(
    "text", ["", "a horse", "a a a", "the uni-corn , red", "a b c d e f g-h i"]
)
def test_a_prompt_aligned_with_itself_keeps_its_attention(way, text: str):
    alignment = way(pair(text, text))
    assert alignment.mapper.dtype == torch.float32
    assert torch.equal(alignment.mapper, torch.eye(len(alignment.new)))
    assert not alignment.new.any()


def test_replace_gives_the_ith_word_the_ith_words_attention():
    alignment = replace(pair("a horse eats", "the dog eats"))
    assert torch.equal(alignment.mapper, torch.eye(8))
    assert not alignment.new.any()


def test_nothing_after_a_word_of_another_length_shifts():
    longer = replace(pair("a horse eats grass", "a uni-corn eats grass"))
    # start, a, horse, eats, grass, end, padding, padding
    half = {2: 0.5}
    assert sources(longer) == [{0: 1}, {1: 1}, half, half, {3: 1}, {4: 1}, {5: 1}, {6: 1}]
    assert not longer.new.any()
    shorter = replace(pair("a uni-corn eats grass", "a horse eats grass"))
    both = {2: 1, 3: 1}
    assert sources(shorter) == [{0: 1}, {1: 1}, both, {4: 1}, {5: 1}, {6: 1}, {7: 1}, {}]
    assert shorter.new.tolist() == [False] * 7 + [True]


@pytest.mark.parametrize("target", ["x", "x-y", "x-y-z", "w-x-y-z"])
@pytest.mark.parametrize("source", ["a", "a-b", "a-b-c"])
def test_a_replaced_word_keeps_the_sum_of_its_attention(source: str, target: str):
    words = pair(f"{source} ,", f"{target} ,")
    old, new = (one.words[0].tokens for one in (words.source, words.target))
    before = maps(8)
    after = before @ replace(words).mapper
    torch.testing.assert_close(after[:, list(new)].sum(1), before[:, list(old)].sum(1))


def test_words_of_as_many_tokens_are_replaced_token_by_token():
    alignment = replace(pair("uni-corn", "zeb-ra"))
    assert torch.equal(alignment.mapper, torch.eye(8))


def test_replace_refuses_another_number_of_words():
    with pytest.raises(ValueError, match=r"the source has 2, the target 3; use auto$"):
        replace(pair("a horse", "a red horse"))


def test_refine_leaves_new_tokens_their_own_attention():
    alignment = refine(pair("a horse eats", "a red horse eats"))
    assert sources(alignment) == [{0: 1}, {1: 1}, {}, {2: 1}, {3: 1}, {4: 1}, {5: 1}, {6: 1}]
    assert alignment.new.tolist() == [False, False, True, *[False] * 5]


def test_refine_gives_a_changed_word_no_attention_of_the_old_one():
    alignment = refine(pair("a horse eats", "a zebra eats"))
    assert sources(alignment)[2] == {}
    assert alignment.new.tolist() == [i == 2 for i in range(8)]


def test_refine_matches_the_tokens_that_two_words_share():
    alignment = refine(pair("uni-corn", "pop-corn"))
    assert sources(alignment)[1:3] == [{}, {2: 1}]


@pytest.mark.parametrize("way", [automatic, replace, refine])
def test_new_tokens_have_an_empty_column(way):
    alignment = way(pair("a uni-corn b c d e", "a horse b x y z"))
    assert torch.equal(alignment.new, alignment.mapper.sum(dim=0) == 0)


def test_columns_run_through_the_chunks():
    words = pair("a b c d e f horse", "a b c d e f zebra")
    assert words.source.tokens[6:10] == ("f", END, START, "horse")
    assert torch.equal(replace(words).mapper, torch.eye(16))
    assert sources(refine(words))[9] == {}
    moved = refine(pair("b c d e f horse", "a b c d e f horse"))
    # The second chunk of the target is new but for "horse", which was in the first.
    assert sources(moved)[6:10] == [{5: 1}, {7: 1}, {}, {6: 1}]
    assert moved.new.tolist() == [False, True, *[False] * 6, True, False, *[True] * 6]


def test_padding_goes_to_the_padding_of_its_own_chunk():
    alignment = refine(pair("a b | c d", "a b x y | c d"))
    # start, a, b, x, y, end and two of padding, of the source's four; the second chunk is the same
    first = [{0: 1}, {1: 1}, {2: 1}, {}, {}, {3: 1}, {4: 1}, {5: 1}]
    assert sources(alignment) == [*first, *({column: 1} for column in range(8, 16))]


def test_chunks_that_the_target_lacks_are_left_out():
    alignment = refine(pair("a b c d e f horse", "a b"))
    assert alignment.mapper.shape == (16, 8)
    # start, a, b, end and four of padding, which the source's first chunk has none of
    assert sources(alignment) == [{0: 1}, {1: 1}, {2: 1}, {7: 1}, {}, {}, {}, {}]


def random_words(rng: random.Random, names: str, least: int = 0) -> list[str]:
    """Words of one to three tokens, some of them several times; different ones share no token."""
    words = {name: "-".join(name + piece for piece in "123"[: 1 + ord(name) % 3]) for name in names}
    return rng.choices(list(words.values()), k=rng.randint(least, 6))


def test_where_words_only_took_the_place_of_others_automatic_is_replace():
    rng = random.Random(0)
    for _ in range(300):
        source = random_words(rng, "abc")
        others = random_words(rng, "vwxyz", least=1)
        target = [rng.choice(others) if rng.random() < 0.4 else word for word in source]
        words = pair(" ".join(source), " ".join(target))
        assert torch.equal(automatic(words).mapper, replace(words).mapper), (source, target)


@pytest.mark.parametrize("names", ["vwxyz", "abcvw"])
def test_where_words_were_only_added_or_removed_automatic_is_refine(names: str):
    rng = random.Random(0)
    for _ in range(300):
        short = random_words(rng, "abc")
        long = list(short)
        for word in random_words(rng, names, least=1):
            long.insert(rng.randint(0, len(long)), word)
        for words in (short, long), (long, short):
            both = pair(*map(" ".join, words))
            assert torch.equal(automatic(both).mapper, refine(both).mapper), words


def test_automatic_is_undone_by_swapping_the_prompts():
    rng = random.Random(0)
    for _ in range(300):
        source, target = (
            " ".join(rng.choices([*"abcd", "of", "with", ",", "uni-corn"], k=rng.randint(0, 9)))
            for _ in range(2)
        )
        there, back = changes(pair(source, target)), changes(pair(target, source))
        together = [(old, new) for old, new in there if old and new]
        assert together == [(new, old) for old, new in back if old and new], (source, target)


def test_words_in_the_place_of_others_take_their_attention_whatever_the_length():
    alignment = automatic(pair("a red horse eats", "a green uni-corn eats now"))
    # start, a, green, uni, corn, eats, now, end
    half = {3: 0.5}
    assert sources(alignment) == [{0: 1}, {1: 1}, {2: 1}, half, half, {4: 1}, {}, {5: 1}]


def test_a_phrase_takes_the_attention_of_another_as_one_longer_word():
    alignment = automatic(pair("a horse eats", "a big uni-corn eats"))
    third = {2: pytest.approx(1 / 3)}
    assert sources(alignment)[1:6] == [{1: 1}, third, third, third, {3: 1}]
    back = automatic(pair("a big uni-corn eats", "a horse eats"))
    assert sources(back)[1:4] == [{1: 1}, {2: 1, 3: 1, 4: 1}, {5: 1}]


@pytest.mark.parametrize("source", ["k", "k m", "k m-n", "p-q"])
@pytest.mark.parametrize("target", ["x", "x z", "x z-v w", "u-t"])
def test_a_phrase_keeps_the_sum_of_the_attention(source: str, target: str):
    words = pair(f"{source} end", f"{target} end")
    before = maps(8)
    after = before @ automatic(words).mapper
    old, new = (
        [column for word in one.words[:-1] for column in word.tokens]
        for one in (words.source, words.target)
    )
    torch.testing.assert_close(after[:, new].sum(1), before[:, old].sum(1))


def spelt(source: str, target: str) -> list[tuple[str, str]]:
    """`changes` as text."""
    return [
        (" ".join(word.text for word in old), " ".join(word.text for word in new))
        for old, new in changes(pair(source, target))
    ]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # The first phrase with the first; the rest is new.
        ("man", "old woman with a hat", [("man", "old woman"), ("", "with a"), ("", "hat")]),
        ("cat in a hat", "dog", [("cat", "dog"), ("in a", ""), ("hat", "")]),
        # Small words with those before the same phrase.
        ("a photo", "an oil painting", [("a", "an"), ("photo", "oil painting")]),
        ("photo", "the old painting", [("", "the"), ("photo", "old painting")]),
        ("men in", "two boys on the", [("men", "two boys"), ("in", "on"), ("", "the")]),
        # A comma divides phrases.
        ("cat", "dog , red", [("cat", "dog"), ("", ","), ("", "red")]),
        # Phrases of as many words go word by word.
        (
            "big cat",
            "old dog at night",
            [("big", "old"), ("cat", "dog"), ("", "at"), ("", "night")],
        ),
        # There may be no phrase to go with.
        ("of", "red dog", [("of", ""), ("", "red dog")]),
    ],
)
def test_runs_of_other_lengths_are_divided_at_small_words(
    source: str, target: str, expected: list[tuple[str, str]]
):
    assert spelt(source, target) == expected


def test_an_equal_word_outweighs_three_in_the_place_of_others_but_not_four():
    assert spelt("k p x", "x v w") == [("k p", ""), ("x", "x"), ("", "v w")]
    assert spelt("k p m x", "x u v w") == [("k", "x"), ("p", "u"), ("m", "v"), ("x", "w")]


def test_of_two_equal_words_the_one_that_means_more_is_matched():
    assert spelt("the lamp", "lamp the") == [("the", ""), ("lamp", "lamp"), ("", "the")]


@pytest.mark.parametrize("way", [automatic, replace, refine])
def test_padding_by_position_takes_what_has_its_place_in_the_source(way):
    words = pair("k l m n", "x y z | w")
    alignment = padding_by_position(words, way(words))
    # start, three words, end, three of padding; the second chunk has no counterpart
    assert sources(alignment)[5:8] == [{5: 1}, {6: 1}, {7: 1}]
    assert alignment.new[10:].all()
    assert torch.equal(alignment.mapper[:, :5], way(words).mapper[:, :5])


def test_by_position_the_words_of_a_longer_source_get_into_the_padding():
    words = pair("a b c d", "a b")
    own, by_position = refine(words), padding_by_position(words, refine(words))
    # start, a, b, end and four of padding, of the source's two
    assert sources(own) == [{0: 1}, {1: 1}, {2: 1}, {5: 1}, {6: 1}, {7: 1}, {}, {}]
    padding = [{4: 1}, {5: 1}, {6: 1}, {7: 1}]  # d, end and padding
    assert sources(by_position) == [{0: 1}, {1: 1}, {2: 1}, {5: 1}, *padding]
    assert not by_position.new.any()


def test_of_prompts_as_long_the_padding_is_the_same_either_way():
    words = pair("a red horse", "a uni-corn")
    assert torch.equal(padding_by_position(words, refine(words)).mapper, refine(words).mapper)


@cache
def best_score(x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """Of all alignments, tried one by one."""
    if not x or not y:
        return 0
    paired = (1 if x[0] == y[0] else -1) + best_score(x[1:], y[1:])
    return max(paired, best_score(x[1:], y), best_score(x, y[1:]))


def sequences(seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two short ones, of few letters so that there are many alignments as good as the best."""
    rng = random.Random(seed)
    letters = rng.randint(1, 4)
    x, y = (tuple(rng.choices(range(letters), k=rng.randint(0, 7))) for _ in range(2))
    return x, y


def test_no_alignment_is_better_and_swapping_gives_the_inverse():
    for seed in range(1000):
        x, y = sequences(seed)
        pairs = needleman_wunsch(x, y)
        assert all(x[i] == y[j] for i, j in pairs), (x, y)
        for (i, j), (k, m) in pairwise(pairs):
            assert i < k and j < m, (x, y)
        assert len(pairs) == best_score(x, y), (x, y)
        assert needleman_wunsch(y, x) == [(j, i) for i, j in pairs], (x, y)


def test_refine_is_undone_by_swapping_the_prompts():
    rng = random.Random(0)
    pieces = ["a", "b", "uni-corn", "pop-corn", ","]
    for _ in range(200):
        source, target = (" ".join(rng.choices(pieces, k=rng.randint(0, 9))) for _ in range(2))
        there, back = refine(pair(source, target)), refine(pair(target, source))
        assert torch.equal(back.mapper, there.mapper.T), (source, target)


def test_the_first_of_equal_words_is_matched():
    alignment = refine(pair("a horse", "a horse a horse"))
    assert sources(alignment)[1:5] == [{1: 1}, {2: 1}, {}, {}]


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        ("horse", (2, 6)),
        ("HORSE", (2, 6)),
        (" horse ", (2, 6)),
        ("a horse", (1, 2)),
        ("ahorse", (1, 2)),
        ("unicorn", (4, 5)),
        ("unicorn horse", (4, 5, 6)),
        (["horse", "unicorn"], (2, 4, 5, 6)),
        (["horse", "a horse"], (1, 2, 6)),
        ([], ()),
    ],
)
def test_words_are_found_wherever_they_are(words: str | Sequence[str], columns: tuple[int, ...]):
    assert prompt("a horse , uni-corn horse").columns(words) == columns


@pytest.mark.parametrize("words", ["hors", "or", "horse unicorn", "corn", "uni"])
def test_part_of_a_word_is_not_the_word(words: str):
    with pytest.raises(ValueError, match=f'^"{words}" is not in the prompt "a horse, unicorn"; '):
        Prompt(
            text="a horse,  unicorn",
            tokens=prompt("a horse , uni-corn").tokens,
            words=prompt("a horse , uni-corn").words,
            embedding=torch.zeros(1, 8, 4),
        ).columns(words)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("hrose", 'the nearest there is "horse"'),
        ("a hose", 'the nearest there is "a horse"'),
        ("zebra", "use words that it has"),
        (["horse", "hors"], 'the nearest there is "horse"'),
    ],
)
def test_a_word_that_is_missing_is_named_with_the_nearest(words: str | list[str], advice: str):
    with pytest.raises(ValueError, match=rf'is not in the prompt "a horse"; {advice}$'):
        prompt("a horse").columns(words)


def test_an_empty_prompt_has_no_words_and_an_empty_word_is_none():
    with pytest.raises(
        ValueError, match=r'^"horse" is not in the prompt ""; use words that it has$'
    ):
        prompt("").columns("horse")
    with pytest.raises(
        ValueError, match=r"^one of the words is empty; write a word of the prompt$"
    ):
        prompt("a horse").columns(" ")


def test_a_long_prompt_is_quoted_in_part():
    with pytest.raises(ValueError) as raised:
        prompt("horse " * 80).columns("zebra")
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("a horse eats", "a horse eats", "The two prompts are the same"),
        ("a horse eats", "a uni-corn eats", "horse → unicorn"),
        ("a red horse eats", "a big horse eats now", "red → big; new: now"),
        (
            "a green uni-corn",
            "a horse with wings",
            "green unicorn → horse; new: with wings",
        ),
        ("a horse", "", "gone: a horse"),
        ("", "", "The two prompts are the same"),
    ],
)
def test_the_summary_says_what_becomes_of_each_word(source: str, target: str, told: str):
    assert summary(pair(source, target)) == told
