"""Edits of the demo world inside ComfyUI: what a technique is given, and what it can ask for.

Everything runs through nodes, ours and ComfyUI's own, called as the executor calls them; so what
is measured is what users run. Edits that share their settings run as one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.path import DiffusionPath
from ..demo.world import Edit, Scene
from ..tools.host import import_comfy

import_comfy()

import comfy.utils  # noqa: E402
import nodes as comfy_nodes  # noqa: E402

from ..edits.null_text import NullText  # noqa: E402
from ..nodes import NODES  # noqa: E402
from ..nodes.sampler import moved  # noqa: E402

comfy.utils.set_progress_bar_enabled(False)

OURS = {cls.__name__: cls for cls in NODES}

Conditioning = list[list[Any]]

STEPS: dict[str, dict[str, Any]] = {
    "unet": {"steps": 50, "spacing": "leading"},
    "flow": {"steps": 28, "spacing": "simple"},
}
"""The steps of a path on each of the demo models, where a technique has none of its own: the
published ones for Stable Diffusion and for Flux."""

MODELS = tuple(STEPS)
"""The kinds of the demo model."""


def node(name: str, **inputs: Any) -> Any:
    """Run one of our nodes, by its id without the prefix, with its defaults and these inputs.

    Returns:
        Its only output, or all of them as a tuple.
    """
    cls = OURS[name]
    widgets = (widget for widget in cls.GET_SCHEMA().inputs if hasattr(widget, "default"))
    defaults = {widget.id: widget.default for widget in widgets if not widget.optional}
    outputs = cls.execute(**defaults | inputs).args
    return outputs[0] if len(outputs) == 1 else outputs


def stock(name: str, **inputs: Any) -> Any:
    """Run one of ComfyUI's own nodes; returns its first output."""
    cls = comfy_nodes.NODE_CLASS_MAPPINGS[name]
    return getattr(cls(), cls.FUNCTION)(**inputs)[0]


