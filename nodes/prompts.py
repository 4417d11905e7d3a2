"""A pair of prompts as a node, for the edits that work on the attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from comfy.sd import CLIP
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from comfy_api.latest import io

from ..attention import align
from ..attention.words import EMBEDDING, Chunks, Reading, embedding_names, made_of, probe, read
from ..core.path import Conditioning
from ..host.conditions import signed
from .support import (
    CATEGORY,
    Prompts,
    names_itself,
    tell,
)

FURTHER = {"conditioning_llama3": ("llama", 2), "t5xxl_ids": ("t5xxl", 1)}
"""The options of a CONDITIONING that hold columns of another text encoder: its name, and how many
times in a row the network reads it. HiDream appends two layers of Llama to the embedding. Anima
reads T5's columns in place of the embedding's."""


def encode(clip: CLIP | None, text: str) -> tuple[Conditioning, align.Prompt]:
    """The conditioning that CLIP Text Encode makes of `text`, and what the attention sees of it."""
    if clip is None:
        raise ValueError(
            "there is no CLIP, because the checkpoint holds no text encoder; "
            "connect the output of Load CLIP"
        )
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(conditioning) != 1:
        raise ValueError(
            "the CLIP has hooks that change the prompt over the steps, and its words can then not "
            "be followed; connect a CLIP without scheduled hooks"
        )
    embedding, options = conditioning[0]
    chunks = clip.tokenize(text, return_word_ids=True)
    missing = _missing(clip, chunks)
    names = made_of(chunks, _tokenizers(clip, chunks), embedding.shape[1], missing)
    reading = _reading(clip, text, names).fitted(embedding.shape[1])
    for option, (name, times) in FURTHER.items():
        if option in options and name not in missing:
            reading = reading.followed_by(_reading(clip, text, (name,)), times)
    words = _named_words(clip, text, reading, names)
    prompt = align.Prompt(text=text, tokens=reading.tokens, words=words, embedding=embedding)
    return signed(conditioning, prompt), prompt


def _tokenizers(clip: CLIP, names: Iterable[str]) -> dict[str, Any]:
    return {name: _part(clip.tokenizer, name) for name in names}


def _missing(clip: CLIP, names: Iterable[str]) -> frozenset[str]:
    """The text encoders that the CLIP was loaded without."""
    model = getattr(clip, "cond_stage_model", None)
    return frozenset(name for name in names if model and _part(model, name, model) is None)


def _part(whole: Any, name: str, default: Any = None) -> Any:
    """The tokenizer or the text encoder of a name, which ComfyUI writes in two ways."""
    return getattr(whole, f"clip_{name}", getattr(whole, name, default))


def _reading(clip: CLIP, text: str, names: Iterable[str]) -> Reading:
    """What some of the text encoders read."""
    all_chunks = clip.tokenize(text, return_word_ids=True)
    chunks = {name: all_chunks[name] for name in names}
    probed = clip.tokenize(probe(text), return_word_ids=True)
    return read(chunks, _tokenizers(clip, names), _without_weights(text, chunks.values()), probed)


def _without_weights(text: str, texts: Iterable[Chunks]) -> str:
    """The text without the parentheses of weights, if its tokens have weights."""
    if all(weight == 1 for chunks in texts for chunk in chunks for _, weight, *_ in chunk):
        return text
    stretches = token_weights(escape_important(text), 1.0)
    return unescape_important("".join(stretch for stretch, _ in stretches))


def _named_words(
    clip: CLIP, text: str, reading: Reading, names: Iterable[str]
) -> tuple[align.Word, ...]:
    """The words, embeddings by name: the tokenizer returns only vectors, which tell them apart."""
    known = {}
    for name in embedding_names(text):
        alone = _reading(clip, name, names)
        if alone.words and alone.words[0].text == EMBEDDING:
            known[alone.spelling(alone.words[0])] = name
    return tuple(
        replace(word, text=known.get(reading.spelling(word), word.text)) for word in reading.words
    )


def word_pairs(prompts: align.PromptPair) -> list[list[list[str]]]:
    """Which words became which, as [old words, new words] in the order of the prompts."""
    found = align.changes(prompts)
    return [[[word.text for word in words] for words in both] for both in found]


class PromptPair(io.ComfyNode):
    """Encode the source's prompt and the edit's, and find which words belong together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PromptPair",
            display_name="Two Prompts (Prompt Pair)",
            category=f"{CATEGORY}/attention",
            description="Encodes the source prompt and the new prompt, and finds which words "
            "belong together. The attention edits need it. The node shows the words "
            "that changed.",
            search_aliases=["prompt-to-prompt", "P2P", "prompt2prompt", "encode", "align words"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the model that you will edit with."),
                io.String.Input(
                    "source_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the source picture shows: the prompt of its path.",
                    display_name="source prompt",
                    placeholder="what the picture shows: a horse on a meadow",
                ),
                io.String.Input(
                    "target_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the edited picture should show. Change, add or remove a few "
                    "words of the source prompt and leave the rest as it is.",
                    display_name="new prompt",
                    placeholder="what it should show: a zebra on a meadow",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="source",
                    tooltip="The source's prompt, as CLIP Text Encode makes it: for DDIM Inversion "
                    "or Record Path.",
                ),
                io.Conditioning.Output(
                    display_name="target",
                    tooltip="The edit's prompt, as CLIP Text Encode makes it: for the sampler.",
                ),
                Prompts.Output(
                    display_name="prompts",
                    tooltip="Both prompts with their words, for the edits that work on the "
                    "attention.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @names_itself
    def execute(cls, clip, source_prompt, target_prompt) -> io.NodeOutput:
        source, source_words = encode(clip, source_prompt)
        target, target_words = encode(clip, target_prompt)
        prompts = align.PromptPair(source=source_words, target=target_words)
        summary = align.summary(prompts) if target_prompt.strip() else "target_prompt is empty"
        told = tell(cls, summary, figures={"words": word_pairs(prompts)})
        return io.NodeOutput(source, target, prompts, ui=told)
