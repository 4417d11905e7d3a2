"""ComfyUI's conditions: whose they are, what is the same, and embeddings by the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.attention.align import Prompt
from diffusion_path.tests import tiny_models


@pytest.fixture(scope="module", autouse=True)
def host(comfy: Path) -> None:
    """ComfyUI's conditions."""


def prompt(embedding: Tensor, text: str = "a horse") -> Prompt:
    return Prompt(text=text, tokens=(0,) * embedding.shape[1], words=(), embedding=embedding)


def embedding(seed: int = 0) -> Tensor:
    return tiny_models.conditioning(16, seed=seed)[0][0]


def off_by(part: float) -> Tensor:
    """An embedding of which each token is off by that part of its length."""
    away = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(9))
    size = embedding().norm(dim=-1, keepdim=True) / away.norm(dim=-1, keepdim=True)
    return embedding() + part * size * away


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_conditioning_is_a_prompts_own_also_after_it_was_rounded(dtype: torch.dtype):
    from diffusion_path.host.conditions import is_of

    assert is_of(embedding().to(dtype), {}, prompt(embedding()))
    assert is_of(embedding(), {}, prompt(embedding().to(dtype)))


def test_a_conditioning_that_says_whose_it_is_may_be_further_off():
    from diffusion_path.host.conditions import is_of, signed

    own = prompt(embedding())
    ((_, says),) = signed([[embedding(), {}]], own)
    ((_, says_other),) = signed([[embedding(), {}]], prompt(embedding(), "a zebra"))
    for part, unsaid, said in ((0.015, True, True), (0.05, False, True), (0.2, False, False)):
        assert is_of(off_by(part), {}, own) == unsaid
        assert is_of(off_by(part), says_other, own) == unsaid
        assert is_of(off_by(part), says, own) == said


def test_a_conditioning_of_another_prompt_shape_or_without_text_is_not_a_prompts_own():
    from diffusion_path.host.conditions import is_of, signed

    own = prompt(embedding())
    ((_, says),) = signed([[embedding(), {}]], own)
    mixture = 0.7 * embedding() + 0.3 * embedding(1)
    for other in (embedding(1), mixture, embedding().repeat(1, 2, 1), embedding()[..., :8], None):
        assert not is_of(other, {}, own)
        assert not is_of(other, says, own)
    assert is_of(embedding(1), {}, None)


def test_the_options_of_a_conditioning_are_not_changed_by_signing_it():
    from diffusion_path.host.conditions import PROMPT, WORDS, signed

    options: dict[str, Any] = {"pooled_output": embedding()}
    ((same, says),) = signed([[embedding(), options]], prompt(embedding()))
    assert options.keys() == {"pooled_output"}
    assert says.keys() == {"pooled_output", PROMPT, WORDS}
    assert torch.equal(same, embedding())


def conds(seed: int = 0, negative: bool = False, **options: Any) -> Any:
    import comfy.conds

    from diffusion_path.host.conditions import Conds

    cond = comfy.conds.CONDCrossAttn(embedding(seed))
    part = {"model_conds": {"c_crossattn": cond}, "uuid": object(), **options}
    return Conds([part], negative)


def test_conditions_are_the_same_if_all_that_the_network_reads_is():
    from diffusion_path.host.conditions import Conds, same

    assert same(conds(), conds())
    assert same(conds(), conds(negative=True))
    assert not same(conds(), conds(1))
    assert not same(conds(), conds(strength=0.5))
    assert not same(conds(), conds(area=(4, 4, 0, 0)))
    assert not same(conds(), Conds([*conds(), *conds()]))


def test_an_embedding_takes_the_place_of_anothers_in_all_parts_and_nothing_else():
    from diffusion_path.host.conditions import Conds, with_embedding
    from diffusion_path.host.conditions import embedding as read

    given = Conds([*conds(strength=0.5), *conds(area=(4, 4, 0, 0))], negative=True)
    given[1]["model_conds"]["c_crossattn"] = given[0]["model_conds"]["c_crossattn"]
    found = with_embedding(given, embedding(1))
    assert torch.equal(read(found), embedding(1)) and torch.equal(read(given), embedding())
    assert found.negative
    assert found[0]["strength"] == 0.5 and found[1]["area"] == (4, 4, 0, 0)


def test_parts_with_embeddings_of_their_own_have_no_embedding_to_replace():
    from diffusion_path.host.conditions import Conds
    from diffusion_path.host.conditions import embedding as read

    with pytest.raises(ValueError, match="has 2 parts, of which only one"):
        read(Conds([*conds(), *conds(1)]))


@pytest.mark.parametrize("steps", [3, 50])
def test_each_embedding_is_in_use_at_its_own_step_only(steps: int):
    """ComfyUI drops a part before its start and after its end, in noise levels."""
    from diffusion_path.host.conditions import PROMPT, WORDS, scheduled
    from diffusion_path.nodes.support import path_sigmas

    model = tiny_models.sd15()
    sigmas = path_sigmas(model, steps, "leading")
    embeddings = torch.randn(steps, 1, 77, 16)
    negative = [[embedding(), {PROMPT: "says so", WORDS: {}}]]
    parts = scheduled(model, negative, embeddings, sigmas)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    for i, sigma in enumerate(sigmas[:-1].tolist()):
        used = [
            n
            for n, (_, options) in enumerate(parts)
            if to_sigma(options["end_percent"]) <= sigma <= to_sigma(options["start_percent"])
        ]
        assert used == [i]
        assert torch.equal(parts[i][0], embeddings[i])
    assert not any({PROMPT, WORDS} & options.keys() for _, options in parts)
