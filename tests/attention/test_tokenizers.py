"""The words of every text encoder whose model's attention can be edited, on ComfyUI's tokenizers.

ComfyUI's own `encode_token_weights` makes the embeddings; only the networks in them are exchanged
for one that returns each token's number, so that an embedding says which token each column is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SENTENCE = "a red apple, and two pears on a blue background"
WORDS = ["a", "red", "apple", ",", "and", "two", "pears", "on", "a", "blue", "background"]

LITERAL = ("qwen_image", "hunyuan_image", "hunyuan_video_15", "z_image", "klein", "ltx2")
"""Families that take the parentheses of weights for text."""
TEMPLATES = ("hunyuan_video", *LITERAL[:-1])
"""Families that put the prompt into a template, and how it begins and ends in the embedding."""
T5 = ("flux", "sd3", "chroma", "ltxv", "cosmos", "hidream")
FAMILIES = (*T5, "wan", "hunyuan_video", "lumina2", "anima", *LITERAL)


def sentence_piece(**options: Any) -> Tensor:
    """A small SentencePiece model, as the text encoder's file has one."""
    import sentencepiece

    made = io.BytesIO()
    lines = [SENTENCE, "a green Grüße (of) an old horse: café", "1.3 \"zebras\" are 'here'"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20),
        model_writer=made,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return torch.tensor(list(made.getvalue()), dtype=torch.uint8)


def umt5() -> dict[str, Tensor]:
    return {"spiece_model": sentence_piece(vocab_size=70, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)}


def gemma() -> dict[str, Tensor]:
    options = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True}
    return {"spiece_model": sentence_piece(vocab_size=330, add_dummy_prefix=False, **options)}


def flux(folder: str | None = None) -> tuple[Any, Any]:
    from comfy.text_encoders.flux import FluxTokenizer, flux_clip

    return FluxTokenizer(embedding_directory=folder), flux_clip()(device="meta")


def sd3(**parts: bool) -> tuple[Any, Any]:
    from comfy.text_encoders.sd3_clip import SD3Tokenizer, sd3_clip

    return SD3Tokenizer(), sd3_clip(**parts)(device="meta")


def chroma() -> tuple[Any, Any]:
    from comfy.text_encoders.pixart_t5 import PixArtTokenizer, pixart_te

    return PixArtTokenizer(), pixart_te()(device="meta")


def ltxv() -> tuple[Any, Any]:
    from comfy.text_encoders.lt import LTXVT5Tokenizer, ltxv_te

    return LTXVT5Tokenizer(), ltxv_te()(device="meta")


def cosmos() -> tuple[Any, Any]:
    from comfy.text_encoders.cosmos import CosmosT5Tokenizer, te

    return CosmosT5Tokenizer(), te()(device="meta")


def hidream(**parts: bool) -> tuple[Any, Any]:
    from comfy.text_encoders.hidream import HiDreamTokenizer, hidream_clip

    return HiDreamTokenizer(), hidream_clip(**parts)(device="meta", model_options={})


def wan() -> tuple[Any, Any]:
    from comfy.text_encoders.wan import WanT5Tokenizer, te

    return WanT5Tokenizer(tokenizer_data=umt5()), te()(device="meta")


def hunyuan_video() -> tuple[Any, Any]:
    from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer, hunyuan_video_clip

    return HunyuanVideoTokenizer(), hunyuan_video_clip()(device="meta")


def qwen_image() -> tuple[Any, Any]:
    from comfy.text_encoders.qwen_image import QwenImageTokenizer, te

    return QwenImageTokenizer(), te()(device="meta")


def hunyuan_image() -> tuple[Any, Any]:
    from comfy.text_encoders.hunyuan_image import HunyuanImageTokenizer, te

    return HunyuanImageTokenizer(), te()(device="meta")


def hunyuan_video_15() -> tuple[Any, Any]:
    from comfy.text_encoders.hunyuan_image import te
    from comfy.text_encoders.hunyuan_video import HunyuanVideo15Tokenizer

    return HunyuanVideo15Tokenizer(), te()(device="meta")


def z_image() -> tuple[Any, Any]:
    from comfy.text_encoders.z_image import ZImageTokenizer, te

    return ZImageTokenizer(), te()(device="meta")


def klein() -> tuple[Any, Any]:
    from comfy.text_encoders.flux import KleinTokenizer, klein_te

    return KleinTokenizer(), klein_te()(device="meta")


def anima() -> tuple[Any, Any]:
    from comfy.text_encoders.anima import AnimaTokenizer, te

    return AnimaTokenizer(), te()(device="meta")


def lumina2() -> tuple[Any, Any]:
    from comfy.text_encoders.lumina2 import LuminaTokenizer, te

    return LuminaTokenizer(tokenizer_data=gemma()), te()(device="meta")


class OfTheFirstLayer(nn.Module):
    """In place of LTX-2's projection of all layers to one."""

    def forward(self, layers: Tensor) -> Tensor:
        return layers[:, 0]


