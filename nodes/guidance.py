"""CLIP guidance as a node."""

from __future__ import annotations

from collections.abc import Callable

from comfy_api.latest import io
from torch import Tensor

from ..core.edit import Step
from ..edits import guidance
from ..host.clip import Eye, distance, gram, text_vector
from .support import (
    CATEGORY,
    check_window,
    edits_input,
    edits_output,
    known_before,
    names_itself,
    window_inputs,
)

PROMPT, PICTURE, STYLE = "prompt", "picture", "style of the picture"


def energy_of(
    eye: Eye, measure: Callable[[Tensor, Tensor], Tensor], wanted: Tensor, layers: bool
) -> guidance.Energy:
    """How far the views of a latent are from what is wanted, on average.

    Args:
        layers: whether it is the layers' tokens that are compared; else the picture's vector.
    """

    def energy(clean: Tensor, step: Step) -> Tensor:
        found = eye.features(clean, step)[int(layers)]
        # What a node has made takes part in no gradient before it is copied.
        return measure(found, wanted.to(found).clone()).mean(dim=0)

    return energy


def style_distance(tokens: Tensor, wanted: Tensor) -> Tensor:
    """How far the layers' second moments (..., layers, tokens, width) are from those wanted."""
    return (gram(tokens) - wanted).square().mean(dim=(-1, -2, -3))


class Guidance(io.ComfyNode):
    """Pull the picture towards a text or another picture, as CLIP sees them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Guidance",
            display_name="Pull to Text or Picture (CLIP Guidance, SDG)",
            category=f"{CATEGORY}/edits",
            description="At each step, a CLIP model looks at the predicted picture and pulls it "
            "towards a text, a reference picture or its style. Slow: each step needs a backward "
            "pass through the model and the VAE.",
            search_aliases=[
                "CLIP guidance",
                "classifier guidance",
                "SDG",
                "semantic diffusion guidance",
                "style transfer",
                "reference picture",
                "gradient",
            ],
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE, to see the predicted picture."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="From Load CLIP Vision; for the demo model, from CLIP Vision (Demo).",
                ),
                io.Combo.Input(
                    "guide",
                    options=[PROMPT, PICTURE, STYLE],
                    default=PROMPT,
                    tooltip="What pulls: prompt = the text below, picture = what the reference "
                    "shows, style of the picture = its colours and textures only.",
                ),
                io.Float.Input(
                    "scale",
                    default=guidance.Guidance.scale,
                    min=0.0,
                    max=1e6,
                    step=1.0,
                    tooltip="How hard it pulls; 0 is not at all. Too much makes patterns that "
                    "please CLIP and nobody else.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For prompt: a CLIP whose text encoder was trained with clip_vision, "
                    "such as clip_l for ViT-L.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    optional=True,
                    default="",
                    tooltip="For prompt: what the picture should show.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="For picture and style: the picture to pull to. One for all, or one "
                    "for each.",
                ),
                io.Int.Input(
                    "cutouts",
                    default=4,
                    min=0,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="How many random parts of the picture CLIP looks at in each step. 0 = "
                    "the whole picture, which keeps places.",
                ),
                *window_inputs(
                    guidance.Guidance.start,
                    guidance.Guidance.end,
                    "Where it begins: 0 = full noise, 1 = clean picture.",
                    "Where it ends. Earlier is faster and leaves fewer patterns.",
                    advanced=True,
                ),
                edits_input(),
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
    def execute(
        cls,
        vae,
        clip_vision,
        guide,
        scale,
        start,
        end,
        clip=None,
        text="",
        reference=None,
        cutouts=4,
        edits=(),
    ) -> io.NodeOutput:
        eye = Eye(vae, clip_vision, cutouts)
        if guide == PROMPT:
            if clip is None or not text.strip():
                missing = "clip is not connected" if clip is None else "text is empty"
                raise ValueError(f"guide is {PROMPT}, but {missing}; connect clip and write text")
            energy = energy_of(eye, distance, text_vector(clip, text, eye.width), layers=False)
        else:
            if reference is None:
                raise ValueError(f"guide is {guide}, but reference is empty; connect a picture")
            vector, tokens = eye.of_picture(reference)
            if guide == PICTURE:
                energy = energy_of(eye, distance, vector, layers=False)
            else:
                energy = energy_of(eye, style_distance, gram(tokens), layers=True)
        edit = guidance.Guidance(
            energy=energy, models=eye.patchers, scale=scale, start=start, end=end
        )
        return io.NodeOutput((*edits, edit))
