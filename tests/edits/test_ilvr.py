"""ILVR: its identities, and what it promises of the coarse structure."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_path.core.edit import Edits
from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.ilvr import ILVR, low_pass
from diffusion_path.tests.analytic import GaussianDenoiser, condition, inverted, sampled

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])


def sample(denoiser: GaussianDenoiser, path: DiffusionPath, edits: Edits = ()) -> Tensor:
    return sampled(denoiser, path, condition(1), condition(2), cfg=3.0, edits=edits)


@each_family
def test_the_source_comes_back_if_it_decides_everything(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    latents = sample(denoiser, path, (ILVR(factor=1, end=1.0),))
    torch.testing.assert_close(latents, path.latents, rtol=0, atol=1e-10)


@each_family
def test_a_step_is_the_papers_line(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    free, held = sample(denoiser, path), sample(denoiser, path, (ILVR(factor=2, end=0.1),))

    def phi(x: Tensor) -> Tensor:
        half = F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
        return F.interpolate(half, scale_factor=2, mode="bicubic", antialias=True)

    wanted = phi(path.latents[1]) + free[1] - phi(free[1])
    torch.testing.assert_close(held[1], wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(held[1], free[1], atol=1e-3)


def test_a_low_pass_keeps_what_is_smooth_and_loses_what_is_fine():
    rows = torch.linspace(-1, 1, 32)[:, None].expand(1, 1, 32, 32)
    grain = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    assert (low_pass(rows, 4) - rows)[..., 4:-4, :].abs().max() < 0.03
    assert low_pass(grain[None, None], 4).abs().max() < 0.1


def test_it_looks_at_every_channel_frame_and_picture_alone():
    x = torch.randn(2, 3, 5, 12, 10, generator=torch.Generator().manual_seed(1))
    whole = low_pass(x, 3)
    assert torch.equal(whole[1, 2, 4], low_pass(x[1:, 2:, 4], 3)[0, 0])


def test_outside_its_window_it_changes_nothing():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)
    late = sample(denoiser, path, (ILVR(start=0.7, end=1.0),))
    assert torch.equal(late[:8], sample(denoiser, path)[:8])
    assert not torch.equal(late[8], sample(denoiser, path)[8])


def test_it_costs_no_model_call():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)
    denoiser.evaluations = 0
    sample(denoiser, path, (ILVR(end=1.0),))
    assert denoiser.evaluations == 2 * 10
