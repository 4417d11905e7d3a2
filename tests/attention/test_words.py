"""What users write into a text box."""

from __future__ import annotations

import re

import pytest

from diffusion_path.attention.words import embedding_names, word_list, word_values, word_windows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("horse", ["horse"]),
        ("horse, red zebra ,", ["horse", "red zebra"]),
        ("horse\n\n  zebra  \n", ["horse", "zebra"]),
        ("embedding:style, café", ["embedding:style", "café"]),
    ],
)
def test_a_list_of_words(text: str, words: list[str]):
    assert word_list(text) == words


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", []),
        ("horse: 1.5", [("horse", 1.5)]),
        ("horse:2\n\n red zebra : -0.5 ", [("horse", 2.0), ("red zebra", -0.5)]),
        (",: 1e-1", [(",", 0.1)]),
        ("embedding:style: 3", [("embedding:style", 3.0)]),
        ("::2", [(":", 2.0)]),
    ],
)
def test_values_of_words(text: str, values: list[tuple[str, float]]):
    assert word_values(text) == values


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("", []),
        ("horse: 0.6", [("horse", 0.0, 0.6)]),
        ("horse: 0.2-0.6\nred zebra: .25 – 1.", [("horse", 0.2, 0.6), ("red zebra", 0.25, 1.0)]),
        ("horse: 0", [("horse", 0.0, 0.0)]),
        ("blue-eyed: 0-1", [("blue-eyed", 0.0, 1.0)]),
    ],
)
def test_windows_of_words(text: str, windows: list[tuple[str, float, float]]):
    assert word_windows(text) == windows


@pytest.mark.parametrize("line", ["horse", "horse:", ": 1", "1.5"])
@pytest.mark.parametrize(("parse", "example"), [(word_values, "1.5"), (word_windows, "0.2-0.6")])
def test_a_line_must_have_a_word_and_a_value(parse, example: str, line: str):
    sentence = f'"{line}" is not a word and its value; write a line such as "word: {example}"'
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parse(f"a: 0.5\n {line} ")


@pytest.mark.parametrize("value", ["much", "1,5", "nan", "inf", "1.5x"])
def test_a_value_must_be_a_number(value: str):
    sentence = f'"{value}", after "horse", is not a number; write a line such as "horse: 1.5"'
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        word_values(f"horse: {value}")


@pytest.mark.parametrize("value", ["much", "-0.5", "0.6-0.2", "0.5-1.5", "2", "0.1-0.2-0.3", "."])
def test_a_window_must_be_a_part_of_the_path(value: str):
    sentence = (
        f'"{value}", after "horse", is not a part of the path, which goes from 0 to 1; '
        'write a line such as "horse: 0.6" or "horse: 0.2-0.6"'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        word_windows(f"horse: {value}")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a horse", []),
        ("a embedding:one, embedding:two.pt and embedding:one", ["one", "two.pt"]),
        ("(embedding:one:1.2) ((embedding:two))", ["one", "two"]),
    ],
)
def test_names_of_embeddings(text: str, names: list[str]):
    assert embedding_names(text) == [f"embedding:{name}" for name in names]