class Counter:
    """Counts network evaluations by a hook; one is one latent under one condition."""

    def __init__(self, network: nn.Module) -> None:
        self.evaluations = 0
        network.register_forward_hook(self._count)

    def _count(self, network: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        self.evaluations += len(inputs[0])


@dataclass(frozen=True)
class Demo:
    """A demo model as ComfyUI's MODEL, CLIP and VAE, with a counter on its network.

    Attributes:
        kind: which one, of `MODELS`.
        moved: how far each of the edited latents has moved from its source, one tensor a walk.
    """

    kind: str
    model: Any
    clip: Any
    vae: Any
    counter: Counter
    moved: list[Tensor] = field(default_factory=list)

    @classmethod
    def load(cls, kind: str = "unet") -> Demo:
        model, clip, vae, _ = node("DemoModel", kind=kind)
        return cls(kind, model, clip, vae, Counter(model.model.diffusion_model))

    @property
    def steps(self) -> dict[str, Any]:
        """The inputs `steps` and `spacing` of a path."""
        return STEPS[self.kind]


class Batch:
    """Edits with all that a technique needs: pictures, latents, prompts and the inverted path."""

    def __init__(self, demo: Demo, edits: Sequence[Edit]) -> None:
        self.demo, self.edits = demo, list(edits)
        self.source = self.prompts([edit.source_prompt for edit in edits])
        self.target = self.prompts([edit.target_prompt for edit in edits])
        self.empty = self.prompts([""] * len(edits))
        self.before = to_image([edit.before for edit in edits])
        self.after = to_image([edit.after for edit in edits])
        self.latent = self.encode(self.before)
        self._inverted: dict[Callable[[Batch], Any], Batch] = {}

    def prompts(self, texts: Sequence[str]) -> Conditioning:
        """One CONDITIONING that holds a prompt for each edit."""
        encoded = [stock("CLIPTextEncode", clip=self.demo.clip, text=text)[0] for text in texts]
        embeddings, options = zip(*encoded, strict=True)
        pooled = [one["pooled_output"] for one in options]
        return [[torch.cat(embeddings), {**options[0], "pooled_output": torch.cat(pooled)}]]

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """IMAGE to LATENT."""
        return stock("VAEEncode", vae=self.demo.vae, pixels=images)

    def decode(self, latent: dict[str, Tensor]) -> Tensor:
        """LATENT to IMAGE."""
        return stock("VAEDecode", vae=self.demo.vae, samples=latent)

    @property
    def path(self) -> Any:
        """The sources' path by DDIM inversion, made once and counted for whoever asks."""
        self.demo.counter.evaluations += self._path[1]
        return self._path[0]

    @cached_property
    def _path(self) -> tuple[Any, int]:
        counter = self.demo.counter
        before = counter.evaluations
        path, _ = node(
            "DDIMInversion",
            model=self.demo.model,
            positive=self.source,
            latent_image=self.latent,
            **self.demo.steps,
        )
        cost = counter.evaluations - before
        counter.evaluations = before
        return path, cost

    def inverted(self, inversion: Callable[[Batch], Any]) -> Batch:
        """The same edits on a path of another making, made once and counted for whoever asks."""
        if inversion in self._inverted:
            return self._inverted[inversion]
        other = self._inverted[inversion] = copy.copy(self)
        counter = self.demo.counter
        before = counter.evaluations
        path = inversion(self)
        other.__dict__["_path"] = (path, counter.evaluations - before)
        counter.evaluations = before
        return other

    def each(self) -> Iterator[Single]:
        """The edits one by one, each on its part of the path, under the prompts of a pair."""
        path, cost = self._path
        for i, edit in enumerate(self.edits):
            one = Single(self.demo, edit)
            own = picture_of(path, i)._replace(positive=one.source)
            one.__dict__["_path"] = (own, cost // len(self.edits))
            yield one

    @property
    def inversion_cost(self) -> int:
        """Network evaluations that the path has taken, over all pictures."""
        return self._path[1]

    def sample(self, **inputs: Any) -> Tensor:
        """The edited pictures that our sampler makes of the path."""
        return self.sample_with_mask(**inputs)[0]

    def sample_with_mask(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        """The edited pictures, and the masks (N, h, w) where the edits have let them change."""
        latent, mask = self.walk(self.path, **inputs)
        return self.decode(latent), mask

    def walk(self, path: DiffusionPath, **inputs: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The LATENT that our sampler makes of a path, and the mask."""
        ways = {"positive": self.target, "negative": self.empty, "cfg": 7.5} | inputs
        latent, _, _, mask, _ = node("Sampler", model=self.demo.model, path=path, **ways)
        self.demo.moved.append(moved(path.clean, latent["samples"]))
        return latent, mask

    def mask(self, **inputs: Any) -> Tensor:
        """DiffEdit's masks (N, H, W)."""
        mask, _ = node(
            "DiffEditMask",
            model=self.demo.model,
            source=self.source,
            target=self.target,
            latent_image=self.latent,
            **inputs,
        )
        return mask

    @property
    def truth(self) -> Tensor:
        """Where the pictures may differ from the right result (N, H, W)."""
        return torch.from_numpy(np.stack([edit.mask for edit in self.edits]).astype(np.float32))


class Single(Batch):
    """One edit, with its two prompts aligned."""

    def __init__(self, demo: Demo, edit: Edit) -> None:
        super().__init__(demo, [edit])
        self.edit = edit
        self.source, self.target, self.pair = node(
            "PromptPair",
            clip=demo.clip,
            source_prompt=edit.source_prompt,
            target_prompt=edit.target_prompt,
        )

    def changed(self) -> tuple[str, str]:
        """What the source has and the target has not, and the other way round, in words."""
        source, target = (set(phrases(scene)) for scene in (self.edit.source, self.edit.target))
        return ", ".join(sorted(source - target)), ", ".join(sorted(target - source))


def picture_of(path: DiffusionPath, i: int) -> DiffusionPath:
    """The path of one of the pictures that a path holds."""
    only = slice(i, i + 1)

    def prompt(conditioning: Conditioning) -> Conditioning:
        (embedding, options), *_ = conditioning
        pooled = {"pooled_output": options["pooled_output"][only]}
        return [[embedding[only], {**options, **pooled}]]

    return path._replace(
        latents=path.latents[:, only],
        positive=prompt(path.positive),
        negative=None if path.negative is None else prompt(path.negative),
        edits=tuple(
            own._replace(embeddings=own.embeddings[:, only]) if isinstance(own, NullText) else own
            for own in path.edits
        ),
        residuals=None if path.residuals is None else path.residuals[:, only],
    )


def phrases(scene: Scene) -> list[str]:
    """What a scene's caption names: the objects and the background."""
    return [*(one.name for one in scene.objects), f"{scene.background} background"]


def to_image(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 pictures to IMAGE, float (N, H, W, 3) from 0 to 1."""
    return torch.from_numpy(np.stack(pictures)).float() / 255


def to_uint8(images: Tensor) -> np.ndarray:
    """IMAGE to uint8 pictures (N, H, W, 3)."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
