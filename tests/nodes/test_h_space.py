"""h-space: its nodes on real networks, against patches made by hand on ComfyUI's own hook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, network_calls, refused, results, state

STEPS, CFG = 4, 3.0
SOURCE, TARGET, NEGATIVE, TOWARDS, BASE = (
    tiny_models.conditioning(16, seed=seed) for seed in range(5)
)
SIZE = {"samples": torch.zeros(2, 4, 8, 12)}
SCALE = 20.0  # random weights answer weakly


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sharpen(tiny_models.sd15())


@pytest.fixture(scope="module")
def path(model: Any) -> Any:
    picture = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    inputs = {"positive": SOURCE, "latent_image": {"samples": picture}, "steps": STEPS}
    return results("DDIMInversion", model=model, **inputs)[0]


@pytest.fixture(scope="module")
def vae(comfy: Path) -> Any:
    return results("DemoModel")[2]


@pytest.fixture(scope="module")
def found(model: Any, vae: Any) -> tuple[Any, Tensor]:
    return directions(model, vae)


def directions(model: Any, vae: Any, batch: int = 2, **inputs: Any) -> tuple[Any, Tensor]:
    """Directions of the random model, and their sheet."""
    given = {"model": model, "vae": vae, "positive": SOURCE, "negative": NEGATIVE, "steps": STEPS}
    given |= {"pictures": 4, "count": 2, "cfg": CFG, "seed": 5, "spacing": "simple"}
    size = {"latent_image": {"samples": torch.zeros(batch, 4, 8, 12)}}
    return results("HSpaceDirections", **(given | size | inputs))


def h_space(**inputs: Any) -> tuple:
    """The chain of one edit in h-space."""
    return results("HSpace", **({"scale": SCALE} | inputs))[0]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_at_scale_0_nothing_is_edited_bit_for_bit_and_nothing_more_is_asked(model, path):
    found = []
    for edits in ((), h_space(towards=TOWARDS, base=BASE, scale=0.0)):
        with network_calls(model, 2) as calls:
            found.append(edited(model, path, TARGET, NEGATIVE, cfg=CFG, edits=edits))
        assert calls.evaluations == 2 * STEPS
    assert torch.equal(*found)


def by_hand(model: Any, path: Any, step: Callable[..., Tensor], theirs: Any = None) -> Tensor:
    """ComfyUI's own sampling machinery around `step(x, sigma, below, plain, shifted)`.

    `plain` and `shifted` are the target's estimates without guidance: the second with h moved by
    SCALE times the difference between the two prompts.
    """
    import comfy.samplers

    wanted: dict[str, Any] = {"added": 0.0, "h": None}

    def hook(given: dict[str, Any]) -> dict[str, Any]:
        wanted["h"] = given["h"].clone()
        return {**given, "h": given["h"] + wanted["added"]}

    patched = model.clone()
    if theirs is not None:
        patched.set_model_middle_block_after_patch(theirs)
    patched.set_model_middle_block_after_patch(hook)

    def loop(network, noise, sigmas, extra_args, callback, disable):
        guider = network.inner_model

        def ask(name: str, added: Any = 0.0) -> Tensor:
            wanted["added"] = added
            conds, options = [guider.conds[name]], guider.model_options
            sigma_of = sigma * x.new_ones(len(x))
            (denoised,) = comfy.samplers.calc_cond_batch(
                guider.inner_model, conds, x, sigma_of, options
            )
            return denoised

        x = model.model.process_latent_in(path.latents[0])
        for sigma, below in pairwise(sigmas):
            plain = ask("positive")
            h = {name: ask(name) is not None and wanted["h"] for name in ("towards", "base")}
            shifted = ask("positive", SCALE * (h["towards"] - h["base"]))
            x = step(x, sigma, below, plain, shifted)
        return x

    guider = comfy.samplers.CFGGuider(patched)
    guider.inner_set_conds({"positive": TARGET, "towards": TOWARDS, "base": BASE})
    sampler = comfy.samplers.KSAMPLER(loop)
    with torch.inference_mode():
        return guider.sample(torch.zeros_like(path.clean), path.clean, sampler, path.sigmas, seed=0)


def euler(x: Tensor, sigma: Tensor, below: Tensor, plain: Tensor, shifted: Tensor) -> Tensor:
    return x + (below - sigma) * (x - shifted) / sigma


def asyrp(x: Tensor, sigma: Tensor, below: Tensor, plain: Tensor, shifted: Tensor) -> Tensor:
    """The paper's step, in its coordinates: latents of unit variance."""
    alpha, alpha_below = 1 / (1 + sigma**2), 1 / (1 + below**2)
    x_t, noises = x * alpha**0.5, [(x - one) / sigma for one in (plain, shifted)]
    picture = (x_t - (1 - alpha) ** 0.5 * noises[1]) / alpha**0.5
    x_below = alpha_below**0.5 * picture + (1 - alpha_below) ** 0.5 * noises[0]
    return x_below / alpha_below**0.5


