"""ComfyUI's MODEL as a `Denoiser`, running inside ComfyUI's own guider.

The guider loads the model, applies its patches, hooks and wrappers, prepares the conditionings
(ControlNet, areas, masks, timestep ranges) and cleans up, also after an interruption.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Generic, TypeVar

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import latent_preview
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..attention.align import Prompt
from ..attention.control import Chunk, Control
from ..attention.plan import UNCHANGED, Attention, Seen, Watch
from ..inversion.path import Conditioning, DiffusionPath
from .diffusion import Adjust, Condition, Guided, Mixing, Progress
from .gradients import checkpointed, ordinary_weights
from .schedules import boundaries

T = TypeVar("T")

UNSUPPORTED = ("IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM", "COSMOS_RFLOW")
"""ComfyUI's parametrisations whose latents are in other coordinates than `Mixing` knows."""

WHOLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types of weights that are not quantised."""
KEPT = 400 * 1024
"""Bytes that a backward pass keeps for each latent pixel and byte of a number: as much as SDXL.

SD1.5 keeps 230 thousand: 1.8 GB for a picture of 512 x 512 in half precision.
"""


def mixing_of(model: ModelPatcher) -> Mixing:
    """How the model mixes signal and noise.

    Raises:
        ValueError: the model's sampling is of a kind that the path cannot be written in.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = [kind.__name__ for kind in type(sampling).__mro__]
    for kind in UNSUPPORTED:
        if kind in kinds:
            raise ValueError(
                f"the model samples in {kind} coordinates, which have no diffusion path; "
                "use an EPS or V model (SD1.x, SD2.x, SDXL) or a flow model (SD3, Flux)"
            )
    if isinstance(sampling, comfy.model_sampling.CONST):
        return Mixing(flow=True)
    return Mixing(sigma_data=float(getattr(sampling, "sigma_data", 1.0)))


def text_width(model: ModelPatcher) -> int | None:
    """How wide the text embeddings are that the model reads; None if its configuration hides it."""
    config = model.model.model_config.unet_config
    embedder = config.get("context_embedder_config") or {}
    widths = (
        config.get("context_dim"),  # SD1.x, SD2.x, SDXL
        config.get("context_in_dim"),  # Flux
        embedder.get("params", {}).get("in_features"),  # SD3
    )
    return next((width for width in widths if isinstance(width, int)), None)


def fingerprint(model: ModelPatcher) -> dict[str, Any]:
    """What two models must share for one to walk the other's path.

    Fine-tunes, merges and LoRAs of one family share it, so that a path made with one can be
    edited with another. Holds plain values only.
    """
    latent_format = model.get_model_object("latent_format")
    return {
        "model": type(model.model).__name__,
        "latent format": type(latent_format).__name__,
        "latent channels": latent_format.latent_channels,
        "text width": text_width(model),
        "flow": mixing_of(model).flow,
    }


def with_gradients(model: ModelPatcher) -> ModelPatcher:
    """The model as one that gradients can go through.

    Raises:
        ValueError: it is quantised or guidance-distilled, or ComfyUI cannot load it as a whole.
    """
    instead = "use Negative-Prompt Inversion, which needs no gradients"
    if model.model.model_config.unet_config.get("guidance_embed"):
        raise ValueError(
            "the model is guidance-distilled: it takes guidance as an input and has no "
            "unconditional prediction to optimise; use a model with real guidance, such as SD1.5 "
            "or SDXL"
        )
    for weight in model.model.diffusion_model.parameters():
        if weight.dtype not in WHOLE or type(weight.data) is not Tensor:
            raise ValueError(
                f"the model's weights are quantised ({str(weight.dtype).removeprefix('torch.')}), "
                f"and gradients need fp16, bf16 or fp32; load it in one of these, or {instead}"
            )
    if not model.is_dynamic():
        return model
    try:
        return model.get_non_dynamic_delegate()
    except RuntimeError:
        raise ValueError(
            "ComfyUI streams this model's weights from memory and cannot load it as a whole, as "
            f"gradients need it; start ComfyUI with --disable-dynamic-vram, or {instead}"
        ) from None


