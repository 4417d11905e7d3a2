"""Nodes called in this process as ComfyUI's executor calls them."""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch


def node(name: str) -> Any:
    """The node class `name`, without the "DiffusionPath_" of its id."""
    from diffusion_path.nodes import NODES

    return next(one for one in NODES if one.__name__ == name)


def call(name: str, **inputs: Any) -> Any:
    """Run a node with its defaults and these inputs; what it returns has `args` and `ui`."""
    cls = node(name)
    known = {one.id: one for one in cls.GET_SCHEMA().inputs}
    assert inputs.keys() <= known.keys(), inputs.keys() - known.keys()
    defaults = {
        key: one.default for key, one in known.items() if getattr(one, "default", None) is not None
    }
    with torch.inference_mode():
        return cls.execute(**{**defaults, **inputs})


def results(name: str, **inputs: Any) -> tuple:
    """The outputs of a node."""
    return call(name, **inputs).args


def text(output: Any) -> str:
    """What a node tells the user."""
    (told,) = output.ui["text"]
    return told


def edited(model: Any, path: Any, positive: list, negative: list, **inputs: Any) -> torch.Tensor:
    """The latent that the sampler makes of a path."""
    latent = results(
        "Sampler", model=model, path=path, positive=positive, negative=negative, **inputs
    )[0]
    return latent["samples"]


def graphs() -> list[torch.Tensor]:
    """Every tensor of this process that holds a graph."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is torch.Tensor and one.grad_fn]


class Calls:
    """What the network was asked while it was watched."""

    def __init__(self, batch: int) -> None:
        self.batch, self.rows, self.calls = batch, 0, 0

    @property
    def evaluations(self) -> float:
        """Rows over the latents of a batch: one is one batch under one condition."""
        return self.rows / self.batch


@contextmanager
def network_calls(model: Any, batch: int = 1) -> Iterator[Calls]:
    """Count what goes through the diffusion model itself, whoever calls it."""
    counted = Calls(batch)

    def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        counted.rows += len(args[0])
        counted.calls += 1

    handle = model.model.diffusion_model.register_forward_hook(hook)
    try:
        yield counted
    finally:
        handle.remove()


def refused(name: str, *said: str, **inputs: Any) -> None:
    """Calling the node fails with one sentence, of its name and of all that is `said`."""
    shown = node(name).GET_SCHEMA().display_name
    watched = network_calls(inputs["model"]) if "model" in inputs else nullcontext()
    with watched as calls, pytest.raises(ValueError) as refusal:
        call(name, **inputs)
    assert calls is None or calls.calls == 0, "the network was asked first"
    message = str(refusal.value)
    assert message.startswith(f"{shown}: "), message
    assert message.endswith(".") and "\n" not in message, message
    assert len(re.findall(r"[.!?](?:\s|$)", message)) == 1, f"more than a sentence: {message}"
    for part in said:
        assert part in message, message


def state(model: Any) -> dict[str, Any]:
    """Everything of a MODEL that a node must leave as it was."""
    weights = hashlib.sha256()
    for key, tensor in sorted(model.model.state_dict().items()):
        weights.update(key.encode())
        weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "options": repr(model.model_options),
        "patches": repr(sorted(model.patches)),
        "object patches": repr(sorted(model.object_patches)),
        "hooks": repr(model.hook_patches),
        "hook mode": model.hook_mode,
        "forward hooks": len(model.model.diffusion_model._forward_hooks),
    }


@contextmanager
def during_call(model: Any, number: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something while the network is asked for the `number`th time."""
    calls = 0

    def hook(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            act()

    handle = model.model.diffusion_model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
