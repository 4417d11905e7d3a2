"""The words of every text encoder whose model's attention can be edited, on ComfyUI's tokenizers.

ComfyUI's own `encode_token_weights` makes the embeddings; only the networks in them are exchanged
for one that returns each token's number, so that an embedding says which token each column is.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SENTENCE = "a red apple, and two pears on a blue background"
WORDS = ["a", "red", "apple", ",", "and", "two", "pears", "on", "a", "blue", "background"]

LITERAL = ("qwen_image", "hunyuan_image", "hunyuan_video_15", "z_image", "klein", "ltx2")
"""Families that take the parentheses of weights for text."""
TEMPLATES = ("hunyuan_video", *LITERAL[:-1])
"""Families that put the prompt into a template of which the embedding has a part."""
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
        [[-1 if isinstance(token, Tensor) else token for token in chunk] for chunk in tokens]
    ).float()
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
            assert isinstance(token, Special) or (column < 77 and isinstance(token, tuple))
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


def test_what_the_tokenizer_does_not_know_keeps_its_name(clip: Any):
    prompt = read(clip("flux"), "a 🐎, 一只猫，犬 and (red:1.2) {grass}…")
    words = ["a", "🐎", ",", "一只猫", "，", "犬", "and", "red", "{", "grass", "}…"]
    assert texts(prompt) == words


@pytest.mark.parametrize("family", ["z_image", "qwen_image", "hunyuan_video"])
@pytest.mark.parametrize("text", ["user", "assistant <|im_end|>", "\n\na red\n\napple,\n\nred\n"])
def test_the_template_ends_where_the_text_begins(clip: Any, family: str, text: str):
    prompt = read(clip(family), text)
    assert "".join(texts(prompt)).replace("\n", "") == "".join(text.split())
    assert len(prompt.tokens) == prompt.embedding.shape[1]
    for word in prompt.words:
        assert spelt(clip(family), prompt, word.tokens) == word.text


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hunyuan_video", "a horse <|eot_id|> on grass"),
        ("qwen_image", "<|im_start|>user\na horse<|im_end|>"),
    ],
)
def test_a_prompt_of_which_a_part_is_taken_for_the_template_is_refused(
    clip: Any, family: str, text: str
):
    with pytest.raises(ValueError) as raised:
        read(clip(family), text)
    assert re.fullmatch(
        r"the CLIP encodes the prompt as \d+ tokens, which are not the \d+ of its tokenizer; take "
        r"chat marks such as <\|im_end\|> out of it, or connect the CLIP as ComfyUI's own loader "
        "returns it",
        str(raised.value),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_other_lengths_are_aligned_word_by_word(clip: Any, family: str):
    from diffusion_path.attention.align import Special, automatic, padding_by_position, refine

    found = pair(clip(family), SENTENCE, f"a big {SENTENCE.removeprefix('a ')} with two pears")
    source, target = found.source, found.target
    kept = {
        new: old
        for one, other in zip(source.words, (target.words[0], *target.words[2:-3]), strict=True)
        for old, new in zip(one.tokens, other.tokens, strict=True)
    }
    added = target.columns("big")
    for alignment in (automatic(found), padding_by_position(found, automatic(found))):
        assert alignment.mapper.shape == (len(source.tokens), len(target.tokens))
        assert kept.items() <= same_columns(alignment).items()
        assert alignment.new[list(added)].all()
    assert kept.items() <= same_columns(refine(found)).items()
    for new, old in same_columns(automatic(found)).items():
        # A special token is never taken for a word, nor for another kind.
        if isinstance(target.tokens[new], Special):
            assert target.tokens[new] is source.tokens[old]
        else:
            assert target.tokens[new] == source.tokens[old]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["automatic", "replace", "refine"])
def test_a_prompt_aligned_with_itself_keeps_its_attention(clip: Any, family: str, way: str):
    from diffusion_path.attention import align

    found = pair(clip(family), SENTENCE, SENTENCE)
    alignment = getattr(align, way)(found)
    assert torch.equal(alignment.mapper, torch.eye(len(found.source.tokens)))


def test_a_word_of_more_tokens_takes_the_attention_of_one_of_fewer(clip: Any):
    from diffusion_path.attention.align import replace

    found = pair(clip("qwen_image"), "a cat on grass", "a hippogriff on grass")
    (old,), new = found.source.columns("cat"), found.target.columns("hippogriff")
    assert len(found.target.tokens) - len(found.source.tokens) == len(new) - 1 > 0
    mapper = replace(found).mapper
    assert mapper[old, list(new)].tolist() == pytest.approx([1 / len(new)] * len(new))
    assert float(mapper.sum()) == len(found.source.tokens)
    assert (mapper[list(found.source.columns("grass"))].sum(1) == 1).all()


def test_the_first_word_is_the_same_word_later(clip: Any):
    """The tokens of "cathedral" and of " cathedral" are not."""
    from diffusion_path.attention.align import automatic, summary

    found = pair(clip("z_image"), "cathedral on grass", "a cathedral on grass")
    old, new = found.source.words[0], found.target.words[1]
    assert len(old.tokens) != len(new.tokens)
    assert summary(found) == "new: a"
    assert not automatic(found).new[list(new.tokens)].any()


def test_sd3_has_a_words_columns_in_both_parts(clip: Any):
    prompt = read(clip("sd3"), "(Red:1.2) apples, 24 🐎")
    assert texts(prompt) == ["Red", "apples", ",", "24", "🐎"]
    clip_l = clip("sd3").tokenizer.clip_l
    for word, text in zip(prompt.words, ["red", "apples", ",", "24", "🐎"], strict=True):
        assert min(word.tokens) >= 77 > max(word.others)
        assert clip_l.decode([prompt.tokens[column][0] for column in word.others]).strip() == (
            " ".join(text) if text == "24" else text
        )
    (red, *_) = prompt.words
    assert prompt.columns("red") == red.tokens
    assert prompt.columns(["red"], everywhere=True) == (*red.others, *red.tokens)


def test_sd3s_parts_are_aligned_each_for_itself(clip: Any):
    from diffusion_path.attention.align import PAD, automatic, refine

    found = pair(clip("sd3"), "a cat on grass", "a red cat on grass")
    source, target = found.source, found.target
    for alignment in (automatic(found), refine(found)):
        for new, old in same_columns(alignment).items():
            assert (new < 77) == (old < 77)
        for word in ("cat", "grass"):
            new, old = (one.columns(word, everywhere=True) for one in (target, source))
            assert {*zip(new, old, strict=True)} <= same_columns(alignment).items()
        assert alignment.new[list(target.columns("red", everywhere=True))].all()
        # One token of padding less in each part leaves none without a counterpart.
        assert not alignment.new[[token is PAD for token in target.tokens]].any()


def test_sd3s_second_part_is_the_same_after_more_chunks_of_the_first(clip: Any):
    from diffusion_path.attention.align import END, PAD, automatic

    found = pair(clip("sd3"), "a cat", "a cat " + "on grass " * 40)
    source, target = found.source, found.target
    assert len(source.tokens) == 77 + 77 and len(target.tokens) > 154 + 77
    ends = [
        [column for column, token in enumerate(prompt.tokens) if token is END]
        for prompt in (source, target)
    ]
    assert same_columns(automatic(found))[ends[1][-1]] == ends[0][-1]
    assert target.tokens.count(PAD) < source.tokens.count(PAD)


def sd3_without(**parts: bool) -> Any:
    return clip_of(*sd3(**parts))


def test_sd3_without_t5_has_clips_words(exchanged: None):
    prompt = read(sd3_without(t5=False), "a Red cat")
    assert len(prompt.tokens) == 77
    assert texts(prompt) == ["a", "red", "cat"]
    assert [word.tokens for word in prompt.words] == [(1,), (2,), (3,)]
    assert not any(word.others for word in prompt.words)


@pytest.mark.parametrize("clip_g", [False, True])
def test_sd3_without_clips_has_t5s_words(exchanged: None, clip_g: bool):
    prompt = read(sd3_without(clip_l=False, clip_g=clip_g), "a Red cat")
    assert texts(prompt) == ["a", "Red", "cat"]
    assert len(prompt.tokens) == 77 * (1 + clip_g)
    assert all(bool(word.others) == clip_g for word in prompt.words)


def test_hidream_reads_llamas_columns_twice_after_t5s(clip: Any):
    prompt = read(clip("hidream"), SENTENCE)
    llama = clip("hidream").tokenizer.llama
    (chunk,) = clip("hidream").tokenize(SENTENCE)["llama"]
    assert len(prompt.tokens) == 128 and len(chunk) == 128
    for word in prompt.words:
        first, again = word.others[: len(word.others) // 2], word.others[len(word.others) // 2 :]
        assert [column + len(chunk) for column in first] == [*again]
        assert llama.decode([chunk[column - 128][0] for column in first]).strip() == word.text
    assert {*prompt.columns("red")} < {*prompt.columns("red", everywhere=True)}


def test_hidream_without_llama_has_t5s_columns_alone(exchanged: None):
    prompt = read(clip_of(*hidream(llama=False)), SENTENCE)
    assert texts(prompt) == WORDS
    assert not any(word.others for word in prompt.words)


def test_hidream_leaves_out_what_does_not_fit(clip: Any):
    prompt = read(clip("hidream"), "red apples, " * 60 + "zebra")
    assert len(prompt.tokens) == 128
    assert {*texts(prompt)} == {"red", "apples", ","}


def test_animas_others_are_the_columns_of_t5_that_its_network_reads(clip: Any):
    prompt = read(clip("anima"), SENTENCE)
    (chunk,) = clip("anima").tokenize(SENTENCE)["t5xxl"]
    for word in prompt.words:
        numbers = [chunk[column - len(prompt.tokens)][0] for column in word.others]
        assert clip("anima").tokenizer.t5xxl.decode(numbers).strip() == word.text


class Registers(nn.Module):
    """What older files of LTX-2 do: fill up to 1024 columns behind the text."""

    def forward(self, embedding: Tensor) -> tuple[Tensor, None]:
        return nn.functional.pad(embedding, (0, 0, 0, 1024 - embedding.shape[1])), None


@pytest.mark.parametrize("older", [False, True])
def test_ltx2_puts_the_padding_behind_the_text(exchanged: None, older: bool):
    tokenizer, model = ltx2()
    if older:
        model.text_projection_type, model.compat_mode = "single_linear", True
        model.text_embedding_projection = nn.Identity()
        model.video_embeddings_connector = model.audio_embeddings_connector = Registers()
    prompt = read(clip_of(tokenizer, model), SENTENCE)
    assert texts(prompt) == WORDS
    assert len(prompt.tokens) == prompt.embedding.shape[1]
    assert (len(prompt.tokens) == 1024) == older == ("padding" in kinds(prompt))
    assert prompt.words[0].tokens == (1,)
    filled = prompt.embedding[0].any(dim=-1).nonzero().flatten()
    assert prompt.words[-1].tokens[-1] == int(filled[-1])


def test_the_pooled_clip_of_flux_takes_no_part(exchanged: None):
    """As many of its tokens as of T5's would be taken for them."""
    from diffusion_path.attention.words import made_of

    clip = clip_of(*flux())
    tokenizers = {"l": clip.tokenizer.clip_l, "t5xxl": clip.tokenizer.t5xxl}
    chunks = {"l": [[()] * 77] * 4, "t5xxl": [[()] * 308]}
    assert made_of(chunks, tokenizers, 308, frozenset()) == ("t5xxl",)


