"""What cannot work is refused in one sentence that names the node, before the network is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_path.tests import tiny_models
from diffusion_path.tests.calls import refused, results

SOURCE, TARGET, NEGATIVE = (tiny_models.conditioning(16, seed=seed) for seed in range(3))


def latent(channels: int = 4, batch: int = 1, height: int = 8, width: int = 12) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {"samples": torch.randn(batch, channels, height, width, generator=generator)}


@pytest.fixture(scope="module")
def model(comfy: Path) -> Any:
    return tiny_models.sd15()


@pytest.fixture(scope="module")
def xl(comfy: Path) -> Any:
    return tiny_models.sdxl()


@pytest.fixture(scope="module")
def path(model: Any) -> Any:
    inputs = {"positive": SOURCE, "latent_image": latent(batch=2), "steps": 4}
    return results("DDIMInversion", model=model, **inputs)[0]


def invert(model: Any, *said: str, **inputs: Any) -> None:
    defaults = {"positive": SOURCE, "latent_image": latent(), "steps": 4}
    refused("DDIMInversion", *said, model=model, **(defaults | inputs))


def record(model: Any, *said: str, **inputs: Any) -> None:
    size = {"samples": torch.zeros(1, 4, 8, 12)}
    defaults = {"positive": SOURCE, "negative": NEGATIVE, "latent_image": size, "steps": 4}
    refused("RecordPath", *said, model=model, **(defaults | inputs))


def find_mask(model: Any, *said: str, **inputs: Any) -> None:
    defaults = {"source": SOURCE, "target": TARGET, "latent_image": latent(), "maps": 1}
    refused("DiffEditMask", *said, model=model, **(defaults | inputs))


def sample(model: Any, path: Any, *said: str, **inputs: Any) -> None:
    defaults = {"positive": TARGET, "negative": NEGATIVE}
    refused("Sampler", *said, model=model, path=path, **(defaults | inputs))


def test_a_path_of_another_model(xl, path):
    prompt = tiny_models.conditioning(16, pooled=1280)
    said = ("model is BaseModel", "this model's is SDXL", "invert or record")
    sample(xl, path, *said, positive=prompt, negative=prompt)


def test_a_path_of_another_latent_format(model, path):
    import comfy.latent_formats

    other = model.clone()
    other.add_object_patch("latent_format", comfy.latent_formats.SDXL())
    sample(other, path, "latent format is SD15", "this model's is SDXL")


def test_a_path_of_another_width_of_text(comfy, path):
    sample(tiny_models.sd2_v(), path, "text width is 16", "this model's is 24")


def test_a_path_of_another_schedule(model, path):
    """A fine-tune that samples from pure noise knows other levels."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    (zsnr,) = ModelSamplingDiscrete().patch(model, "eps", True)
    sample(zsnr, path, "highest noise level is 14.61", "this model's is 4518", "invert or record")


def test_a_path_that_begins_above_the_models_noise(model, path):
    higher = path._replace(sigmas=path.sigmas + 20)
    sample(model, higher, "the path begins at noise level", "highest is 14.61", "invert or record")


@pytest.mark.parametrize("mask", [torch.ones(1, 64, 64), torch.ones(1, 12, 8)])
def test_a_mask_of_other_proportions(model, path, mask):
    edits = results("MaskBlend", mask=mask)[0]
    size = f"{mask.shape[2]} x {mask.shape[1]}"
    sample(model, path, size, "latent is 12 x 8", "make the mask with", edits=edits)


def test_masks_for_another_number_of_images(model, path):
    edits = results("MaskBlend", mask=torch.ones(3, 8, 12))[0]
    sample(model, path, "3 masks for 2 images", "give 1 or 2", edits=edits)


@pytest.mark.parametrize("act", [invert, find_mask])
def test_a_latent_with_other_channels(model, act):
    said = ("latent_image has 16 channels", "works on 4", "own VAE")
    act(model, *said, latent_image=latent(channels=16))


def test_a_picture_with_other_channels_to_record_from(model):
    record(model, "latent_image has 16 channels", latent_image=latent(channels=16))


@pytest.mark.parametrize("act", [invert, find_mask, record])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_latent_with_nan_or_infinity_in_it(model, act, value):
    broken = latent()
    broken["samples"][0, 0, 3, 3] = value
    act(model, "latent_image holds NaN or infinite", "encode", latent_image=broken)


@pytest.mark.parametrize("act", [invert, find_mask])
def test_an_empty_latent_where_a_picture_is_needed(model, act):
    empty = {"samples": torch.zeros(1, 4, 8, 12)}
    act(model, "latent_image is empty", "VAE Encode", latent_image=empty)


def test_a_video_s_latent_to_find_a_mask_in(model):
    video = {"samples": torch.randn(1, 4, 3, 8, 12)}
    find_mask(model, "5 dimensions", "works on 4", "own VAE", latent_image=video)
    import comfy.latent_formats

    class Video(comfy.latent_formats.SD15):
        latent_dimensions = 3

    films = model.clone()
    films.add_object_patch("latent_format", Video())
    find_mask(films, "3 frames", "a picture's latent", latent_image=video)


