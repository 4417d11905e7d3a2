"""What a layer takes of the source, against attention written out with its maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_path.attention.plan import KEYS, OUTPUT, QUERIES, VALUES, Attention, Injection

B, HEADS, WIDTH, SIZE, TEXT = 2, 3, 8, (2, 3), 4
PLACES = SIZE[0] * SIZE[1]
LAYER = ("block", 0, 0)


@pytest.fixture(autouse=True)
def host(comfy: Path) -> None:
    """ComfyUI's attention."""


def by_head(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (rows, tokens, heads x width), its maps written out."""
    q, k, v = map(by_head, (q, k, v))
    maps = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH)).softmax(dim=-1)
    return (maps @ v).transpose(1, 2).flatten(2)


class Layer:
    """A call of a joint attention: a source, then a target, each of B pictures behind a text."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (2 * B, TEXT + PLACES, HEADS * WIDTH)
        self.q, self.k, self.v = (torch.randn(shape, generator=generator) for _ in range(3))

    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """q, k and v of the source, and of the target."""
        inputs = self.q, self.k, self.v
        return [x[:B].clone() for x in inputs], [x[B:].clone() for x in inputs]

    def output(self, *injections: Injection) -> Tensor:
        """The target's rows of the layer's output."""
        from diffusion_path.host.attention import AttentionControl, Call

        control = AttentionControl(nn.Module(), [LAYER])
        control.attention = Attention(injections=injections)
        call = Call(
            q=self.q,
            k=self.k,
            v=self.v,
            whole=attend,
            attend=lambda q, k, v, mask: attend(q, k, v),
            heads=HEADS,
            target=[slice(B, 2 * B)],
            source=slice(0, B),
            size=SIZE,
            place=slice(TEXT, TEXT + PLACES),
            text=slice(0, TEXT),
        )
        out, _ = control.injected(LAYER, call, injections)
        torch.testing.assert_close(out[:B], attend(self.q[:B], self.k[:B], self.v[:B]))
        return out[B:]


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def at_picture(x: Tensor, by: Tensor) -> Tensor:
    """The text of `x`, and the picture of `by`."""
    return torch.cat([x[:, :TEXT], by[:, TEXT:]], dim=1)


@pytest.mark.parametrize("parts", [(QUERIES, KEYS), (KEYS, VALUES), (VALUES,)])
def test_parts_are_the_sources_at_the_picture_and_the_texts_stay(parts: tuple):
    layer = Layer()
    source, target = layer.sides()
    names = (QUERIES, KEYS, VALUES)
    changed = [
        at_picture(own, theirs) if name in parts else own
        for name, own, theirs in zip(names, target, source, strict=True)
    ]
    same(layer.output(Injection(parts=parts)), attend(*changed))


def test_a_weight_mixes_the_two_outputs():
    layer = Layer()
    _, target = layer.sides()
    whole = layer.output(Injection(parts=(VALUES,)))
    same(
        layer.output(Injection(parts=(VALUES,), weight=0.25)),
        torch.lerp(attend(*target), whole, 0.25),
    )


def test_style_aligned_attends_to_both_with_the_sources_statistics():
    """StyleAligned, section 3: Attention(AdaIN(Q_t, Q_s), [AdaIN(K_t, K_s), K_s], [V_t, V_s])."""
    layer = Layer()
    (q_s, k_s, v_s), (q, k, v) = layer.sides()

    def adain(x: Tensor, like: Tensor) -> Tensor:
        x, like = x[:, TEXT:], like[:, TEXT:]
        scaled = (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)
        return scaled * like.std(dim=1, keepdim=True) + like.mean(dim=1, keepdim=True)

    q = torch.cat([q[:, :TEXT], adain(q, q_s)], dim=1)
    k = torch.cat([k[:, :TEXT], adain(k, k_s), k_s[:, TEXT:]], dim=1)
    v = torch.cat([v, v_s[:, TEXT:]], dim=1)
    found = layer.output(Injection(parts=(KEYS, VALUES), beside=True, aligned=True))
    torch.testing.assert_close(found, attend(q, k, v), rtol=1e-3, atol=1e-4)


def test_of_the_first_picture_all_take_what_it_has():
    layer = Layer()
    _, (q, k, v) = layer.sides()
    first = [at_picture(x, x[:1].expand_as(x)) for x in (k, v)]
    same(layer.output(Injection(parts=(KEYS, VALUES), first=True)), attend(q, *first))


def test_outside_a_mask_the_output_and_what_is_attended_to_are_the_sources():
    layer = Layer()
    (q_s, k_s, v_s), (q, k, v) = layer.sides()
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., 0] = 1
    inside = torch.cat([torch.ones(TEXT, dtype=torch.bool), mask.flatten().bool()])[None, :, None]
    wanted = attend(q, torch.where(inside, k, k_s), torch.where(inside, v, v_s))
    wanted = torch.where(inside, wanted, attend(q_s, k_s, v_s))
    same(layer.output(Injection(parts=(KEYS, VALUES, OUTPUT), outside=mask)), wanted)


def test_several_injections_act_in_their_order():
    layer = Layer()
    source, target = layer.sides()
    q, k, v = (at_picture(own, theirs) for own, theirs in zip(target, source, strict=True))
    both: list[Any] = [Injection(parts=(QUERIES, KEYS)), Injection(parts=(VALUES,))]
    same(layer.output(*both), attend(q, k, v))


def test_what_is_kept_goes_to_ordinary_memory_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
):
    import comfy.model_management

    from diffusion_path.host.attention import Kept

    for room, most in ((1e9, 80), (0, 80)):
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device, r=room: r)
        kept, device = Kept(), torch.device("cpu")
        tensors = {"queries": torch.ones(10), "keys": torch.zeros(10)}
        kept.put("layer", tensors)
        tensors["queries"].zero_()  # a copy is kept
        found = kept.get("layer", device)
        assert found is not None and found["queries"].all() and not found["keys"].any()
        assert kept.most == most
        kept.clear()
        assert kept.get("layer", device) is None
        assert kept.most == most
