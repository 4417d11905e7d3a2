"""Videos: latents of several frames, through the nodes and a tiny Wan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_path.core.masks import latent_masks
from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import call, edited, refused, results

STEPS, CFG = 4, 3.0
FRAMES, LENGTH = 3, 9  # of a latent, and of its video
HEIGHT, WIDTH = 64, 96  # of the video
SOURCE, TARGET, NEGATIVE = (tiny_models.prompt("wan", seed, tokens=12) for seed in range(3))


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.wan()


@pytest.fixture(scope="module")
def vae(comfy: Path) -> Any:
    return tiny_models.wan_vae()


@pytest.fixture(scope="module")
def path(model: Any) -> Any:
    return straight(model)


def straight(model: Any, latent: dict | None = None, positive: list = SOURCE, **inputs: Any) -> Any:
    """A straight path, by default of one video of three latent frames."""
    latent = latent or tiny_models.picture("wan")
    inputs = {"positive": positive, "latent_image": latent, "steps": STEPS} | inputs
    return results("StraightPath", model=model, **inputs)[0]


def flow_edit(mask: Tensor | None = None, **inputs: Any) -> tuple:
    """FlowEdit in the whole path, and Mask Blend if there is a mask."""
    edits = results("FlowEdit", **({"source_cfg": 2.0, "start": 0.0} | inputs))[0]
    return edits if mask is None else results("MaskBlend", mask=mask, edits=edits)[0]


def sample(model: Any, path: Any, mask: Tensor | None = None, **inputs: Any) -> Tensor:
    """The latent that FlowEdit makes of a path."""
    inputs = {"cfg": CFG, "edits": flow_edit(mask)} | inputs
    return edited(model, path, TARGET, NEGATIVE, **inputs)


def masks(number: int, *white: int) -> Tensor:
    """So many masks, of which these are white in their left half."""
    mask = torch.zeros(number, HEIGHT, WIDTH)
    mask[list(white), :, : WIDTH // 2] = 1
    return mask


def left(*frames: int, batch: int = 1, of: int = FRAMES) -> Tensor:
    """The left half of these latent frames (B, 1, T, h, w)."""
    place = torch.zeros(batch, 1, of, HEIGHT // 8, WIDTH // 8, dtype=torch.bool)
    place[:, :, list(frames), :, : WIDTH // 16] = True
    return place


def assert_only_changed(latent: Tensor, source: Tensor, place: Tensor) -> None:
    """The source bit for bit outside `place` (B, 1, T, h, w), and something else in it."""
    place = place.expand_as(source)
    assert torch.equal(latent[~place], source[~place])
    assert float((latent[place] - source[place]).abs().min()) > 0


# straight paths


def noises(model: Any, path: Any) -> Tensor:
    """The noise of each latent of a straight path but the last (N, B, C, T, h, w)."""
    latents = model.model.process_latent_in(path.latents.flatten(0, 1)).unflatten(0, (-1, 1))
    levels = path.sigmas[:-1].view(-1, *[1] * 5)
    return (latents[:-1] - (1 - levels) * latents[-1]) / levels


@pytest.mark.parametrize("noise", ["fresh", "one"])
def test_the_noise_of_every_frame_is_its_own(model, noise: str):
    found = noises(model, straight(model, noise=noise))
    assert abs(float(found.std()) - 1) < 0.05
    levels = found.flatten(1)[:2].corrcoef()[0, 1]
    assert levels > 0.999 if noise == "one" else abs(levels) < 0.1
    for one in found[:, 0]:
        frames = one.movedim(1, 0).flatten(1).corrcoef() - torch.eye(FRAMES)
        assert float(frames.abs().max()) < 0.1


def test_the_first_noise_is_that_of_comfyuis_samplers(model):
    import comfy.sample

    found = noises(model, straight(model, seed=7))[0]
    wanted = comfy.sample.prepare_noise(found, 7)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# FlowEdit


def velocity(model: Any, x: Tensor, sigma: float, prompt: list) -> Tensor:
    """What the network itself predicts, dx/dsigma of a flow."""
    clean = model.model.apply_model(x, torch.tensor([sigma]), c_crossattn=prompt[0][0])
    return (x - clean) / sigma


def test_flow_edit_goes_where_the_paper_says(model, path):
    """Its loop written out, on the network itself (Kulikov et al., algorithm 1)."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    inner, levels = model.model, path.sigmas.tolist()
    with torch.inference_mode():
        source = inner.process_latent_in(path.clean)
        x = source
        for i, (sigma, after) in enumerate(pairwise(levels)):
            noisy = inner.process_latent_in(path.latents[i])
            there = velocity(model, x + noisy - source, sigma, TARGET)
            x = x + (after - sigma) * (there - velocity(model, noisy, sigma, SOURCE))
        wanted = inner.process_latent_out(x)
    mine = sample(model, path, cfg=1.0, edits=flow_edit(source_cfg=1.0))
    torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-3)
    changed = (mine - path.clean).movedim(2, 0).flatten(1).norm(dim=1)
    assert float(changed.min()) > 0.05 * float(path.clean[:, :, 0].norm())