@pytest.mark.parametrize("name", ["positive", "negative", "source", "target"])
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "holds no prompt; connect the output of CLIP Text Encode"),
        (tiny_models.conditioning(24), "was encoded 24 wide, for another model family"),
    ],
)
def test_prompts_that_are_missing_or_of_another_model(model, path, name, prompt, said):
    given = {name: prompt}
    if name in ("source", "target"):
        find_mask(model, name, said, **given)
        return
    sample(model, path, name, said, **given)
    record(model, name, said, **given)
    invert(model, name, said, cfg=2.0, **({"negative": NEGATIVE} | given))


def test_a_prompt_for_another_kind_of_transformer(comfy):
    sd3 = tiny_models.sd3()
    invert(sd3, "positive was encoded 16 wide", "reads 32", latent_image=latent(channels=16))


@pytest.mark.parametrize("act", [invert, record, find_mask])
def test_a_prompt_without_the_pooled_vector_that_sdxl_needs(xl, act):
    whole = tiny_models.conditioning(16, pooled=1280)
    first = "source" if act is find_mask else "positive"
    others = {"target": whole} if act is find_mask else {"negative": whole}
    act(xl, f"{first} has no pooled vector", "same checkpoint", **{first: SOURCE, **others})


def test_inversion_under_guidance_without_a_negative(model):
    invert(model, "cfg is 2.0", "negative is not connected", cfg=2.0)


@pytest.mark.parametrize("act", [invert, record])
@pytest.mark.parametrize("steps", [-1, 1000])
def test_steps_that_the_model_does_not_have(model, act, steps):
    act(model, f"steps is {steps}", "choose 1 to 999", steps=steps)


@pytest.mark.parametrize("act", [invert, record])
def test_trailing_steps_so_many_that_the_last_goes_nowhere(model, act):
    act(model, "steps is 700", "trailing", "use fewer", steps=700, spacing="trailing")


def test_a_strength_that_leaves_no_step(model):
    """Of four trailing steps the last begins at three quarters of the schedule."""
    said = ("strength 0.2 leaves no step of 4", "raise strength, or use more steps")
    invert(model, *said, strength=0.2, spacing="trailing")
    invert(model, "strength is 0, which leaves no step", strength=0.0)
    find_mask(model, "strength is 0", "raise strength", strength=0.0)


def test_an_average_of_refinements_where_there_are_none(model):
    invert(model, "average is 2 but fixed_point_iterations is 0", average=2)


def test_a_start_that_leaves_no_step(model, path):
    inputs = {"positive": SOURCE, "latent_image": latent(), "steps": 4, "spacing": "trailing"}
    trailing = results("DDIMInversion", model=model, **inputs)[0]
    sample(model, trailing, "start 0.9 leaves no step of 4", "lower it", start=0.9)
    sample(model, path, "start is 1, which leaves no step", "lower start", start=1.0)


@pytest.mark.parametrize("act", [invert, record])
@pytest.mark.parametrize(
    "sigmas",
    [
        torch.tensor([1.0, 2.0, 0.0]),
        torch.tensor([2.0, 2.0, 0.0]),
    ],
)
def test_sigmas_that_do_not_fall(model, act, sigmas):
    act(model, "do not fall at every step", "sigmas that fall", sigmas=sigmas)


@pytest.mark.parametrize("act", [invert, record])
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (float("nan"), "holds nan or inf"),
        (float("inf"), "holds nan or inf"),
        (20.0, "noise levels from 14.61 to 0"),
    ],
)
def test_sigmas_that_the_model_does_not_know(model, act, wrong, why):
    said = (why, "a scheduler of this model")
    act(model, *said, sigmas=torch.tensor([wrong, 2.0, 0.0]))
    act(model, *said, sigmas=torch.tensor([2.0, wrong, 0.0]))


@pytest.mark.parametrize("act", [invert, record])
def test_sigmas_that_end_before_the_picture_is_clean(model, act):
    said = ("sigmas ends at noise level 0.5", "use sigmas that end at 0")
    act(model, *said, sigmas=torch.tensor([2.0, 1.0, 0.5]))


@pytest.mark.parametrize("act", [invert, record])
@pytest.mark.parametrize("sigmas", [torch.tensor([]), torch.tensor([1.0])])
def test_sigmas_without_a_step(model, act, sigmas):
    act(model, f"sigmas holds {len(sigmas)} noise levels", "two or more", sigmas=sigmas)


@pytest.mark.parametrize("name", ["MDPEpsilon", "MDPCondition", "MDPLatent", "MDPGuidance"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.7, 0.2)])
def test_a_window_without_a_step(comfy, name, start, end):
    refused(name, f"start {start} is not before end {end}", start=start, end=end)


