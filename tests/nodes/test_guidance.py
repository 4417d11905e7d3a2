"""The node Guidance with the demo's CLIP, which sees what the demo models make."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_path.tests.calls import call, network_calls, refused, results

STEPS = 8
TEXT = "a red heart on a blue background"


class Demo(NamedTuple):
    """A demo model, its CLIP vision model, and no prompt."""

    kind: str
    model: Any
    clip: Any
    vae: Any
    vision: Any
    empty: list

    def inputs(self, **inputs: Any) -> dict[str, Any]:
        given = {"vae": self.vae, "clip_vision": self.vision, "clip": self.clip, "text": TEXT}
        return given | inputs

    def guidance(self, **inputs: Any) -> tuple:
        return results("Guidance", **self.inputs(**inputs))[0]

    def record(self, edits: tuple = (), batch: int = 1, **inputs: Any) -> tuple[Any, Tensor]:
        """A path that is generated, and its latent."""
        given = {
            "model": self.model,
            "positive": self.empty,
            "negative": self.empty,
            "latent_image": {"samples": torch.zeros(batch, 4, 16, 16)},
            "steps": STEPS,
            "spacing": "leading" if self.kind == "unet" else "simple",
            "cfg": 1.0,
            "edits": edits,
        }
        path, latent = results("RecordPath", **given | inputs)
        return path, latent["samples"]

    def picture(self, latent: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.vae.decode(latent)

    def likeness(self, latent: Tensor, text: str) -> Tensor:
        """The cosine of a picture and a text in the space of CLIP (B,)."""
        from diffusion_path.host.clip import text_vector

        with torch.inference_mode():
            seen = self.vision.encode_image(self.picture(latent)).image_embeds
            wanted = text_vector(self.clip, text, seen.shape[-1])
        return torch.cosine_similarity(seen, wanted)


@pytest.fixture(scope="module")
def demo(comfy: Path, request: pytest.FixtureRequest) -> Demo:
    kind = getattr(request, "param", "unet")
    model, clip, vae, _ = results("DemoModel", kind=kind)
    (vision,) = results("DemoCLIPVision")
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    return Demo(kind, model, clip, vae, vision, empty)


each_demo = pytest.mark.parametrize("demo", ["unet", "flow"], indirect=True)


@pytest.mark.parametrize("objects", [1, 2])
def test_the_demos_clip_finds_the_caption_of_a_picture(demo: Demo, objects: int):
    import numpy as np

    from diffusion_path.demo.world import caption, random_scene, render
    from diffusion_path.host.clip import text_vector

    rng = np.random.default_rng(3)
    scenes = [random_scene(rng, "held_out", objects) for _ in range(40)]
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).float() / 255
    captions = [caption(scene) for scene in scenes]
    with torch.inference_mode():
        seen = demo.vision.encode_image(images).image_embeds
        texts = torch.cat([text_vector(demo.clip, one, 128) for one in captions])
    found = (torch.nn.functional.normalize(seen, dim=-1) @ texts.T).argmax(dim=1).tolist()
    right = [captions[number] == wanted for number, wanted in zip(found, captions, strict=True)]
    assert sum(right) >= 0.9 * len(right)


@each_demo
def test_a_text_pulls_the_picture_to_it(demo: Demo):
    _, plain = demo.record(seed=4)
    _, pulled = demo.record(demo.guidance(cutouts=0), seed=4)
    assert demo.likeness(pulled, TEXT) > demo.likeness(plain, TEXT) + 0.1


@each_demo
@pytest.mark.parametrize("guide", ["picture", "style of the picture"])
def test_a_reference_pulls_the_picture_to_it(demo: Demo, guide: str):
    from diffusion_path.host.clip import Eye, distance, gram
    from diffusion_path.nodes.guidance import style_distance

    with torch.inference_mode():
        red = torch.zeros(1, 128, 128, 3)
        red[..., 0] = 0.9
    eye = Eye(demo.vae, demo.vision, 0)
    scale = 100.0 if guide == "picture" else 1000.0
    edits = demo.guidance(guide=guide, reference=red, scale=scale, cutouts=0)
    found = []
    for chain in ((), edits):
        _, latent = demo.record(chain, seed=1)
        with torch.inference_mode():
            vector, tokens = eye.of_picture(demo.picture(latent))
            wanted, wanted_tokens = eye.of_picture(red)
            if guide == "picture":
                found.append(float(distance(vector, wanted)))
            else:
                found.append(float(style_distance(tokens, gram(wanted_tokens))))
    assert found[1] < 0.9 * found[0]


@each_demo
def test_two_pictures_are_pulled_as_each_alone(demo: Demo):
    edits = demo.guidance(scale=50.0, end=0.4)
    path, _ = demo.record(batch=2, seed=3)
    given = {"model": demo.model, "cfg": 1.0, "edits": edits}
    given |= {"positive": demo.empty, "negative": demo.empty}
    both = results("Sampler", path=path, **given)[0]["samples"]
    for i in range(2):
        one = path._replace(latents=path.latents[:, i : i + 1])
        alone = results("Sampler", path=one, **given)[0]["samples"]
        # Many steps of gradients make rounding larger.
        assert (both[i : i + 1] - alone).norm() < 0.01 * alone.norm()


def test_a_scale_of_0_is_plain_sampling(demo: Demo):
    assert torch.equal(demo.record(demo.guidance(scale=0.0))[1], demo.record()[1])


def test_it_leaves_the_models_as_they_were(demo: Demo):
    networks = (demo.model.model, demo.vae.first_stage_model, demo.vision.model)
    before = [[weight.clone() for weight in one.parameters()] for one in networks]
    demo.record(demo.guidance(end=0.3))
    for network, weights in zip(networks, before, strict=True):
        assert all(map(torch.equal, network.parameters(), weights))
        assert all(weight.grad is None for weight in network.parameters())
    assert "diffusion path" not in demo.model.additional_models


def test_a_model_without_a_gradient_is_refused_in_a_sentence(demo: Demo):
    def apart(apply: Any, given: dict[str, Any]) -> Tensor:
        return apply(given["input"], given["timestep"], **given["c"]).detach()

    model = demo.model.clone()
    model.set_model_unet_function_wrapper(apart)
    with pytest.raises(ValueError, match=r"has no gradient.*take the patches off"):
        demo.record(demo.guidance(end=0.3), model=model)


def test_a_model_that_gradients_cannot_go_through_is_refused_before_it_is_called(demo: Demo):
    (two,) = results("Experts", high_noise=demo.model, low_noise=demo.model)[:1]
    with (
        network_calls(demo.model) as calls,
        pytest.raises(ValueError, match=r"Record Path.*two models that take turns"),
    ):
        demo.record(demo.guidance(), model=two)
    assert calls.calls == 0


def test_its_models_are_loaded_with_the_model(demo: Demo):
    from diffusion_path.core.edit import Edit
    from diffusion_path.host.guider import with_models

    edits: tuple[Edit, ...] = demo.guidance()
    beside = with_models(demo.model, edits).get_nested_additional_models()
    assert {one.model for one in beside} == {demo.vae.patcher.model, demo.vision.patcher.model}
    assert with_models(demo.model, ()) is demo.model


def test_a_text_that_is_missing_is_refused(demo: Demo):
    refused(
        "Guidance",
        "guide is prompt, but text is empty; connect clip and write text",
        **demo.inputs(text=" "),
    )
    refused(
        "Guidance",
        "guide is prompt, but clip is not connected; connect clip and write text",
        **demo.inputs(clip=None),
    )


def test_a_reference_that_is_missing_is_refused(demo: Demo):
    refused(
        "Guidance",
        "guide is picture, but reference is empty; connect a picture",
        **demo.inputs(guide="picture"),
    )


def test_a_text_encoder_without_a_projection_is_refused(demo: Demo, comfy: Path):
    _, clip, *_ = results("DemoModel")
    projection = clip.cond_stage_model.clip_l.transformer.text_projection
    with torch.inference_mode():
        own = projection.weight.clone()
        try:
            projection.weight.copy_(torch.eye(128))
            said = "this clip has no projection into the space of pictures"
            refused("Guidance", said, **demo.inputs(clip=clip))
        finally:
            projection.weight.copy_(own)


def test_a_vision_model_of_another_width_or_kind_is_refused(demo: Demo):
    from comfy.clip_vision import ClipVisionModel

    config = demo.vision.config
    wide = ClipVisionModel({**config, "projection_dim": 64})
    refused(
        "Guidance",
        "clip_vision sees vectors 64 wide, and clip writes 128",
        **demo.inputs(clip_vision=wide),
    )
    refused(
        "Guidance",
        "clip_vision is a siglip_vision_model, which has no vector for a picture",
        **demo.inputs(clip_vision=ClipVisionModel({**config, "model_type": "siglip_vision_model"})),
    )


def test_a_window_without_a_step_is_refused(demo: Demo):
    from diffusion_path.tests.calls import node

    found = node("Guidance").validate_inputs(start=0.5, end=0.5)
    assert "start 0.5 is not before end 0.5" in str(found)


def test_what_pulls_is_said_in_the_history(demo: Demo):
    """A run under the sampler reports its calls, the one with a gradient among them."""
    path, _ = demo.record()
    output = call(
        "Sampler",
        model=demo.model,
        path=path,
        positive=demo.empty,
        negative=demo.empty,
        cfg=1.0,
        edits=demo.guidance(end=0.5),
    )
    (figures,) = output.ui["report"]
    assert STEPS < figures["evaluations"] < 2 * STEPS
