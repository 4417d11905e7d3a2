"""What a run asks of a graphics card: no copies to it and no waiting for it where it hurts.

Tested without one. The model computes in half precision here, so that whatever an edit has not put
into the network's own type and on its device shows up as a copy where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_path.tests.calls import results
from diffusion_path.tests.nodes.test_attention import CFG, STEPS, Family, family_of

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}
"""Operations whose answer the processor needs before it goes on."""

COPIES = {"_to_copy", "copy_"}
RESIZES = ("upsample", "_upsample", "adaptive_avg_pool", "_adaptive_avg_pool", "avg_pool")


class Operations(TorchDispatchMode):
    """Sees the operations inside, also those that others are made of under inference mode."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            output = func.decompose(*args, **kwargs)
        if output is NotImplemented:
            output = func(*args, **kwargs)
            self.saw(func.__name__.split(".")[0], args, output)
        return output

    def saw(self, name: str, args: tuple, output: Any) -> None:
        raise NotImplementedError


class InLayer(Operations):
    """What one layer does to tensors that were there before, and that it should not.

    Attributes:
        faults: the operations.
    """

    def __init__(self, given: tuple[Tensor, ...]) -> None:
        """Its queries, keys and values are not such tensors."""
        super().__init__()
        self.own = {storage(one) for one in given}
        self.faults: list[str] = []

    def saw(self, name: str, args: tuple, output: Any) -> None:
        copied = args[-1] if name == "copy_" else args[0] if args else None
        self.own |= {storage(one) for one in tree_leaves(output) if isinstance(one, Tensor)}
        before = isinstance(copied, Tensor) and storage(copied) not in self.own
        if name in COPIES and before and differs(copied, args[0] if name == "copy_" else output):
            self.faults.append(f"{name} of {copied.dtype} {tuple(copied.shape)}")
        if name in WAITS or name == "lift_fresh" or name.startswith(RESIZES):
            self.faults.append(name)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def differs(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.device) != (b.dtype, b.device)


@contextmanager
def watched_layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The faults of each call of a layer of a UNet under control, from the second step on."""
    from diffusion_path.host.unet import LayerPatch

    found: list[list[str]] = []
    first: list[float] = []
    own = LayerPatch.__call__

    def call(self: LayerPatch, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        first.append(float(options["sigmas"][0]))
        if first[-1] == first[0]:
            return own(self, q, k, v, options)
        with InLayer((q, k, v)) as seen:
            output = own(self, q, k, v, options)
        found.append(seen.faults)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(LayerPatch, "__call__", call)
        yield found


@pytest.fixture(scope="module")
def half(comfy: Path) -> Family:
    return family_of("sd15", dtype=torch.bfloat16)


def painted(family: Family) -> tuple:
    from diffusion_path.edits.paint_with_words import PaintWithWords

    mask = torch.zeros(1, 64, 96)
    mask[..., :48] = 1
    return (PaintWithWords(prompt=family.pair.target, columns=(2,), mask=mask),)


INJECT = ("PromptToPrompt", {"word_overrides": "new: 0.2-0.6\nthing: 0", "self_limit": 64})
REWEIGHT = ("Reweight", {"words": "new: 3"})
BLEND = ("LocalBlend", {"source_words": "old", "target_words": "new", "subtract_words": "thing"})
CHAINS: dict[str, Callable[[Family], tuple]] = {
    "Prompt-to-Prompt": lambda family: family.edits(INJECT),
    "Reweight": lambda family: family.edits(REWEIGHT),
    "Local Blend": lambda family: family.edits(BLEND),
    "Paint with Words": painted,
    "all": lambda family: family.edits(INJECT, REWEIGHT, BLEND) + painted(family),
}


@pytest.mark.parametrize("apart", [False, True], ids=["in one call", "in two"])
@pytest.mark.parametrize("name", CHAINS)
def test_no_layer_copies_to_the_card_or_waits_for_it(
    half: Family, monkeypatch: pytest.MonkeyPatch, name: str, apart: bool
):
    import comfy.model_patcher

    if apart:
        free = "get_free_memory"
        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, free, lambda self, device: 0)
    with watched_layers(monkeypatch) as layers:
        half.edit(edits=CHAINS[name](half))
    assert len(layers) >= 5 * 2 * 4
    assert not any(layers), sorted({fault for faults in layers for fault in faults})


def test_no_layer_copies_to_the_card_for_attention_maps(
    half: Family, monkeypatch: pytest.MonkeyPatch
):
    vae = results("DemoModel")[2]
    with watched_layers(monkeypatch) as layers:
        inputs = {"model": half.model, "path": half.path, "prompts": half.pair, "vae": vae}
        results("AttentionMaps", **inputs)
    assert layers and not any(layers), sorted({fault for faults in layers for fault in faults})


class Waits(Operations):
    """Counts how often the processor waits for a number that is made of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def saw(self, name: str, args: tuple, output: Any) -> None:
        self.count += name in WAITS


class Lists(TorchFunctionMode):
    """Counts what reads a tensor's memory by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (Tensor.tolist, Tensor.numpy)
        return func(*args, **(kwargs or {}))


def waits(model: Any, run: Callable[[], Any]) -> list[int]:
    """How often the processor waits from each call of the network to the next."""
    numbers, lists, counts = Waits(), Lists(), []
    network = model.model.diffusion_model
    handle = network.register_forward_hook(lambda *_: counts.append(numbers.count + lists.count))
    try:
        with numbers, lists:
            run()
    finally:
        handle.remove()
    return [after - before for before, after in pairwise(counts)]


@pytest.mark.parametrize("name", ["no edits", *CHAINS])
def test_a_step_waits_for_the_card_no_oftener_than_comfyuis_own(half: Family, name: str):
    """The first one may, to find out where in the model's schedule the edits' windows are."""
    import comfy.sample
    import comfy.samplers

    latent, sampler = half.path.clean, comfy.samplers.ksampler("euler")
    inputs = (CFG, sampler, half.path.sigmas, half.target, half.negative, latent)

    def theirs() -> None:
        with torch.inference_mode():
            comfy.sample.sample_custom(half.model, latent, *inputs, disable_pbar=True)

    chain = () if name == "no edits" else CHAINS[name](half)
    own = waits(half.model, lambda: half.edit(edits=chain))
    assert len(own) == STEPS - 1
    assert max(own[1:]) <= min(waits(half.model, theirs)[1:])
