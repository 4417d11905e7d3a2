"""The same files through diffusers and through ComfyUI are the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusion_path.demo import MODEL
from diffusion_path.demo.data import pictures
from diffusion_path.demo.world import caption, random_scene

TEXTS = ("a red apple on a blue background", "", "Some ünknown (words) 2")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def loaded(comfy):
    from diffusion_path.demo.loader import load_demo_model

    return load_demo_model()


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def relative_error(value, expected) -> float:
    value, expected = value.float().cpu(), expected.float().cpu()
    return ((value - expected).norm() / expected.norm()).item()


def encode(clip, text, skip_layers=None):
    """A text's embedding by ComfyUI, its brackets escaped."""
    clip = clip.clone()
    clip.clip_layer(skip_layers)
    escaped = text.replace("(", "\\(").replace(")", "\\)")
    return clip.encode_from_tokens_scheduled(clip.tokenize(escaped))


def encode_in_diffusers(pipeline, text):
    inputs = pipeline.tokenizer([text], padding="max_length", max_length=77, return_tensors="pt")
    return pipeline.text_encoder(inputs.input_ids, output_hidden_states=True)


@pytest.mark.parametrize("part", ["unet", "transformer", "vae", "text_encoder"])
def test_what_is_stored_in_half_precision_is_loaded_in_single(comfy, part):
    """Of which ComfyUI makes what suits the device; a CPU would not show the difference."""
    from diffusion_path.demo.loader import _file, _weights

    (file,) = (MODEL / part).glob("*.safetensors")
    assert all(value.dtype.itemsize == 2 for value in _file(file).values())
    assert {value.dtype for value in _weights(part).values()} == {torch.float32}


@pytest.mark.parametrize("text", TEXTS)
def test_text_embeddings_agree(loaded, pipeline, text):
    embedding = encode(loaded[1], text)[0][0]
    expected = encode_in_diffusers(pipeline, text).last_hidden_state
    assert relative_error(embedding, expected) < 1e-4


def test_clip_skip_agrees(loaded, pipeline):
    embedding = encode(loaded[1], "a cat on a pink background", -2)[0][0]
    output = encode_in_diffusers(pipeline, "a cat on a pink background")
    final_norm = getattr(
        pipeline.text_encoder, "text_model", pipeline.text_encoder
    ).final_layer_norm
    assert relative_error(embedding, final_norm(output.hidden_states[-2])) < 1e-4


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 4, 24, 8)])
@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_noise_predictions_agree(loaded, pipeline, timestep, shape):
    model, clip, _ = loaded
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    device = model.load_device
    sigma = model.model.model_sampling.sigma(torch.tensor(float(timestep), device=device))
    context = encode(clip, TEXTS[0])[0][0].expand(shape[0], -1, -1)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(timestep))
    noisy = (latent * (sigma.cpu() ** 2 + 1).sqrt()).to(device)
    denoised = model.model.apply_model(
        noisy, sigma.expand(shape[0]), c_crossattn=context.to(device)
    )
    expected = pipeline.unet(latent, timestep, context.cpu()).sample
    assert relative_error((noisy - denoised) / sigma, expected) < 1e-4


def test_the_autoencoders_agree(loaded, pipeline):
    rng = np.random.default_rng(5)
    images = pictures([random_scene(rng, "held_out") for _ in range(2)])
    vae = loaded[2]
    latents = vae.encode((images.movedim(1, -1) + 1) / 2)
    expected = pipeline.vae.encode(images).latent_dist.mean
    assert relative_error(latents, expected) < 1e-4

    decoded = vae.decode(expected)
    expected = (pipeline.vae.decode(expected).sample.movedim(1, -1) + 1) / 2
    assert relative_error(decoded, expected.clamp(0, 1)) < 1e-4


def test_latents_have_unit_variance_on_the_scale_of_stable_diffusion_1(loaded):
    model, _, vae = loaded
    rng = np.random.default_rng(6)
    images = pictures([random_scene(rng, "train") for _ in range(24)])
    latents = model.model.process_latent_in(vae.encode((images.movedim(1, -1) + 1) / 2))
    assert latents.mean((0, 2, 3)).abs().max() < 0.25
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_previews_are_as_close_to_the_picture_as_four_channels_allow(loaded):
    model, _, vae = loaded
    from latent_preview import Latent2RGBPreviewer

    latent_format = model.model.latent_format
    previewer = Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
    rng = np.random.default_rng(6)
    images = pictures([random_scene(rng, "train") for _ in range(12)])
    latents = model.model.process_latent_in(vae.encode((images.movedim(1, -1) + 1) / 2))
    previews = [np.array(previewer.decode_latent_to_preview(latent[None])) for latent in latents]
    small = torch.nn.functional.avg_pool2d(images, 8).movedim(1, -1)
    expected = (small + 1) * 127.5
    error = (torch.tensor(np.stack(previews)) - expected).abs().mean()
    assert error < 25
    assert error < 0.5 * (expected - expected.mean((0, 1, 2))).abs().mean()


def test_a_stock_ksampler_paints_what_the_prompt_says(loaded):
    model, clip, vae = loaded
    import nodes

    from diffusion_path.demo.judge import Judge

    rng = np.random.default_rng(1)
    scenes = [random_scene(rng, "train", 1) for _ in range(4)]
    judge, confirmed = Judge.load(), 0
    for scene in scenes:
        positive, negative = (encode(clip, text) for text in (caption(scene), ""))
        latent = nodes.EmptyLatentImage().generate(128, 128)[0]
        sampler = nodes.KSampler()
        latent = sampler.sample(model, 1, 20, 5.0, "ddim", "normal", positive, negative, latent)[0]
        image = vae.decode(latent["samples"])[0]
        confirmed += judge.confirms((image.cpu().numpy() * 255).round().astype(np.uint8), scene)
    assert confirmed >= 3


def test_a_noise_mask_keeps_what_it_does_not_cover(loaded):
    model, clip, vae = loaded
    import nodes

    rng = np.random.default_rng(2)
    image = (pictures([random_scene(rng, "train", 1)]).movedim(1, -1) + 1) / 2
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    latent = {"samples": vae.encode(image), "noise_mask": mask}
    words = encode(clip, "a cat on a blue background")
    edited = nodes.KSampler().sample(model, 1, 6, 3.0, "euler", "normal", words, words, latent)[0]
    change = (edited["samples"] - latent["samples"]).abs().mean((0, 1, 2))
    assert change[:8].max() < 1e-4
    assert change[8:].min() > 1e-2


def test_loras_patch_the_unet_and_the_text_encoder(loaded):
    model, clip, _ = loaded
    import comfy.sd

    down = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    up = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    unet_key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text_key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    lora = {
        f"{unet_key}.lora_down.weight": down,
        f"{unet_key}.lora_up.weight": up,
        f"{text_key}.lora_down.weight": down.repeat(1, 2),
        f"{text_key}.lora_up.weight": up.repeat(2, 1),
    }
    patched_model, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    assert len(patched_model.patches) == len(patched_clip.patcher.patches) == 1
    assert relative_error(encode(patched_clip, "a cat")[0][0], encode(clip, "a cat")[0][0]) > 1e-3
