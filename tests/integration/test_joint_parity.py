"""Attention control on the demo's flow model, against prompt-to-prompt on joint attention as
published, over the whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel

from diffusion_path.demo import FLOW_TOKENS, MODEL
from diffusion_path.demo.autoencoder import SCALING_FACTOR
from diffusion_path.tests.calls import results
from diffusion_path.tests.reference_joint_attention import (
    Controls,
    Injection,
    JointReference,
    LocalBlend,
    Phrase,
    prompt_to_prompt,
    token_maps,
    word_columns,
    word_map,
)

STEPS, CFG, TOLERANCE = 10, 4.0, 5e-4
HORSE, ZEBRA = "a horse on a blue background", "a zebra on a blue background"


class Side(NamedTuple):
    """A path of the pack's, and the same for the reference, whose latents are of unit variance; and
    what that makes of it under the other prompt without an edit."""

    model: Any
    clip: Any
    path: Any
    latents: list[Tensor]
    plain: Tensor

    def edited(self, *nodes: tuple[str, dict]) -> list[Tensor]:
        """The edited path of the pack, for the reference."""
        pair = {"clip": self.clip, "source_prompt": HORSE, "target_prompt": ZEBRA}
        _, positive, prompts = results("PromptPair", **pair)
        empty, _, _ = results("PromptPair", **pair | {"source_prompt": ""})
        edits: tuple = ()
        for name, inputs in nodes:
            own = {} if name in ("SourceFeatures", "PaintWithWords") else {"prompts": prompts}
            edits = results(name, edits=edits, **own, **inputs)[0]
        given = {"model": self.model, "path": self.path, "positive": positive, "negative": empty}
        return in_diffusers(results("Sampler", cfg=CFG, edits=edits, **given)[2])


def in_diffusers(path: Any) -> list[Tensor]:
    return list(path.latents * SCALING_FACTOR)


@pytest.fixture(scope="module")
def reference() -> JointReference:
    transformer = FluxTransformer2DModel.from_pretrained(
        MODEL / "transformer", torch_dtype=torch.float32
    )
    text_encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder")
    return JointReference(transformer.eval(), text_encoder.eval(), STEPS)


@pytest.fixture(scope="module", params=["recorded", "straight"])
def side(request: pytest.FixtureRequest, comfy: Path, reference: JointReference) -> Side:
    """A horse, sampled with guidance; and the same picture on a straight path."""
    model, clip, *_ = results("DemoModel", kind="flow")
    prompts = {"clip": clip, "source_prompt": HORSE, "target_prompt": ""}
    horse, empty, _ = results("PromptPair", **prompts)
    levels = {"model": model, "positive": horse, "sigmas": torch.tensor(reference.sigmas)}
    start = {"samples": torch.zeros(1, 4, 16, 16)}
    path, image = results(
        "RecordPath", negative=empty, latent_image=start, seed=1, cfg=CFG, **levels
    )
    if request.param == "straight":
        (path,) = results("StraightPath", latent_image=image, noise="one", seed=2, **levels)
    latents = in_diffusers(path)
    plain = reference.run(latents, HORSE, ZEBRA, "", None, CFG)
    return Side(model, clip, path, latents, plain[-1])


def watched() -> set[int]:
    """The blocks whose maps the pack looks at."""
    from diffusion_path.host.dit import FLUX_MAPS

    return {*FLUX_MAPS[8]}


def assert_same(side: Side, reference: JointReference, controls: Controls, *nodes: Any) -> None:
    ours = side.edited(*nodes)
    theirs = reference.run(side.latents, HORSE, ZEBRA, "", controls, CFG)
    assert error(theirs[-1], side.plain) > 10 * TOLERANCE  # there is something to agree about
    for mine, wanted in zip(ours, theirs, strict=True):
        assert error(mine, wanted) <= TOLERANCE


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_prompt_to_prompt_with_its_defaults_is_the_papers(side: Side, reference: JointReference):
    controls = Controls(injections=[prompt_to_prompt(STEPS)])
    assert_same(side, reference, controls, ("PromptToPrompt", {}))


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("q", "k"), "q and k"),
        (("k", "v"), "k and v"),
        (("v",), "v"),
        (("q", "k", "v"), "q, k and v"),
        (("out",), "features"),
    ],
)
def test_what_is_taken_of_the_source_is_the_references(
    side: Side, reference: JointReference, parts: tuple, name: str
):
    blocks = {0, 1, 4, 5}
    controls = Controls(injections=[Injection(parts, blocks, (0.2, 0.7))])
    given = {"take": name, "blocks": "double 0-1, single 1-2", "start": 0.2, "end": 0.7}
    assert_same(side, reference, controls, ("SourceFeatures", given))


@pytest.mark.parametrize("injected", [True, False], ids=["on injected maps", "on its own maps"])
@pytest.mark.parametrize("factor", [3.0, 0.25])
def test_reweighting_is_a_bias_of_the_scores(
    side: Side, reference: JointReference, factor: float, injected: bool
):
    factors = torch.ones(FLOW_TOKENS)
    factors[word_columns(ZEBRA, "zebra")] = factor
    controls = Controls(factors=factors, reweight=(0.0, 0.8))
    nodes = [("Reweight", {"words": f"zebra: {factor}", "end": 0.8})]
    if injected:
        controls.injections = [prompt_to_prompt(STEPS, 0.5)]
        nodes += [("PromptToPrompt", {"joint_replace": 0.5})]
    assert_same(side, reference, controls, *nodes)


def test_painting_is_a_bias_by_each_rows_largest_score(side: Side, reference: JointReference):
    from diffusion_path.core.diffusion import noise_level

    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    strength = 0.5
    given = {"clip": side.clip, "prompt": ZEBRA, "phrase": "zebra", "mask": mask}
    phrase = Phrase(word_columns(ZEBRA, "zebra"), mask[None], strength)
    kept = list(reference.sigmas)

    controls = Controls(phrases=[phrase])
    at_step = reference.at_step

    def with_levels(*args: Any) -> Any:
        reference.sigmas = [noise_level(sigma, flow=True) for sigma in kept]
        try:
            return at_step(*args)
        finally:
            reference.sigmas = kept

    reference.at_step = with_levels  # type: ignore[method-assign]
    try:
        assert_same(side, reference, controls, ("PaintWithWords", given | {"strength": strength}))
    finally:
        del reference.at_step


def test_local_blend_is_the_references(side: Side, reference: JointReference):
    words = [word_columns(prompt, prompt.split()[1]) for prompt in (HORSE, ZEBRA)]
    blend = LocalBlend(*words, threshold=0.3, start=0.2, blocks=watched())
    controls = Controls(injections=[prompt_to_prompt(STEPS)], blend=blend)
    given = {"source_words": "horse", "target_words": "zebra"}
    nodes = ("PromptToPrompt", {}), ("LocalBlend", given)
    assert_same(side, reference, controls, *nodes)
    kept = (side.edited(*nodes)[-1] == side.latents[-1]).float().mean()
    assert 0.02 < kept < 0.98


def test_the_maps_of_words_are_the_references(side: Side, reference: JointReference):
    from diffusion_path.attention.maps import attention_maps
    from diffusion_path.core.path import Source
    from diffusion_path.host.guider import run

    pair = {"clip": side.clip, "source_prompt": HORSE, "target_prompt": ""}
    prompt = results("PromptPair", **pair)[2].source
    steps = [3, 6]

    def look(denoiser: Any, conditions: dict, progress: Any) -> Tensor:
        positive = conditions["positive"]
        source = Source(side.path, denoiser.percent_to_sigma, denoiser.latent_in, positive)
        columns = [prompt.columns(word) for word in ("horse", "background")]
        return attention_maps(denoiser, source, prompt, columns, steps=steps).cpu()

    prompts = {"positive": side.path.positive}
    with torch.inference_mode():
        ours = run(side.model, prompts, side.path.clean, side.path.sigmas, look, steps=2)[0]
    for word, mine in zip(("horse", "background"), ours, strict=True):
        wanted = torch.zeros(8, 8)
        for i in steps:
            reference.velocity(side.latents[i], reference.sigmas[i], HORSE)
            maps = token_maps(reference.seen, (8, 8), watched())
            wanted += word_map(maps, word_columns(HORSE, word)) / len(steps)
        assert error(mine, wanted) <= TOLERANCE
