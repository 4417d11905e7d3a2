"""Prompt Pair on ComfyUI's own tokenizers, and on the demo model's text encoder."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion_path.tests.calls import call, results, text

LONG = " ".join(f"a red horse, {word} and a blue zebra" for word in "abcdefghijk")


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of embeddings: for SD 1, for SDXL, for the demo model, and one that is uneven."""
    folder = tmp_path_factory.mktemp("embeddings")
    generator = torch.Generator().manual_seed(0)

    def vectors(number: int, width: int) -> Tensor:
        return torch.randn(number, width, generator=generator)

    files = {
        "sd1": {"emb_params": vectors(3, 768)},
        "sdxl": {"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)},
        "uneven": {"clip_l": vectors(2, 768), "clip_g": vectors(3, 1280)},
        "demo": {"emb_params": vectors(2, 128)},
        "other": {"emb_params": vectors(2, 128)},
        "many": {"emb_params": vectors(80, 128)},
    }
    for name, weights in files.items():
        save_file(weights, folder / f"{name}.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def clip(comfy: Path, embeddings: str) -> Any:
    """The demo model's CLIP."""
    from diffusion_path.demo.loader import load_clip

    clip = load_clip()
    clip.tokenizer.clip_l.embedding_directory = embeddings
    return clip


def clip_of(tokenizer: Any, more: int = 0) -> Any:
    """A CLIP with one of ComfyUI's tokenizers, whose encoder makes zeros."""

    def encode(tokens: dict[str, list]) -> list:
        # As SDXL does: the shorter encoding is as long as both.
        length = min(sum(map(len, chunks)) for chunks in tokens.values())
        return [[torch.zeros(1, length + more, 16), {}]]

    return SimpleNamespace(
        tokenizer=tokenizer,
        tokenize=tokenizer.tokenize_with_weights,
        encode_from_tokens_scheduled=encode,
    )


@pytest.fixture(scope="module")
def sd1(comfy: Path, embeddings: str) -> Any:
    from comfy.sd1_clip import SD1Tokenizer

    return clip_of(SD1Tokenizer(embedding_directory=embeddings))


@pytest.fixture(scope="module")
def sdxl(comfy: Path, embeddings: str) -> Any:
    from comfy.sdxl_clip import SDXLTokenizer

    return clip_of(SDXLTokenizer(embedding_directory=embeddings))


def pair(clip: Any, source: str, target: str = "a zebra") -> Any:
    return results("PromptPair", clip=clip, source_prompt=source, target_prompt=target)[2]


def read(clip: Any, source: str) -> Any:
    return pair(clip, source).source


def words(prompt: Any) -> list[str]:
    return [word.text for word in prompt.words]


def shape(prompt: Any) -> str:
    """The columns, as s (start), e (end), - (padding) and * for the rest."""
    from diffusion_path.attention.align import END, PAD, START

    signs = {START: "s", END: "e", PAD: "-"}
    return "".join(signs.get(token, "*") for token in prompt.tokens)


@pytest.mark.parametrize(
    "prompt", ["", "a red horse on green", "a (red:1.4) horse, (big)", LONG, "embedding:demo, a é"]
)
def test_the_prompts_are_encoded_as_clip_text_encode_does(clip: Any, prompt: str):
    import nodes

    from diffusion_path.host.conditions import PROMPT, WORDS

    with torch.inference_mode():
        (wanted,) = nodes.CLIPTextEncode().encode(clip, prompt)
    source, target, prompts = results(
        "PromptPair", clip=clip, source_prompt=prompt, target_prompt=f"blue {prompt}"
    )
    assert len(source) == len(target) == len(wanted) == 1
    assert torch.equal(source[0][0], wanted[0][0])
    assert source[0][1].keys() - wanted[0][1].keys() == {PROMPT, WORDS}
    assert wanted[0][1].keys() <= source[0][1].keys()
    assert source[0][1][PROMPT] != target[0][1][PROMPT]
    assert torch.equal(source[0][1]["pooled_output"], wanted[0][1]["pooled_output"])
    assert not torch.equal(target[0][0], wanted[0][0])
    assert prompts.source.text == prompt
    assert prompts.source.embedding is source[0][0]
    assert prompts.target.embedding is target[0][0]
    assert source[0][0].shape[1] == len(prompts.source.tokens)


def test_the_node_shows_what_becomes_of_each_word(clip: Any):
    output = call(
        "PromptPair", clip=clip, source_prompt="a red horse", target_prompt="a red big zebra"
    )
    assert text(output) == "horse → big zebra"
    assert output.ui["report"][0]["words"] == [
        [["a"], ["a"]],
        [["red"], ["red"]],
        [["horse"], ["big", "zebra"]],
    ]


@pytest.mark.parametrize("model", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("A red Horse", ["a", "red", "horse"]),
        ("a horse's tail, 2024!!", ["a", "horse", "'s", "tail", ",", *"2024", "!!"]),
        ("blue-eyed (dog:1.3)s", ["blue", "-", "eyed", "dog", "s"]),
        ("a ((big) horse:0.5), \\(sic\\)", ["a", "big", "horse", ",", "(", "sic", ")"]),
        ("café naïve", ["café", "naïve"]),
        ("🐎 on 馬が走る 👩‍🚀", None),
        ("a <|endoftext|> horse", ["a", "<|endoftext|>", "horse"]),
        ("antidisestablishmentarianism", ["antidisestablishmentarianism"]),
    ],
)
def test_the_words_are_the_tokenizers_own(
    request: pytest.FixtureRequest, model: str, prompt: str, expected: list[str] | None
):
    found = read(request.getfixturevalue(model), prompt)
    if expected is not None:
        assert words(found) == expected
    # No letter gets lost, and each token belongs to one word.
    columns = [column for word in found.words for column in word.tokens]
    assert columns == list(range(1, 1 + len(columns)))
    assert shape(found) == "s" + "*" * len(columns) + "e" + "-" * (75 - len(columns))
    for word in found.words:
        assert "�" not in word.text
        assert set(word.tokens) <= set(found.columns(word.text))


def test_characters_outside_the_vocabulary_are_words_of_bytes(clip: Any):
    found = read(clip, "a 馬 🐎 é")
    assert words(found) == ["a", "馬", "🐎", "é"]
    assert [len(word.tokens) for word in found.words] == [1, 3, 4, 2]
    assert found.columns("🐎") == (5, 6, 7, 8)


def test_weights_make_no_difference_to_the_words(sd1: Any):
    from diffusion_path.attention.align import refine

    prompts = pair(sd1, "a red horse, eating", "a (red horse:1.3), ((eating))")
    assert prompts.source.tokens == prompts.target.tokens
    assert prompts.source.words == prompts.target.words
    assert torch.equal(refine(prompts).mapper, torch.eye(77))


@pytest.mark.parametrize("model", ["sd1", "sdxl", "clip"])
def test_long_prompts_run_through_several_chunks(request: pytest.FixtureRequest, model: str):
    from diffusion_path.attention.align import replace

    clip = request.getfixturevalue(model)
    prompts = pair(clip, LONG, LONG.replace("horse", "unicorn"))
    found = prompts.source
    assert len(found.tokens) == 154
    assert re.fullmatch(r"s\*{75}es\*+e-+", shape(found))
    assert len(found.columns("horse")) == 11
    assert any(column > 77 for column in found.columns("horse"))
    alignment = replace(prompts)
    horse, unicorn = found.columns("horse"), prompts.target.columns("unicorn")
    before = torch.rand(4, len(found.tokens))
    torch.testing.assert_close(
        (before @ alignment.mapper)[:, list(unicorn)].sum(1), before[:, list(horse)].sum(1)
    )


def test_a_short_piece_of_text_moves_to_the_next_chunk_as_a_whole(sd1: Any):
    found = read(sd1, "a " * 74 + "(big horse:1.2)")
    assert shape(found) == "s" + "*" * 74 + "e-" + "s**e" + "-" * 73
    assert found.columns("big horse") == (78, 79)


def test_a_word_can_go_on_in_the_next_chunk(sd1: Any):
    (word,) = read(sd1, "antidisestablishmentarianism").words
    found = read(sd1, "a " * 74 + "antidisestablishmentarianism")
    columns = found.columns("antidisestablishmentarianism")
    assert len(columns) == len(word.tokens)
    assert columns[0] == 75
    assert columns[1] == 78  # after the first chunk's end and the second one's start


def test_an_embedding_is_one_word_with_its_name(clip: Any):
    found = read(clip, "a (embedding:demo:1.2), embedding:other and embedding:demo")
    assert words(found) == ["a", "embedding:demo", ",", "embedding:other", "and", "embedding:demo"]
    assert found.columns("embedding:demo") == (2, 3, 8, 9)
    assert found.columns("embedding:Other") == (5, 6)
    assert found.tokens[2:4] == found.tokens[8:10] != found.tokens[5:7]


def test_embeddings_are_matched_by_what_is_in_them(clip: Any):
    from diffusion_path.attention.align import refine

    prompts = pair(clip, "a embedding:demo", "a embedding:demo embedding:other")
    assert refine(prompts).new.nonzero().flatten()[:2].tolist() == [4, 5]


def test_an_embedding_that_does_not_exist_is_left_out_as_comfyui_does(clip: Any):
    assert words(read(clip, "an embedding of embedding:missing here")) == [
        "an",
        "embedding",
        "of",
        "here",
    ]


def test_without_a_folder_an_embedding_is_ordinary_text(comfy: Path):
    from comfy.sd1_clip import SD1Tokenizer

    found = read(clip_of(SD1Tokenizer()), "embedding:demo embedding")
    assert words(found) == ["embedding", ":", "demo", "embedding"]


def test_an_embedding_longer_than_a_chunk_is_still_one_word(clip: Any):
    found = read(clip, "a embedding:many")
    assert words(found) == ["a", "embedding:many"]
    assert len(found.columns("embedding:many")) == 80
    assert len(found.tokens) == 154


def test_sdxls_two_tokenizers_agree(sdxl: Any):
    from diffusion_path.attention.align import refine

    found = read(sdxl, "a embedding:sdxl, 🐎")
    assert words(found) == ["a", "embedding:sdxl", ",", "🐎"]
    assert shape(found) == "s" + "*" * 5 + "e" + "-" * 70
    prompts = pair(sdxl, "a horse", "a big horse")
    assert refine(prompts).new.nonzero().flatten().tolist() == [2]


def test_sdxl_goes_as_far_as_the_shorter_of_its_two(comfy: Path):
    from comfy.sdxl_clip import SDXLTokenizer

    tokenizer = SDXLTokenizer()
    tokenizer.clip_l.min_length = 100
    found = read(clip_of(tokenizer), "a horse")
    assert shape(found) == "s**e" + "-" * 73


def refused(clip: Any, prompt: str, sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        pair(clip, prompt)
    assert str(raised.value) == f"Two Prompts (Prompt Pair): {sentence}."


def test_a_checkpoint_without_clip_is_refused(comfy: Path):
    refused(
        None,
        "a",
        "there is no CLIP, because the checkpoint holds no text encoder; "
        "connect the output of Load CLIP",
    )


def test_an_embedding_of_another_model_is_refused(sdxl: Any):
    refused(
        sdxl,
        "a embedding:sd1",
        "an embedding in the prompt is 768 wide, and the text encoder g reads 1280; take it out, "
        "or use one that was made for this model",
    )


def test_an_embedding_that_is_longer_for_one_of_two_tokenizers_is_refused(sdxl: Any):
    refused(
        sdxl,
        "a embedding:uneven",
        "the CLIP's tokenizers (g, l) divide the prompt differently, so its words have no common "
        "place in the attention; take out embeddings that are longer for one than for the other",
    )


def test_a_tokenizer_without_a_vocabulary_is_refused(comfy: Path):
    tokenizer = SimpleNamespace(tokenize_with_weights=lambda text, **_: {"own": [[(1, 1.0, 1)]]})
    refused(
        clip_of(tokenizer),
        "a horse",
        "the tokenizer of the CLIP's text encoder own does not say what its tokens stand for, so "
        "the words of the prompt cannot be found; connect the CLIP as ComfyUI's own loader returns "
        "it",
    )


@pytest.mark.parametrize("more", [179, -76])
def test_an_encoder_that_makes_other_tokens_is_refused(sd1: Any, more: int):
    refused(
        clip_of(sd1.tokenizer, more=more),
        "a horse",
        f"the CLIP encodes the prompt as {77 + more} tokens, which are not the 77 of its "
        "tokenizer; connect the CLIP as ComfyUI's own loader returns it",
    )


def test_padding_that_the_encoder_leaves_out_is_no_column(comfy: Path):
    from diffusion_path.demo import FLOW_TOKENS
    from diffusion_path.demo.loader import load_clip

    clip = load_clip(kind="flow")
    assert shape(read(clip, "a red horse")) == "s***e" + "-" * (FLOW_TOKENS - 5)
    found = read(clip, "a red horse, " * 10)
    assert shape(found) == "s" + "*" * 40 + "e"
    assert words(found) == ["a", "red", "horse", ","] * 10


def test_a_clip_that_changes_over_the_steps_is_refused(sd1: Any):
    clip = clip_of(sd1.tokenizer)
    entry = [torch.zeros(1, 77, 16), {}]
    clip.encode_from_tokens_scheduled = lambda tokens: [entry, entry]
    refused(
        clip,
        "a horse",
        "the CLIP has hooks that change the prompt over the steps, and its words can then not be "
        "followed; connect a CLIP without scheduled hooks",
    )
