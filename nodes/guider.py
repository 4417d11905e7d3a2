"""A path and its edits as ComfyUI's GUIDER, and the path's own steps as its SAMPLER."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.path import DiffusionPath
from ..host import guider as host
from .sampler import check_start, guider_for, on_wire, walk_inputs
from .support import (
    AUTO,
    CATEGORY,
    PathEdits,
    fraction_input,
    known_before,
    names_itself,
    seed_input,
    tell,
)


class PathNoise:
    """A NOISE with which ComfyUI's samplers begin at a path's own latent."""

    def __init__(self, model: ModelPatcher, path: DiffusionPath, first: int, seed: int) -> None:
        """Keep where on the path to begin, and the seed of samplers that draw noise."""
        self.model, self.path, self.first, self.seed = model, path, first, seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """The noise (B, C, ...) that ComfyUI's samplers make that latent of."""
        model = self.model.model
        image = input_latent["samples"].float().cpu()
        image = model.process_latent_in(image) if image.any() else image
        wanted = model.process_latent_in(self.path.latents[self.first])
        sampling = self.model.get_model_object("model_sampling")
        sigmas = self.path.sigmas[self.first :]
        wrap = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))
        pure = comfy.samplers.Sampler().max_denoise(wrap, sigmas)

        def scaled(noise: Tensor) -> Tensor:  # affine in the noise, whatever the model
            return sampling.noise_scaling(sigmas[0], noise, image, pure)

        nothing = torch.zeros_like(wanted)
        return (wanted - scaled(nothing)) / (scaled(nothing + 1) - scaled(nothing))


class Guider(io.ComfyNode):
    """A path with its edits, for ComfyUI's own samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_Guider",
            display_name="Diffusion Path Guider",
            category=f"{CATEGORY}/custom sampling",
            description="A path and its edits for SamplerCustomAdvanced, to use any of ComfyUI's "
            "samplers. Connect all four outputs there and choose a sampler.",
            search_aliases=["guider", "custom sampler", "SamplerCustomAdvanced", "dpmpp", "edit"],
            inputs=[
                *walk_inputs(),
                fraction_input(
                    "start",
                    0.0,
                    "Skips the noisiest part of the path, up to this fraction. Higher keeps more "
                    "of the source.",
                    optional=True,
                    label="start at",
                ),
                seed_input(
                    "Seed for samplers that add noise, such as euler_ancestral, and for Resample.",
                    optional=True,
                ),
                PathEdits.Input(
                    "edits", optional=True, tooltip="The chain of edits, from any edit node."
                ),
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."),
                io.Noise.Output(
                    display_name="noise",
                    tooltip="The path's own noise: with it the sampler begins where the path does.",
                ),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The path's own noise levels. Others of the same model will do, if "
                    "they begin no higher.",
                ),
                io.Latent.Output(
                    display_name="latent_image", tooltip="The source image, to begin with."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @known_before
    def validate_inputs(cls, start=0.0) -> None:
        check_start(start)

    @classmethod
    @names_itself
    def execute(
        cls, model, path, positive, negative, cfg, start=0.0, seed=0, edits=()
    ) -> io.NodeOutput:
        guider, first = guider_for(model, path, positive, negative, cfg, start, edits)
        noise = PathNoise(model, path, first, seed)
        told = tell(cls, f"cfg {guider.cfg:g} (auto)") if cfg == AUTO else None
        return io.NodeOutput(guider, noise, path.sigmas[first:], on_wire(path.clean), ui=told)


class PathSampler(io.ComfyNode):
    """The Diffusion Path Sampler's own steps, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffusionPath_PathSampler",
            display_name="Path Sampler",
            category=f"{CATEGORY}/custom sampling",
            description="The sampler of the Diffusion Path Sampler (DDIM) for "
            "SamplerCustomAdvanced. Connect it together with a Diffusion Path "
            "Guider.",
            search_aliases=["ddim", "sampler select", "custom sampler", "eta"],
            inputs=[
                fraction_input(
                    "eta",
                    0.0,
                    "Fresh noise added at each step: 0 = deterministic (DDIM), 1 = DDPM.",
                    label="fresh noise (eta)",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @names_itself
    def execute(cls, eta) -> io.NodeOutput:
        return io.NodeOutput(host.PathSampler(eta=eta))
