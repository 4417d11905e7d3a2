"""What the nodes take where cfg and steps are left to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.core.families import USUAL
from diffusion_path.edits.flow_edit import FAMILIES
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, results, text

FAMILY = {
    "sd15": "SD1.5",
    "sdxl": "SDXL",
    "sd3": "SD3",
    "flux_dev": "Flux dev",
    "qwen_image": "Qwen-Image",
    "z_image": "Z-Image",
    "wan": "Wan",
}
each_model = pytest.mark.parametrize("name", FAMILY)


def walked(name: str, edits: Any = (), steps: int = 4, **inputs: Any) -> Any:
    """What the sampler returns for a path of the model `name`."""
    model = getattr(tiny_models, name)()
    ways = {"model": model, "positive": tiny_models.prompt(name)}
    path = results("DDIMInversion", latent_image=tiny_models.picture(name), steps=steps, **ways)[0]
    ways |= {"positive": tiny_models.prompt(name, 1), "negative": tiny_models.prompt(name, 2)}
    return call("Sampler", path=path, edits=edits, **ways | inputs)


@each_model
def test_cfg_left_open_is_the_models_and_with_flow_edit_flow_edits(comfy: Path, name: str):
    plain, flow = walked(name), walked(name, results("FlowEdit")[0])
    for output, cfg in ((plain, USUAL[FAMILY[name]].cfg), (flow, FAMILIES[FAMILY[name]].cfg)):
        assert output.args[2].cfg == cfg
        assert text(output).endswith(f"cfg {cfg:g} (auto)")
        assert output.ui["report"][0]["cfg"] == cfg
    given = walked(name, cfg=USUAL[FAMILY[name]].cfg)
    assert torch.equal(given.args[0]["samples"], plain.args[0]["samples"])
    assert "auto" not in text(given)


def test_the_settings_that_the_user_has_chosen_decide(comfy: Path):
    edits = results("FlowEdit", settings="SD3")[0]
    assert walked("sd15", edits).args[2].cfg == FAMILIES["SD3"].cfg


def test_uni_edit_is_sampled_at_one(comfy: Path):
    assert walked("sd15", results("UniEdit")[0]).args[2].cfg == 1


def test_no_guidance_at_all_stays_possible(comfy: Path):
    assert walked("sd15", cfg=0.0).args[2].cfg == 0


def test_a_number_between_is_refused(comfy: Path):
    with pytest.raises(ValueError, match="use 0 or more, or -1"):
        walked("sd15", cfg=-0.5)


def test_a_null_text_path_is_sampled_at_what_it_was_made_for(comfy: Path):
    model, prompts = tiny_models.sd15(), [tiny_models.prompt("sd15", seed) for seed in range(3)]
    ways = {"model": model, "positive": prompts[0], "latent_image": tiny_models.picture("sd15")}
    path = results("DDIMInversion", steps=3, **ways)[0]
    null = call("NullTextInversion", model=model, path=path, negative=prompts[2], inner_steps=1)
    assert "cfg 7.5 (auto)" in text(null)
    null = call(
        "NullTextInversion", model=model, path=path, negative=prompts[2], inner_steps=1, cfg=4.0
    )
    ways = {"model": model, "path": null.args[0], "positive": prompts[1], "negative": prompts[2]}
    assert call("Sampler", **ways).args[2].cfg == 4


@each_model
def test_steps_left_open_are_the_models(comfy: Path, name: str):
    model, prompt = getattr(tiny_models, name)(), tiny_models.prompt(name)
    ways = {"model": model, "positive": prompt, "latent_image": tiny_models.picture(name)}
    inverted = call("DDIMInversion", **ways)
    recorded = call("RecordPath", negative=tiny_models.prompt(name, 1), **ways)
    for output in (inverted, recorded):
        assert output.args[0].steps == USUAL[FAMILY[name]].steps
        assert f"as many as suit {FAMILY[name]}" in text(output)
    assert recorded.args[0].cfg == USUAL[FAMILY[name]].cfg


def test_levels_that_are_given_are_not_said_to_be_the_models(comfy: Path):
    model, prompt = tiny_models.sd15(), tiny_models.prompt("sd15")
    ways = {"model": model, "positive": prompt, "latent_image": tiny_models.picture("sd15")}
    levels = torch.tensor([5.0, 1.0, 0.0])
    output = call("DDIMInversion", sigmas=levels, **ways)
    assert output.args[0].steps == 2
    assert "suit" not in text(output)
