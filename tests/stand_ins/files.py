"""Small files with random weights, under the names of the real ones.

Run in a process of its own: `small.py` stays in force.

    python -m diffusion_path.tests.stand_ins.files FOLDER NAME...

`NAMES` has the names; a checkpoint goes into FOLDER/checkpoints, and so on.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...tools.host import import_comfy

import_comfy()

import comfy.clip_vision  # noqa: E402
import comfy.ldm.flux.redux  # noqa: E402
import comfy.ldm.models.autoencoder  # noqa: E402
import comfy.ldm.wan.vae  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.flux  # noqa: E402
import comfy.text_encoders.qwen_image  # noqa: E402
import comfy.text_encoders.sd3_clip  # noqa: E402
import comfy.text_encoders.wan  # noqa: E402
import comfy.text_encoders.z_image  # noqa: E402
import sentencepiece  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from .. import tiny_models  # noqa: E402
from . import small  # noqa: E402

Weights = dict[str, Tensor]
HALF = torch.float16


def filled(network: nn.Module) -> nn.Module:
    """The network with random weights."""
    tiny_models.fill(network, seed=0)
    return network


def kl(channels: int, quant: bool) -> Weights:
    """Stable Diffusion's VAE, at its own size: ComfyUI knows no other."""
    sizes = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    if quant:
        network: Any = comfy.ldm.models.autoencoder.AutoencoderKL(
            ddconfig=sizes, embed_dim=channels
        )
    else:
        network = comfy.ldm.models.autoencoder.AutoencodingEngine(
            regularizer_config={
                "target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"
            },
            encoder_config={
                "target": "comfy.ldm.modules.diffusionmodules.model.Encoder",
                "params": sizes,
            },
            decoder_config={
                "target": "comfy.ldm.modules.diffusionmodules.model.Decoder",
                "params": sizes,
            },
        )
    return filled(network).half().state_dict()


def video_vae() -> Weights:
    """Wan's VAE, of which ComfyUI reads the width off the file."""
    network = comfy.ldm.wan.vae.WanVAE(
        dim=4, z_dim=16, temperal_downsample=[False, True, True], num_res_blocks=2
    )
    return filled(network).state_dict()


def encoder(made: Any, name: str) -> Weights:
    """A text encoder of ComfyUI's as a file of its own."""
    return filled(getattr(made, name).transformer).half().state_dict()


def t5(weights: Weights, prefix: str = "") -> Weights:
    """With the layer by which ComfyUI knows T5-XXL, and which the small one has not."""
    key = f"{prefix}encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
    return weights | {key: torch.zeros(10240, 1, dtype=HALF)}


def checkpoint(model: Any, texts: nn.Module, vae: Weights) -> Weights:
    """A checkpoint, by ComfyUI's own rules of how to save one."""
    model.model.half()
    return model.model.state_dict_for_saving(
        model.model.diffusion_model.state_dict(), filled(texts).half().state_dict(), vae
    )


