"""The demo model as genuine ComfyUI objects, which every stock node accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.clip_vision
import comfy.latent_formats
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from torch import nn

from . import FLOW_TOKENS, MODEL

Weights = dict[str, torch.Tensor]

KINDS = ("unet", "flow")
"""A small Stable Diffusion 1 (eps), and a small Flux (rectified flow)."""


def load_demo_model(
    kind: str = "unet",
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE, from the files that diffusers loads too.

    Args:
        kind: of `KINDS`.
    """
    return (load_flow() if kind == "flow" else load_unet()), load_clip(kind=kind), load_vae()


def load_unet(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """MODEL: the UNet, which is a small Stable Diffusion 1's."""
    unet_config = _unet_config(_config("unet"))
    names = comfy.utils.unet_to_diffusers(unet_config)
    weights = {names[name]: value for name, value in _weights("unet").items()}
    patcher = _patcher(DemoSD15(unet_config), weights, disable_dynamic)
    patcher.cached_patcher_init = (load_unet, ())
    return patcher


def load_flow(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """MODEL: the flow model, which is a small Flux."""
    weights = comfy.model_detection.convert_diffusers_mmdit(_weights("transformer"))
    patcher = _patcher(DemoFlux(_flux_config(_config("transformer"))), weights, disable_dynamic)
    patcher.cached_patcher_init = (load_flow, ())
    return patcher


def _patcher(
    config: comfy.supported_models_base.BASE, weights: Weights, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """After `comfy.sd.load_diffusion_model_state_dict`, which only knows released sizes."""
    management = comfy.model_management
    device = management.get_torch_device()
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    cast = management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast, device=device)

    model = config.get_model(weights)
    patcher_class = comfy.model_patcher.CoreModelPatcher
    if disable_dynamic:
        patcher_class = comfy.model_patcher.ModelPatcher
    offload_device = management.unet_offload_device()
    patcher = patcher_class(model, load_device=device, offload_device=offload_device)
    model.to(offload_device)
    model.load_model_weights(weights, assign=patcher.is_dynamic())
    return patcher


def load_clip(disable_dynamic: bool = False, kind: str = "unet") -> comfy.sd.CLIP:
    """CLIP: Stable Diffusion 1's own classes, around our tokenizer and text encoder.

    For the flow model it leaves out most of the padding.
    """
    target = comfy.supported_models_base.ClipTarget(
        comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel
    )
    weights = _weights("text_encoder")
    # The models do not use it; CLIP's space of texts and pictures lies behind it.
    projection = _file(MODEL / "image_encoder" / "text_projection")
    weights["text_projection.weight"] = projection["weight"].float()
    clip = comfy.sd.CLIP(
        target,
        tokenizer_data={"clip_l_tokenizer_class": DemoTokenizer},
        model_options={
            "clip_l_class": DemoFlowTextEncoder if kind == "flow" else DemoTextEncoder,
            "dtype": torch.float32,
        },
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (kind,))
    return clip


def load_vae() -> comfy.sd.VAE:
    """VAE: ComfyUI's autoencoder at our widths."""
    config = _config("vae")
    widths = config["block_out_channels"]
    sizes = {
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "double_z": True,
        "attn_resolutions": [],
    }
    parameters = {"ddconfig": sizes, "embed_dim": config["latent_channels"]}
    vae = comfy.sd.VAE(sd=_weights("vae"), config={"params": parameters})
    for module in vae.first_stage_model.modules():
        if isinstance(module, nn.GroupNorm):  # ComfyUI always makes 32 groups
            module.num_groups = config["norm_num_groups"]
    return vae


def load_clip_vision() -> comfy.clip_vision.ClipVisionModel:
    """CLIP_VISION: sees pictures in the space of the text encoder's projected texts."""
    config = _config("image_encoder")
    seen_as = [0.5] * 3
    vision = comfy.clip_vision.ClipVisionModel(
        {**config, "image_mean": seen_as, "image_std": seen_as}
    )
    vision.load_sd(_file(MODEL / "image_encoder" / "model"))
    return vision


class DemoLatentFormat(comfy.latent_formats.SD15):
    """Stable Diffusion 1's scale, and our own colours for previews."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in json.loads((MODEL / "preview.json").read_text()).items():
            setattr(self, name, value)
        self.taesd_decoder_name = None  # made for another autoencoder


class DemoSD15(comfy.supported_models.SD15):
    """Stable Diffusion 1 with attention heads of one width."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}  # noqa: RUF012
    latent_format = DemoLatentFormat


class DemoFlux(comfy.supported_models.FluxSchnell):
    """Flux without a guidance input, on Stable Diffusion 1's latents."""

    latent_format = DemoLatentFormat


class DemoTokenizer(comfy.sd1_clip.SDTokenizer):
    """The tokenizer of `demo/model`."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        super().__init__(
            str(MODEL / "tokenizer"),
            embedding_directory=embedding_directory,
            embedding_size=_config("text_encoder")["hidden_size"],
            tokenizer_data=tokenizer_data or {},
        )


class DemoCLIPTextModel(comfy.clip_model.CLIPTextModel):
    """ComfyUI's text transformer with our vocabulary instead of CLIP's."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        embedding = operations.Embedding(
            config["vocab_size"], config["hidden_size"], dtype=dtype, device=device
        )
        self.set_input_embeddings(embedding)


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    """The text encoder of `demo/model`."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        config = _config("text_encoder")
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config,
            model_class=DemoCLIPTextModel,
            special_tokens={
                "start": config["bos_token_id"],
                "end": config["eos_token_id"],
                "pad": config["pad_token_id"],
            },
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class DemoFlowTextEncoder(DemoTextEncoder):
    """The same, without the padding beyond `FLOW_TOKENS`, which the flow model has never seen."""

    def encode_token_weights(self, token_weight_pairs: list[list[tuple[Any, float]]]) -> Any:
        embedding, *rest = super().encode_token_weights(token_weight_pairs)
        if len(token_weight_pairs) == 1:
            ends = [
                isinstance(token, int) and token == self.special_tokens["end"]
                for token, *_ in token_weight_pairs[0]
            ]
            used = ends.index(True) + 1
            embedding = embedding[:, : max(used, FLOW_TOKENS)]
        return (embedding, *rest)


def _load_clip_patcher(
    kind: str, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    return load_clip(disable_dynamic, kind).patcher


def _unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's description of a diffusers UNet with attention in every block."""
    widths = config["block_out_channels"]
    levels, layers = len(widths), config["layers_per_block"]
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * levels,
        "transformer_depth": [1] * (levels * layers),
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * (levels * (layers + 1)),
        "context_dim": config["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_checkpoint": False,
        "adm_in_channels": None,
        "legacy": False,
    }


def _flux_config(config: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's description of a diffusers Flux transformer."""
    patch = 2
    return {
        "image_model": "flux",
        "in_channels": config["in_channels"] // patch**2,
        "out_channels": config["in_channels"] // patch**2,
        "patch_size": patch,
        "vec_in_dim": config["pooled_projection_dim"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(config["axes_dims_rope"]),
        "mlp_ratio": 4.0,
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": config["guidance_embeds"],
        "txt_ids_dims": [],
    }


def _config(part: str) -> dict[str, Any]:
    """The `config.json` of a part of the model."""
    return json.loads((MODEL / part / "config.json").read_text())


def _weights(part: str) -> Weights:
    """The weights of a part of the model, by their names in diffusers or transformers.

    They are stored in half precision, and computed with in single, as diffusers does.
    """
    stored = _file(next(Path(MODEL / part).glob("*.safetensors")))
    return {name: value.float() for name, value in stored.items()}


def _file(path: Path) -> Weights:
    return comfy.utils.load_torch_file(str(path.with_suffix(".safetensors")), safe_load=True)