@pytest.mark.parametrize(
    ("shifted", "step"), [("picture only", asyrp), ("whole step", euler)], ids=["asyrp", "whole"]
)
def test_a_walk_is_the_papers_equation_around_comfyuis_own_hook(model, path, shifted, step):
    edits = h_space(towards=TOWARDS, base=BASE, shifted=shifted)
    latent = edited(model, path, TARGET, NEGATIVE, cfg=1.0, edits=edits)
    torch.testing.assert_close(latent, by_hand(model, path, step), rtol=1e-4, atol=1e-4)
    plain = edited(model, path, TARGET, NEGATIVE, cfg=1.0)
    assert distance(latent, plain) > 0.01


def test_without_a_base_the_prompt_of_the_sampler_is_the_base(model, path):
    given = {"cfg": CFG, "negative": NEGATIVE, "positive": TARGET}
    own, said = (
        edited(model, path, edits=h_space(towards=TOWARDS, **base), **given)
        for base in ({}, {"base": TARGET})
    )
    torch.testing.assert_close(own, said, rtol=1e-4, atol=1e-4)


def test_the_shift_is_no_stronger_under_guidance(model, path):
    """One step: what it adds to the guided prediction is what it adds to the plain one."""
    moved = []
    for cfg in (1.0, CFG):
        given = {"model": model, "path": path, "positive": TARGET, "negative": NEGATIVE, "cfg": cfg}
        shifted, plain = (
            results("Sampler", edits=edits, **given)[2].latents[1]
            for edits in (h_space(towards=TOWARDS), ())
        )
        moved.append(shifted - plain)
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("base", "cost"), [(None, 3), (BASE, 4)], ids=["own", "given"])
def test_it_costs_two_model_calls_a_step_and_one_for_a_base(model, path, base, cost):
    edits = h_space(towards=TOWARDS, base=base, end=0.5)
    with network_calls(model, 2) as calls:
        edited(model, path, TARGET, NEGATIVE, cfg=1.0, edits=edits)
    assert calls.evaluations == 2 * cost + 2  # 2 of the 4 steps begin in the first half


def test_outside_its_window_it_changes_nothing(model, path):
    given = {"model": model, "path": path, "positive": TARGET, "negative": NEGATIVE, "cfg": 1.0}
    late, plain = (
        results("Sampler", edits=edits, **given)[2].latents
        for edits in (h_space(towards=TOWARDS, start=0.5), ())
    )
    assert torch.equal(late[:3], plain[:3])
    assert not torch.equal(late[3], plain[3])


def test_two_pictures_are_edited_as_each_alone_is(model, path):
    edits = h_space(towards=TOWARDS, base=BASE)
    both = edited(model, path, TARGET, NEGATIVE, cfg=CFG, edits=edits)
    for i in range(2):
        alone = path._replace(latents=path.latents[:, i : i + 1])
        latent = edited(model, alone, TARGET, NEGATIVE, cfg=CFG, edits=edits)
        torch.testing.assert_close(latent, both[i : i + 1], rtol=1e-4, atol=1e-4)


def test_another_packs_patch_of_the_middle_block_comes_first_and_stays(model, path):
    def theirs(given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "h": given["h"] * 1.5 + 0.2}

    patched = model.clone()
    patched.set_model_middle_block_after_patch(theirs)
    before = state(patched)
    edits = h_space(towards=TOWARDS, base=BASE)
    latent = edited(patched, path, TARGET, NEGATIVE, cfg=1.0, edits=edits)
    wanted = by_hand(model, path, asyrp, theirs)
    torch.testing.assert_close(latent, wanted, rtol=1e-4, atol=1e-4)
    assert distance(latent, edited(model, path, TARGET, NEGATIVE, cfg=1.0, edits=edits)) > 1e-3
    assert state(patched) == before


def test_it_adds_to_what_another_edit_of_the_prediction_makes(model, path):
    """Behind MDP Epsilon at full weight the first step is the source's, and the shift's change."""
    given = {"model": model, "path": path, "positive": TARGET, "negative": NEGATIVE, "cfg": 1.0}

    def first(edits: tuple) -> Tensor:
        return results("Sampler", edits=edits, **given)[2].latents[1]

    def mdp() -> tuple:
        return results("MDPEpsilon", weight=1.0, start=0.0, end=1.0)[0]

    change = first(h_space(towards=TOWARDS)) - first(())
    wanted = path.latents[1] + change
    both = first(h_space(towards=TOWARDS, edits=mdp()))
    torch.testing.assert_close(both, wanted, rtol=1e-4, atol=1e-4)


