"""What is usual for a family of models, and what an edit may know of the model it will run on."""

from __future__ import annotations

from typing import NamedTuple

Block = tuple[str, int]
"""A block of a network: its kind ("input", "middle" or "output" in a UNet; "double", "single" or
"block" in a transformer), and its number among those of the kind."""


class Traits(NamedTuple):
    """What an edit may know of a model before it runs.

    Attributes:
        family: of `USUAL`.
        joint: whether the text and the picture share one attention, as in Flux; else the picture
            attends to itself and to the text in turn, as in a UNet.
        blocks: those with attention, in the order of their call.
        network: which of the published networks it is, such as "Flux"; "" is none of them.
        begins: the fraction of the model's schedule, 0 is its noisy end, where the walk begins.
    """

    family: str
    joint: bool = False
    blocks: tuple[Block, ...] = ()
    network: str = ""
    begins: float = 0.0


class Usual(NamedTuple):
    """What a family takes where the user leaves it open.

    Attributes:
        steps: of a path that is inverted or recorded.
        cfg: the guidance of a prompt, without an edit that has a value of its own.
    """

    steps: int
    cfg: float


USUAL = {
    "SD1.5": Usual(50, 7.5),
    "SDXL": Usual(50, 6.0),
    "SD3": Usual(28, 4.5),
    "Flux dev": Usual(28, 1.0),
    "Flux schnell": Usual(8, 1.0),
    "Qwen-Image": Usual(30, 4.0),
    "Z-Image": Usual(12, 1.0),
    "Chroma": Usual(30, 4.0),
    "Wan": Usual(30, 6.0),
    "demo flow": Usual(28, 4.0),
    "other flow": Usual(28, 4.0),
}
"""The families are those of `edits.flow_edit.FAMILIES`. The guidance is what each model's authors
use; the steps of SD1.5 and of the demo's flow model are measured (`benchmarks/results/steps.md`),
and SDXL follows SD1.5."""
