"""h-space as nodes: shifts of a UNet's middle block, and the directions to shift it in."""

from __future__ import annotations

import comfy.sample
import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.path import DiffusionPath
from ..core.schedules import SPACINGS
from ..edits import directions, h_space
from ..host.model import fingerprint
from ..host.networks import traits_of
from .paths import record
from .pictures import labelled, sheet
from .support import (
    CATEGORY,
    auto_cfg,
    cfg_input,
    check_conditioning,
    check_latent,
    check_window,
    counted,
    edits_input,
    edits_output,
    known_before,
    names_itself,
    path_sigmas,
    seed_input,
    spacing_input,
    steps_input,
    tell,
    window_inputs,
)

Directions = io.Custom("DIFFUSION_PATH_DIRECTIONS")
FORMS = ("picture only", "whole step")


class HSpace(io.ComfyNode):
    """Shift the middle of the network towards another prompt, or in a direction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_HSpace",
            display_name="Shift an Attribute (h-space)",
            category=f"{CATEGORY}/edits",
            description="Shifts the features in the middle of a UNet toward another prompt, or in "
            "a direction of Find Directions (Asyrp). Good for gradual changes of the whole "
            "picture. UNets only, such as SD1.5 and SDXL.",
            search_aliases=[
                "Asyrp",
                "h-space",
                "bottleneck",
                "middle block",
                "attribute",
                "semantic direction",
                "slider",
            ],
            inputs=[
                io.Float.Input(
                    "scale",
                    default=0.5,
                    min=-50.0,
                    max=50.0,
                    step=0.05,
                    tooltip="How far to shift. 0 = no edit. 1 = the whole difference between the "
                    "prompts, or one standard deviation along a direction. A negative value goes "
                    "the other way. Paths with fewer steps need more.",
                    display_name="strength (scale)",
                ),
                *window_inputs(
                    0.0,
                    1.0,
                    "Where the shift begins: 0 = full noise, 1 = clean picture. Later keeps more "
                    "of the layout.",
                    "Where the shift ends.",
                ),
                io.Combo.Input(
                    "shifted",
                    options=list(FORMS),
                    default=FORMS[0],
                    tooltip="What the shift changes. picture only: the predicted picture and not "
                    "the noise, as in Asyrp; strong. whole step: both; gentler, and a scale of 2 "
                    "to 4 suits it.",
                    advanced=True,
                ),
                io.Int.Input(
                    "number",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Which of the directions. 1 = the one along which pictures differ "
                    "most. Without directions leave it at 1.",
                    advanced=True,
                    display_name="number of the direction",
                ),
                io.Conditioning.Input(
                    "towards",
                    optional=True,
                    tooltip="A prompt that describes the result. Change a few words of the source "
                    "prompt.",
                ),
                io.Conditioning.Input(
                    "base",
                    optional=True,
                    tooltip="A prompt that describes the picture as it is. Empty = the sampler's "
                    "positive prompt, which saves one model call per step.",
                    display_name="instead of (base)",
                ),
                Directions.Input(
                    "directions",
                    optional=True,
                    tooltip="From Find Directions, in place of the two prompts.",
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
        scale,
        start,
        end,
        shifted,
        number,
        towards=None,
        base=None,
        directions=None,
        edits=(),
    ) -> io.NodeOutput:
        if (towards is None) == (directions is None):
            raise ValueError("connect either towards, a prompt, or directions from Find Directions")
        if directions is None and number != 1:
            raise ValueError(f"number is {number}, and no directions are connected; set it to 1")
        if directions is not None and base is not None:
            raise ValueError("base is a prompt to compare towards with; take it off directions")
        if directions is not None and number > len(directions.components):
            raise ValueError(
                f"number is {number}, and there are {len(directions.components)} directions; "
                "choose one of them, or find more"
            )
        edit = h_space.HSpace(
            towards=towards,
            base=base,
            directions=directions,
            number=number - 1,
            scale=scale,
            symmetric=shifted == FORMS[1],
            start=start,
            end=end,
        )
        return io.NodeOutput((*edits, edit))


class HSpaceDirections(io.ComfyNode):
    """Find the directions in which pictures differ, in the middle of the network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_HSpaceDirections",
            display_name="Find Directions (h-space PCA)",
            category=f"{CATEGORY}/edits",
            description="Generates pictures of one prompt and finds the directions in which they "
            "differ most, in the middle of a UNet. The sheet shows what each direction changes; "
            "Shift an Attribute applies one. UNets only, such as SD1.5 and SDXL.",
            search_aliases=[
                "PCA",
                "principal components",
                "GANSpace",
                "semantic directions",
                "h-space",
                "slider",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that you will edit with: a UNet."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the pictures show. A narrow prompt gives directions within its "
                    "subject. It may be empty.",
                ),
                io.Conditioning.Input("negative", tooltip="What the pictures should not show."),
                io.Vae.Input("vae", tooltip="The VAE of the model, for the sheet."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The size: an Empty Latent Image. Its batch size is the number of "
                    "pictures that are generated at a time.",
                ),
                io.Int.Input(
                    "pictures",
                    default=32,
                    min=2,
                    max=4096,
                    tooltip="Number of pictures to generate. More gives cleaner directions; the "
                    "paper uses 100 to 500.",
                ),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Number of directions to find and to show.",
                    display_name="directions (count)",
                ),
                io.Float.Input(
                    "scale",
                    default=2.0,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    tooltip="How far the sheet goes along each direction and back, in standard "
                    "deviations.",
                    display_name="shown at (scale)",
                ),
                seed_input("Seed of the noise. The same seed gives the same directions."),
                steps_input(20, "edit with the same steps"),
                cfg_input(
                    "Guidance scale of the pictures. -1 = the value that suits the model.",
                    advanced=True,
                ),
                spacing_input(),
            ],
            outputs=[
                Directions.Output(
                    display_name="directions", tooltip="The directions, for Shift an Attribute."
                ),
                io.Image.Output(
                    display_name="image",
                    tooltip="A row for each direction: the first picture shifted back, as it is, "
                    "and shifted forward.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,  # the report is told again from the cache
        )

    @classmethod
    @known_before
    def validate_inputs(cls, pictures, count, scale) -> None:
        if count >= pictures:
            raise ValueError(
                f"{counted(pictures, 'picture')} have {pictures - 1} directions at most; "
                f"generate more than {count}, or find fewer"
            )
        if scale == 0:
            raise ValueError("scale is 0, which shows no change; use 2")

    @classmethod
    @names_itself
    def execute(
        cls,
        model,
        positive,
        negative,
        vae,
        latent_image,
        pictures,
        count,
        scale,
        seed,
        steps,
        cfg,
        spacing,
    ) -> io.NodeOutput:
        directions.check_unet(traits_of(model))
        samples = check_latent(model, latent_image, empty=True)
        check_conditioning(model, positive, "positive")
        check_conditioning(model, negative, "negative")
        levels = path_sigmas(model, steps, spacing)
        pure = True if spacing in SPACINGS else None
        noise = comfy.sample.prepare_noise(samples[:1].expand(pictures, -1, -1, -1), seed)

        def path(noise: Tensor) -> DiffusionPath:
            return DiffusionPath(
                sigmas=levels,
                latents=noise[None],
                positive=positive,
                negative=negative,
                cfg=auto_cfg(model, cfg),
                fingerprint=fingerprint(model),
            )

        read: list[list[Tensor]] = []
        made = []
        for some in noise.split(len(samples)):
            h: list[Tensor] = []
            reader = directions.ReadBottleneck(tell=h.append)
            made.append(record(model, path(some), torch.zeros_like(some), (reader,), pure)[0][-1])
            read.append(h)
        found = directions.Directions(
            *directions.principal([torch.cat(parts) for parts in zip(*read, strict=True)], count),
            sigmas=levels,
            latent=tuple(samples.shape[1:]),
            model=fingerprint(model)["model"],
        )
        rows = []
        for number in range(count):
            pair = [
                record(
                    model,
                    path(noise[:1]),
                    samples[:1] * 0,
                    (h_space.HSpace(directions=found, number=number, scale=by),),
                    pure,
                )[0][-1]
                for by in (-scale, scale)
            ]
            latents = {"back": pair[0], "": made[0][:1], "forward": pair[1]}
            rows += [
                labelled(vae.decode(latent)[0], f"{number + 1} {text}".strip())
                for text, latent in latents.items()
            ]
        shares = [f"{float(one):.0%}" for one in found.explained]
        picture = sheet(rows, 3)[None]
        text = f"Directions 1 to {count} have {', '.join(shares)} of the variance"
        text += f"\n{counted(pictures + 2 * count, 'picture')} generated"
        figures = {"explained": found.explained.tolist(), "deviations": found.deviations.tolist()}
        return io.NodeOutput(found, picture, ui=tell(cls, text, picture, figures))
