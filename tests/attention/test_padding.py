"""Prompt-to-Prompt's `padding`, and prompts of older workflows that do not have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests.calls import node, results

LONG = "a red apple on the left and a horse on the right, on a blue background"
SHORT = "a horse on a blue background"
LATER = ("cross_start", "self_start", "self_limit", "padding")
MODES = ("auto", "replace", "refine")


@pytest.fixture(scope="module")
def clip(comfy: Path) -> Any:
    """The demo model's CLIP."""
    from diffusion_path.demo.loader import load_clip

    return load_clip()


def pair(clip: Any, source: str, target: str) -> Any:
    return results("PromptPair", clip=clip, source_prompt=source, target_prompt=target)[2]


def mapper(prompts: Any, **inputs: Any) -> Tensor:
    ((edit,),) = results("PromptToPrompt", prompts=prompts, **inputs)
    return edit.alignment.mapper


def padding(prompt: Any) -> list[int]:
    from diffusion_path.attention.align import PAD

    return [column for column, token in enumerate(prompt.tokens) if token is PAD]


@pytest.mark.parametrize(("source", "target"), [(LONG, SHORT), (SHORT, LONG)])
@pytest.mark.parametrize("mode", ["auto", "refine"])
def test_by_position_changes_the_padding_and_nothing_else(
    clip: Any, mode: str, source: str, target: str
):
    prompts = pair(clip, source, target)
    ours = mapper(prompts, mode=mode, padding="from padding")
    papers = mapper(prompts, mode=mode, padding="by position")
    columns = padding(prompts.target)
    others = [column for column in range(77) if column not in columns]
    assert torch.equal(papers[:, others], ours[:, others])
    assert torch.equal(papers[:, columns], torch.eye(77)[:, columns])
    assert not torch.equal(papers[:, columns], ours[:, columns])


def test_from_padding_takes_no_words_into_the_padding(clip: Any):
    prompts = pair(clip, LONG, SHORT)
    into = mapper(prompts, padding="from padding")[:, padding(prompts.target)]
    assert set(into.nonzero()[:, 0].tolist()) == set(padding(prompts.source))
    into = mapper(prompts, padding="by position")[:, padding(prompts.target)]
    words = {column for word in prompts.source.words for column in word.tokens}
    assert words & set(into.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("mode", MODES)
def test_words_of_more_tokens_move_the_padding_of_every_mode(clip: Any, mode: str):
    prompts = pair(clip, "a horse", "a chihuahua")
    assert len(padding(prompts.source)) > len(padding(prompts.target))
    ours = mapper(prompts, mode=mode, padding="from padding")
    assert not torch.equal(mapper(prompts, mode=mode, padding="by position"), ours)


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_without_the_later_inputs_runs_with_their_defaults(clip: Any, mode: str):
    prompts = pair(clip, "a red horse", "a blue horse")
    known = {one.id: one for one in node("PromptToPrompt").GET_SCHEMA().inputs}
    assert [name for name in known if name in LATER] == list(known)[-7:-3] == list(LATER)
    assert all(known[name].optional for name in LATER)
    old = {"mode": mode, "cross_replace": 0.8, "self_replace": 0.4, "word_overrides": ""}
    with torch.inference_mode():
        ((edit,),) = node("PromptToPrompt").execute(prompts=prompts, **old).args
    ((new,),) = results(
        "PromptToPrompt", prompts=prompts, **old, **{name: known[name].default for name in LATER}
    )
    assert torch.equal(edit.alignment.mapper, new.alignment.mapper)
    assert (edit.cross_replace, edit.self_replace) == (new.cross_replace, new.self_replace)
    assert edit.self_limit == new.self_limit