def ksampler(model: Any, batch: int, number_of: int = STEPS) -> Tensor:
    """What ComfyUI's own KSampler makes of the directions' prompts and seed."""
    import nodes

    with torch.inference_mode():
        (latent,) = nodes.KSampler().sample(
            model,
            5,
            number_of,
            CFG,
            "euler",
            "simple",
            SOURCE,
            NEGATIVE,
            {"samples": torch.zeros(batch, 4, 8, 12)},
        )
    return latent["samples"]


def test_directions_are_the_components_of_what_comfyuis_hook_sees(model, found):
    seen: list[Tensor] = []

    def hook(given: dict[str, Any]) -> dict[str, Any]:
        options = given["transformer_options"]
        parts = zip(options["cond_or_uncond"], given["h"].chunk(2), strict=True)
        seen.extend(part.clone() for side, part in parts if side == 0)
        return given

    patched = model.clone()
    patched.set_model_middle_block_after_patch(hook)
    ksampler(patched, batch=4)
    rows = torch.stack(seen, dim=1).flatten(1)
    _, singular, axes = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    components = found[0].components.flatten(1)
    torch.testing.assert_close((components @ axes[:2].T).abs(), torch.eye(2), rtol=0, atol=1e-3)
    wanted = singular[:2] / 3**0.5
    torch.testing.assert_close(found[0].deviations, wanted, rtol=1e-3, atol=1e-4)


def test_a_direction_is_what_a_patch_of_the_same_steps_adds(model, found):
    """Record Path with the edit, against KSampler with ComfyUI's hook; the condition alone."""
    scale = 1e3  # the two pictures hardly differ there
    added = found[0].components[1] * found[0].deviations[1] * scale
    step = iter(added)

    def hook(given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "h": given["h"] + next(step)}

    import nodes

    patched = model.clone()
    patched.set_model_middle_block_after_patch(hook)
    with torch.inference_mode():
        (wanted,) = nodes.KSampler().sample(
            patched, 5, STEPS, 1.0, "euler", "simple", SOURCE, NEGATIVE, SIZE
        )
    edits = h_space(directions=found[0], number=2, shifted="whole step", scale=scale)
    given = {"model": model, "positive": SOURCE, "negative": NEGATIVE, "latent_image": SIZE}
    given |= {"seed": 5, "steps": STEPS, "cfg": 1.0, "spacing": "simple"}
    latent = results("RecordPath", edits=edits, **given)[1]["samples"]
    torch.testing.assert_close(latent, wanted["samples"], rtol=1e-4, atol=1e-4)
    assert distance(latent, results("RecordPath", **given)[1]["samples"]) > 0.01


def test_directions_do_not_depend_on_how_many_pictures_are_made_at_a_time(model, vae, found):
    again = directions(model, vae)
    assert torch.equal(again[0].components, found[0].components)
    assert torch.equal(again[1], found[1])
    for batch in (1, 3):
        other, _ = directions(model, vae, batch)
        torch.testing.assert_close(other.components, found[0].components, rtol=1e-3, atol=1e-3)
    other, _ = directions(model, vae, seed=6)
    assert distance(other.components, found[0].components) > 0.1


def test_the_sheet_has_a_row_for_each_direction_and_the_picture_as_it_is_in_the_middle(
    model, vae, found
):
    sheet, (rows, columns) = found[1][0], (2, 3)
    height, width = (sheet.shape[0] - 6) // rows, (sheet.shape[1] - 12) // columns
    with torch.inference_mode():
        plain = vae.decode(ksampler(model, 4)[:1])[0]
    factor = width // plain.shape[1]
    for row in range(rows):
        tiles = [
            sheet[row * (height + 6) :, column * (width + 6) :][
                : factor * plain.shape[0] : factor, :width:factor
            ]
            for column in range(columns)
        ]
        torch.testing.assert_close(tiles[1], plain.cpu(), rtol=0, atol=1e-3)
        assert not torch.equal(tiles[0], tiles[2])