UNET = tiny_models.UNET | {"model_channels": 320, "channel_mult": [1, 1]}
SD15 = UNET | {"context_dim": 768, "num_heads": 8}
SDXL = UNET | {
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
}
SD3 = tiny_models.SD3 | {
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 128},
    },
}
FLUX = tiny_models.FLUX | {
    "guidance_embed": True,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "axes_dim": [16, 56, 56],
    "depth": 1,
    "depth_single_blocks": 1,
}
QWEN = {"attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": [8, 12, 12]}
Z_IMAGE = tiny_models.LUMINA2 | {
    "dim": 256,
    "n_heads": 8,
    "n_kv_heads": 8,
    "n_refiner_layers": 2,
    "cap_feat_dim": 2560,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
WAN = tiny_models.WAN | {"dim": 256, "freq_dim": 256, "text_dim": 4096, "model_type": "t2v"}


def model(family: str, config: dict[str, Any]) -> Any:
    """A MODEL of one of ComfyUI's families."""
    return tiny_models.patcher(getattr(comfy.supported_models, family), config)


def network(family: str, config: dict[str, Any]) -> Weights:
    """A diffusion model as a file of its own."""
    return model(family, config).model.diffusion_model.half().state_dict()


def sd15() -> Weights:
    return checkpoint(model("SD15", SD15), comfy.sd1_clip.SD1ClipModel(), kl(4, quant=True))


def sdxl() -> Weights:
    return checkpoint(model("SDXL", SDXL), comfy.sdxl_clip.SDXLClipModel(), kl(4, quant=True))


def sd3() -> Weights:
    texts = comfy.text_encoders.sd3_clip.sd3_clip(dtype_t5=HALF)()
    weights = checkpoint(model("SD3", SD3), texts, kl(16, quant=False))
    return t5(weights, "text_encoders.t5xxl.transformer.")


def flux() -> Weights:
    texts = comfy.text_encoders.flux.flux_clip(dtype_t5=HALF)()
    weights = checkpoint(model("Flux", FLUX), texts, kl(16, quant=False))
    return t5(weights, "text_encoders.t5xxl.transformer.")


def umt5() -> Weights:
    """With a tokenizer of its own, as the file has."""
    words = ["a photograph of an apple or orange on a wooden table", "the quick brown fox jumps"]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=made,
        vocab_size=30,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    weights = encoder(comfy.text_encoders.wan.te(dtype_t5=HALF)(), "umt5xxl")
    return t5(weights) | {"spiece_model": torch.tensor(list(made.getvalue()), dtype=torch.uint8)}


def sd3_text(name: str) -> Weights:
    """One of SD3's three text encoders as a file of its own."""
    return encoder(comfy.text_encoders.sd3_clip.sd3_clip(dtype_t5=HALF)(), name)


def clip_g() -> Weights:
    """With the layer by which ComfyUI knows CLIP-G."""
    key = "text_model.encoder.layers.30.mlp.fc1.weight"
    return sd3_text("clip_g") | {key: torch.zeros(1, dtype=HALF)}


def siglip() -> Weights:
    """With the layer by which ComfyUI knows SigLIP."""
    config = Path(comfy.clip_vision.__file__).parent / "clip_vision_siglip_384.json"
    network = filled(comfy.clip_vision.ClipVisionModel(config).model).half()
    key = "vision_model.encoder.layers.22.layer_norm1.weight"
    return network.state_dict() | {key: torch.zeros(1, dtype=HALF)}


def redux() -> Weights:
    return filled(comfy.ldm.flux.redux.ReduxImageEncoder()).half().state_dict()


NAMES: dict[str, tuple[str, Callable[[], Weights], dict[str, Any]]] = {
    "v1-5-pruned-emaonly-fp16.safetensors": ("checkpoints", sd15, {}),
    "sd_xl_base_1.0.safetensors": ("checkpoints", sdxl, {}),
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": ("checkpoints", sd3, {}),
    "flux1-dev-fp8.safetensors": ("checkpoints", flux, {}),
    "qwen_image_fp8_e4m3fn.safetensors": (
        "diffusion_models",
        lambda: network(
            "QwenImage",
            QWEN
            | {"image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2}
            | {"joint_attention_dim": 3584},
        ),
        {"true": {}, "small": QWEN},
    ),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": (
        "text_encoders",
        lambda: encoder(comfy.text_encoders.qwen_image.te(dtype_llama=HALF)(), "qwen25_7b"),
        {},
    ),
    "qwen_image_vae.safetensors": ("vae", video_vae, {}),
    "z_image_turbo_bf16.safetensors": (
        "diffusion_models",
        lambda: network("ZImage", Z_IMAGE),
        {"true": {"dim": 3840}, "small": Z_IMAGE},
    ),
    "qwen_3_4b.safetensors": (
        "text_encoders",
        lambda: encoder(comfy.text_encoders.z_image.te(dtype_llama=HALF)(), "qwen3_4b"),
        {},
    ),
    "ae.safetensors": ("vae", lambda: kl(16, quant=False), {}),
    "wan2.1_t2v_1.3B_fp16.safetensors": ("diffusion_models", lambda: network("WAN21_T2V", WAN), {}),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", umt5, {}),
    "wan_2.1_vae.safetensors": ("vae", video_vae, {}),
    "clip_l.safetensors": ("text_encoders", lambda: sd3_text("clip_l"), {}),
    "clip_g.safetensors": ("text_encoders", clip_g, {}),
    "t5xxl_fp16.safetensors": ("text_encoders", lambda: t5(sd3_text("t5xxl")), {}),
    "sigclip_vision_patch14_384.safetensors": ("clip_vision", siglip, {}),
    "flux1-redux-dev.safetensors": ("style_models", redux, {}),
}
"""The folder of each file, what makes it, and what ComfyUI does not read off its weights."""


def write(folder: Path, name: str) -> None:
    """Write one of `NAMES` into its folder."""
    kind, make, sizes = NAMES[name]
    file = folder / kind / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        weights = {key: value.contiguous().clone() for key, value in make().items()}
    save_file(weights, file, metadata={small.STAND_IN: json.dumps(sizes)} if sizes else None)


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        write(Path(sys.argv[1]), chosen)
