"""What a network needs for a backward pass through it: ordinary weights, and memory.

Under ComfyUI weights are inference tensors, which autograd cannot store for the backward pass. An
alias of the same memory, made outside inference mode, it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NO_GRADIENT = ("require grad", "inplace operation", "autograd", "backward")
"""What PyTorch's messages say where an operation cannot be differentiated."""


@contextmanager
def explained() -> Iterator[None]:
    """Inside, an operation that cannot be differentiated is a ValueError, in one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in NO_GRADIENT):
            raise
        raise ValueError(
            "something on the model has no gradient, such as a patch or a fused operation; take "
            "the patches off, or use a node that needs none, such as Negative-Prompt Inversion"
        ) from error


@contextmanager
def ordinary_weights(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, weights that are inference tensors are replaced by ordinary ones, without a copy.

    Restores the original tensors on exit.
    """
    replaced: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    try:
        for network in networks:
            for module in network.modules():
                tables: list[dict[str, Any]] = [module._parameters, module._buffers]
                for tensors in tables:
                    for name, tensor in tensors.items():
                        if tensor is not None and tensor.is_inference():
                            tensors[name] = ordinary = alias(tensor)
                            replaced.append((tensors, name, ordinary, tensor))
        yield
    finally:
        for tensors, name, ordinary, tensor in replaced:
            if tensors.get(name) is ordinary:  # else a weight hook has put its own there
                tensors[name] = tensor


def alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the memory of an inference tensor."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    ordinary = empty.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(ordinary, requires_grad=False)
    return ordinary


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Inside, the network's blocks compute again in the backward pass what they have not stored.

    That takes a third more time and a fraction of the memory (Chen et al. 2016, arXiv 1604.06174).
    """
    in_place = not isinstance(network, UNetModel)
    with ExitStack() as undo:
        for block in blocks(network):
            own = block.__dict__.get("forward")
            undo.callback(_restore, block, own)
            block.forward = partial(_forgetful, block.forward, in_place)
        yield


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost parts that a network calls one after the other."""
    for child in network.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from blocks(child)
        elif any(True for _ in child.children()):
            yield child


def _restore(block: nn.Module, own: Any) -> None:
    if own is None:
        del block.__dict__["forward"]
    else:
        block.__dict__["forward"] = own


def _forgetful(forward: Any, in_place: bool, *args: Any, **kwargs: Any) -> Any:
    """`forward` under a checkpoint; what the network changes later on, or in place, is copied."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    copies = [dict(arg) if isinstance(arg, dict) else arg for arg in args]
    named = {name: dict(arg) if isinstance(arg, dict) else arg for name, arg in kwargs.items()}

    def fresh(value: Any) -> Any:
        return value.clone() if in_place and torch.is_tensor(value) else value

    def compute(*given: Any) -> Any:
        return forward(*map(fresh, given), **{name: fresh(value) for name, value in named.items()})

    return checkpoint(compute, *copies, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def norms_keep_copies(network: nn.Module) -> Iterator[None]:
    """Inside, a norm reads a copy of its input, which its backward pass needs.

    Flux and its kin add what follows to that input, in place.
    """

    def copied(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (inputs[0].clone(), *inputs[1:]) if torch.is_grad_enabled() else None

    with ExitStack() as undo:
        for module in network.modules():
            if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                undo.callback(module.register_forward_pre_hook(copied).remove)
        yield


@contextmanager
def training() -> Iterator[None]:
    """Inside, ComfyUI leaves out fused operations that have no gradient, such as its RoPE."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def saves_copies(patch: Callable[..., Any]) -> Callable[..., Any]:
    """What may change tensors in place, for use on the way to a backward pass."""

    def patched(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return patch(*args, **kwargs)
        copies = [arg.clone() if torch.is_tensor(arg) else arg for arg in args]
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
            return patch(*copies, **kwargs)

    return patched
