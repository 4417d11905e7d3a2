"""A layer's output under control, against attention written out with its maps."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_path.attention.align import Prompt
from diffusion_path.attention.plan import Attention
from diffusion_path.core.diffusion import Mixing
from diffusion_path.core.edit import Step
from diffusion_path.core.path import DiffusionPath, Source
from diffusion_path.edits.paint_with_words import PaintWithWords

B, HEADS, WIDTH, H, W, S, T = 2, 3, 4, 4, 6, 5, 7
LAYER = ("input", 1, 0)


@pytest.fixture(autouse=True)
def host(comfy: Path) -> None:
    """ComfyUI's attention."""


def rows(tokens: int, seed: int) -> Tensor:
    """Queries, keys or values of a source and a target, B pictures each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * B, tokens, HEADS * WIDTH, generator=generator)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return heads(q) @ heads(k).transpose(-1, -2) / math.sqrt(WIDTH)


def output(maps: Tensor, v: Tensor) -> Tensor:
    return (maps @ heads(v)).transpose(1, 2).flatten(2)


def controlled(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the target's part of a call becomes, behind the source's."""
    from diffusion_path.host.unet import UNetControl

    options = {
        "n_heads": HEADS,
        "dim_head": WIDTH,
        "attn_precision": None,
        "original_shape": [2 * B, 4, H, W],
        "activations_shape": [2 * B, HEADS * WIDTH, H, W],
        "cond_or_uncond": [1, 0],
        "uuids": ["source", "target"],
    }
    control = UNetControl(nn.Module())
    control.begin(attention, (B, 4, H, W), [(0, "target")], (1, "source"))
    out = control.cross_attention(LAYER, None, q, k, v, options)
    plain = output(scores(q, k).softmax(dim=-1), v)
    torch.testing.assert_close(out[:B], plain[:B])  # the source's own part is left alone
    return out[B:]


@pytest.mark.parametrize("copies", [1, 2])
def test_a_painted_phrase_has_its_scores_raised_as_in_the_paper(copies: int):
    sigma, strength, columns = 3.0, 0.4, (2, 3)
    mask = torch.zeros(1, 2 * H, 2 * W)
    mask[:, :H, :W] = 1
    prompt = Prompt(text="", tokens=(0,) * T, words=(), embedding=torch.zeros(1, T, 1))
    edit = PaintWithWords(prompt=prompt, columns=columns, mask=mask, strength=strength)
    path = DiffusionPath(
        sigmas=torch.tensor([sigma, 0.1]),
        latents=torch.zeros(2, B, 4, H, W),
        positive=[],
        negative=None,
        cfg=1.0,
        fingerprint={},
    )
    source = Source(path, lambda percent: sigma * (1 - percent))
    model: Any = SimpleNamespace(mixing=Mixing())
    step = Step(source=source, denoiser=model, x=path.latents[0], sigma=sigma, sigma_next=0.1)
    edit = edit.prepare(source, torch.device("cpu"), torch.float32)
    q, k, v = rows(H * W, 0), rows(T, 1).repeat(1, copies, 1), rows(T, 2).repeat(1, copies, 1)

    one = scores(q[B:], k[B:, :T])
    inside = torch.zeros(H, W, T)
    inside[: H // 2, : W // 2, list(columns)] = 1
    w = strength * math.log(1 + sigma) * one.amax(dim=(2, 3), keepdim=True)
    wanted = output((one + w * inside.flatten(0, 1)).softmax(dim=-1), v[B:, :T])

    found = controlled(edit.patch(step, None), q, k, v)
    torch.testing.assert_close(found, wanted)


def test_maps_are_injected_kept_and_scaled_without_being_made():
    """Of prompts of different length ComfyUI repeats the tokens, until they are as many."""
    generator = torch.Generator().manual_seed(3)
    mapper, own, scale = (torch.rand(*shape, generator=generator) for shape in ((S, T), (T,), (T,)))
    q, v = rows(H * W, 4), rows(S * T, 6)
    k = rows(S * T, 5)
    k[:B] = k[:B, :S].repeat(1, T, 1)  # the source's S tokens, and the target's T
    k[B:] = k[B:, :T].repeat(1, S, 1)
    v[B:] = v[B:, :T].repeat(1, S, 1)

    source = scores(q[:B], k[:B, :S]).softmax(dim=-1)
    target = scores(q[B:], k[B:, :T]).softmax(dim=-1)
    maps = (source @ mapper + target * own) * scale
    attention = Attention(mapper=mapper, own=own, scale=scale)
    torch.testing.assert_close(controlled(attention, q, k, v), output(maps, v[B:, :T]))
