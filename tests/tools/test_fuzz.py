"""The fuzzer: what it takes for a failure of ours, and a short run of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_path.tools.fuzz import Fuzzer, Tally
from diffusion_path.tools.fuzz_files import TENSORS, Files
from diffusion_path.tools.fuzz_graphs import OURS
from diffusion_path.tools.fuzz_rewrites import smaller_workflows, source_latent, twin_of
from diffusion_path.tools.fuzz_verdicts import (
    CORE,
    OK,
    RAW,
    REFUSED,
    SENTENCE,
    Verdict,
    judge_failure,
)
from diffusion_path.tools.host import Server, Workflow
from diffusion_path.tools.setup import PACK

NAMES = {"Mask Blend", "Load Path"}
PACK_FILE = f"/somewhere/custom_nodes/{PACK}/nodes/diffedit.py"
CORE_FILE = "/somewhere/comfy/samplers.py"


def traceback(error: str, *frames: tuple[str, str, str]) -> str:
    """A traceback as Python prints it."""
    lines = [f'  File "{file}", line 7, in {name}\n    {code}\n' for file, name, code in frames]
    return "Traceback (most recent call last):\n" + "".join(lines) + f"{error}\n"


def failed(kind: str, error: str, log: str) -> Verdict:
    """The verdict on a history that tells of `error`, a type and a message."""
    exception, _, message = error.partition(": ")
    data = {
        "node_id": "3",
        "node_type": kind,
        "exception_type": exception,
        "exception_message": f"{message}\n",
        "traceback": [],
    }
    return judge_failure(data, f"!!! Exception during processing !!! {message}\n{log}\n", NAMES)


def test_an_error_inside_a_node_of_ours_is_ours():
    error = "IndexError: index 0 is out of bounds"
    log = traceback(error, (PACK_FILE, "execute", "shrink(mask)"), (CORE_FILE, "shrink", "mask[0]"))
    verdict = failed("DiffusionPath_MaskBlend", error, log)
    assert (verdict.kind, verdict.node) == (RAW, "3")
    assert verdict.key == "IndexError at nodes/diffedit.py:execute"


def test_a_sentence_that_we_raise_is_none():
    log = traceback(
        "ValueError: the mask is empty; paint it", (PACK_FILE, "check", "raise ValueError(")
    )
    log += "\nThe above exception was the direct cause of the following exception:\n\n"
    error = "ValueError: Mask Blend: the mask is empty; paint it."
    log += traceback(
        error, (PACK_FILE, "named", "raise ValueError(f'{name}: {error}.') from error")
    )
    assert failed("DiffusionPath_MaskBlend", error, log).kind == SENTENCE


@pytest.mark.parametrize(
    "frame",
    [(PACK_FILE, "kept", "round(strength)"), (CORE_FILE, "kept", "raise ValueError(strength)")],
)
def test_another_s_words_with_our_name_before_them_are_not_a_sentence_of_ours(frame):
    log = traceback("ValueError: cannot convert NaN", (PACK_FILE, "execute", "kept()"), frame)
    log += "\nThe above exception was the direct cause of the following exception:\n\n"
    error = "ValueError: Mask Blend: cannot convert NaN."
    log += traceback(error, (PACK_FILE, "named", "raise ValueError(message) from error"))
    assert failed("DiffusionPath_MaskBlend", error, log).kind == RAW


@pytest.mark.parametrize(
    "message",
    [
        "Mask Blend: the mask is empty",
        "Mask Blend: the mask is empty. Paint it.",
        "Mask Blend: the mask\nis empty.",
        "the mask is empty; paint it.",
        "Mask Blend: embedded null byte.",
    ],
)
def test_a_sentence_is_one_and_names_the_node(message):
    log = traceback(f"ValueError: {message}", (PACK_FILE, "check", "raise ValueError("))
    assert failed("DiffusionPath_MaskBlend", f"ValueError: {message}", log).kind == RAW


def test_a_name_with_full_stops_is_quoted_in_one_sentence():
    message = "Load Path: '../a. b' lies outside the input folder; use a name inside it."
    log = traceback(f"ValueError: {message}", (PACK_FILE, "check", "raise ValueError("))
    assert failed("DiffusionPath_LoadPath", f"ValueError: {message}", log).kind == SENTENCE


def test_an_error_in_a_stock_node_is_ours_only_if_our_files_are_in_it():
    error = "RuntimeError: shapes differ"
    log = traceback(error, (CORE_FILE, "sample", "model(x)"))
    assert failed("KSampler", error, log).kind == CORE
    log = traceback(error, (CORE_FILE, "sample", "model(x)"), (PACK_FILE, "patch", "x + y"))
    assert failed("KSampler", error, log).kind == RAW


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    """On a server of its own: the front end cannot read a history with a NaN in it."""
    with Server() as server:
        fuzzer = Fuzzer(server)
        yield fuzzer
        fuzzer.files.remove()


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def sampled(strength: float = 1.0, **patch: Any) -> Workflow:
    """An inversion, with its results kept."""
    workflow = {
        "1": node(OURS + "DemoModel"),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a red apple"),
        "3": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
        "4": node("VAEEncode", pixels=["3", 0], vae=["1", 2]),
        "5": node(
            OURS + "DDIMInversion",
            model=["1", 0],
            positive=["2", 0],
            latent_image=["4", 0],
            steps=2,
            spacing="leading",
            strength=strength,
            fixed_point_iterations=0,
            cfg=1.0,
        ),
        "6": node("SaveLatent", samples=["5", 1], filename_prefix="fuzz/test"),
        "7": node("SaveLatent", samples=["4", 0], filename_prefix="fuzz/test"),
    }
    if patch:
        workflow["8"] = node(patch.pop("kind"), model=["1", 0], **patch)
        workflow["5"]["inputs"]["model"] = ["8", 0]
    return workflow


def test_each_kind_of_end_has_its_verdict(fuzzer: Fuzzer):
    assert fuzzer.verdict(sampled()).kind == OK
    without_steps = sampled()
    without_steps["5"]["inputs"]["steps"] = -1
    assert fuzzer.verdict(without_steps).kind == REFUSED
    for strength in (0.0, 2.0):
        verdict = fuzzer.verdict(sampled(strength=strength))
        assert verdict.kind == SENTENCE
        assert "Invert Picture (DDIM Inversion): strength" in verdict.message
    outside = {
        "1": node(OURS + "LoadPath", file="../x.safetensors"),
        "2": node(OURS + "SavePath", path=["1", 0], filename_prefix="x"),
    }
    verdict = fuzzer.verdict(outside)
    assert verdict.kind == SENTENCE and verdict.message.startswith("Load Path: '../x")


def test_what_fails_in_a_ksampler_too_is_the_core_s_fault(fuzzer: Fuzzer):
    patched = {"kind": "PatchModelAddDownscale", "block_number": 1, "downscale_factor": 9.0}
    patched |= {"start_percent": 0.0, "end_percent": 1.0, "downscale_after_skip": True}
    patched |= {"downscale_method": "bicubic", "upscale_method": "bicubic"}
    workflow = sampled(**patched)
    workflow["3"]["inputs"] |= {"width": 32, "height": 32}
    assert fuzzer.verdict(workflow).kind == CORE


def test_a_result_of_another_size_or_with_nan_in_it_is_ours(fuzzer: Fuzzer, monkeypatch):
    from diffusion_path.tools import fuzz
    from diffusion_path.tools.fuzz_verdicts import Made

    workflow = sampled()
    right, small = Made(8, 8), Made(4, 8)
    for broken, key in ((small, "size"), (Made(8, 8, finite=False), "not finite")):
        found = {("4", 0): right, ("5", 1): broken}
        monkeypatch.setattr(fuzz, "measure", lambda *_, found=found: found)
        verdict = fuzzer._judge_outputs(workflow, {})
        assert (verdict.kind, verdict.key) == (RAW, f"{key}: DiffusionPath_DDIMInversion 1")


def test_a_twin_samples_with_what_the_node_was_given_and_without_it(fuzzer: Fuzzer):
    workflow = sampled(kind="RescaleCFG", multiplier=0.5)
    twin = twin_of(workflow, "5", fuzzer.info)
    assert twin is not None
    assert twin["twin"]["inputs"]["model"] == ["8", 0]
    assert twin["twin"]["inputs"]["latent_image"] == ["4", 0]
    assert not any(one["class_type"].endswith("DDIMInversion") for one in twin.values())
    assert fuzzer.verdict(twin).kind == OK


def test_the_size_of_a_result_is_that_of_the_picture_its_path_was_made_from():
    workflow = sampled() | {"9": node(OURS + "Sampler", path=["5", 0])}
    assert source_latent(workflow, "9") == ("4", 0)
    assert source_latent({"1": node(OURS + "LoadPath", file="x")}, "1") is None


def test_smaller_workflows_lack_what_they_can_do_without(fuzzer: Fuzzer):
    workflow = sampled(kind="RescaleCFG", multiplier=0.5)
    smaller = list(smaller_workflows(workflow, fuzzer.info))
    past = [one for one in smaller if "5" in one and one["5"]["inputs"]["model"] == ["1", 0]]
    assert past and "8" not in past[0]
    assert any("7" not in one for one in smaller)
    assert all("6" in one or "7" in one for one in smaller)


def test_the_same_seed_gives_the_same_workflows(fuzzer: Fuzzer):
    first, again, other = (fuzzer.grammar(seed) for seed in (3, 3, 4))
    texts = [
        [json.dumps(grammar.workflow()) for _ in range(30)] for grammar in (first, again, other)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_every_node_of_ours_comes_up(fuzzer: Fuzzer):
    grammar = fuzzer.grammar(0)
    seen = {one["class_type"] for _ in range(400) for one in grammar.workflow().values()}
    assert {name for name in fuzzer.info if name.startswith(OURS)} <= seen
    assert {"KSampler", "SamplerCustomAdvanced", "FreeU_V2", "CropMask", "SplitSigmas"} <= seen


def test_every_wrong_path_file_can_be_written(fuzzer: Fuzzer, tmp_path: Path):
    files = Files(tmp_path)
    for name, data in fuzzer.files.base.items():
        files.add(name, data)
    names = {name for group in files.names() for name in group}
    assert len(names) > 20 * len(TENSORS)
    files.write(json.dumps(sorted(names)))
    assert names <= {file.name for file in tmp_path.iterdir()}
    files.remove()
    assert not list(tmp_path.iterdir())


def test_a_short_run_finds_no_error_of_ours(fuzzer: Fuzzer):
    grammar, tally = fuzzer.grammar(6), Tally()
    for number in range(50):
        workflow = grammar.workflow()
        tally.add(number, fuzzer.verdict(workflow), workflow)
    assert tally.kinds[OK] >= 5, tally.table()
    assert not tally.raw, "\n".join(
        f"{verdict.key}: {verdict.message}\n{json.dumps(workflow)}"
        for _, verdict, workflow in tally.raw.values()
    )