def ltx2() -> tuple[Any, Any]:
    from comfy.text_encoders.lt import LTXAVGemmaTokenizer, ltxav_te

    model = ltxav_te(text_projection_type="dual_linear")(device="meta")
    model.text_embedding_projection = OfTheFirstLayer()
    model.execution_device = "cpu"
    return LTXAVGemmaTokenizer(tokenizer_data=gemma()), model


def numbers(self: Any, tokens: list[list[Any]]) -> tuple[Any, ...]:
    """In place of a network: (chunks, tokens, width) of each token's number, and -1 for a vector of
    an embedding; from several layers, (chunks, layers, tokens, width)."""
    found = torch.tensor(
        [[-1.0 if isinstance(token, Tensor) else token for token in chunk] for chunk in tokens]
    )
    width = self.transformer.get_input_embeddings().weight.shape[1]
    embedding = found[:, :, None].repeat(1, 1, width)
    if self.layer == "all" or isinstance(self.layer, list):
        embedding = embedding[:, None].repeat(1, 3, 1, 1)
    mask = (found != self.special_tokens["pad"]).long()
    options = [{"attention_mask": mask}] if self.return_attention_masks else []
    return embedding, torch.zeros(len(tokens), width), *options


@pytest.fixture(scope="module", autouse=True)
def exchanged(comfy: Path) -> Iterator[None]:
    """The networks, and Llama's tokenizer, which some versions of transformers break (below)."""
    import comfy.sd1_clip
    import comfy.text_encoders.hunyuan_video
    from transformers import PreTrainedTokenizerFast

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.sd1_clip.SDClipModel, "encode", numbers)
        module = comfy.text_encoders.hunyuan_video
        patch.setattr(module, "LlamaTokenizerFast", PreTrainedTokenizerFast)
        yield


def clip_of(tokenizer: Any, model: Any) -> Any:
    """A CLIP of a tokenizer and a text encoder of ComfyUI's."""

    def encode(tokens: Any) -> list:
        embedding, pooled, *options = model.encode_token_weights(tokens)
        return [[embedding, {"pooled_output": pooled, **(options[0] if options else {})}]]

    return SimpleNamespace(
        tokenizer=tokenizer,
        cond_stage_model=model,
        tokenize=tokenizer.tokenize_with_weights,
        encode_from_tokens_scheduled=encode,
    )


CLIPS: dict[str, Any] = {}


@pytest.fixture(scope="module")
def clip(exchanged: None) -> Iterator[Callable[[str], Any]]:
    """The CLIP of a family, made once."""

    def made(family: str) -> Any:
        if family not in CLIPS:
            CLIPS[family] = clip_of(*globals()[family]())
        return CLIPS[family]

    yield made
    CLIPS.clear()


def read(clip: Any, text: str) -> Any:
    from diffusion_path.nodes.prompts import encode

    return encode(clip, text)[1]


def pair(clip: Any, source: str, target: str) -> Any:
    from diffusion_path.attention.align import PromptPair

    return PromptPair(source=read(clip, source), target=read(clip, target))


def texts(prompt: Any) -> list[str]:
    return [word.text for word in prompt.words]


def tokenizer_of(clip: Any, name: str) -> Any:
    return getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}")


def main(clip: Any) -> Any:
    """The tokenizer whose tokens are a word's columns."""
    return tokenizer_of(clip, next(name for name in clip.tokenize("a") if name not in "lg"))


def spelt(clip: Any, prompt: Any, columns: Sequence[int]) -> str:
    """The text of the tokens that the embedding has in some columns."""
    numbers = [int(prompt.embedding[0, column, 0]) for column in columns]
    return main(clip).decode(numbers, skip_special_tokens=False).strip()


def kinds(prompt: Any) -> set[str]:
    from diffusion_path.attention.align import Special

    return {token.value for token in prompt.tokens if isinstance(token, Special)}


