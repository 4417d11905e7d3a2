"""What a walk holds at a time: no more of it for a longer path.

Here ordinary memory and the device are one. What has gone out through `latent_out` counts as
ordinary memory, and so does what was there before; all else that an operation makes is the device's
for as long as it lives.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_path.tests.calls import results
from diffusion_path.tests.seam.workflow import Setting, demo

SHORT, LONG = 4, 16


class Held(TorchDispatchMode):
    """Bytes of the tensors that are made inside, and are still alive.

    Attributes:
        now: at this moment.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.ends: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {key(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        output = func(*args, **kwargs)
        for one in tree_leaves(output):
            if isinstance(one, Tensor) and key(one) not in known | self.ends.keys():
                self._begin(one)
        return output

    def _begin(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size, at = storage.nbytes(), storage._cdata
        self.now += size
        self.peak = max(self.peak, self.now)
        self.ends[at] = weakref.finalize(storage, self._end, at, size)

    def _end(self, at: int, size: int) -> None:
        del self.ends[at]
        self.now -= size

    def sent_home(self, tensor: Tensor) -> None:
        """From here on it is in ordinary memory."""
        end = self.ends.get(key(tensor))
        if end is not None:
            end()


def key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """What is held beyond what there was before."""
    from diffusion_path.host.denoiser import ComfyDenoiser

    held, own = Held(), ComfyDenoiser.latent_out

    def latent_out(self: ComfyDenoiser, latent: Tensor) -> Tensor:
        out = own(self, latent)
        held.sent_home(out)
        return out

    gc.collect()
    with monkeypatch.context() as patch, held:
        patch.setattr(ComfyDenoiser, "latent_out", latent_out)
        yield held


@pytest.fixture(scope="module")
def paths(comfy: Path) -> dict[int, Any]:
    return {steps: demo().invert(steps=steps) for steps in (SHORT, LONG)}


MASK = torch.zeros(1, 64, 64)
MASK[..., 32:] = 1
WORDS = {"source_words": "apple", "target_words": "pear", "start": 0.0}
WINDOWS = {"cross_replace": 1.0, "self_replace": 1.0, "self_limit": 64}


def edits(setting: Setting, *names: str) -> tuple:
    """A chain of edits that act at every step."""
    inputs: dict[str, dict[str, Any]] = {
        "MDPEpsilon": {"weight": 0.7, "start": 0.0, "end": 1.0},
        "MDPCondition": {"weight": 0.7, "end": 1.0},
        "MDPLatent": {"weight": 0.7, "end": 1.0},
        "MDPGuidance": {"weight": 0.7, "end": 1.0},
        "MaskBlend": {"mask": MASK},
        "PromptToPrompt": {"prompts": setting.pair, **WINDOWS},
        "Reweight": {"prompts": setting.pair, "words": "pear: 3"},
        "LocalBlend": {"prompts": setting.pair, **WORDS},
    }
    chain: tuple = ()
    for name in names:
        chain = results(name, edits=chain, **inputs[name])[0]
    return chain


def walked(setting: Setting, path: Any, *names: str) -> None:
    setting.sample(path, edits(setting, *names))


CHAINS = [
    (),
    ("MDPEpsilon",),
    ("MDPCondition",),
    ("MDPLatent",),
    ("MDPGuidance",),
    ("MaskBlend",),
    ("PromptToPrompt",),
    ("LocalBlend",),
    ("PromptToPrompt", "Reweight", "LocalBlend", "MaskBlend"),
]


@pytest.mark.parametrize("names", CHAINS, ids=lambda names: " ".join(names) or "no edits")
def test_a_longer_walk_holds_no_more(
    paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
):
    peaks = []
    for steps in (SHORT, SHORT, LONG):
        with on_the_device(monkeypatch) as held:
            walked(demo(), paths[steps], *names)
        peaks.append(held.peak)
    print(peaks)