def test_a_mask_s_window_without_a_step(comfy):
    mask = torch.ones(1, 8, 12)
    refused("MaskBlend", "start 1 is not before end 1", mask=mask, start=1.0)


def test_a_report_on_pictures_of_two_sizes(comfy):
    before, after = torch.zeros(1, 32, 48, 3), torch.zeros(1, 32, 32, 3)
    refused("EditReport", "before is 48 x 32, after is 32 x 32", before=before, after=after)


def test_a_report_on_another_number_of_pictures(comfy):
    before, after = torch.zeros(2, 32, 48, 3), torch.zeros(3, 32, 48, 3)
    refused("EditReport", "before holds 2 images, after 3", before=before, after=after)


def test_a_model_that_samples_in_other_coordinates(model):
    import comfy.model_sampling

    class Sampling(
        comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.COSMOS_RFLOW
    ):
        pass

    other = model.clone()
    other.add_object_patch("model_sampling", Sampling())
    invert(other, "COSMOS_RFLOW", "use an EPS or V model")


def null_text(model: Any, path: Any, *said: str, **inputs: Any) -> None:
    refused("NullTextInversion", *said, model=model, path=path, **({"negative": NEGATIVE} | inputs))


def test_null_text_inversion_without_guidance(model, path):
    null_text(model, path, "cfg is 1", "nothing to optimise", "such as 7.5", cfg=1.0)


@pytest.mark.parametrize("name", ["NullTextInversion", "NegativePromptInversion"])
def test_a_path_that_guidance_has_nothing_to_make_up_for(model, path, name):
    def act(path: Any, *said: str) -> None:
        more = {"model": model, "negative": NEGATIVE} if name == "NullTextInversion" else {}
        refused(name, *said, path=path, **more)

    inputs = {"positive": SOURCE, "negative": NEGATIVE, "latent_image": latent(), "steps": 2}
    guided = results("DDIMInversion", model=model, cfg=2.0, **inputs)[0]
    act(guided, "made at guidance 2", "set cfg of DDIM Inversion to 1")
    act(path._replace(positive=[]), "no source prompt", "DDIM Inversion")
    done = results("NegativePromptInversion", path=path)[0]
    act(done, "has embeddings for its negative already")
    for prompt in ([*SOURCE, *TARGET], SOURCE * 2):
        regional = results("DDIMInversion", model=model, **(inputs | {"positive": prompt}))[0]
        act(regional, "has 2 parts", "a single CLIP Text Encode")


def test_null_text_inversion_on_a_model_that_is_no_whole(comfy, path):
    quantised = tiny_models.sd15()
    quantised.model.diffusion_model.to(torch.float8_e4m3fn)
    null_text(quantised, path, "quantised (float8_e4m3fn)", "Negative-Prompt Inversion")
    distilled = tiny_models.sd15()
    distilled.model.model_config.unet_config["guidance_embed"] = True
    null_text(distilled, path, "guidance-distilled", "use a model with real guidance")


def test_null_text_inversion_on_a_model_without_text(model, path):
    wordless = model.clone()
    extra_conds = wordless.model.extra_conds
    wordless.model.extra_conds = lambda **given: {
        name: cond for name, cond in extra_conds(**given).items() if name != "c_crossattn"
    }
    try:
        null_text(wordless, path, "reads no text", "use a text-to-image model")
    finally:
        del wordless.model.extra_conds


def test_null_text_inversion_on_a_model_that_is_streamed_from_memory(comfy, path):
    import comfy.model_patcher

    class Streamed(comfy.model_patcher.ModelPatcher):
        """As ComfyUI's own where a graphics card has dynamic memory; here there may be none."""

        non_dynamic_delegate_model = None
        get_non_dynamic_delegate = comfy.model_patcher.ModelPatcherDynamic.get_non_dynamic_delegate

        def is_dynamic(self) -> bool:
            return True

    from diffusion_path.host.model import with_gradients

    plain = tiny_models.sd15()
    streamed = Streamed(plain.model, plain.load_device, plain.offload_device)
    null_text(streamed, path, "streams this model's weights", "--disable-dynamic-vram")
    streamed.cached_patcher_init = (lambda disable_dynamic: plain, ())
    whole = with_gradients(streamed)
    assert not whole.is_dynamic() and whole.model is plain.model


def test_null_text_inversion_on_a_model_that_is_partly_elsewhere(model, path):
    from diffusion_path.host.guider import run

    def loop(denoiser: Any, conditions: dict, progress: Any) -> None:
        inside = denoiser.model.diffusion_model.out
        inside.elsewhere = torch.nn.Parameter(torch.zeros(1, device="meta"), requires_grad=False)
        try:
            with pytest.raises(ValueError, match="only a part of the model fits"):
                denoiser.differentiable().__enter__()
        finally:
            del inside.elsewhere

    run(model, {"positive": SOURCE}, path.clean, path.sigmas, loop, steps=1)