def same_columns(alignment: Any) -> dict[int, int]:
    """Which column each column of the target has its whole map from."""
    return {int(j): int(i) for i, j in (alignment.mapper == 1).nonzero()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_words_are_those_that_were_typed(clip: Any, family: str):
    prompt = read(clip(family), SENTENCE)
    assert texts(prompt) == WORDS
    assert [spelt(clip(family), prompt, word.tokens) for word in prompt.words] == WORDS


@pytest.mark.parametrize("text", [SENTENCE, "a", "two pears on\n[a] 'red', red apple!", "  a  "])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_column_is_of_one_word_or_of_none_that_was_typed(clip: Any, family: str, text: str):
    from diffusion_path.attention.align import Special

    prompt = read(clip(family), text)
    assert len(prompt.tokens) == prompt.embedding.shape[1]
    assert "".join(texts(prompt)) == "".join(text.split())
    columns = [column for word in prompt.words for column in word.tokens]
    assert len(columns) == len({*columns})
    for column, token in enumerate(prompt.tokens):
        if column in columns:
            assert token == int(prompt.embedding[0, column, 0])
        else:  # SD3 has CLIP's columns too
            assert isinstance(token, Special) or column < 77 and isinstance(token, tuple)
    assert ("template" in kinds(prompt)) == (family in TEMPLATES)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_prompt_has_no_words(clip: Any, family: str):
    prompt = read(clip(family), "")
    assert prompt.words == ()
    assert len(prompt.tokens) == prompt.embedding.shape[1]
    assert ("template" in kinds(prompt)) == (family in TEMPLATES)


@pytest.mark.parametrize(
    "text", ["a (red:1.3) apple, (two) pears", "((a) red apple:0.8), two pears"]
)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LITERAL])
def test_weights_make_no_difference_to_the_words(clip: Any, family: str, text: str):
    from diffusion_path.attention.align import changes

    found = pair(clip(family), "a red apple, two pears", text)
    assert texts(found.target) == texts(found.source) == ["a", "red", "apple", ",", "two", "pears"]
    for word in found.target.words:
        numbers = [found.target.tokens[column] for column in word.tokens]
        assert main(clip(family)).decode(numbers).strip() == word.text
    assert all(len(old) == len(new) == 1 for old, new in changes(found))


@pytest.mark.parametrize("family", LITERAL)
def test_without_weights_the_parentheses_are_text(clip: Any, family: str):
    prompt = read(clip(family), "a (red:1.3) apple")
    assert "".join(texts(prompt)) == "a(red:1.3)apple"
    assert spelt(clip(family), prompt, prompt.columns("red")) == "red"


@pytest.mark.parametrize("family", FAMILIES)
def test_other_letters_than_english_are_found_whole(clip: Any, family: str):
    prompt = read(clip(family), "eine Grüße 猫, café")
    assert texts(prompt) == ["eine", "Grüße", "猫", ",", "café"]
    for text in ("Grüße", "café"):
        assert spelt(clip(family), prompt, prompt.columns(text)) == text
    knows = family not in (*T5, "wan")
    assert (spelt(clip(family), prompt, prompt.columns("猫")) == "猫") == knows


@pytest.mark.parametrize("family", ["z_image", "hunyuan_video", "lumina2"])
def test_letters_of_chinese_are_words_where_the_tokens_allow_it(clip: Any, family: str):
    prompt = read(clip(family), "一只猫在跑")
    assert "".join(texts(prompt)) == "一只猫在跑"
    assert len(prompt.words) >= 4
    assert spelt(clip(family), prompt, prompt.columns("猫")) == "猫"
    assert spelt(clip(family), prompt, prompt.columns("一只")) == "一只"


def test_what_shares_a_token_is_one_word(clip: Any):
    prompt = read(clip("z_image"), "it's 24 cats, e.g. a 🐎!")
    assert texts(prompt) == ["it", "'s", "2", "4", "cats", ",", "e", ".g", ".", "a", "🐎", "!"]
    assert spelt(clip("z_image"), prompt, prompt.columns("e.g.")) == "e.g."
    assert spelt(clip("z_image"), prompt, prompt.columns("🐎")) == "🐎"
    prompt = read(clip("flux"), "it's 24 cats, e.g. a cat!")
    assert texts(prompt) == ["it", "'s", "24", "cats", ",", "e", ".", "g", ".", "a", "cat", "!"]


def test_a_letter_that_the_tokenizer_does_not_know_keeps_its_name(clip: Any):
    prompt = read(clip("flux"), "a 🐎, (一只猫:1.2) {or} 犬")
    assert texts(prompt) == ["a", "🐎", ",", "一只猫", "{", "or", "}", "犬"]


@pytest.mark.parametrize("family", ["z_image", "qwen_image", "hunyuan_video"])
@pytest.mark.parametrize("text", ["user", "assistant <|im_end|>", "\n\na red\n\napple,\n\nred\n"])
def test_the_template_ends_where_the_text_begins(clip: Any, family: str, text: str):
    prompt = read(clip(family), text)
    assert "".join(texts(prompt)).replace("\n", "") == "".join(text.split())
    assert len(prompt.tokens) == prompt.embedding.shape[1]
    for word in prompt.words:
        assert spelt(clip(family), prompt, word.tokens) == word.text


def test_a_template_that_the_user_writes_is_text_but_for_what_is_the_same(clip: Any):
    prompt = read(clip("qwen_image"), f"<|im_start|>user\n{SENTENCE}<|im_end|>\n")
    assert spelt(clip("qwen_image"), prompt, prompt.columns("red apple")) == "red apple"


def test_an_embedding_without_all_of_the_text_is_refused(clip: Any):
    with pytest.raises(
        ValueError, match="^the CLIP encodes the prompt as .* tokens, which are not"
    ):
        read(clip("hunyuan_video"), "a horse <|eot_id|> on grass")