def test_the_sources_own_prompt_gives_the_source(model, path):
    latent = edited(model, path, SOURCE, NEGATIVE, cfg=2.0, edits=flow_edit())
    torch.testing.assert_close(latent, path.clean, rtol=0, atol=1e-5)


# masks


@pytest.mark.parametrize(
    ("mask", "frames"),
    [
        (masks(1, 0), (0, 1, 2)),
        (masks(LENGTH, 0), (0,)),
        (masks(LENGTH, 1), (1,)),
        (masks(LENGTH, 4), (1,)),
        (masks(LENGTH, 5, 6), (2,)),
        (masks(LENGTH, 0, 8), (0, 2)),
        (masks(FRAMES, 1), (1,)),
    ],
)
def test_outside_the_masks_each_frame_is_the_source(model, path, mask, frames):
    assert_only_changed(sample(model, path, mask), path.clean, left(*frames))


def test_a_frame_of_the_latent_may_change_where_any_of_its_frames_may():
    mask = torch.zeros(LENGTH, 8, 8)
    mask[1, :, :4], mask[3, :4], mask[6] = 1.0, 0.5, 0.25
    wanted = torch.zeros(1, 1, FRAMES, 8, 8)
    wanted[:, :, 1, :4], wanted[:, :, 1, :, :4], wanted[:, :, 2] = 0.5, 1.0, 0.25
    assert torch.equal(latent_masks(mask, (1, 16, FRAMES, 8, 8)), wanted)


def test_a_model_says_how_many_frames_a_latents_frame_holds(model):
    import comfy.latent_formats

    class Eight(comfy.latent_formats.Wan21):
        temporal_downscale_ratio = 8  # as LTX

    other = model.clone()
    other.add_object_patch("latent_format", Eight())
    path = straight(other)
    assert_only_changed(sample(other, path, masks(17, 9)), path.clean, left(2))
    said = ("9 masks for a video of 3 latent frames", "or 17 (one for each frame)")
    refuse(other, path, *said, mask=masks(LENGTH, 1))


def refuse(model: Any, path: Any, *said: str, mask: Tensor) -> None:
    inputs = {"positive": TARGET, "negative": NEGATIVE, "edits": flow_edit(mask)}
    refused("Sampler", *said, model=model, path=path, **inputs)


@pytest.mark.parametrize("number", [2, 4, 5, 8, 12, 13])
def test_another_number_of_masks_is_refused(model, path, number: int):
    fitting = "give 1 or 3 (one for each latent frame) or 9 (one for each frame)"
    refuse(model, path, f"{number} masks for a video of 3 latent", fitting, mask=masks(number))


def test_each_video_of_a_batch_may_have_a_mask(model):
    path = straight(model, tiny_models.picture("wan", batch=2))
    place = left(0, 1, 2, batch=2)
    place[1] = False
    assert_only_changed(sample(model, path, masks(2, 0)), path.clean, place)
    assert_only_changed(sample(model, path, masks(LENGTH, 2)), path.clean, left(1, batch=2))
    said = ("4 masks for 2 videos", "give 1 or 2 (one for each video) or 3 (one for each latent")
    refuse(model, path, *said, mask=masks(4))


