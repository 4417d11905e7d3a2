"""Models of the real families with random weights, small enough for a test."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple
from unittest import mock

import torch


def conditioning(width: int, tokens: int = 77, pooled: int | None = None, seed: int = 0) -> list:
    """A random CONDITIONING of one entry."""
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {}
    if pooled:
        options["pooled_output"] = torch.randn(1, pooled, generator=generator)
    return [[torch.randn(1, tokens, width, generator=generator), options]]


def fill(network: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations in bounds, also where ComfyUI leaves memory as it is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        weights = network.state_dict()
        for name, buffer in network.named_buffers():
            if name in weights:  # SD3's places, and not the frequencies of Anima's
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.5)


def sharpen(model: Any, by: float = 8.0) -> Any:
    """The MODEL, with attention that is not nearly the same everywhere, as trained ones have."""
    with torch.no_grad():
        for name, weight in model.model.diffusion_model.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight.mul_(by)
    return model


def patcher(
    config_class: type,
    unet_config: dict[str, Any],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A ModelPatcher of one of comfy.supported_models' families, with weights from `seed`."""
    import comfy.model_management
    import comfy.model_patcher

    config = config_class(unet_config)
    config.unet_config |= unet_config  # over the family's own head counts, made for wide layers
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=torch.device("cpu"))
    fill(model.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(
        model.eval(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=torch.device("cpu"),
    )


UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "num_heads": 2,
    "num_head_channels": -1,
}


def sd15(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Stable Diffusion 1.x: EPS, text 16 wide."""
    import comfy.supported_models

    return patcher(comfy.supported_models.SD15, UNET | {"context_dim": 16}, seed, dtype)


def controlnet(seed: int = 0, **like: Any) -> Any:
    """A CONTROL_NET for `sd15`, or for a UNet that has a configuration like it."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management

    config = UNET | {"context_dim": 16, "hint_channels": 3} | like
    del config["out_channels"], config["transformer_depth_output"]
    network = comfy.cldm.cldm.ControlNet(**config).eval()
    fill(network, seed)
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(network, load_device=device)


def sd2_v(seed: int = 0) -> Any:
    """Stable Diffusion 2.x: V prediction, text 24 wide."""
    import comfy.model_base
    import comfy.supported_models

    class TinyV(comfy.supported_models.SD15):
        def model_type(self, state_dict: dict, prefix: str = "") -> Any:
            return comfy.model_base.ModelType.V_PREDICTION

    return patcher(TinyV, UNET | {"context_dim": 24}, seed)


def sdxl(seed: int = 0) -> Any:
    """SDXL: EPS with a pooled vector of 1280 and sizes, text 16 wide."""
    import comfy.supported_models

    config = UNET | {"context_dim": 16, "num_classes": "sequential", "adm_in_channels": 2816}
    return patcher(comfy.supported_models.SDXL, config | {"use_linear_in_transformer": True}, seed)


def sdxl_refiner(seed: int = 0) -> Any:
    """SDXL's refiner, to which a negative is of another aesthetic score than a positive."""
    import comfy.supported_models

    config = UNET | {"context_dim": 16, "num_classes": "sequential", "adm_in_channels": 2560}
    return patcher(comfy.supported_models.SDXLRefiner, config, seed)


SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 2048,
    "pos_embed_max_size": 32,
    "num_patches": 1024,
    "pos_embed_scaling_factor": None,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 32, "out_features": 128},
    },
}


def sd3(seed: int = 0) -> Any:
    """Stable Diffusion 3: a flow transformer of 16 channels, text 32 wide, pooled 2048."""
    import comfy.supported_models

    return patcher(comfy.supported_models.SD3, SD3, seed)


def sd35_medium(seed: int = 0) -> Any:
    """Stable Diffusion 3.5 medium: SD3, its first blocks with attention of the picture alone."""
    import comfy.supported_models

    config = {"num_blocks": 3, "x_block_self_attn_layers": [0, 1], "qk_norm": "rms"}
    return patcher(comfy.supported_models.SD3, SD3 | config, seed)


def attentive(model: Any, gain: float = 5.0) -> Any:
    """The model, of whose blocks the attention makes up more, so that no layer goes unnoticed."""
    with torch.no_grad():
        for name, parameter in model.model.diffusion_model.named_parameters():
            if name.endswith(
                (".to_out.0.weight", ".proj_out.weight", ".w1o.weight", ".w2o.weight")
            ):
                parameter.mul_(gain)
    return model


def sd15_deep(seed: int = 0) -> Any:
    """As `sd15`, with two layers of attention a transformer and two transformers a level."""
    import comfy.supported_models

    config = UNET | {
        "context_dim": 16,
        "num_res_blocks": [2, 2],
        "transformer_depth": [2, 2, 2, 2],
        "transformer_depth_output": [2, 2, 2, 2, 2, 2],
        "transformer_depth_middle": 2,
    }
    return attentive(patcher(comfy.supported_models.SD15, config, seed))


