"""What users connect before our nodes: ComfyUI's own patches of a MODEL, and other packs' forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from diffusion_path.tests import tiny_models

Patch = Callable[[Any], Any]
"""From a MODEL to a MODEL, or from a CONDITIONING to a CONDITIONING."""


def extra(module: str, name: str, *args: Any, **inputs: Any) -> Patch:
    """A node of ComfyUI's extras, as the executor calls it."""

    def patch(model: Any) -> Any:
        node = getattr(import_module(f"comfy_extras.nodes_{module}"), name)
        if hasattr(node, "execute"):
            return node.execute(model, *args, **inputs).args[0]
        return getattr(node(), node.FUNCTION)(model, *args, **inputs)[0]

    return patch


def hypertile(model: Any) -> Any:
    """Its node returns a tuple, unlike the others'."""
    node = import_module("comfy_extras.nodes_hypertile").HyperTile
    return node.execute(model, 32, 2, 1, False)[0]


def compiled(model: Any) -> Any:
    """As TorchCompileModel does, without the minutes that its backend takes."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    clone = model.clone(disable_dynamic=True)
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(clone, backend="eager", options=options)
    return clone


def lora_of(model: Any, scale: float = 0.3) -> dict[str, Tensor]:
    """A LoRA file's tensors, of rank 2, for all queries and keys."""
    generator = torch.Generator().manual_seed(7)
    lora = {}
    for key, weight in model.model.state_dict().items():
        if weight.ndim != 2 or not any(one in key for one in (".to_q.", ".to_k.", "qkv.")):
            continue
        up = torch.randn(weight.shape[0], 2, generator=generator)
        down = torch.randn(2, weight.shape[1], generator=generator)
        lora[key.replace(".weight", ".lora_up.weight")] = scale * up
        lora[key.replace(".weight", ".lora_down.weight")] = scale * down
    assert lora
    return lora


def lora(model: Any) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora_of(model), 1.0, 0.0)[0]


# forms of other packs


def layers(model: Any) -> list[tuple[str, int, int]]:
    """Every layer of a UNet's attention, by ComfyUI's names."""
    from comfy.ldm.modules.attention import SpatialTransformer

    network = model.model.diffusion_model
    blocks = {"input": network.input_blocks, "middle": [network.middle_block]}
    found = []
    for name, parts in (blocks | {"output": network.output_blocks}).items():
        for number, block in enumerate(parts):
            for part in block:
                if isinstance(part, SpatialTransformer):
                    depth = len(part.transformer_blocks)
                    found += [(name, number, index) for index in range(depth)]
    return found


