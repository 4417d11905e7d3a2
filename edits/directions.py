"""Directions in h-space: the principal components of many pictures (Haas et al. 2023, arXiv
2303.11073).

h is the output of a UNet's middle block. The components are those of all steps jointly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.plan import Attention, Bottleneck, of
from ..core.edit import Edit, Need, Step
from ..core.families import Traits
from ..core.path import DiffusionPath


class Directions(NamedTuple):
    """Principal components of h; a tuple, because ComfyUI's cache looks into tuples for memory.

    Attributes:
        components: orthonormal over all that is behind k (k, N, C, height, width), float32.
        deviations: how far the pictures lie along each: a standard deviation (k,), falling.
        explained: the part of the pictures' variance that each has (k,).
        sigmas: the noise levels of the steps (N + 1,).
        latent: the shape of one latent (C, H, W).
        model: the model's class.
    """

    components: Tensor
    deviations: Tensor
    explained: Tensor
    sigmas: Tensor
    latent: tuple[int, ...]
    model: str

    def at(self, number: int, sigma: float) -> Tensor:
        """One standard deviation along a component, counted from 0, at the step whose level is the
        nearest (C, height, width)."""
        away = (self.sigmas[:-1].log() - torch.tensor(sigma).log()).abs()
        return self.components[number, int(away.argmin())] * self.deviations[number]

    def check(self, path: DiffusionPath) -> None:
        """Raise ValueError if they were found on a model of another family, or at another size."""
        if path.fingerprint["model"] != self.model:
            raise ValueError(
                f"the directions were found on a model of the kind {self.model}, and the path is "
                f"of the kind {path.fingerprint['model']}; find them with the model of the path"
            )
        if path.clean.shape[1:] != self.latent:
            theirs, ours = (
                " x ".join(map(str, one)) for one in (self.latent, path.clean.shape[1:])
            )
            raise ValueError(
                f"the directions were found for latents of {theirs}, and the path has {ours}; find "
                "them at the size of the picture"
            )


def check_unet(traits: Traits) -> None:
    """Raise ValueError if the network has no h-space."""
    if not any(kind == "output" for kind, _ in traits.blocks):
        raise ValueError(
            f"h-space is the middle of a UNet, such as those of SD1.5 and SDXL, and "
            f"{traits.network} is none; use Prompt-to-Prompt or FlowEdit"
        )


def principal(h: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first components of pictures, from the inner products of these (n, n).

    Each points to that side on which the picture lies that is farthest out along it.

    Args:
        h: of each step (n, C, height, width).
        count: how many components, below n.

    Returns:
        The components, deviations and explained variance of `Directions`.
    """

    def centred(one: Tensor) -> Tensor:
        rows = one.flatten(1).double()
        return rows - rows.mean(dim=0)

    products = torch.stack([(rows := centred(one)) @ rows.T for one in h]).sum(dim=0)
    values, vectors = (found.flip(-1) for found in torch.linalg.eigh(products))
    total = values.sum()
    values, vectors = values[:count], vectors[:, :count]
    farthest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    singular = values.sqrt()
    weights = (vectors * farthest.sign() / singular).T
    steps = [(weights @ centred(one)).float().unflatten(1, one.shape[1:]) for one in h]
    deviations = singular / (len(h[0]) - 1) ** 0.5
    return torch.stack(steps, dim=1), deviations.float(), (values / total).float()


@dataclass(frozen=True, kw_only=True)
class ReadBottleneck(Edit):
    """Reads h of the target's own prediction at each step, and changes nothing.

    Attributes:
        tell: called with h (B, C, height, width), in ordinary memory, after each step.
        bottleneck: what keeps it.
    """

    tell: Callable[[Tensor], None]
    bottleneck: Bottleneck = field(default_factory=lambda: Bottleneck(kept=object()))

    @property
    def needs(self) -> Need:
        return Need.ATTENTION

    def patch(self, step: Step, patch: Attention | None) -> Attention:
        return replace(of(patch), bottleneck=self.bottleneck)

    def latent(self, step: Step, x: Tensor) -> Tensor:
        self.tell(step.seen_now[self.bottleneck.kept].cpu())
        return x