def sdxl_deep(seed: int = 0) -> Any:
    """As `sdxl`, its attention numbered as SDXL's is: 70 layers, up to 10 in one transformer."""
    import comfy.supported_models

    config = UNET | {
        "context_dim": 16,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
        "use_linear_in_transformer": True,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 1, 1],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
    }
    return attentive(patcher(comfy.supported_models.SDXL, config, seed))


FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 24,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
}


def flux_dev(seed: int = 0) -> Any:
    """Flux dev: a flow distilled to take guidance as an input, text 32 wide, pooled 24."""
    import comfy.supported_models

    return patcher(comfy.supported_models.Flux, FLUX | {"guidance_embed": True}, seed)


def flux_schnell(seed: int = 0) -> Any:
    """Flux schnell: a flow without an input for guidance, text 32 wide, pooled 24."""
    import comfy.supported_models

    return patcher(comfy.supported_models.FluxSchnell, FLUX | {"guidance_embed": False}, seed)


def chroma(seed: int = 0) -> Any:
    """Chroma: Flux's blocks under real guidance, text 32 wide, no pooled vector."""
    import comfy.supported_models

    config = FLUX | {
        "image_model": "chroma",
        "in_channels": 64,
        "out_channels": 64,
        "vec_in_dim": 0,
        "in_dim": 64,
        "out_dim": 64,
        "hidden_dim": 64,
        "n_layers": 2,
    }
    return patcher(comfy.supported_models.Chroma, config, seed)


def qwen_image(seed: int = 0) -> Any:
    """Qwen-Image: a flow whose pictures are videos of one frame (B, 16, 1, H, W), text 48 wide."""
    import comfy.supported_models

    config = {
        "image_model": "qwen_image",
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": (8, 12, 12),
    }
    return patcher(comfy.supported_models.QwenImage, config, seed)


WAN = {
    "image_model": "wan2.1",
    "dim": 64,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": 40,
    "num_heads": 2,
    "num_layers": 2,
}


def wan(seed: int = 0) -> Any:
    """Wan 2.1, text to video: a flow of latents (B, 16, T, H, W), text 40 wide."""
    import comfy.supported_models

    return patcher(comfy.supported_models.WAN21_T2V, WAN | {"model_type": "t2v"}, seed)


def wan_i2v(seed: int = 0) -> Any:
    """Wan 2.1, image to video: to each latent 20 channels more, of its first frames and where they
    are; text 40 wide, and CLIP's view of the first frame, 1280 wide."""
    import comfy.supported_models

    config = WAN | {"model_type": "i2v", "in_dim": 36}
    return patcher(comfy.supported_models.WAN21_I2V, config, seed)


def wan_vae(seed: int = 0) -> Any:
    """The VAE of `wan`: 4k + 1 frames (B, H, W, 3) are 1 + k of a latent, 8 times smaller."""
    import comfy.ldm.wan.vae
    import comfy.sd

    network = comfy.ldm.wan.vae.WanVAE(
        dim=4, z_dim=16, temperal_downsample=[False, True, True], num_res_blocks=2
    )
    fill(network, seed)
    return comfy.sd.VAE(sd=network.state_dict())


LUMINA2 = {
    "image_model": "lumina2",
    "in_channels": 16,
    "patch_size": 2,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "dim": 64,
    "n_heads": 2,
    "n_kv_heads": 1,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "qk_norm": True,
    "cap_feat_dim": 40,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64],
}


def lumina2(seed: int = 0) -> Any:
    """Lumina 2: a flow of 16 channels, text 40 wide."""
    import comfy.supported_models

    return patcher(comfy.supported_models.Lumina2, LUMINA2, seed)


def z_image(seed: int = 0) -> Any:
    """Z-Image: Lumina 2's network with Z-Image's modulation, and text padded to 32 tokens."""
    import comfy.supported_models

    config = LUMINA2 | {
        "dim": 256,
        "n_heads": 8,
        "n_kv_heads": 8,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    }
    return patcher(comfy.supported_models.ZImage, config, seed)


def flux2(seed: int = 0) -> Any:
    """Flux 2: one modulation for all blocks, latents of 128 channels, and text padded to 512."""
    import comfy.supported_models

    config = FLUX | {
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "patch_size": 1,
        "vec_in_dim": None,
        "axes_dim": [8, 8, 8, 8],
        "theta": 2000,
        "qkv_bias": False,
        "ops_bias": False,
        "txt_ids_dims": [3],
        "global_modulation": True,
        "mlp_silu_act": True,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
        "guidance_embed": True,
    }
    return patcher(comfy.supported_models.Flux2, config, seed)


HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 24,
    "context_in_dim": 40,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "meanflow_sum": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}


