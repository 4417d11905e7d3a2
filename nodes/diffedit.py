"""DiffEdit's mask, and the edit that keeps the source outside a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..edits import diffedit
from ..host.denoiser import ComfyDenoiser
from ..host.guider import run
from .curves import curve_input, told_curve, weight_of
from .pictures import heat_colours
from .support import (
    CATEGORY,
    check_conditioning,
    check_latent,
    check_sampled,
    check_window,
    counted,
    downscale_ratio,
    edits_input,
    edits_output,
    first_step,
    fraction_input,
    known_before,
    masks_of,
    names_itself,
    path_sigmas,
    seed_input,
    tell,
    window_inputs,
)

REFERENCE_STEPS = 50
"""`strength` picks a noise level among those of a 50-step path, as the paper and diffusers do."""


class DiffEditMask(io.ComfyNode):
    """Find where an edit would change the image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_DiffEditMask",
            display_name="Find Mask from Prompts (DiffEdit Mask)",
            category=f"{CATEGORY}/mask",
            description="Finds the part of a picture that a change of prompt affects, by "
            "comparing the model's predictions for both prompts. The mask fits every "
            "node that takes one.",
            search_aliases=[
                "DiffEdit",
                "FastDiffEdit",
                "mask from prompt",
                "text to mask",
                "segment by text",
                "clipseg",
                "clip seg",
                "automatic mask",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model whose predictions are compared."),
                io.Conditioning.Input(
                    "source",
                    tooltip="A prompt that describes the picture as it is. Best if it differs "
                    "from target only in the words that change. It may be empty.",
                ),
                io.Conditioning.Input("target", tooltip="A prompt that describes the result."),
                io.Latent.Input("latent_image", tooltip="The picture, through VAE Encode."),
                fraction_input(
                    "strength",
                    0.5,
                    "Noise level at which the two prompts are compared. Low = details, high = "
                    "layout.",
                    label="noise level (strength)",
                ),
                io.Int.Input(
                    "maps",
                    default=10,
                    min=1,
                    max=200,
                    tooltip="Number of noise samples to average. More gives a smoother mask. "
                    "Each costs two model calls. FastDiffEdit uses 20.",
                    display_name="noise samples (maps)",
                ),
                io.Combo.Input(
                    "method",
                    options=list(diffedit.METHODS),
                    default="noise",
                    tooltip="noise: DiffEdit, compared with the mean difference. x0: "
                    "FastDiffEdit, compared with the spread. denoise: samples fully "
                    "under both prompts; slow and the most accurate.",
                ),
                fraction_input(
                    "threshold",
                    0.5,
                    "Lower = larger mask. 0.5 is the published value of each method.",
                ),
                io.Int.Input(
                    "blur",
                    default=0,
                    min=0,
                    max=32,
                    tooltip="Blurs the mask's edge by this many latent pixels (8 picture pixels "
                    "each in Stable Diffusion). FastDiffEdit uses 1.",
                ),
                seed_input("Seed of the noise samples. The same seed gives the same mask."),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="White where the edit belongs, in the picture's size.",
                ),
                io.Image.Output(
                    display_name="heatmap",
                    tooltip="The difference before the threshold, dark to bright.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @known_before
    def validate_inputs(cls, strength) -> None:
        if strength == 0:
            raise ValueError("strength is 0, which is no noise to compare at; raise strength")

    @classmethod
    @names_itself
    def execute(
        cls, model, source, target, latent_image, strength, maps, method, threshold, blur, seed
    ) -> io.NodeOutput:
        samples = check_latent(model, latent_image)
        if samples.ndim > 4 and samples.shape[2] > 1:
            raise ValueError(
                f"latent_image is a video ({samples.shape[2]} frames in the latent); connect a "
                "picture's latent, or for a video give Mask Blend masks from another node"
            )
        check_conditioning(model, source, "source")
        check_conditioning(model, target, "target")
        levels = path_sigmas(model, REFERENCE_STEPS, "leading")
        first = first_step(model, levels, 1 - strength, f"strength {strength}", "raise strength")
        levels = levels[first:]
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(samples.shape, generator=generator) for _ in range(maps)]

        def compare(denoiser: ComfyDenoiser, conditions, progress):
            difference = diffedit.difference(
                denoiser,
                denoiser.latent_in(samples),
                [draw.to(denoiser.device) for draw in draws],
                levels,
                conditions["positive"],
                conditions["target"],
                method,
                progress,
            )
            return check_sampled(difference.cpu()), denoiser.evaluations

        difference, evaluations = run(
            model, {"positive": source, "target": target}, samples, levels, compare, steps=maps
        )
        heat = diffedit.heat(difference, method)
        mask = diffedit.threshold_mask(heat, threshold, blur)
        mask, heat = (
            F.interpolate(one[:, None], scale_factor=downscale_ratio(model), mode="nearest")[:, 0]
            for one in (mask, heat)
        )
        coverage = float(mask.mean())
        text = f"The mask covers {coverage:.0%} of the picture"
        if not coverage:
            text = "Nothing is masked: lower threshold"
        elif coverage == 1:
            text = "Everything is masked: raise threshold"
        text += f"\n{counted(evaluations, 'model call')}"
        figures = {"coverage": coverage, "evaluations": evaluations}
        picture = heat_colours(heat)
        return io.NodeOutput(mask, picture, ui=tell(cls, text, picture, figures))


class MaskBlend(io.ComfyNode):
    """Keep the source outside a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_MaskBlend",
            display_name="Change Only in Mask (Mask Blend)",
            category=f"{CATEGORY}/edits",
            description="Changes the picture only inside a mask: after each step the source is "
            "put back outside it (DiffEdit). If end is 1, the result outside the "
            "mask equals the source.",
            search_aliases=["inpainting", "DiffEdit", "keep background", "blended diffusion"],
            inputs=[
                io.Mask.Input(
                    "mask",
                    tooltip="White = edited, black = source. Same proportions as the picture. "
                    "One mask for all pictures, or one each; for a video, one for all "
                    "frames, or one each.",
                ),
                *window_inputs(
                    0.0,
                    1.0,
                    "Where blending begins: 0 = full noise, 1 = clean picture.",
                    "Where blending ends. Earlier lets the seam heal in the last steps.",
                    advanced=True,
                ),
                edits_input(),
                curve_input("for how much of the source is put back outside the mask"),
            ],
            outputs=[edits_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, start, end) -> None:
        check_window(start, end)

    @classmethod
    @names_itself
    def execute(cls, mask, start, end, edits=(), weight_curve=None) -> io.NodeOutput:
        factor = weight_of(weight_curve, start, end)
        masks = masks_of(mask)
        edit = diffedit.MaskBlend(mask=masks, start=start, end=end, weight_curve=factor)

        def used(x: float) -> float:
            return factor(x) if factor and start <= x < end else 0.0

        return io.NodeOutput((*edits, edit), ui=told_curve(cls, factor, used))