def scheduled(model: ModelPatcher, path: DiffusionPath) -> Conditioning:
    """A path's embeddings as CONDITIONING, each for the steps that start at its noise level."""
    assert path.negative is not None and path.null_embeddings is not None
    ((_, options),) = path.negative
    percents = boundaries(path.sigmas, model.get_model_object("model_sampling").percent_to_sigma)
    return [
        [embedding, {**options, "start_percent": start, "end_percent": end}]
        for embedding, (start, end) in zip(path.null_embeddings, pairwise(percents), strict=True)
    ]


APART = ("area", "control", "gligen")
"""What in a condition depends on the latent before the network sees it."""


def is_of(embedding: Tensor | None, prompt: Prompt | None) -> bool:
    """Whether a conditioning's embedding is a prompt's own; any is if there is no prompt."""
    if prompt is None or embedding is None:
        return prompt is None
    return torch.equal(embedding.to(prompt.embedding), prompt.embedding)


def chunks(number: int, condition: Condition, prompt: Prompt | None) -> list[Chunk]:
    """The parts of a call that belong to a prompt in the call's `number`-th condition."""
    return [(number, cond["uuid"]) for cond in condition if is_of(cond.get("cross_attn"), prompt)]


def swap_latent(
    number: int,
    latent: Tensor,
    executor: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    **named: Any,
) -> Tensor:
    """Calls the network with another latent in place of that of the `number`-th condition."""
    options = next(arg for arg in args if isinstance(arg, dict) and "cond_or_uncond" in arg)
    numbers = options["cond_or_uncond"]
    parts = zip(numbers, x.chunk(len(numbers)), strict=True)
    x = torch.cat([latent.to(x) if one == number else part for one, part in parts])
    return executor(x, *args, **named)