def hunyuan_video(seed: int = 0) -> Any:
    """HunyuanVideo, text to video: Flux's blocks behind a refiner of the text, 40 wide."""
    import comfy.supported_models

    return patcher(comfy.supported_models.HunyuanVideo, HUNYUAN_VIDEO, seed)


def hunyuan_video_15(seed: int = 0) -> Any:
    """HunyuanVideo 1.5: 32 channels, and 33 more for a first frame and where it is."""
    import comfy.supported_models

    config = HUNYUAN_VIDEO | {
        "in_channels": 65,
        "out_channels": 32,
        "patch_size": [1, 1, 1],
        "vec_in_dim": None,
        "guidance_embed": False,
        "byt5": True,
        "meanflow_sum": True,
        "use_cond_type_embedding": True,
        "vision_in_dim": 24,
    }
    return patcher(comfy.supported_models.HunyuanVideo15, config, seed)


def hidream(seed: int = 0) -> Any:
    """HiDream-I1: T5's text and of each of Llama's layers the text for one block, all 40 wide."""
    import comfy.supported_models

    config = {
        "image_model": "hidream",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "caption_channels": [40, 40],
        "text_emb_dim": 24,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": [16, 8, 8],
        "max_resolution": [128, 128],
        "llama_layers": [0, 1, 2, 2],
    }
    return patcher(comfy.supported_models.HiDream, config, seed)


def ltxv(seed: int = 0) -> Any:
    """LTX-Video: latents (B, 128, T, H, W) whose every pixel is a token, text 40 wide."""
    import comfy.supported_models

    config = {
        "image_model": "ltxv",
        "in_channels": 128,
        "cross_attention_dim": 64,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "caption_channels": 40,
        "num_layers": 2,
    }
    return patcher(comfy.supported_models.LTXV, config, seed)


COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 40,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}


def anima(seed: int = 0) -> Any:
    """Anima: Cosmos-Predict2's network as a flow of videos of one frame, text 40 wide.

    A prompt that has `t5xxl_ids` and `t5xxl_weights` goes through an adapter first.
    """
    import comfy.ldm.anima.model
    import comfy.supported_models

    adapter = comfy.ldm.anima.model.LLMAdapter  # 1024 wide, whatever the configuration
    sizes = {"source_dim": 40, "target_dim": 40, "model_dim": 32, "num_layers": 1, "num_heads": 2}
    small = functools.partial(adapter, **sizes)
    with mock.patch.object(comfy.ldm.anima.model, "LLMAdapter", small):
        return patcher(comfy.supported_models.Anima, COSMOS | {"image_model": "anima"}, seed)


def auraflow(seed: int = 0) -> Any:
    """AuraFlow: a flow of 4 channels, whose text, 40 wide, follows 8 tokens of the network's."""
    import comfy.supported_models

    config = {
        "max_seq": 1024,
        "cond_seq_dim": 40,
        "dim": 64,
        "n_double_layers": 2,
        "n_layers": 4,
        "n_heads": 2,
        "global_conddim": 64,
    }
    return attentive(patcher(comfy.supported_models.AuraFlow, config, seed), gain=50.0)


def omnigen2(seed: int = 0) -> Any:
    """OmniGen 2: like Lumina 2, with heads that share keys, text 40 wide."""
    import comfy.supported_models

    config = {
        "image_model": "omnigen2",
        "in_channels": 16,
        "patch_size": 2,
        "hidden_size": 64,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 32,
        "axes_dim_rope": [8, 12, 12],
        "axes_lens": [64, 64, 64],
        "text_feat_dim": 40,
        "timestep_scale": 1000.0,
    }
    return patcher(comfy.supported_models.Omnigen2, config, seed)


def ernie_image(seed: int = 0) -> Any:
    """ERNIE-Image: a flow of 128 channels, text 40 wide, out of any attention override's reach."""
    import comfy.supported_models

    config = {
        "image_model": "ernie",
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 128,
        "text_in_dim": 40,
        "rope_axes_dim": (8, 12, 12),
    }
    return attentive(patcher(comfy.supported_models.ErnieImage, config, seed))


def pixart(seed: int = 0) -> Any:
    """PixArt-Sigma: EPS, text 40 wide, out of reach, too; it has no places in pictures so small
    that height and width sum up to less than 66."""
    import comfy.supported_models

    config = {
        "image_model": "pixart_sigma",
        "hidden_size": 64,
        "depth": 2,
        "num_heads": 2,
        "caption_channels": 40,
        "model_max_length": 77,
        "micro_condition": False,
        "pe_interpolation": 2,
    }
    return patcher(comfy.supported_models.PixArtSigma, config, seed)


