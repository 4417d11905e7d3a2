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

from diffusion_path.attention.maps import attention_maps
from diffusion_path.core.path import Source
from diffusion_path.tests.calls import results
from diffusion_path.tests.seam.workflow import Setting, demo

SHORT, LONG = 4, 16


class Held(TorchDispatchMode):
    """Bytes of the tensors that are made inside, and are still alive.

    Attributes:
        now: at this moment.
        peak: the most there were.
        steps: how much there was as each latent was sent home.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.steps: list[int] = []
        self.ends: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = [one for one in tensors(output) if key(one) not in self.ends]
        known = {key(one) for one in tensors((args, kwargs))} if made else set()
        for one in made:
            if key(one) not in known | self.ends.keys():
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
        self.steps.append(self.now)


def tensors(tree: Any) -> list[Tensor]:
    """Those in the arguments or the output of an operation."""
    if isinstance(tree, Tensor):
        return [tree]
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


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
    """A short and a long one; the model is loaded then."""
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
    setting = demo()
    peaks = []
    for path in paths.values():
        with on_the_device(monkeypatch) as held:
            setting.sample(path, edits(setting, *names))
        peaks.append(held.peak)
    assert peaks[0] == peaks[1] > paths[SHORT].clean.nbytes


def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI then asks the network for one condition at a time."""
    import comfy.model_patcher

    name = "get_free_memory"
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, name, lambda self, device: 0)


def test_a_longer_walk_holds_no_more_where_source_and_edit_share_no_call(
    paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch
):
    short_of_memory(monkeypatch)
    test_a_longer_walk_holds_no_more(paths, monkeypatch, CHAINS[-1])


def test_embeddings_of_a_longer_path_are_no_more_either(
    paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch
):
    """In half precision, so that what is made of them on the device is another tensor."""
    from diffusion_path.edits.null_text import NullText

    setting, peaks = demo(), []
    for steps, path in paths.items():
        embeddings = setting.negative[0][0].expand(steps, 1, -1, -1).half()
        own = path._replace(edits=(NullText(embeddings=embeddings),))
        with on_the_device(monkeypatch) as held:
            setting.sample(own)
        peaks.append(held.peak)
    assert peaks[0] == peaks[1]


def assert_no_more(peaks: list[int]) -> None:
    """Than the numbers of the noise levels, which are made here: far less than one latent."""
    levels = (LONG - SHORT) * torch.float32.itemsize
    assert peaks[0] <= peaks[1] <= peaks[0] + levels < peaks[0] + 4 * 8 * 8


@pytest.mark.parametrize("inputs", [{}, {"fixed_point_iterations": 1, "average": 2}], ids=str)
def test_a_longer_inversion_holds_no_more(
    paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any]
):
    peaks = []
    for steps in paths:
        with on_the_device(monkeypatch) as held:
            demo().invert(steps=steps, **inputs)
        peaks.append(held.peak)
    assert_no_more(peaks)


def test_recording_a_longer_path_holds_no_more(
    paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch
):
    peaks = []
    for steps in paths:
        with on_the_device(monkeypatch) as held:
            demo().record(steps=steps, cfg=3.0)
        peaks.append(held.peak)
    assert_no_more(peaks)


def test_maps_of_a_longer_path_are_no_more(paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch):
    from diffusion_path.host.guider import run

    setting, peaks = demo(), []
    prompt = setting.pair.source
    words = [[column] for column in range(len(prompt.tokens))]
    for steps, path in paths.items():

        def look(denoiser: Any, conditions: Any, progress: Any, path: Any = path) -> Tensor:
            ways = denoiser.percent_to_sigma, denoiser.latent_in, conditions["positive"]
            return attention_maps(denoiser, Source(path, *ways), prompt, words)

        prompts, latent = {"positive": path.positive}, path.clean
        with on_the_device(monkeypatch) as held, torch.inference_mode():
            run(setting.model, prompts, latent, path.sigmas, look, steps=steps)
        peaks.append(held.peak)
    assert peaks[0] == peaks[1]


def test_the_sources_attention_is_let_go_with_the_last_step_that_needs_it(
    paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch
):
    short_of_memory(monkeypatch)
    setting = demo()
    inputs = WINDOWS | {"cross_replace": 0.5, "self_replace": 0.5}
    injected = results("PromptToPrompt", prompts=setting.pair, **inputs)[0]
    with on_the_device(monkeypatch) as held:
        setting.sample(paths[SHORT], injected)
    assert len(held.steps) == SHORT + 1
    assert held.steps[1] > 10 * held.steps[-1]


@pytest.mark.parametrize("sampler", ["ours", "euler"])
def test_a_guider_that_stays_holds_nothing_of_the_attention(
    paths: dict[int, Any], monkeypatch: pytest.MonkeyPatch, sampler: str
):
    """ComfyUI keeps it for the next run."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    short_of_memory(monkeypatch)
    setting, path = demo(), paths[SHORT]
    inputs = {"model": setting.model, "path": path, "edits": edits(setting, "PromptToPrompt")}
    inputs |= {"positive": setting.target, "negative": setting.negative}
    guider, noise, levels, latent = results("Guider", **inputs)
    solver = results("PathSampler")[0] if sampler == "ours" else comfy.samplers.ksampler("euler")
    with on_the_device(monkeypatch) as held, torch.inference_mode():
        SamplerCustomAdvanced.execute(noise, guider, solver, levels, latent)
        gc.collect()
    assert held.now < 0.1 * guider.outcome.kept
