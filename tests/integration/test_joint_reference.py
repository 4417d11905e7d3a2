"""Prompt-to-prompt on joint attention: whether the reference does what is known in advance."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel

from diffusion_path.demo import FLOW_TOKENS, MODEL
from diffusion_path.demo.flow import velocity
from diffusion_path.tests.reference_joint_attention import (
    Control,
    Controls,
    Injection,
    JointReference,
    LocalBlend,
    Phrase,
    image_tokens,
    painted,
    prompt_to_prompt,
    reweighted,
    token_maps,
    tokenizer,
    word_columns,
    word_map,
)
from diffusion_path.tests.reference_prompt_to_prompt import inside

STEPS, GUIDANCE = 10, 4.0
HORSE, ZEBRA = "a horse on a blue background", "a zebra on a blue background"
ALL_PARTS = ("q", "k", "v", "out")


@pytest.fixture(scope="module")
def reference() -> JointReference:
    return JointReference(
        FluxTransformer2DModel.from_pretrained(MODEL / "transformer").eval(),
        CLIPTextModel.from_pretrained(MODEL / "text_encoder").eval(),
        STEPS,
    )


@pytest.fixture(scope="module")
def recorded(reference: JointReference) -> list[Tensor]:
    """A picture of a horse, sampled with guidance."""
    return reference.record(noise(0), HORSE, "", GUIDANCE)


@pytest.fixture(scope="module")
def plain(reference: JointReference) -> list[Tensor]:
    """A zebra from the same noise."""
    return reference.record(noise(0), ZEBRA, "", GUIDANCE)


def noise(seed: int, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, *(size or (16, 16)), generator=generator)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def largest_error(latents: list[Tensor], expected: list[Tensor]) -> float:
    return max(error(ours, right) for ours, right in zip(latents, expected, strict=True))


@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_the_reference_without_control_is_the_plain_transformer(
    reference: JointReference, sigma: float, size: tuple[int, int]
):
    transformer = FluxTransformer2DModel.from_pretrained(MODEL / "transformer").eval()
    x = noise(1, *size)
    with torch.no_grad():
        expected = velocity(transformer, x, torch.tensor([sigma]), *reference.encode(HORSE))
    assert expected.norm() > 0
    assert error(reference.velocity(x, sigma, HORSE), expected) <= 1e-5
    assert list(reference.seen) == list(range(8))


@pytest.mark.parametrize("parts", [("q", "k"), ALL_PARTS])
def test_the_reference_gives_the_recorded_picture_for_its_own_prompt(
    reference: JointReference, recorded: list[Tensor], parts: tuple[str, ...]
):
    columns = word_columns(HORSE, "horse")
    everything = Controls([Injection(parts)], blend=LocalBlend(columns, columns))
    latents = reference.run(recorded, HORSE, HORSE, "", everything, GUIDANCE)
    assert largest_error(latents, recorded) <= 1e-4


def test_all_outputs_injected_give_the_sources_picture(reference: JointReference):
    """All that an image token knows of the text it has from the attention and the pooled vector."""
    path = reference.record(noise(0), HORSE, "", 1.0)
    mixed = reference.encode("two green cars")[0], reference.encode(HORSE)[1]
    assert error(reference.run(path, HORSE, mixed, "", Controls(), 1.0)[-1], path[-1]) > 1e-2
    latents = reference.run(path, HORSE, mixed, "", Controls([Injection(("out",))]), 1.0)
    assert largest_error(latents, path) <= 1e-4


def test_the_reference_without_control_samples_plainly(
    reference: JointReference, recorded: list[Tensor], plain: list[Tensor]
):
    latents = reference.run(recorded, HORSE, ZEBRA, "", Controls(), GUIDANCE)
    assert largest_error(latents, plain) <= 1e-6


def test_prompt_to_prompt_is_closer_to_the_source_than_plain_sampling(reference: JointReference):
    """The more steps it has, the closer; a fifth of them is little here."""
    distances = []
    for seed in range(3):
        path = reference.record(noise(seed), HORSE, "", GUIDANCE)
        plain = reference.record(noise(seed), ZEBRA, "", GUIDANCE)
        all_latents = [plain]
        for tau in (0.2, 1.0):
            controls = Controls([prompt_to_prompt(STEPS, tau)])
            all_latents.append(reference.run(path, HORSE, ZEBRA, "", controls, GUIDANCE))
        assert all(error(latents[-1], plain[-1]) > 1e-2 for latents in all_latents[1:])
        distances.append([error(latents[-1], path[-1]) for latents in all_latents])
    plainly, first_fifth, all_steps = torch.tensor(distances).mean(dim=0).tolist()
    assert 1e-2 < all_steps < first_fifth < plainly, distances
    assert all_steps < 0.9 * plainly, distances


@pytest.mark.parametrize(("steps", "count"), [(3, 1), (5, 1), (14, 2), (15, 3), (50, 10)])
def test_prompt_to_prompt_is_of_the_first_fifth(steps: int, count: int):
    injection = prompt_to_prompt(steps)
    active = [inside(i, injection.window, steps) for i in range(steps)]
    assert active == [True] * count + [False] * (steps - count)


@pytest.mark.parametrize("parts", [("q", "k"), ("k", "v"), ("v",), ("q", "k", "v"), ("out",)])
def test_what_is_injected_is_the_sources_and_no_more(
    reference: JointReference, parts: tuple[str, ...]
):
    x = noise(2)
    reference.velocity(x, 0.5, HORSE)
    source = reference.seen
    own = reference.velocity(x, 0.5, ZEBRA)
    plain = reference.seen
    blocks = {1, 4}
    found = reference.velocity(x, 0.5, ZEBRA, Control(source, [Injection(parts, blocks)]))
    assert error(found, own) > 1e-5
    for number, seen in reference.seen.items():
        for part, value in seen.parts.items():
            same = torch.equal(value, source[number].parts[part])
            assert same == (number in blocks and part in parts), (number, part)
    for part, value in reference.seen[0].parts.items():
        assert torch.equal(value, plain[0].parts[part])


def test_an_injection_is_in_its_window_and_in_the_conditional_call_only(
    reference: JointReference, recorded: list[Tensor], plain: list[Tensor]
):
    injection = Injection(window=(0.5, 0.7))
    latents = reference.run(recorded, HORSE, ZEBRA, "", Controls([injection]), GUIDANCE)
    assert largest_error(latents[:6], plain[:6]) <= 1e-6
    assert error(latents[6], plain[6]) > 1e-5
    for i in range(5, STEPS):
        x, sigma, sigma_next = latents[i], reference.sigmas[i], reference.sigmas[i + 1]
        reference.velocity(recorded[i], sigma, HORSE)
        control = Control(reference.seen, [injection]) if i < 7 else None
        conditional = reference.velocity(x, sigma, ZEBRA, control)
        guided = GUIDANCE * conditional - (GUIDANCE - 1) * reference.velocity(x, sigma, "")
        assert error(latents[i + 1], x + (sigma_next - sigma) * guided) <= 1e-5


@pytest.mark.parametrize("blocks", [None, {0}, {2, 7}])
def test_the_maps_of_all_tokens_sum_to_1(reference: JointReference, blocks: set[int] | None):
    x = noise(3, 24, 8)
    reference.velocity(x, 0.7, HORSE)
    maps = token_maps(reference.seen, image_tokens(x), blocks)
    assert maps.shape == (FLOW_TOKENS, 12, 4)
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(12, 4))
    words = [word_columns(HORSE, word) for word in ("a", "horse", "on", "blue", "background")]
    marks = sorted(set(range(FLOW_TOKENS)) - {column for word in words for column in word})
    whole = sum(word_map(maps, columns) for columns in [*words, marks])
    torch.testing.assert_close(whole, torch.ones(12, 4))


def test_a_map_is_the_mean_over_heads_as_a_share_of_the_text(reference: JointReference):
    x, columns = noise(3, 24, 8), word_columns(HORSE, "horse")
    reference.velocity(x, 0.7, HORSE)
    found = word_map(token_maps(reference.seen, image_tokens(x), {3, 5}), columns)
    expected = torch.zeros(12, 4)
    for number in (3, 5):
        heads = reference.seen[number].probabilities  # (heads, image tokens, all tokens)
        torch.testing.assert_close(heads.sum(dim=-1), torch.ones(heads.shape[:2]))
        word, text = heads[..., columns].sum(dim=-1), heads[..., :FLOW_TOKENS].sum(dim=-1)
        expected += (word.mean(dim=0) / text.mean(dim=0)).reshape(12, 4) / 2
    torch.testing.assert_close(found, expected)


def test_words_are_found_by_their_tokens():
    ids = tokenizer()(HORSE).input_ids
    assert word_columns(HORSE, "horse") == [2]
    assert word_columns(HORSE, "a") == [1, 4]
    assert tokenizer().decode([ids[column] for column in word_columns(HORSE, "blue")]) == "blue"
    assert len(word_columns("a xylophone on blue", "xylophone")) > 1
    with pytest.raises(ValueError, match="no word 'zebra'"):
        word_columns(HORSE, "zebra")


def test_the_blend_leaves_the_recorded_picture_elsewhere(
    reference: JointReference, recorded: list[Tensor]
):
    words = word_columns(HORSE, "horse"), word_columns(ZEBRA, "zebra")
    injected = [prompt_to_prompt(STEPS)]

    def kept(threshold: float) -> list[Tensor]:
        controls = Controls(injected, blend=LocalBlend(*words, threshold=threshold, start=0.4))
        latents = reference.run(recorded, HORSE, ZEBRA, "", controls, GUIDANCE)
        pairs = zip(latents, recorded, strict=True)
        return [(x == right).all(dim=1).float().mean() for x, right in pairs]

    narrow, all_of_it = kept(0.99), kept(0.0)
    assert max(narrow[1:5]) == 0, "blended too early"
    assert all(0.5 < share < 1 for share in narrow[5:]), narrow
    assert max(all_of_it[1:]) == 0


def test_a_factor_of_1_changes_nothing(
    reference: JointReference, recorded: list[Tensor], plain: list[Tensor]
):
    controls = Controls(factors=torch.ones(FLOW_TOKENS))
    latents = reference.run(recorded, HORSE, ZEBRA, "", controls, GUIDANCE)
    assert largest_error(latents, plain) <= 1e-6


def test_a_factor_multiplies_the_odds(reference: JointReference):
    """In the first block, whose queries and keys are not changed yet."""
    x, columns = noise(2), word_columns(HORSE, "horse")
    reference.velocity(x, 0.5, HORSE)
    before = reference.seen[0].probabilities
    factors = torch.ones(FLOW_TOKENS)
    factors[columns] = 3.0
    reference.velocity(x, 0.5, HORSE, Control(biases=[reweighted(factors)]))
    expected = before.clone()
    expected[..., columns] *= 3
    expected /= expected.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(reference.seen[0].probabilities, expected)


def test_paint_adds_a_share_of_each_rows_largest_score():
    scores = torch.randn(2, 6, 5 + 6, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., :4, :2] = 1  # half of the first token's place
    mask[..., 4:, 8:] = 1  # the last token's place
    added = painted([1, 3], mask, 0.4, 0.5, (2, 3))(scores)
    weights = torch.zeros(6)
    weights[0], weights[5] = 0.5, 1.0
    for head in range(2):
        for row in range(6):
            share = 0.4 * math.log(1.5) * weights[row] * scores[head, row].max()
            expected = torch.zeros(11)
            expected[[1, 3]] = share
            torch.testing.assert_close(added[head, row], expected)


def test_a_painted_phrase_is_attended_to_where_its_mask_is(reference: JointReference):
    x, columns = noise(2), word_columns(HORSE, "horse")
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    reference.velocity(x, 0.9, HORSE)
    before = word_map(token_maps(reference.seen, (8, 8), {0}), columns)
    bias = painted(columns, mask, 1.0, 0.9, (8, 8))
    reference.velocity(x, 0.9, HORSE, Control(biases=[bias]))
    after = word_map(token_maps(reference.seen, (8, 8), {0}), columns)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] > before[:, 4:]).all()


def test_an_empty_mask_paints_nothing(
    reference: JointReference, recorded: list[Tensor], plain: list[Tensor]
):
    columns = word_columns(ZEBRA, "zebra")
    for mask, changed in ((torch.zeros(1, 1, 16, 16), False), (torch.ones(1, 1, 16, 16), True)):
        controls = Controls(phrases=[Phrase(columns, mask, 0.4)])
        latents = reference.run(recorded, HORSE, ZEBRA, "", controls, GUIDANCE)
        assert (largest_error(latents, plain) > 1e-3) == changed
