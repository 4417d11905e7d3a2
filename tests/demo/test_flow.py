"""The flow model: the same through diffusers and ComfyUI, and within its bounds."""

from __future__ import annotations

import json
import math

import pytest
import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextModel

from diffusion_path.demo import FLOW_TOKENS, MODEL
from diffusion_path.demo.flow import PATCH, build_transformer, velocity
from diffusion_path.demo.tokenizer import tokenize, train_tokenizer
from diffusion_path.demo.world import BACKGROUNDS, OBJECTS, Object, Scene, caption

TEXTS = ("a red apple on a blue background", "", "Two new words")


@pytest.fixture(scope="module")
def loaded(comfy):
    from diffusion_path.demo.loader import load_demo_model

    return load_demo_model("flow")


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(MODEL / "transformer").eval()


@pytest.fixture(scope="module")
def text_encoder() -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(MODEL / "text_encoder").eval()


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def encoded(clip, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    ((embedding, options),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return embedding, options["pooled_output"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_encoded_as_in_training(loaded, text_encoder, text: str):
    embedding, pooled = encoded(loaded[1], text)
    expected = text_encoder(tokenize([text])[:, :FLOW_TOKENS])
    assert embedding.shape == (1, FLOW_TOKENS, 128)
    torch.testing.assert_close(embedding, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("words", [30, 60, 100])
def test_a_long_prompt_keeps_all_its_tokens(loaded, words: int):
    embedding, _ = encoded(loaded[1], "horse " * words)
    assert embedding.shape[1] >= words + 2


def test_no_caption_is_longer_than_the_padding():
    tokenizer = train_tokenizer()
    captions = [
        caption(Scene((Object(left, (32, 64), 56), Object(right, (96, 64), 56)), background))
        for left in OBJECTS
        for right in OBJECTS
        for background in BACKGROUNDS
    ]
    assert max(map(len, tokenizer(captions).input_ids)) <= FLOW_TOKENS


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 4, 24, 8)])
@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.02])
def test_velocities_agree(loaded, transformer, text_encoder, sigma: float, shape: tuple):
    import comfy.model_management

    model, clip, _ = loaded
    comfy.model_management.load_models_gpu([model])
    embedding, pooled = encoded(clip, TEXTS[0])
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    level = torch.full((shape[0],), sigma)
    context, vector = embedding.expand(shape[0], -1, -1), pooled.expand(shape[0], -1)
    device = model.load_device
    denoised = model.model.apply_model(
        latent.to(device), level.to(device), c_crossattn=context.to(device), y=vector.to(device)
    )
    expected = velocity(transformer, latent, level, context, vector)
    found = (latent - denoised.cpu()) / sigma
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_an_untrained_one_is_the_identity_of_its_blocks(text_encoder):
    """Each block begins as the identity, and the velocity as 0."""
    text = text_encoder(tokenize([TEXTS[0]])[:, :FLOW_TOKENS])
    x, level = torch.randn(1, 4, 16, 16), torch.tensor([0.5])
    found = velocity(build_transformer(), x, level, text.last_hidden_state, text.pooler_output)
    assert not found.any()


def test_the_files_have_the_trained_architecture(transformer):
    built = build_transformer().state_dict()
    assert {name: value.shape for name, value in transformer.state_dict().items()} == {
        name: value.shape for name, value in built.items()
    }
    config = json.loads((MODEL / "transformer" / "config.json").read_text())
    assert config["in_channels"] == 4 * PATCH**2


def test_it_is_at_most_30_megabytes():
    size = sum(file.stat().st_size for file in (MODEL / "transformer").iterdir())
    assert math.ceil(size / 1e6) <= 30


def test_it_samples_without_a_shift(loaded):
    sampling = loaded[0].get_model_object("model_sampling")
    assert sampling.percent_to_sigma(0.25) == pytest.approx(0.75)
    assert float(sampling.sigma_max) == 1


def test_an_unknown_kind_is_refused(comfy):
    from diffusion_path.tests.calls import results

    with pytest.raises(ValueError, match="no kind 'pixels'; choose one of unet, flow"):
        results("DemoModel", kind="pixels")
