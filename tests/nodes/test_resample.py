"""Resampling on a network in the real ComfyUI: in our sampler, in the guider, while recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, network_calls, refused, results, text

STEPS, JUMP, PASSES, CFG = 8, 3, 3, 3.0
WALKED = STEPS + 2 * JUMP * (PASSES - 1)
"""The stretches are from step 1 to 4 and from 4 to 7."""
SOURCE, TARGET, NEGATIVE = (tiny_models.conditioning(16, seed=seed) for seed in range(3))


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


@pytest.fixture(scope="module")
def path(model: Any) -> Any:
    inputs = {"positive": SOURCE, "latent_image": {"samples": picture()}, "steps": STEPS}
    return results("DDIMInversion", model=model, **inputs)[0]


@pytest.fixture(scope="module")
def ways(model: Any, path: Any) -> dict[str, Any]:
    return {"model": model, "path": path, "positive": TARGET, "negative": NEGATIVE, "cfg": CFG}


def picture() -> Tensor:
    return torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))


def left() -> Tensor:
    """A mask of the left half."""
    return (torch.arange(96) < 48).float().expand(1, 64, 96)


def resampled(masked: bool = True, **inputs: Any) -> tuple:
    """Mask Blend and then Resample."""
    edits = results("MaskBlend", mask=left())[0] if masked else ()
    inputs = {"jump": JUMP, "resamplings": PASSES, "edits": edits} | inputs
    return results("Resample", **inputs)[0]


def test_it_changes_the_picture_inside_the_mask_and_outside_it_is_the_source(ways, path):
    plain = edited(**ways, edits=results("MaskBlend", mask=left())[0])
    found = edited(**ways, edits=resampled())
    assert torch.equal(found[..., 6:], path.clean[..., 6:])
    inside = found[..., :6] - plain[..., :6]
    assert float(inside.norm() / plain[..., :6].norm()) > 0.05
    assert bool((inside.flatten(1).norm(dim=1) > 0.1).all())


def test_one_pass_is_plain_bit_for_bit(ways):
    plain = edited(**ways, edits=results("MaskBlend", mask=left())[0])
    assert torch.equal(edited(**ways, edits=resampled(resamplings=1)), plain)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_samplers_seed_decides(ways, eta: float):
    once, again, other = (
        edited(**ways, edits=resampled(), seed=seed, eta=eta) for seed in (3, 3, 4)
    )
    assert torch.equal(once, again)
    assert not torch.allclose(once, other, atol=1e-3)


def test_the_report_counts_every_pass(ways, model):
    with network_calls(model, batch=2) as calls:
        told = call("Sampler", **ways, edits=resampled())
    assert calls.evaluations == 2 * WALKED
    (figures,) = told.ui["report"]
    assert figures["evaluations"] == 2 * WALKED
    assert f"{2 * WALKED} model calls" in text(told)


def test_the_path_that_comes_out_holds_the_last_visit_of_each_level(ways, path, monkeypatch):
    from diffusion_path.host import guider

    visits: list[tuple[float, Tensor]] = []
    walked = guider.walk

    def watched(predict: Any, step: Any, transitions: Any, solver: Any, edits: Any, keep: Any, *a):
        levels = iter([transitions[0][0], *(after for _, after in transitions)])

        def keeps(x: Tensor) -> None:
            visits.append((next(levels), x.clone()))
            keep(x)

        return walked(predict, step, transitions, solver, edits, keeps, *a)

    monkeypatch.setattr(guider, "walk", watched)
    out = results("Sampler", **ways, edits=resampled())[2]
    assert torch.equal(out.sigmas, path.sigmas)
    assert len(visits) == 1 + WALKED + 2 * (PASSES - 1)
    last = dict(visits)
    assert list(last) == path.sigmas.tolist()
    latents = ways["model"].model.process_latent_out(torch.stack(list(last.values())))
    torch.testing.assert_close(out.latents, latents, rtol=0, atol=1e-5)


def test_progress_and_previews_count_every_step_and_every_jump(ways, monkeypatch):
    import comfy.utils

    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, *_, **__: told.append((value, total)),
    )
    edited(**ways, edits=resampled())
    total = WALKED + 2 * (PASSES - 1)
    assert {of for _, of in told} == {total}  # ComfyUI leaves out some that come fast
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (total, total)


def custom(ways: dict[str, Any], sampler: Any, edits: tuple, seed: int = 0) -> Tensor:
    """What SamplerCustomAdvanced makes with our guider."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    guider, noise, sigmas, image = results("Guider", **ways, edits=edits, seed=seed)
    with torch.inference_mode():
        out = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, image)
    return out.args[0]["samples"]


