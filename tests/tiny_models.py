"""Models of the real families with random weights, small enough for a test."""

from __future__ import annotations

from typing import Any, NamedTuple

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
        for buffer in network.buffers():  # SD3's places
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


def attentive(model: Any, gain: float = 5.0) -> Any:
    """The model, of whose blocks the attention makes up more, so that no layer goes unnoticed."""
    with torch.no_grad():
        for name, parameter in model.model.diffusion_model.named_parameters():
            if name.endswith((".to_out.0.weight", ".proj_out.weight")):
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


class Shape(NamedTuple):
    """What a tiny model reads and makes.

    Attributes:
        width: of its text.
        pooled: width of the pooled vector; None if it reads none.
        channels: of its latents.
        frames: of its latents; None if they have no such dimension.
        guidance: what `FluxGuidance` sets, for models that read it.
    """

    width: int
    pooled: int | None = None
    channels: int = 4
    frames: int | None = None
    guidance: float | None = None


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
"""Every model of this file, by the name of its function."""


def prompt(name: str, seed: int = 0, tokens: int | None = None) -> list:
    """A CONDITIONING of the width and with the options that the model `name` reads.

    By default it has 77 tokens, or for models that read a prompt as long as it is, 10 and more.
    """
    shape = SHAPES[name]
    if tokens is None:
        whole = shape.channels == 4 or name == "sd3"
        tokens = 77 if whole else 10 + 3 * seed
    ((embedding, options),) = conditioning(shape.width, tokens, shape.pooled, seed)
    if name in ("qwen_image", "lumina2", "z_image"):
        options["attention_mask"] = torch.ones(1, tokens, dtype=torch.int64)
    if shape.guidance is not None:
        options["guidance"] = shape.guidance
    return [[embedding, options]]


def picture(
    name: str, batch: int = 1, height: int = 8, width: int = 12, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A random LATENT of the shape that the model `name` works on."""
    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    frames = () if shape.frames is None else (shape.frames,)
    size = (batch, shape.channels, *frames, height, width)
    return {"samples": torch.randn(size, generator=generator)}
