"""Workflows in small: what is on the wires, and every node that calls the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor

import diffusion_path
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import results
from diffusion_path.tests.seam import patches

STEPS = 2
PATHS: dict[str, Any] = {}


@dataclass
class Setting:
    """What is on the wires of a workflow."""

    model: Any
    source: list
    target: list
    negative: list
    picture: dict
    clip: Any = None
    vae: Any = None
    pair: Any = None
    key: str = ""

    @cached_property
    def path(self) -> Any:
        """Its own inversion, which all settings of a key share."""
        if self.key not in PATHS:
            PATHS[self.key] = self.invert()
        return PATHS[self.key]

    def along(self, path: Any) -> Setting:
        """On a path that was made elsewhere."""
        other = replace(self)
        other.__dict__["path"] = path
        return other

    def invert(self, **inputs: Any) -> Any:
        given = {"positive": self.source, "latent_image": self.picture, "steps": STEPS}
        return results("DDIMInversion", model=self.model, **(given | inputs))[0]

    def record(self, **inputs: Any) -> Any:
        given = {"positive": self.source, "negative": self.negative, "steps": STEPS}
        given["latent_image"] = {"samples": torch.zeros_like(self.picture["samples"])}
        return results("RecordPath", model=self.model, **(given | inputs))[0]

    def sample(self, path: Any, edits: tuple = (), cfg: float = 5.0, **inputs: Any) -> Tensor:
        given = {"model": self.model, "path": path, "cfg": cfg, "edits": edits}
        given |= {"positive": self.target, "negative": self.negative}
        return results("Sampler", **(given | inputs))[0]["samples"]


def edit(name: str, **inputs: Any) -> Callable[[Setting], tuple[Tensor, torch.Size]]:
    """The sampler with one edit."""

    def use(setting: Setting) -> tuple[Tensor, torch.Size]:
        given = {"prompts": setting.pair} if name in ON_WORDS else {}
        if name in ("PaintWithWords", "Concept"):
            given = {"clip": setting.clip, "prompt": TARGET}
        edits = results(name, **given, **inputs)[0]
        return setting.sample(setting.path, edits), setting.path.clean.shape

    return use


def of_path(path: Any) -> tuple[Tensor, torch.Size]:
    """All latents of a path, and the shape that they must have."""
    return path.latents, torch.Size((STEPS + 1, *path.clean.shape))


def invert(setting: Setting) -> tuple[Tensor, torch.Size]:
    return of_path(setting.invert())


def invert_guided(setting: Setting) -> tuple[Tensor, torch.Size]:
    return of_path(setting.invert(cfg=3.0, negative=setting.negative))


def invert_by_midpoints(setting: Setting) -> tuple[Tensor, torch.Size]:
    return of_path(setting.invert(solver="midpoint"))


def ddpm(setting: Setting) -> tuple[Tensor, torch.Size]:
    """Inverted and sampled again."""
    given = {"model": setting.model, "positive": setting.source, "negative": setting.negative}
    given |= {"latent_image": setting.picture, "steps": STEPS, "cfg": 2.0}
    (path,) = results("DDPMInversion", **given)
    return setting.sample(path, eta=1.0), path.clean.shape


def record(setting: Setting) -> tuple[Tensor, torch.Size]:
    return of_path(setting.record(cfg=3.0))


def null_text(setting: Setting) -> tuple[Tensor, torch.Size]:
    inputs = {"negative": setting.negative, "cfg": 5.0, "inner_steps": 1, "path": setting.path}
    found = results("NullTextInversion", model=setting.model, **inputs)[0]
    embeddings = found.edits[0].embeddings
    return embeddings, torch.Size((STEPS, len(setting.path.clean), *embeddings.shape[2:]))


def mask(method: str) -> Callable[[Setting], tuple[Tensor, torch.Size]]:
    def use(setting: Setting) -> tuple[Tensor, torch.Size]:
        inputs = {"source": setting.source, "target": setting.target, "maps": 1}
        inputs |= {"latent_image": setting.picture, "method": method, "strength": 0.04}
        found = results("DiffEditMask", model=setting.model, **inputs)[0]
        batch, _, *_, height, width = setting.picture["samples"].shape
        return found, torch.Size((batch, 8 * height, 8 * width))

    return use


def sample(cfg: float) -> Callable[[Setting], tuple[Tensor, torch.Size]]:
    def use(setting: Setting) -> tuple[Tensor, torch.Size]:
        return setting.sample(setting.path, cfg=cfg), setting.path.clean.shape

    return use


def maps(setting: Setting) -> tuple[Tensor, torch.Size]:
    inputs = {"prompts": setting.pair, "vae": setting.vae, "words": "apple"}
    found = results("AttentionMaps", model=setting.model, path=setting.path, **inputs)[1]
    _, _, height, width = setting.picture["samples"].shape
    return found, torch.Size((1, 8 * height, 8 * width))


def h_space(setting: Setting) -> tuple[Tensor, torch.Size]:
    edits = results("HSpace", towards=setting.target, base=setting.source)[0]
    return setting.sample(setting.path, edits), setting.path.clean.shape


SOURCE, TARGET = "a red apple on a blue background", "a red pear on a blue background"
ON_WORDS = ("PromptToPrompt", "Reweight", "LocalBlend")
PRESETS = ("MasaCtrl", "Plug-and-Play", "RF-Solver", "Stable Flow", "StyleAligned")

USES: dict[str, Callable[[Setting], tuple[Tensor, torch.Size]]] = {
    "invert": invert,
    "invert under guidance": invert_guided,
    "record": record,
    "null-text": null_text,
    "mask by noise": mask("noise"),
    "mask by x0": mask("x0"),
    "mask by denoising": mask("denoise"),
    "sample at cfg 1": sample(1.0),
    "sample at cfg 5": sample(5.0),
    "MDPEpsilon": edit("MDPEpsilon", weight=0.7, end=1.0),
    "MDPCondition": edit("MDPCondition", weight=0.7, end=1.0),
    "MDPLatent": edit("MDPLatent", weight=0.7, end=1.0),
    "MDPGuidance": edit("MDPGuidance", weight=0.7, end=1.0),
    "MaskBlend": edit("MaskBlend", mask=torch.full((1, 8, 8), 0.5)),
    "invert by midpoints": invert_by_midpoints,
    "DDPM": ddpm,
    "FlowEdit": edit("FlowEdit", source_cfg=2.0, strength=0.7, start=0.0),
    "UniEdit": edit("UniEdit", alpha=1.0),
    "ILVR": edit("ILVR"),
    "Resample": edit("Resample", jump=1, resamplings=2),
}
ON_ATTENTION: dict[str, Callable[[Setting], tuple[Tensor, torch.Size]]] = {
    "PromptToPrompt": edit("PromptToPrompt", self_limit=64),
    "Reweight": edit("Reweight", words="pear: 3"),
    "LocalBlend": edit("LocalBlend", source_words="apple", target_words="pear", start=0.0),
    "PaintWithWords": edit("PaintWithWords", phrase="red pear", mask=torch.ones(1, 8, 8)),
    "AttentionMaps": maps,
    "Concept": edit("Concept"),
    "HSpace": h_space,
    "KeepBackground": edit("KeepBackground", mask=torch.full((1, 8, 8), 0.5)),
    **{name: edit("SourceFeatures", preset=name) for name in PRESETS},
}


@cache
def demo(kind: str = "unet") -> Setting:
    """A demo model with a random picture; its prompts are real."""
    model, clip, vae, _ = results("DemoModel", kind=kind)
    words = {"clip": clip, "source_prompt": SOURCE, "target_prompt": TARGET}
    source, target, pair = results("PromptPair", **words)
    negative = results("PromptPair", **(words | {"source_prompt": "", "target_prompt": ""}))[0]
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    key = "" if kind == "unet" else kind
    return Setting(model, source, target, negative, {"samples": picture}, clip, vae, pair, key)


@cache
def tiny(name: str) -> Setting:
    """A tiny model with a random picture and random prompts."""
    prompts = (tiny_models.prompt(name, seed) for seed in range(3))
    picture = tiny_models.picture(name, height=8, width=8)
    return Setting(getattr(tiny_models, name)(), *prompts, picture)


def patched(setting: Setting, patch: Callable[[Any], Any], key: str) -> Setting:
    """With a patch of its own, that remembers nothing."""
    return replace(setting, model=patch(setting.model), key=key)


def prompted(setting: Setting, patch: str) -> Setting:
    """With prompts that have been through something."""
    apply = patches.PROMPTS[patch](setting.model)
    source, target, negative = map(apply, (setting.source, setting.target, setting.negative))
    return replace(setting, source=source, target=target, negative=negative, key=patch)


def is_ours(error: BaseException) -> bool:
    """Whether our code has raised it, rather than passed on what went wrong elsewhere."""
    file = extract_tb((error.__cause__ or error).__traceback__)[-1].filename
    pack = str(Path(diffusion_path.__file__).parent)
    inside = file.removeprefix(pack)
    return inside != file and not inside.startswith(("/.comfyui", "/.venv"))


def works(use: Callable[[Setting], tuple[Tensor, torch.Size]], setting: Setting) -> bool:
    """Whether it runs, to finite numbers in their shape; or else is refused in one sentence."""
    from diffusion_path.nodes import NODES

    try:
        found, shape = use(setting)
    except ValueError as error:
        message = str(error)
        shown = {node.GET_SCHEMA().display_name for node in NODES}
        assert message.split(": ")[0] in shown, message
        assert message.endswith(".") and "\n" not in message, message
        assert len(re.findall(r"[.!?](?:\s|$)", message)) == 1, f"more than a sentence: {message}"
        assert is_ours(error), f"not meant for the user: {message}"
        return False
    assert found.shape == shape
    assert bool(torch.isfinite(found).all())
    return True
