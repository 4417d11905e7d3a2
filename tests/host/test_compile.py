"""Under torch.compile a run's patches stay the same objects, and nothing is compiled at each step.

ComfyUI's own code breaks the graph in places, with or without us; what counts here is when.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import results
from diffusion_path.tests.nodes.test_attention import Family, assert_changed, family_of
from diffusion_path.tests.seam.patches import compiled

STEPS = 8
ENDED = 4
"""The step from which on nothing is injected."""


@pytest.fixture(scope="module")
def smallest(comfy: Path) -> Family:
    """One level, and no block in the middle, as KOALA has none."""
    import comfy.supported_models

    config = tiny_models.UNET | {
        "context_dim": 16,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [1, 0],
        "transformer_depth_middle": -2,
    }
    model = tiny_models.attentive(tiny_models.patcher(comfy.supported_models.SD15, config))
    family = family_of("sd15")
    inputs = {"positive": family.path.positive, "latent_image": {"samples": family.path.clean}}
    path = results("DDIMInversion", model=model, steps=STEPS, **inputs)[0]
    return family._replace(model=model, path=path)


def test_a_unet_without_a_middle_is_edited(smallest: Family):
    edits = smallest.edits(("PromptToPrompt", {"self_limit": 64}))
    assert_changed(smallest.edit(edits=edits), smallest.edit(edits=()), 1e-3)


def test_nothing_is_compiled_again_until_the_injection_ends(
    smallest: Family, monkeypatch: pytest.MonkeyPatch
):
    from torch._dynamo.utils import counters

    from diffusion_path.host import guider

    edits = smallest.edits(("PromptToPrompt", {"cross_replace": 0.5, "self_replace": 0.5}))
    wanted = smallest.edit(edits=edits)
    assert_changed(wanted, smallest.edit(edits=()), 1e-3)

    graphs: list[int] = []
    predict = guider.predict

    def counted(*args: Any) -> Any:
        found = predict(*args)
        graphs.append(counters["stats"]["unique_graphs"])
        return found

    monkeypatch.setattr(guider, "predict", counted)
    torch._dynamo.reset()
    counters.clear()
    found = smallest.edit(model=compiled(smallest.model), edits=edits)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert len(graphs) == STEPS and graphs[0] > 4
    assert graphs[1] == graphs[ENDED - 1] < graphs[ENDED] == graphs[-1]
    ours = [name for name in counters["resumes"] if "cross_attention" in name or "maps" in name]
    assert not ours, "what may change from step to step was compiled"