def image_prompt(model: Any) -> Any:
    """As ComfyUI-IPAdapter_plus does: an image's keys for the prompt, other ones for the negative.

    It picks them by `cond_or_uncond`, which holds 0 and 1 wherever ComfyUI samples.
    """
    from comfy.ldm.modules.attention import optimized_attention

    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 1, 4, 64, generator=generator)

    def patch(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        cond_or_uncond = extra_options["cond_or_uncond"]
        rows = len(q) // len(cond_or_uncond)
        k_cond, k_uncond = (
            image.to(q).repeat(rows, 1, q.shape[-1] // 64 + 1)[..., : q.shape[-1]]
            for image in images
        )
        ip_k = torch.cat([(k_cond, k_uncond)[i] for i in cond_or_uncond])
        return out + 0.5 * optimized_attention(q, ip_k, ip_k, extra_options["n_heads"])

    clone = model.clone()
    for layer in layers(model):
        clone.set_model_attn2_replace(patch, *layer)
    return clone


class FacePrompt:
    """As InstantID and PuLID do: called for all layers, within a window of noise levels."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, last
        generator = torch.Generator().manual_seed(4)
        self.faces = torch.randn(2, 1, 2, 32, generator=generator)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        heads = extra_options["n_heads"]
        out = optimized_attention(q, k, v, heads)
        sigma = extra_options["sigmas"].detach().cpu()[0].item()
        if not self.last <= sigma <= self.first:
            return out
        cond_or_uncond = extra_options["cond_or_uncond"]
        batch = q.shape[0] // len(cond_or_uncond)
        _, _, height, width = extra_options["original_shape"]
        assert height * width % q.shape[1] == 0
        cond, uncond = (
            face.to(q).repeat(batch, 1, q.shape[-1] // 32 + 1)[..., : q.shape[-1]]
            for face in self.faces
        )
        keys = torch.cat([(cond, uncond)[i] for i in cond_or_uncond], dim=0)
        return out + optimized_attention(q, keys, keys, heads)


def face_prompt(model: Any) -> Any:
    sampling = model.get_model_object("model_sampling")
    patch = FacePrompt(sampling.percent_to_sigma(0.0), sampling.percent_to_sigma(0.8))
    clone = model.clone()
    for name, number, _ in layers(model):
        clone.set_model_attn2_replace(patch, name, number)
    return clone


def block_prompt(model: Any) -> Any:
    """As PuLID does on Flux: adds to the picture's tokens behind a block, for the prompt only."""

    def patch(args: dict, extra_options: dict) -> dict:
        out = extra_options["original_block"](args)
        numbers = args["transformer_options"]["cond_or_uncond"]
        rows = len(out["img"]) // len(numbers)
        shares = torch.tensor([(0.3, 0.0)[i] for i in numbers]).repeat_interleave(rows)
        return {**out, "img": out["img"] + shares[:, None, None].to(out["img"])}

    clone = model.clone()
    for index in range(2):
        clone.set_model_patch_replace(patch, "dit", "double_block", index)
    return clone


SAMPLING = "model_advanced"

ANY: dict[str, Patch] = {
    "none": lambda model: model,
    "APG": extra("apg", "APG", 0.5, 5.0, 0.5),
    "RescaleCFG": extra(SAMPLING, "RescaleCFG", 0.7),
    "CFGZeroStar": extra("cfg", "CFGZeroStar"),
    "CFGNorm": extra("cfg", "CFGNorm", 1.0),
    "NAGuidance": extra("nag", "NAGuidance", 5.0, 0.5, 1.5),
    "TCFG": extra("tcfg", "TCFG"),
    "Mahiro": extra("mahiro", "Mahiro"),
    "DifferentialDiffusion": extra("differential_diffusion", "DifferentialDiffusion"),
    "EasyCache": extra("easycache", "EasyCacheNode", 0.2, 0.15, 0.95, False),
    "LazyCache": extra("easycache", "LazyCacheNode", 0.2, 0.15, 0.95, False),
    "LoRA": lora,
}
"""Patches that any model may have."""

UNET: dict[str, Patch] = ANY | {
    "FreeU": extra("freelunch", "FreeU", 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": extra("freelunch", "FreeU_V2", 1.3, 1.4, 0.9, 0.2),
    "PerturbedAttentionGuidance": extra("pag", "PerturbedAttentionGuidance", 3.0),
    "SelfAttentionGuidance": extra("sag", "SelfAttentionGuidance", 0.5, 2.0),
    "HyperTile": hypertile,
    "ToMe": extra("tomesd", "TomePatchModel", 0.3),
    "Deep Shrink": extra(
        "model_downscale", "PatchModelAddDownscale", 1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"
    ),
    "sampling v, zero SNR": extra(SAMPLING, "ModelSamplingDiscrete", "v_prediction", True),
    "sampling lcm": extra(SAMPLING, "ModelSamplingDiscrete", "lcm", False),
    "sampling x0": extra(SAMPLING, "ModelSamplingDiscrete", "x0", False),
    "sampling EDM": extra(SAMPLING, "ModelSamplingContinuousEDM", "edm", 80.0, 0.002),
    "TorchCompileModel": compiled,
    "IPAdapter's form": image_prompt,
    "InstantID's form": face_prompt,
}
"""Patches of a UNet."""

DIT: dict[str, Patch] = ANY | {
    "SkipLayerGuidanceDiT": extra("slg", "SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, "0", "1", 0.5),
    "SkipLayerGuidanceSD3": extra("sd3", "SkipLayerGuidanceSD3", "1", 3.0, 0.0, 1.0),
    "SkipLayerGuidanceDiTSimple": extra("slg", "SkipLayerGuidanceDiTSimple", 0.0, 1.0, "0", "1"),
    "ModelSamplingSD3": extra(SAMPLING, "ModelSamplingSD3", 5.0),
    "ModelSamplingFlux": extra(SAMPLING, "ModelSamplingFlux", 1.15, 0.5, 64, 96),
    "PuLID's form": block_prompt,
}
"""Patches of a transformer."""


# what users do with prompts


def controlled(model: Any) -> Patch:
    """Through ComfyUI's own node, with a ControlNet of random weights that fits the UNet."""
    import nodes as comfy_nodes

    config = model.model.model_config.unet_config
    like = {
        key: config[key]
        for key in ("model_channels", "context_dim", "num_heads", "num_head_channels")
    }
    network = tiny_models.controlnet(**like)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    apply = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet

    def patch(conditioning: list) -> list:
        with torch.inference_mode():
            return apply(conditioning, [], network, hint, 1.0, 0.0, 1.0)[0]

    return patch


def hooked(model: Any, strengths: dict[float, float] | None = None, strength: float = 1.0) -> Patch:
    """A LoRA on the prompt only; `strengths` are its keyframes, from percents to factors."""
    import comfy.hooks
    from comfy_extras import nodes_hooks

    hooks = comfy.hooks.create_hook_lora(lora_of(model), strength, 0.0)
    frames = None
    for percent, factor in (strengths or {}).items():
        (frames,) = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(factor, percent, frames)
    (hooks,) = nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, frames)
    return lambda prompt: nodes_hooks.SetModelHooksOnCond().attach_hook(prompt, hooks)[0]


def other_prompt(prompt: list, seed: int = 8) -> list:
    """Another prompt of the same form."""
    other = copy.deepcopy(prompt[:1])
    generator = torch.Generator().manual_seed(seed)
    other[0][0] = torch.randn(other[0][0].shape, generator=generator)
    return other


def combined(prompt: list) -> list:
    import nodes as comfy_nodes

    return comfy_nodes.ConditioningCombine().combine(prompt, other_prompt(prompt))[0]


def masked(prompt: list, bounds: str = "default") -> list:
    """The prompt on the left half, another one on the right."""
    import nodes as comfy_nodes

    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    apply = comfy_nodes.ConditioningSetMask().append
    (left,) = apply(prompt, mask, bounds, 1.0)
    (right,) = apply(other_prompt(prompt), 1 - mask, bounds, 1.0)
    return left + right


def masked_bounds(prompt: list) -> list:
    return masked(prompt, "mask bounds")


def in_areas(prompt: list) -> list:
    """The prompt on the left half, another one on the right, a third for the whole picture."""
    import nodes as comfy_nodes

    apply = comfy_nodes.ConditioningSetAreaPercentage().append
    (left,) = apply(prompt, 0.5, 1.0, 0.0, 0.0, 1.0)
    (right,) = apply(other_prompt(prompt), 0.5, 1.0, 0.5, 0.0, 1.0)
    return left + right + other_prompt(prompt, 9)


def in_turns(prompt: list) -> list:
    """The prompt in the first half of sampling, another one in the second."""
    import nodes as comfy_nodes

    apply = comfy_nodes.ConditioningSetTimestepRange().set_range
    return apply(prompt, 0.0, 0.5)[0] + apply(other_prompt(prompt), 0.5, 1.0)[0]


PROMPTS: dict[str, Callable[[Any], Patch]] = {
    "ControlNet": controlled,
    "LoRA hook": hooked,
    "LoRA hook with keyframes": lambda model: hooked(model, {0.0: 1.0, 0.5: 0.2}),
    "ConditioningCombine": lambda model: combined,
    "ConditioningSetMask": lambda model: masked,
    "ConditioningSetMask, mask bounds": lambda model: masked_bounds,
    "ConditioningSetArea": lambda model: in_areas,
    "ConditioningSetTimestepRange": lambda model: in_turns,
}
"""What a prompt for a UNet may have been through."""