def test_masks_that_may_mean_two_things_are_refused(model):
    path = straight(model, tiny_models.picture("wan", batch=3))
    said = ("one for each video or one for each frame", "give 1 or 9 (one for each frame)")
    refuse(model, path, *said, mask=masks(3, 0))
    assert_only_changed(sample(model, path, masks(LENGTH, 2)), path.clean, left(1, batch=3))


def test_the_samplers_mask_is_one_for_each_frame(model, path):
    given = masks(LENGTH, 0, 5)
    inputs = {"model": model, "path": path, "positive": TARGET, "negative": NEGATIVE, "cfg": CFG}
    latent, _, _, mask, _ = results("Sampler", **inputs, edits=flow_edit(given))
    assert torch.equal(mask, masks(LENGTH, 0, 5, 6, 7, 8))  # the others of the latent's frame too
    assert torch.equal(sample(model, path, mask), latent["samples"])
    assert torch.equal(results("Sampler", **inputs)[3], torch.ones(LENGTH, HEIGHT, WIDTH))
    once = results("Sampler", **inputs, edits=flow_edit(masks(1, 0)))[3]
    assert torch.equal(once, masks(LENGTH, *range(LENGTH)))


def test_a_videos_own_masks_stay_with_its_path_in_a_file(model):
    import nodes as comfy_nodes

    set_mask = comfy_nodes.SetLatentNoiseMask().set_mask
    (latent,) = set_mask(tiny_models.picture("wan"), masks(LENGTH, 3))
    path = straight(model, latent)
    (name,) = call("SavePath", path=path, filename_prefix="diffusion_path/video").ui["text"]
    loaded = results("LoadPath", file=f"{name} [output]")[0]
    assert torch.equal(loaded.latents, path.latents)
    mine = sample(model, loaded)
    assert torch.equal(mine, sample(model, path))
    assert_only_changed(mine, path.clean, left(1))


def test_a_mask_of_diffedit_is_for_pictures(model):
    inputs = {"source": SOURCE, "target": TARGET, "latent_image": tiny_models.picture("wan")}
    refused("DiffEditMask", "video", "Mask Blend", model=model, **inputs)


# other paths, and their preview


def test_an_inverted_video_is_edited_like_a_picture(model):
    inputs = {"positive": SOURCE, "latent_image": tiny_models.picture("wan"), "steps": STEPS}
    path = results("DDIMInversion", model=model, **inputs, solver="euler")[0]
    whole = {"start": 0.0, "end": 1.0}
    for name in ("MDPEpsilon", "MDPLatent"):
        edits = results(name, weight=1.0, **whole)[0]
        torch.testing.assert_close(sample(model, path, edits=edits), path.clean, rtol=0, atol=1e-4)
    for name in ("MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance"):
        edits = results(name, weight=0.5, **whole)[0]
        edits = results("MaskBlend", mask=masks(LENGTH, 7), edits=edits)[0]
        assert_only_changed(sample(model, path, edits=edits), path.clean, left(2))


def test_a_path_of_a_video_is_shown_as_videos(model, path, vae):
    shown = call("PathPreview", path=path, vae=vae, frames=2)
    (images,) = shown.args
    assert images.shape == (2 * LENGTH, HEIGHT, WIDTH, 3)
    with torch.inference_mode():
        video = vae.decode(path.clean)[0]
    torch.testing.assert_close(images[LENGTH:], video)
    assert len(shown.ui["images"]) == 2


# first frames


class Seen:
    """What the network was given (rows, ...), over all its calls."""

    def __init__(self) -> None:
        self.first: list[Tensor] = []
        self.text: list[Tensor] = []
        self.clip: list[Tensor | None] = []
        self.calls = 0

    def rows(self, prompt: list) -> list[int]:
        """The rows of a prompt."""
        wanted = prompt[0][0][0]
        return [
            i
            for i, text in enumerate(self.text)
            if text.shape == wanted.shape and torch.allclose(text, wanted)
        ]


