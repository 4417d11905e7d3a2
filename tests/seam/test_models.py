"""The tiny models are ones that ComfyUI itself samples with, and every part of them counts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from diffusion_path.tests import tiny_models


@pytest.mark.parametrize("name", tiny_models.SHAPES)
def test_comfyuis_ksampler_samples_each_in_less_than_two_seconds(comfy: Path, name: str):
    import comfy.sample

    model, latent = getattr(tiny_models, name)(), tiny_models.picture(name)["samples"]
    noise = comfy.sample.prepare_noise(latent, 0)

    def sample(seed: int) -> torch.Tensor:
        prompts = tiny_models.prompt(name, seed), tiny_models.prompt(name, 9)
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, 3, 3.0, "euler", "simple", *prompts, latent, disable_pbar=True
            )

    one = sample(0)
    begun = time.perf_counter()
    other = sample(1)
    assert time.perf_counter() - begun < 2
    assert one.shape == latent.shape
    assert bool(torch.isfinite(one).all())
    assert float((one - other).norm() / one.norm()) > 1e-4, "the prompt says nothing"


@pytest.mark.parametrize("name", ["sd15_deep", "sdxl_deep"])
def test_each_layer_of_attention_reaches_the_picture(comfy: Path, name: str):
    from comfy.ldm.modules.attention import BasicTransformerBlock

    model = getattr(tiny_models, name)()
    network = model.model.diffusion_model
    layers = [part for part in network.modules() if isinstance(part, BasicTransformerBlock)]
    assert len(layers) == {"sd15_deep": 2 * (4 + 1 + 6), "sdxl_deep": 70}[name]
    ((text, _),) = tiny_models.prompt(name)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    y = torch.zeros(1, 2816) if name == "sdxl_deep" else None
    with torch.inference_mode():
        plain = network(x, t, context=text, y=y)
        for layer in layers:
            handle = layer.attn2.register_forward_hook(lambda module, args, out: 3 * out)
            changed = network(x, t, context=text, y=y)
            handle.remove()
            assert float((changed - plain).norm() / plain.norm()) > 1e-5
