from __future__ import annotations

import numpy as np
import pytest
from transformers import CLIPTokenizer

from diffusion_path.demo import MODEL
from diffusion_path.demo.tokenizer import train_tokenizer
from diffusion_path.demo.world import caption, random_scene


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(MODEL / "tokenizer", local_files_only=True)


def test_training_it_again_gives_the_shipped_one(tokenizer):
    trained = train_tokenizer()
    assert trained.get_vocab() == tokenizer.get_vocab()
    text = "a red apple, ünïcorn 日本"
    assert trained(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_every_word_of_a_caption_is_one_token(tokenizer):
    rng = np.random.default_rng(0)
    for split in ("train", "held_out"):
        words = caption(random_scene(rng, split, 2)).replace(",", " ,").split()
        assert len(tokenizer(" ".join(words))["input_ids"]) == len(words) + 2


@pytest.mark.parametrize("text", ["unicorn", "Zürich", "日本", "🐎!", "x\n\ty 2.5 (x:1.2)"])
def test_any_text_survives(tokenizer, text):
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id not in tokens[1:-1]
    kept = tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "")
    assert kept == "".join(text.lower().split())


def test_case_and_spaces_do_not_matter(tokenizer):
    assert tokenizer("A  Red\nAPPLE")["input_ids"] == tokenizer("a red apple")["input_ids"]


def test_padding_is_the_end_token_as_in_stable_diffusion_1(tokenizer):
    tokens = tokenizer("a cat", padding="max_length", max_length=77)["input_ids"]
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[3:] == [tokenizer.eos_token_id] * 74
    assert tokenizer.model_max_length == 77
