"""Every node that calls the network, on every patch that ComfyUI and other packs have.

Each runs, or is refused in one sentence; nothing else may come of it. The UNet is the demo model,
whose prompts are real; the transformers are tiny ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusion_path.tests.calls import state
from diffusion_path.tests.seam import patches
from diffusion_path.tests.seam.workflow import (
    ON_ATTENTION,
    PRESETS,
    USES,
    Setting,
    demo,
    null_text,
    patched,
    prompted,
    tiny,
    works,
)

UNET_USES = USES | ON_ATTENTION
SELF_ATTENTION = {"PromptToPrompt", "KeepBackground", *PRESETS}
MASKS = {name for name in USES if name.startswith("mask")}
REFUSED: dict[str, set[str]] = {
    "HyperTile": SELF_ATTENTION,
    "ToMe": SELF_ATTENTION,
    "FreeU": {"null-text"},
    "FreeU_V2": {"null-text"},
    "EasyCache": {"null-text", *ON_ATTENTION},
    "LazyCache": {"null-text", *ON_ATTENTION},
    "TorchCompileModel": {"null-text", *ON_ATTENTION},
    "sampling lcm": MASKS,
    "ConditioningCombine": {"null-text"},
    "ConditioningSetMask": {"null-text"},
    "ConditioningSetMask, mask bounds": {"null-text", *ON_ATTENTION},
    "ConditioningSetArea": {"null-text", *ON_ATTENTION},
    "ConditioningSetTimestepRange": {"null-text"},
}
"""What may be refused, by patch: all other uses must run."""


SLOW = {"TorchCompileModel": ("invert", "PromptToPrompt")}


@pytest.mark.parametrize(
    ("patch", "use"),
    [(patch, use) for patch in patches.UNET for use in SLOW.get(patch, UNET_USES)],
)
def test_on_a_patched_unet(comfy: Path, patch: str, use: str):
    setting = patched(demo(), patches.UNET[patch], patch)
    assert works(UNET_USES[use], setting) or use in REFUSED.get(patch, ())


@pytest.mark.parametrize("use", UNET_USES)
@pytest.mark.parametrize("patch", patches.PROMPTS)
def test_with_prompts_of_many_parts(comfy: Path, patch: str, use: str):
    setting = prompted(demo(), patch)
    assert works(UNET_USES[use], setting) or use in REFUSED.get(patch, ())


SOME = ("invert under guidance", "mask by x0", "sample at cfg 5", "MDPCondition", "MDPGuidance")


@pytest.mark.parametrize(
    ("name", "use"),
    [("sd3", use) for use in USES if use != "null-text"] + [("flux_schnell", use) for use in SOME],
)
@pytest.mark.parametrize("patch", patches.DIT)
def test_on_a_patched_transformer(comfy: Path, name: str, patch: str, use: str):
    assert works(USES[use], patched(tiny(name), patches.DIT[patch], f"{name} {patch}"))


@pytest.mark.parametrize("use", sorted(ON_ATTENTION.keys() - {"HSpace"}))
@pytest.mark.parametrize("patch", patches.DIT)
def test_attention_control_on_a_patched_transformer(comfy: Path, patch: str, use: str):
    flow = demo("flow")
    setting = patched(flow, patches.DIT[patch], f"flow {patch}")
    assert works(ON_ATTENTION[use], setting) or use in REFUSED.get(patch, ())


@pytest.mark.parametrize("patch", patches.DIT)
def test_null_text_on_a_patched_transformer_runs_or_is_refused(comfy: Path, patch: str):
    works(null_text, patched(tiny("sd3"), patches.DIT[patch], f"sd3 {patch}"))


def assert_left_as_it_was(setting: Setting) -> None:
    """Compared with what ComfyUI's own sampler leaves: it keeps patched weights loaded."""
    import comfy.sample

    latent = setting.picture["samples"]
    inputs = (setting.model, latent, 1, 5.0, "euler", "simple", setting.target, setting.negative)
    with torch.inference_mode():
        comfy.sample.sample(*inputs, latent, disable_pbar=True)
    before = state(setting.model)
    for use in ("MDPGuidance", "PromptToPrompt", "null-text"):
        works(UNET_USES[use], setting)
    assert state(setting.model) == before


@pytest.mark.parametrize(
    "patch", ["none", "APG", "SelfAttentionGuidance", "LoRA", "EasyCache", "IPAdapter's form"]
)
def test_a_patched_unet_is_left_as_it_was(comfy: Path, patch: str):
    assert_left_as_it_was(patched(demo(), patches.UNET[patch], patch))


@pytest.mark.parametrize("patch", ["ControlNet", "LoRA hook with keyframes"])
def test_a_model_is_left_as_it_was_by_prompts_of_many_parts(comfy: Path, patch: str):
    assert_left_as_it_was(prompted(demo(), patch))
