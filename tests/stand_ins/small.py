"""Makes ComfyUI build its models small, so that files with their true names can be small too.

A custom node of the test's server; `files.py` uses it too. The width of every text embedding, the
tokenizers, the loaders and the recognition of files stay ComfyUI's own. Smaller are: the depth and
the inner widths of text encoders, their vocabulary (tokens are counted modulo it), the part of
Qwen2.5-VL that looks at pictures, CLIP vision, Redux, and the networks of Qwen-Image and Z-Image,
whose sizes ComfyUI does not read off the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.ldm.flux.redux
import comfy.model_detection
import comfy.ops
import comfy.sd1_clip
import comfy.text_encoders.qwen_vl
import torch

NODE_CLASS_MAPPINGS: dict[str, Any] = {}

VOCABULARY = 512
STAND_IN = "stand_in"
"""The name under which a file's metadata holds the "true" sizes that tell its family, and the
"small" ones of its network."""

CLIP = {"num_hidden_layers": 3, "intermediate_size": 64}
T5 = {"num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64, "vocab_size": VOCABULARY}
QWEN = {
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
}
VISION = {"num_hidden_layers": 2, "intermediate_size": 64}
REDUX = 64


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a text encoder, of less depth."""
    if "d_ff" in config:
        return config | T5
    return config | (CLIP if "intermediate_size" in config else QWEN)


def modulo(embedding: torch.nn.Embedding, given: tuple) -> tuple:
    """A hook: every token has an embedding, however small the vocabulary."""
    return (given[0] % embedding.weight.shape[0], *given[1:])


text_encoder = comfy.sd1_clip.SDClipModel.__init__
detect = comfy.model_detection.detect_unet_config
recognise = comfy.model_detection.model_config_from_unet
vision = comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer.__init__
clip_vision = comfy.clip_vision.ClipVisionModel.__init__


def small_text_encoder(
    self: Any,
    *given: Any,
    textmodel_json_config: Any = None,
    model_options: Any = None,
    **named: Any,
) -> None:
    """In place of the `__init__` of every text encoder."""
    options = model_options or {}
    if textmodel_json_config is None:
        textmodel_json_config = Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json"
        options = {"model_name": "clip_l"} | options
    if not isinstance(textmodel_json_config, dict):
        textmodel_json_config = json.loads(Path(textmodel_json_config).read_text())
    named |= {"textmodel_json_config": small(textmodel_json_config), "model_options": options}
    text_encoder(self, *given, **named)
    self.transformer.get_input_embeddings().register_forward_pre_hook(modulo)


def true_network(state_dict: Any, key_prefix: str, metadata: Any = None) -> Any:
    """In place of the reading of a diffusion model's sizes: with the true ones that are asked for
    where ComfyUI looks for the family."""
    config = detect(state_dict, key_prefix, metadata=metadata)
    if config is not None and metadata and STAND_IN in metadata:
        config |= json.loads(metadata[STAND_IN])["true"]
    return config


def small_network(*given: Any, metadata: Any = None, **named: Any) -> Any:
    """In place of the recognition of a family: with the file's own sizes."""
    config = recognise(*given, metadata=metadata, **named)
    if config is not None and metadata and STAND_IN in metadata:
        config.unet_config |= json.loads(metadata[STAND_IN])["small"]
    return config


def small_vision(self: Any, *given: Any, **named: Any) -> None:
    """In place of the `__init__` of Qwen2.5-VL's eyes, which no prompt needs."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
    vision(self, *given, **named | sizes)


def small_clip_vision(self: Any, json_config: Any) -> None:
    """In place of the `__init__` of CLIP vision: two layers, of the true width."""
    clip_vision(self, json.loads(Path(json_config).read_text()) | VISION)


def small_redux(self: Any, redux_dim: int = 1152, txt_in_features: int = 4096) -> None:
    """In place of the `__init__` of Flux Redux, which is 129 MB."""
    torch.nn.Module.__init__(self)
    linear = comfy.ops.manual_cast.Linear
    self.redux_up = linear(redux_dim, REDUX)
    self.redux_down = linear(REDUX, txt_in_features)


comfy.sd1_clip.SDClipModel.__init__ = small_text_encoder
comfy.model_detection.detect_unet_config = true_network
comfy.model_detection.model_config_from_unet = small_network
comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer.__init__ = small_vision
comfy.clip_vision.ClipVisionModel.__init__ = small_clip_vision
comfy.ldm.flux.redux.ReduxImageEncoder.__init__ = small_redux