@contextmanager
def watched(model: Any) -> Iterator[Seen]:
    """Look at what the network is given beside the latent's own 16 channels."""
    seen = Seen()

    def hook(module: torch.nn.Module, args: tuple, named: dict) -> None:
        seen.calls += 1
        clip = named.get("clip_fea")
        for i, row in enumerate(args[0]):
            seen.first.append(row[16:].clone())
            seen.text.append(named["context"][i].clone())
            seen.clip.append(None if clip is None else clip[i].clone())

    network = model.model.diffusion_model
    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def with_first_frame(vae: Any, seed: int, *prompts: list) -> list[list]:
    """The prompts through ComfyUI's own node, with a first frame and what CLIP sees in it."""
    import comfy.clip_vision
    from comfy_extras.nodes_wan import WanImageToVideo

    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, HEIGHT, WIDTH, 3, generator=generator)
    view = comfy.clip_vision.Output()
    view.penultimate_hidden_states = torch.randn(1, 7, 1280, generator=generator)
    sizes = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "batch_size": 1}
    made = []
    for prompt in prompts:
        with torch.inference_mode():
            node = WanImageToVideo.execute(
                prompt, prompt, vae, **sizes, start_image=image, clip_vision_output=view
            )
        made.append(node.args[0])
    return made


@pytest.fixture(scope="module")
def i2v(comfy: Path) -> Any:
    return tiny_models.wan_i2v()


def test_source_and_target_see_the_same_first_frame(i2v, vae):
    source, target, negative = with_first_frame(vae, 0, SOURCE, TARGET, NEGATIVE)
    path = straight(i2v, positive=source)
    with watched(i2v) as seen:
        latent = edited(i2v, path, target, negative, cfg=CFG, edits=flow_edit())
    assert seen.calls == STEPS
    assert len(seen.first) == 4 * STEPS - 1  # the first step's latents are the same
    assert len(seen.rows(TARGET)) == len(seen.rows(SOURCE)) == STEPS
    given = i2v.model.process_latent_in(target[0][1]["concat_latent_image"])[0]
    known = torch.zeros(4, FRAMES, HEIGHT // 8, WIDTH // 8)
    known[:, 0] = 1
    for first, clip in zip(seen.first, seen.clip, strict=True):
        assert torch.equal(first, seen.first[0]) and torch.equal(clip, seen.clip[0])
        assert torch.equal(first[:4], known)
        torch.testing.assert_close(first[4:], given)
    assert not torch.equal(latent, path.clean)


def test_each_prompt_has_its_own_first_frame_if_it_is_given_one(i2v, vae):
    """A source whose first frame was edited: the target is to begin with the edited one."""
    (source,) = with_first_frame(vae, 0, SOURCE)
    target, negative = with_first_frame(vae, 1, TARGET, NEGATIVE)
    path = straight(i2v, positive=source)
    with watched(i2v) as seen:
        edited(i2v, path, target, negative, cfg=CFG, edits=flow_edit(source_cfg=1.0))
    of_source, of_target = seen.rows(SOURCE), seen.rows(TARGET)
    assert len(of_source) == len(of_target) == STEPS
    for i, j in zip(of_source, of_target, strict=True):
        assert torch.equal(seen.first[i], seen.first[of_source[0]])
        assert torch.equal(seen.first[j], seen.first[of_target[0]])
        assert not torch.allclose(seen.first[i][4:], seen.first[j][4:])
        assert not torch.equal(seen.clip[i], seen.clip[j])


def test_a_path_with_a_first_frame_can_be_saved_without_clips_view(i2v, vae):
    (source,) = with_first_frame(vae, 0, SOURCE)
    del source[0][1]["clip_vision_output"]
    path = straight(i2v, positive=source)
    (name,) = call("SavePath", path=path, filename_prefix="diffusion_path/first").ui["text"]
    loaded = results("LoadPath", file=f"{name} [output]")[0]
    mine, theirs = (sample(i2v, one) for one in (loaded, path))
    assert torch.equal(mine, theirs)
