"""Cancelled or failed in the middle: nothing stays behind, and the next run is undisturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import during_call, network_calls, results, state
from diffusion_path.tools.host import Server

STEPS = 6
SOURCE, TARGET, NEGATIVE = (tiny_models.conditioning(16, seed=seed) for seed in range(3))
NODES = ["DDIMInversion", "RecordPath", "NullTextInversion", "DiffEditMask", "Sampler"]
NODES += ["OptimizePrompt"]
each_node = pytest.mark.parametrize("name", NODES)
Run = Callable[..., list[torch.Tensor]]


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


@pytest.fixture(scope="module")
def run(model: Any) -> Run:
    """Run a node in STEPS network calls; its tensors."""
    picture = {"samples": torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))}
    prompts = {"positive": TARGET, "negative": NEGATIVE}
    steps = {"latent_image": picture, "steps": STEPS}
    path = results("DDIMInversion", model=model, positive=SOURCE, **steps)[0]
    edits = results("MDPGuidance", weight=0.7, end=1.0)[0]
    inputs: dict[str, dict] = {
        "DDIMInversion": {"positive": SOURCE, **steps},
        "RecordPath": prompts | steps,
        "NullTextInversion": {"path": path, "negative": NEGATIVE, "inner_steps": 1}
        | {"optimizer": "adam", "early_stop": 0.0},
        "DiffEditMask": {
            "source": SOURCE,
            "target": TARGET,
            "latent_image": picture,
            "maps": STEPS,
        },
        "OptimizePrompt": {"positive": TARGET, **steps},
        "Sampler": {"path": path, "edits": edits, "eta": 0.5} | prompts,
    }

    def run(name: str, using: Any = model) -> list[torch.Tensor]:
        outputs = results(name, model=using, **inputs[name])
        if name == "OptimizePrompt":
            outputs = [prompt[0][0] for prompt in outputs]
        prompts_aside = [value for value in outputs if not isinstance(value, list)]
        values = [getattr(value, "latents", value) for value in prompts_aside]
        return [value["samples"] if isinstance(value, dict) else value for value in values]

    return run


def assert_same(run: list[torch.Tensor], undisturbed: list[torch.Tensor]) -> None:
    compared = zip(run, undisturbed, strict=True)
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in compared)


@each_node
@pytest.mark.parametrize("number", [1, 4])
def test_an_interruption_ends_the_run_at_once_and_disturbs_nothing(
    model: Any, run: Run, name: str, number: int
):
    from comfy.model_management import InterruptProcessingException, interrupt_current_processing

    undisturbed, before = run(name), state(model)
    with (
        network_calls(model) as calls,
        during_call(model, number, interrupt_current_processing),
        pytest.raises(InterruptProcessingException),
    ):
        run(name)
    assert calls.calls == number
    assert state(model) == before
    assert_same(run(name), undisturbed)


@each_node
def test_an_exception_in_the_network_comes_through_and_disturbs_nothing(
    model: Any, run: Run, name: str
):
    class OutOfMemory(Exception):
        pass

    def fail() -> None:
        raise OutOfMemory

    undisturbed, before = run(name), state(model)
    with during_call(model, 3, fail), pytest.raises(OutOfMemory):
        run(name)
    assert state(model) == before
    assert_same(run(name), undisturbed)


def test_after_an_interrupted_run_with_a_lora_the_model_is_without_it(model: Any, run: Run):
    from comfy.model_management import InterruptProcessingException, interrupt_current_processing

    undisturbed, before = run("Sampler"), state(model)
    patched = model.clone()
    weights = model.model.state_dict()
    keys = [key for key in weights if key.endswith("attn2.to_k.weight")]
    patched.add_patches({key: (torch.ones_like(weights[key]),) for key in keys}, 0.3)
    with (
        during_call(model, 3, interrupt_current_processing),
        pytest.raises(InterruptProcessingException),
    ):
        run("Sampler", using=patched)
    assert_same(run("Sampler"), undisturbed)
    assert state(model) == before


@each_node
def test_the_progress_bar_moves_from_the_first_step_to_the_last(
    run: Run, name: str, monkeypatch: pytest.MonkeyPatch
):
    """ComfyUI leaves out steps that follow each other within a tenth of a second."""
    import comfy.utils

    seen: list[int] = []

    def watch(value: int, total: int, preview: Any, **_: Any) -> None:
        assert total == STEPS
        seen.append(value)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", watch)
    run(name)
    assert seen == sorted(set(seen))
    assert (seen[0], seen[-1]) == (1, STEPS)


def test_cancel_in_the_browser_ends_a_run_and_the_next_one_works(server: Server):
    def workflow(steps: int) -> dict:
        prompt = {"clip": ["1", 1], "text": "a red apple on a blue background"}
        size = {"width": 128, "height": 128, "batch_size": 1}
        ways = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0]}
        record = ways | {"latent_image": ["3", 0], "seed": 0, "cfg": 5.0, "spacing": "leading"}
        return {
            "1": {"class_type": "DiffusionPath_DemoModel", "inputs": {}},
            "2": {"class_type": "CLIPTextEncode", "inputs": prompt},
            "3": {"class_type": "EmptyLatentImage", "inputs": size},
            "4": {"class_type": "DiffusionPath_RecordPath", "inputs": record | {"steps": steps}},
            "5": {
                "class_type": "DiffusionPath_SavePath",
                "inputs": {"path": ["4", 0], "filename_prefix": "interrupted"},
            },
        }

    kinds = []
    for message in server.watch(workflow(999)):
        kinds.append(message["type"])
        if message["type"] == "progress" and message["data"]["node"] == "4":
            server.interrupt()
    assert kinds[-1] == "execution_interrupted"
    assert server.run(workflow(2))["outputs"]["5"]["text"] == ["interrupted_00001_.safetensors"]