def test_what_cannot_work_is_refused(model, vae, found):
    flow = results("DemoModel", kind="flow")
    prompt = flow[1].encode_from_tokens_scheduled(flow[1].tokenize("a pear"))
    channels = flow[0].get_model_object("latent_format").latent_channels
    given = {"model": flow[0], "positive": prompt, "negative": prompt, "steps": 2}
    size = {"samples": torch.zeros(1, channels, 16, 16)}
    no_unet = "is the middle of a UNet"
    edits = h_space(towards=prompt)
    refused("RecordPath", no_unet, "FlowEdit", latent_image=size, edits=edits, **given)
    refused("HSpaceDirections", no_unet, vae=flow[2], latent_image=size, **given)
    given = {"scale": 1.0, "start": 0.0, "end": 1.0, "number": 1, "shifted": "whole step"}
    one = "either towards, a prompt, or directions"
    refused("HSpace", one, **given)
    refused("HSpace", one, **given, towards=TOWARDS, directions=found[0])
    refused("HSpace", "number is 2, and no", **(given | {"number": 2}), towards=TOWARDS)
    refused("HSpace", "base is a prompt", **given, directions=found[0], base=BASE)
    refused("HSpace", "there are 2 directions", **(given | {"number": 3}), directions=found[0])
    refused("HSpace", "start 0.5 is not before", **(given | {"start": 0.5, "end": 0.5}))
    given = {"model": model, "vae": vae, "positive": SOURCE, "negative": NEGATIVE}
    given |= {"latent_image": SIZE, "pictures": 4}
    refused("HSpaceDirections", "4 pictures have 3 directions at most", count=4, **given)
    refused("HSpaceDirections", "scale is 0", count=2, scale=0.0, **given)


def test_directions_of_another_size_are_refused_by_the_sampler(model, path, found):
    small = {"samples": torch.zeros(1, 4, 8, 8)}
    given = {"model": model, "positive": SOURCE, "negative": NEGATIVE, "latent_image": small}
    edits = h_space(directions=found[0])
    refused("RecordPath", "latents of 4 x 8 x 12", edits=edits, **given)


def test_a_prompt_for_a_part_of_the_steps_is_refused(model, path):
    part = [[TOWARDS[0][0], {"start_percent": 0.5, "end_percent": 1.0}]]
    with pytest.raises(ValueError, match="does not act at every step") as refusal:
        edited(model, path, TARGET, NEGATIVE, cfg=1.0, edits=h_space(towards=part))
    assert str(refusal.value).endswith(".")


def test_on_the_demo_the_judge_sees_the_other_background_and_the_thing_that_is_gone(comfy: Path):
    from diffusion_path.benchmarks.batch import Batch, Demo, to_uint8
    from diffusion_path.benchmarks.edits import draw_edits
    from diffusion_path.demo.judge import Judge

    edits = [one for one in draw_edits("tune", 4) if one.kind in ("background", "remove")]
    with torch.inference_mode():
        batch = Batch(Demo.load(), edits)
        given = {"model": batch.demo.model, "positive": batch.source, "steps": 20}
        path, _ = results("DDIMInversion", latent_image=batch.latent, **given)
        ways = {"positive": batch.source, "negative": batch.empty, "cfg": 1.0}
        found = []
        for chain in ((), h_space(towards=batch.target, scale=1.0)):
            latent = edited(batch.demo.model, path, edits=chain, **ways)
            pictures = to_uint8(batch.decode({"samples": latent}))
            found.append(Judge.load().verdict(pictures))
    plain, shifted = found
    for edit, before in zip(edits, plain, strict=True):
        assert before[0] == edit.source.background
        assert len(before[1]) == len(edit.source.objects)
    there = Counter(
        edit.kind
        for edit, after in zip(edits, shifted, strict=True)
        if after[0] == edit.target.background
        and after[1] == tuple(one.name for one in edit.target.objects)
    )
    assert there["remove"] >= 3 and there["background"] >= 2  # of four each


def test_the_grid_of_values_knows_its_knobs(model, path):
    chains, *_ = results("EditGrid", edits=h_space(towards=TOWARDS), knob="scale", values="0, 2")
    assert [chain[0].scale for chain in chains] == [0.0, 2.0]
    assert replace(chains[0][0], scale=SCALE).towards is TOWARDS
    plain, none = (edited(model, path, TARGET, NEGATIVE, cfg=1.0, edits=e) for e in ((), chains[0]))
    assert torch.equal(plain, none)


def test_the_node_tells_the_variance_and_the_sampler_its_hint(model, vae, path):
    given = {"model": model, "vae": vae, "positive": SOURCE, "negative": NEGATIVE, "steps": STEPS}
    given |= {"pictures": 3, "count": 1, "latent_image": SIZE, "cfg": 1.0}
    told = call("HSpaceDirections", **given).ui["text"][0]
    assert "of the variance" in told and "5 pictures generated" in told
    edits = h_space(towards=TARGET, scale=0.01)
    told = results(
        "Sampler", model=model, path=path, positive=SOURCE, negative=NEGATIVE, cfg=1.0, edits=edits
    )[4]
    assert "h-space" in told