class ComfyDenoiser:
    """A loaded model inside its guider, as a `Denoiser`; a condition is a list of conds.

    Attributes:
        kept: the most bytes of the source's attention that a prediction had to keep.
    """

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        model_options: dict,
        seed: int | None,
        shape: torch.Size,
    ):
        self.guider = guider
        self.model = guider.inner_model
        self.model_options = model_options
        self.seed = seed
        self.shape = shape
        self.device = guider.model_patcher.load_device
        self.mixing = mixing_of(guider.model_patcher)
        self.evaluations = 0
        self.kept = 0
        self._apart = False

    def latent_in(self, latent: Tensor) -> Tensor:
        """A LATENT's samples (B, C, ...) in the model's scale and on its device."""
        return self.model.process_latent_in(latent.to(self.device, torch.float32))

    def path_in(self, path: DiffusionPath) -> DiffusionPath:
        """The path in the model's scale and on its device."""
        latents = self.latent_in(path.latents.flatten(0, 1)).unflatten(0, path.latents.shape[:2])
        return replace(path, latents=latents)

    def latents_out(self, latents: Tensor) -> Tensor:
        """Stacked latents (N, B, C, ...) in the scale and on the device of a LATENT on a wire."""
        flat = self.model.process_latent_out(latents.flatten(0, 1)).to(torch.float32)
        flat = flat.to(comfy.model_management.intermediate_device())
        return flat.unflatten(0, latents.shape[:2])

    def __call__(self, x: Tensor, sigma: float, conditions: Sequence[Condition]) -> list[Tensor]:
        return self._evaluate(x, sigma, conditions, self.model_options)

    def _evaluate(
        self, x: Tensor, sigma: float, conditions: Sequence[Condition], options: dict[str, Any]
    ) -> list[Tensor]:
        """As `__call__`, with these model options."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        unique = {id(condition): condition for condition in conditions}
        conds, timestep = list(unique.values()), x.new_full((x.shape[0],), sigma)
        self.evaluations += len(conds)
        calc = options.get("sampler_calc_cond_batch_function")
        if calc is not None:
            args = {"conds": conds, "input": x, "sigma": timestep, "model": self.model}
            outputs = calc({**args, "model_options": options})
        else:
            outputs = comfy.samplers.calc_cond_batch(self.model, conds, x, timestep, options)
        by_id = dict(zip(unique, outputs, strict=True))
        return [by_id[id(condition)] for condition in conditions]

    def _attended(
        self,
        x: Tensor,
        sigma: float,
        conditions: Sequence[Condition],
        attention: Attention,
        source: tuple[Condition, Tensor] | None,
    ) -> tuple[list[Tensor], Seen]:
        """As `__call__`, the first condition's attention changed; and what was watched.

        The source shares the network call where it can; else it is predicted before.
        """
        first = list(conditions[0])  # its own object: the others must not share its prediction
        conditions = [first, *conditions[1:]]
        network, latent = self.model.diffusion_model, (x.shape[-2], x.shape[-1])
        control = partial(Control, attention, network, latent, chunks(0, first, attention.target))
        if not attention.needs_source or source is None:
            alone = control()
            return self._evaluate(
                x, sigma, conditions, alone.options(self.model_options)
            ), alone.seen

        others = len({id(condition) for condition in conditions})
        condition, source_x = source
        condition = [
            {**cond, "uuid": uuid.uuid5(cond["uuid"], "source")}
            for cond in condition
            if is_of(cond.get("cross_attn"), attention.source)
        ]
        identity = condition[0]["uuid"]
        if not self._apart and not any(key in cond for cond in condition for key in APART):
            together = control((others, identity))
            options = together.options(self.model_options)
            swap = partial(swap_latent, others, source_x)
            kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
            comfy.patcher_extension.add_wrapper_with_key(
                kind, "diffusion path", swap, options, is_model_options=True
            )
            outputs = self._evaluate(x, sigma, [*conditions, condition], options)
            if not together.missed:
                self.kept = max(self.kept, together.kept)
                return outputs[:-1], together.seen
            self._apart = True  # memory or hooks keep the source's call from being the first
        apart = control((0, identity))
        options = apart.options(self.model_options)
        self._evaluate(source_x, sigma, [condition], options)
        outputs = self._evaluate(x, sigma, conditions, options)
        self.kept = max(self.kept, apart.kept)
        return outputs, apart.seen

    def guided(
        self,
        x: Tensor,
        sigma: float,
        condition: Condition,
        negative: Condition,
        scale: float,
        also: Sequence[Condition] = (),
        adjust: Adjust | None = None,
        attention: Attention = UNCHANGED,
        source: tuple[Condition, Tensor] | None = None,
    ) -> Guided:
        """ComfyUI's guidance, with the model's own guidance functions, hooks and wrappers."""
        extra: list[Tensor] = []
        seen: dict[Watch, Tensor] = {}

        def predict_noise(
            x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
        ) -> Tensor:
            plain = math.isclose(scale, 1.0) and not model_options.get("disable_cfg1_optimization")
            main = [condition] if plain else [condition, negative]
            if attention:
                outputs, maps = self._attended(x, sigma, [*main, *also], attention, source)
                seen.update(maps)
            else:
                outputs = self(x, sigma, [*main, *also])
            extra[:] = outputs[len(main) :]
            preds = [outputs[0], torch.zeros_like(x) if plain else outputs[1]]
            if adjust is not None and not plain:
                preds = list(adjust(*preds))
            conds = [condition, None if plain else negative]
            args = {"cond_scale": scale, "timestep": timestep, "sigma": timestep, "input": x}
            args |= {"model": self.model, "model_options": model_options}
            for pre_cfg in model_options.get("sampler_pre_cfg_function", []):
                preds = pre_cfg({"conds": conds, "conds_out": preds, **args})
            return comfy.samplers.cfg_function(
                self.model, preds[0], preds[1], scale, x, timestep, model_options, *conds
            )

        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.PREDICT_NOISE,
            self.model_options,
            is_model_options=True,
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            predict_noise, self.guider, wrappers
        )
        timestep = x.new_full((x.shape[0],), sigma)
        denoised = executor.execute(x, timestep, self.model_options, self.seed)
        if also and not extra:  # a wrapper answered from its cache
            extra = self(x, sigma, also)
        return Guided(denoised, extra, seen)

    def mix(self, a: Condition, b: Condition, weight: float) -> Condition:
        """Mix embeddings and pooled vectors; what is not a tensor of numbers stays that of `a`.

        Where the token counts differ both are repeated to the least common multiple, which leaves
        the attention of each alone exactly as it was.
        """
        if len(b) != len(a):
            b = [b[0]] * len(a)
        return [_mix_cond(one, other, weight) for one, other in zip(a, b, strict=True)]

    def embedding(self, condition: Condition) -> Tensor:
        """What the cross attention reads.

        Raises:
            ValueError: there is none, or several parts of the picture have one each.
        """
        if len(condition) != 1:
            raise ValueError(
                f"the prompt to start from has {len(condition)} parts, of which only one can have "
                "its embedding replaced; connect the output of a single CLIP Text Encode"
            )
        cond = condition[0]["model_conds"].get("c_crossattn")
        if not isinstance(cond, comfy.conds.CONDRegular):
            raise ValueError(
                "the model reads no text, so there is no embedding to replace; "
                "use a text-to-image model"
            )
        return cond.cond.to(self.device, torch.float32)

    def with_embedding(self, condition: Condition, embedding: Tensor) -> Condition:
        (cond,) = condition
        kind = type(cond["model_conds"]["c_crossattn"])
        return [{**cond, "model_conds": {**cond["model_conds"], "c_crossattn": kind(embedding)}}]

    @contextmanager
    def differentiable(self, sparing: bool | None = None) -> Iterator[None]:
        """Aliases the weights for as long, those of ControlNets too, and calls PyTorch's attention.

        Args:
            sparing: whether to compute again on the way back what takes memory to keep; by
                default where memory is short.
        Raises:
            ValueError: some of the weights are not where they are computed with.
        """
        network = self.model.diffusion_model
        if any(weight.device.type != self.device.type for weight in network.parameters()):
            raise ValueError(
                "only a part of the model fits into the graphics card's memory, and gradients need "
                "all of it; free some (smaller pictures or batches, --reserve-vram), or use "
                "Negative-Prompt Inversion"
            )
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            controls = list(self._control_networks())
            stack.enter_context(ordinary_weights([network, *controls]))
            stack.enter_context(self._differentiable_attention())
            if controls:
                stack.enter_context(self._separate_skips())
            if self._memory_is_short() if sparing is None else sparing:
                stack.enter_context(checkpointed(network))
            yield

    def _control_networks(self) -> Iterator[nn.Module]:
        for conds in self.guider.conds.values():
            for cond in conds:
                control = cond.get("control")
                while control is not None:
                    network = getattr(control, "control_model", None)
                    if isinstance(network, nn.Module):
                        yield network
                    control = control.previous_controlnet

    @contextmanager
    def _differentiable_attention(self) -> Iterator[None]:
        """ComfyUI's fastest attentions have no gradient."""
        name = "optimized_attention_override"
        options = self.model_options["transformer_options"]
        theirs = options.get(name)

        def override(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            if theirs is None:
                return attention_pytorch(*args, **kwargs)
            return theirs(attention_pytorch, *args, **kwargs)

        options[name] = override
        try:
            yield
        finally:
            options.pop(name)
            if theirs is not None:
                options[name] = theirs

    @contextmanager
    def _separate_skips(self) -> Iterator[None]:
        """ControlNets add to a UNet's skips in place, which would spoil what is kept of them."""
        name = "input_block_patch_after_skip"
        options = self.model_options["transformer_options"]
        theirs = options.get("patches", {})
        options["patches"] = {**theirs, name: [*theirs.get(name, []), lambda h, _: h.clone()]}
        try:
            yield
        finally:
            options["patches"] = theirs

    def _memory_is_short(self) -> bool:
        batch, _, *sizes = self.shape
        number = comfy.model_management.dtype_size(self.model.get_dtype_inference())
        kept = batch * math.prod(sizes) * number * KEPT * self.model.memory_usage_factor
        return kept > self.guider.model_patcher.get_free_memory(self.device)


def _mix_cond(a: dict[str, Any], b: dict[str, Any], weight: float) -> dict[str, Any]:
    mixed = dict(a["model_conds"])
    for key, cond in mixed.items():
        other = b["model_conds"].get(key)
        x, y = getattr(cond, "cond", None), getattr(other, "cond", None)
        if not (torch.is_tensor(x) and torch.is_tensor(y) and x.is_floating_point()):
            continue
        if isinstance(cond, comfy.conds.CONDCrossAttn) and x.shape[1] != y.shape[1]:
            tokens = math.lcm(x.shape[1], y.shape[1])
            x = x.repeat(1, tokens // x.shape[1], 1)
            y = y.repeat(1, tokens // y.shape[1], 1)
        if x.shape[1:] == y.shape[1:]:
            mixed[key] = type(cond)(torch.lerp(x, y.to(x), weight))
    return {**a, "model_conds": mixed}


Loop = Callable[[ComfyDenoiser, dict[str, Condition], Progress], T]


class LoopSampler(comfy.samplers.Sampler, Generic[T]):
    """A SAMPLER that runs a loop of ours; the loop's own result is in `result` afterwards."""

    def __init__(self, loop: Loop[T]):
        self.loop = loop
        self.result: T

    def sample(
        self,
        model_wrap: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[int, Tensor, Tensor, int], None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor | None:
        """Called by the guider with the model loaded; returns the latent it was given."""
        total = len(sigmas) - 1
        denoiser = ComfyDenoiser(
            model_wrap, extra_args["model_options"], extra_args.get("seed"), noise.shape
        )

        def progress(step: int, denoised: Tensor, x: Tensor) -> None:
            if callback is not None:
                callback(step, denoised, x, total)

        self.result = self.loop(denoiser, model_wrap.conds, progress)
        return latent_image


def run(
    model: ModelPatcher,
    conditionings: Mapping[str, Conditioning | None],
    latent: Tensor,
    sigmas: Tensor,
    loop: Loop[T],
    *,
    steps: int,
    seed: int | None = None,
) -> T:
    """Run `loop(denoiser, conditions, progress)` inside ComfyUI's guider for `model`.

    Args:
        conditionings: by name; equal ones become one and the same condition, those that are None
            stay None.
        latent: a LATENT's samples (B, C, ...), for shape, device and inpainting models.
        sigmas: the noise levels that the loop visits, for hooks and schedules.
        steps: how many times the loop reports progress.
    Returns:
        What `loop` returned.
    """
    given = {name: value for name, value in conditionings.items() if value is not None}
    same = {
        name: next(other for other in given if comfy.conds.is_equal(given[other], value))
        for name, value in given.items()
    }
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({name: given[name] for name in given if same[name] == name})

    def named(denoiser: ComfyDenoiser, conds: dict[str, Condition], progress: Progress) -> T:
        conditions = {name: conds[same[name]] if name in same else None for name in conditionings}
        return loop(denoiser, conditions, progress)

    show = latent_preview.prepare_callback(model, steps)
    sampler = LoopSampler(named)
    guider.sample(
        torch.zeros_like(latent),
        latent,
        sampler,
        sigmas,
        callback=lambda step, denoised, x, total: show(step, denoised, x, steps),
        disable_pbar=True,
        seed=seed,
    )
    return sampler.result
