"""Which kind of network a model has, and what can be done to its attention."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import nn

from ..core.families import Block, Traits
from .attention import AttentionControl
from .dit import TransformerControl, blocks_of, family_of
from .model import family
from .unet import UNetControl, attention_layers


def control_of(network: nn.Module) -> AttentionControl:
    """What changes a network's attention in one run."""
    known = family_of(network)
    return TransformerControl(network, known) if known else UNetControl(network)


def attention_blocks(network: nn.Module) -> tuple[Block, ...]:
    """The blocks of a network with attention that can be changed, in the order of their call; none
    if its attention is not known."""
    layers = attention_layers(network)
    return tuple(dict.fromkeys(layer[:2] for layer in layers)) or blocks_of(network)


def traits_of(model: ModelPatcher) -> Traits:
    """What an edit may know of a model before it runs."""
    network = model.model.diffusion_model
    known = family_of(network)
    return Traits(
        family=family(model),
        joint=known is not None and known.joint,
        blocks=attention_blocks(network),
        network=type(network).__name__,
    )
