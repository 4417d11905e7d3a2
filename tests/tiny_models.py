"""Models of the real families with random weights, small enough for a test."""

from __future__ import annotations

from typing import Any

import torch


def conditioning(width: int, tokens: int = 77, pooled: int | None = None, seed: int = 0) -> list:
    """A random CONDITIONING of one entry."""
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {}
    if pooled:
        options["pooled_output"] = torch.randn(1, pooled, generator=generator)
    return [[torch.randn(1, tokens, width, generator=generator), options]]


def fill(network: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations in bounds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


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


def controlnet(seed: int = 0) -> Any:
    """A CONTROL_NET for `sd15`."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management

    config = UNET | {"context_dim": 16, "hint_channels": 3}
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


def sd3(seed: int = 0) -> Any:
    """Stable Diffusion 3: a flow transformer of 16 channels, text 32 wide, pooled 2048."""
    import comfy.supported_models

    config = {
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
    return patcher(comfy.supported_models.SD3, config, seed)