def hunyuan_dit(seed: int = 0) -> Any:
    """HunyuanDiT: V prediction, CLIP's text 40 wide and 8 tokens of T5's, out of reach, too."""
    import comfy.supported_models

    config = {
        "image_model": "hydit",
        "hidden_size": 64,
        "depth": 4,
        "num_heads": 2,
        "text_states_dim": 40,
        "text_states_dim_t5": 48,
        "text_len_t5": 8,
    }
    return patcher(comfy.supported_models.HunyuanDiT, config, seed)


class Shape(NamedTuple):
    """What a tiny model reads and makes.

    Attributes:
        width: of its text.
        pooled: width of the pooled vector; None if it reads none.
        channels: of its latents.
        frames: of its latents; None if they have no such dimension.
        guidance: what `FluxGuidance` sets, for models that read it.
        size: height and width of its latents, unless a test says another.
    """

    width: int
    pooled: int | None = None
    channels: int = 4
    frames: int | None = None
    guidance: float | None = None
    size: tuple[int, int] = (8, 12)


SHAPES = {
    "sd15": Shape(16),
    "sd15_deep": Shape(16),
    "sd2_v": Shape(24),
    "sdxl": Shape(16, 1280),
    "sdxl_deep": Shape(16, 1280),
    "sd3": Shape(32, 2048, 16),
    "flux_dev": Shape(32, 24, 16, guidance=3.5),
    "flux_schnell": Shape(32, 24, 16),
    "chroma": Shape(32, None, 16),
    "qwen_image": Shape(48, None, 16, frames=1),
    "wan": Shape(40, None, 16, frames=3),
    "wan_i2v": Shape(40, None, 16, frames=3),
    "lumina2": Shape(40, None, 16),
    "z_image": Shape(40, None, 16),
}
"""The families that every test of all families goes through, by the name of their function."""

MORE_SHAPES = {
    "sd35_medium": Shape(32, 2048, 16),
    "flux2": Shape(32, None, 128, guidance=4.0),
    "hunyuan_video": Shape(40, 24, 16, frames=3, guidance=6.0),
    "hunyuan_video_15": Shape(40, 24, 32, frames=3),
    "hidream": Shape(40, 24, 16),
    "ltxv": Shape(40, None, 128, frames=3),
    "anima": Shape(40, None, 16, frames=1),
    "auraflow": Shape(40),
    "omnigen2": Shape(40, None, 16),
    "ernie_image": Shape(40, None, 128),
    "pixart": Shape(40, size=(24, 48)),
    "hunyuan_dit": Shape(40),
}
"""Further families, for the tests of what differs from one to another."""

ALL_SHAPES = SHAPES | MORE_SHAPES

MASKED = ("qwen_image", "lumina2", "z_image", "ltxv", "omnigen2", "hunyuan_dit")
"""Models that are told which tokens are words. HunyuanVideo is only where some are none, and then
takes one prompt at a time."""


def prompt(name: str, seed: int = 0, tokens: int | None = None) -> list:
    """A CONDITIONING of the width and with the options that the model `name` reads.

    By default it has 77 tokens, or for models that read a prompt as long as it is, 10 and more.
    HunyuanDiT reads no less than 77.
    """
    shape = ALL_SHAPES[name]
    if tokens is None:
        whole = shape.channels == 4 or name in ("sd3", "sd35_medium")
        tokens = 77 if whole else 10 + 3 * seed
    ((embedding, options),) = conditioning(shape.width, tokens, shape.pooled, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    if name in MASKED:
        options["attention_mask"] = torch.ones(1, tokens, dtype=torch.int64)
    if name == "hidream":  # three of Llama's layers, which counts words in another way than T5
        layers = torch.randn(1, 3, tokens + 2, shape.width, generator=generator)
        options["conditioning_llama3"] = layers
    if name == "hunyuan_dit":
        options["conditioning_mt5xl"] = torch.randn(1, 8, 48, generator=generator)
        options["attention_mask_mt5xl"] = torch.ones(1, 8, dtype=torch.int64)
    if shape.guidance is not None:
        options["guidance"] = shape.guidance
    return [[embedding, options]]


def referring(prompt: list, *latents: dict[str, torch.Tensor]) -> list:
    """The CONDITIONING with pictures to refer to, as the node ReferenceLatent adds each.

    Flux Kontext is `flux_dev` with such prompts, Qwen-Image-Edit `qwen_image`; `flux2` and
    `omnigen2` read them, too.
    """
    pictures = {"reference_latents": [latent["samples"] for latent in latents]}
    return [[embedding, options | pictures] for embedding, options in prompt]


def picture(
    name: str,
    batch: int = 1,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A random LATENT of the shape that the model `name` works on."""
    shape = ALL_SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    frames = () if shape.frames is None else (shape.frames,)
    size = (batch, shape.channels, *frames, height or shape.size[0], width or shape.size[1])
    return {"samples": torch.randn(size, generator=generator)}