def test_with_the_guider_and_path_sampler_it_is_the_same(ways):
    found = custom(ways, results("PathSampler")[0], resampled(), seed=5)
    wanted = edited(**ways, edits=resampled(), seed=5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_sampler_of_comfyuis_own_is_refused(ways, model):
    from comfy_extras.nodes_custom_sampler import KSamplerSelect

    euler = KSamplerSelect.execute("euler").args[0]
    with network_calls(model) as calls, pytest.raises(ValueError) as refusal:
        custom(ways, euler, resampled())
    message = str(refusal.value)
    assert message.startswith("Diffusion Path Guider: ") and message.endswith(".")
    assert "Resample" in message and "connect Path Sampler" in message
    assert calls.calls == 0


def test_other_levels_of_the_path_sampler_without_a_stretch_are_refused(ways):
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    guider, noise, sigmas, image = results("Guider", **ways, edits=resampled())
    few, sampler = sigmas[[0, 4, -1]], results("PathSampler")[0]
    with torch.inference_mode(), pytest.raises(ValueError, match=r"^Path Sampler: .*lower jump"):
        SamplerCustomAdvanced.execute(noise, guider, sampler, few, image)


@pytest.mark.parametrize("whole", [False, True])
def test_while_recording_it_works_with_a_latents_own_mask(model, whole: bool):
    """What is kept is put back by ComfyUI, with the noise of each level."""
    latent = {"samples": picture()}
    if not whole:
        latent["noise_mask"] = left()
    ways = {"model": model, "positive": TARGET, "negative": NEGATIVE, "latent_image": latent}
    ways |= {"steps": STEPS, "cfg": CFG, "spacing": "simple"}

    def recorded(edits: tuple) -> Tensor:
        path, out = results("RecordPath", edits=edits, **ways)
        assert len(path.latents) == STEPS + 1
        return out["samples"]

    plain, found = recorded(()), recorded(resampled(masked=False))
    assert torch.equal(recorded(resampled(masked=False, resamplings=1)), plain)
    assert not torch.allclose(found[..., :6], plain[..., :6], atol=1e-2)
    if not whole:
        torch.testing.assert_close(found[..., 6:], picture()[..., 6:], rtol=0, atol=1e-4)


def test_it_jumps_over_the_switch_of_two_models(ways, model, path):
    """The noisier half is the first one's at each pass."""
    low = tiny_models.sd15(seed=1)
    both = results("Experts", high_noise=model, low_noise=low, switch_at=0.5)[0]
    with network_calls(model, batch=2) as of_high, network_calls(low, batch=2) as of_low:
        edited(**ways | {"model": both}, edits=resampled())
    # 4 steps each; the stretches have the steps 1, 2, 3 and 4, 5, 6
    again = 3 * (PASSES - 1)
    assert (of_high.evaluations, of_low.evaluations) == (2 * (4 + again), 2 * (4 + again))
    with network_calls(model, batch=2) as of_high, network_calls(low, batch=2) as of_low:
        edited(**ways | {"model": both}, edits=resampled(jump=5, resamplings=2))
    # one stretch, of the steps 2 to 6
    assert (of_high.evaluations, of_low.evaluations) == (2 * (4 + 2), 2 * (4 + 3))


def test_a_path_with_noise_of_its_own_is_refused(model, ways):
    for solver in ("ddpm", "sde-dpm++"):
        inputs = {"positive": SOURCE, "latent_image": {"samples": picture()}, "steps": STEPS}
        path = results("DDPMInversion", model=model, cfg=1.0, solver=solver, **inputs)
        inputs = ways | {"path": path[0], "edits": resampled(), "eta": 1.0}
        refused("Sampler", "noise of its own", **inputs)


def test_a_stretch_that_does_not_fit_is_refused_before_anything_runs(model, ways):
    refused("Sampler", "lower jump", **ways, edits=resampled(jump=STEPS))
    refused("Sampler", "lower jump", **ways, edits=resampled(end=0.2))
    refused("Sampler", "lower jump", **ways, edits=resampled(), start=0.75)
    refused("Guider", "lower jump", **ways, edits=resampled(jump=STEPS))
    refused("Sampler", "twice", **ways, edits=resampled(edits=resampled()))
    latent = {"latent_image": {"samples": picture()}, "steps": STEPS, "cfg": CFG}
    recorded = {"model": model, "positive": TARGET, "negative": NEGATIVE, **latent}
    refused("RecordPath", "lower jump", **recorded, edits=resampled(False, jump=STEPS))


def test_a_window_without_a_step_is_refused():
    refused("Resample", "start 0.5 is not before end 0.5", start=0.5, end=0.5)
