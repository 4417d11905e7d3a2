from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_path.demo import fit
from diffusion_path.demo.autoencoder import SCALING_FACTOR, build_autoencoder, normalise_latents
from diffusion_path.demo.data import pictures, scenes


class StoppedError(Exception):
    pass


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains a small network; every step is kept, and a run can be stopped in the middle."""
    monkeypatch.setattr(fit, "WORK", tmp_path)
    monkeypatch.setattr(fit, "_SECONDS_BETWEEN_CHECKPOINTS", 0)

    def run(name, steps=10, stop_at=None, more=0, muon=False):
        def loss(model, step):
            if step == stop_at:
                raise StoppedError
            return model(torch.randn(8, 4)).square().mean()

        torch.manual_seed(0)
        network = nn.Linear(4, 4)
        matrices = [network.weight] if muon else []
        return fit.fit(name, network, loss, steps, 1e-2, more, matrices).weight

    return run


@pytest.mark.parametrize("muon", [False, True])
def test_a_stopped_training_continues_as_if_it_had_not(train, muon: bool):
    with pytest.raises(StoppedError):
        train("stopped", stop_at=6, muon=muon)
    assert torch.equal(train("stopped", muon=muon), train("whole", muon=muon))


def test_muon_trains_matrices_otherwise(train):
    assert not torch.equal(train("adam"), train("muon", muon=True))


def test_a_finished_training_is_not_repeated(train):
    weight = train("finished")
    assert torch.equal(train("finished", stop_at=0), weight)


def test_a_finished_training_can_go_on(train):
    weight = train("longer")
    assert not torch.equal(train("longer", more=5), weight)
    state = torch.load(fit.checkpoint("longer"))
    assert (state["first"], state["last"], state["step"]) == (10, 15, 15)


@torch.no_grad()
def test_normalising_latents_changes_no_picture():
    torch.manual_seed(0)
    autoencoder = build_autoencoder().eval()
    images = pictures(scenes((0,), "train", 4))
    before = autoencoder(images).sample
    normalise_latents(autoencoder)
    assert torch.allclose(autoencoder(images).sample, before, atol=1e-4)

    images = pictures(scenes((1,), "train", 32))
    latents = autoencoder.encode(images).latent_dist.mean * SCALING_FACTOR
    assert latents.mean((0, 2, 3)).abs().max() < 0.3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.3