def test_embeddings_of_t5_are_words_with_their_name(exchanged: None, tmp_path: Path):
    for name in ("one", "two"):
        vectors = {"clip_l": torch.rand(2, 768), "t5xxl": torch.rand(3, 4096)}
        save_file(vectors, tmp_path / f"{name}.safetensors")
    prompt = read(clip_of(*flux(str(tmp_path))), "a embedding:one, (embedding:two:1.2) on grass")
    assert texts(prompt) == ["a", "embedding:one", ",", "embedding:two", "on", "grass"]
    for name in ("one", "two"):
        columns = prompt.columns(f"embedding:{name}")
        assert [float(prompt.embedding[0, column, 0]) < 0 for column in columns] == [True] * 3


def test_an_embedding_that_only_the_pooled_clip_could_not_read_is_no_matter(
    exchanged: None, tmp_path: Path
):
    save_file(
        {"clip_l": torch.rand(2, 99), "t5xxl": torch.rand(2, 4096)}, tmp_path / "one.safetensors"
    )
    assert texts(read(clip_of(*flux(str(tmp_path))), "a embedding:one")) == ["a", "embedding:one"]
    save_file({"clip_l": torch.rand(2, 768)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"^an embedding in the prompt is 768 wide, and the text "):
        read(clip_of(*flux(str(tmp_path))), "a embedding:two")


@pytest.mark.parametrize("family", ["sd3", "qwen_image", "hidream"])
def test_a_prompt_is_the_same_after_it_was_saved(clip: Any, family: str):
    import json

    from diffusion_path.attention.plain import from_plain, to_plain

    prompt = read(clip(family), SENTENCE)
    kept = from_plain(json.loads(json.dumps(to_plain(prompt))), prompt.embedding)
    assert kept is not None
    assert (kept.text, kept.tokens, kept.words) == (prompt.text, prompt.tokens, prompt.words)


def test_words_without_others_are_saved_as_before(clip: Any):
    from diffusion_path.attention.plain import to_plain

    assert to_plain(read(clip("flux"), "red grass"))["words"] == [["red", [0]], ["grass", [1]]]


@pytest.mark.parametrize("make", ["hunyuan_video", "hidream"])
def test_llamas_tokenizer_of_transformers_5_still_has_all_letters(
    exchanged: None, monkeypatch: pytest.MonkeyPatch, make: str
):
    """It leaves out spaces, so that words share tokens (transformers issue 45488)."""
    import comfy.text_encoders.hunyuan_video
    from transformers import LlamaTokenizerFast

    module = comfy.text_encoders.hunyuan_video
    monkeypatch.setattr(module, "LlamaTokenizerFast", LlamaTokenizerFast)
    prompt = read(clip_of(*globals()[make]()), SENTENCE)
    assert " ".join(texts(prompt)).replace(" ,", ",") == SENTENCE
    assert {"apple", "two", "background"} <= {*texts(prompt)}
    assert len(prompt.tokens) == prompt.embedding.shape[1]
