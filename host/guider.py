"""ComfyUI's guider and sampler, holding a path and its edits; and a run of any loop inside them.

The guider loads the model, applies its patches, hooks and wrappers, prepares the conditionings
(ControlNet, areas, masks, timestep ranges) and cleans up, also after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import comfy.conds
import comfy.patcher_extension
import comfy.samplers
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.diffusion import Progress, no_progress
from ..core.edit import Edit, Edits, Need, Step
from ..core.path import Conditioning, DiffusionPath, Source
from ..samplers.prediction import predict
from ..samplers.solvers import check_eta, solver_of
from ..samplers.walk import transitions_of, walk, where
from .conditions import Conds
from .denoiser import OURS, ComfyDenoiser
from .model import with_gradients

T = TypeVar("T")

MAIN = ("positive", "negative")
"""The pair of conditions that a guider of ComfyUI has."""


class PairGuider(comfy.samplers.CFGGuider):
    """ComfyUI's guider, with further pairs of prompts: "name" and "name_negative".

    ComfyUI prepares each pair by itself, as it would for a sampler of its own: what one pair has of
    areas and ControlNets does not touch another, and the negative of each is a negative.

    Attributes:
        conditions: all of them by name, while it runs; equal ones are one and the same.
        denoiser: the model, while it runs.
    """

    def __init__(self, model: ModelPatcher, prompts: Mapping[str, Conditioning | None]) -> None:
        """Keep the prompts; those that are None stay None."""
        super().__init__(model)
        self.given = {name: value for name, value in prompts.items() if value is not None}
        self.absent = dict.fromkeys(prompts.keys() - self.given.keys())
        self.inner_set_conds(self.given)
        self.conditions: dict[str, Any] = {}
        self.denoiser: Any = None

    def all_conds(self) -> Iterator[Conds]:
        """Each condition once."""
        return iter({id(conds): conds for conds in self.conditions.values() if conds}.values())

    def inner_sample(self, noise: Tensor, latent_image: Tensor, *args: Any, **named: Any) -> Tensor:
        """As ComfyUI's, with the main pair; the others are prepared when that is."""
        everything: dict[str, Any] = self.conds
        self.conds: dict[str, Any] = {name: everything[name] for name in MAIN if name in everything}

        def begin(
            executor: Callable[..., Tensor],
            guider: PairGuider,
            sigmas: Tensor,
            extra_args: dict[str, Any],
            callback: Any,
            noise: Tensor,
            latent_image: Tensor | None,
            denoise_mask: Tensor | None,
            *rest: Any,
        ) -> Tensor:
            pairs = {
                name.removesuffix("_negative"): None for name in everything if name not in MAIN
            }
            for pair in pairs:
                names = dict(zip(MAIN, (pair, f"{pair}_negative"), strict=True))
                prepared = comfy.samplers.process_conds(
                    self.inner_model,
                    noise,
                    {role: everything[name] for role, name in names.items() if name in everything},
                    self.model_patcher.load_device,
                    latent_image,
                    denoise_mask,
                    extra_args["seed"],
                    latent_shapes=named.get("latent_shapes"),
                )
                everything.update({names[role]: conds for role, conds in prepared.items()})
            everything.update(self.conds)
            self.conditions = {**self._one_for_each(everything), **self.absent}
            self.conds = {name: self.conditions[name] for name in self.conds}
            self.denoiser = ComfyDenoiser(
                self, extra_args["model_options"], extra_args["seed"], noise.shape
            )
            self.begin(sigmas)
            more = (sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest)
            return executor(guider, *more)

        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE,
            OURS,
            begin,
            self.model_options,
            is_model_options=True,
        )
        try:
            output = super().inner_sample(noise, latent_image, *args, **named)
            self.end()
            return output
        finally:
            self.conds = {**everything, **self.conds}
            self.conditions = {}
            self.forget()

    def begin(self, sigmas: Tensor) -> None:
        """What there is to do once the model is loaded and the conditions are prepared."""

    def end(self) -> None:
        """What there is to keep of a run that went to its end."""

    def forget(self) -> None:
        """Let go of all that a run had on the device, for a guider may lie in ComfyUI's cache."""
        self.denoiser = None

    def _one_for_each(self, prepared: Mapping[str, Any]) -> dict[str, Conds]:
        """The conditions by name, one and the same for all that are equal and of one role."""
        found: dict[str, Conds] = {}
        for name in sorted(prepared, key=lambda one: one not in MAIN):
            negative = name.endswith("negative")
            equal = (
                other
                for other in found
                if found[other].negative == negative
                and comfy.conds.is_equal(self.given[other], self.given[name])
            )
            twin = next(equal, None)
            found[name] = found[twin] if twin else Conds(prepared[name], negative)
        return found


class Outcome(NamedTuple):
    """What a run of a path's guider has to tell.

    Attributes:
        evaluations: of the network.
        kept: the most bytes of the source's attention that were kept at a time.
        mask: where the edits have let the image change (B or 1, 1, ...), at the last step; None is
            everywhere.
        source: where an edit has put the source itself back in the last step (B or 1, 1, ...), if
            that ended at the path's end; else None.
        idle: the edits whose windows lie before the first step.
    """

    evaluations: int
    kept: int
    mask: Tensor | None
    source: Tensor | None
    idle: Edits


class PathGuider(PairGuider):
    """A GUIDER that predicts what a walk along a path with its edits predicts.

    Under a sampler of ComfyUI's own it finds its place on the path by the noise level, and what an
    edit does to the latent after a step becomes a part of that step's prediction.

    Attributes:
        path: the source.
        edits: the path's own, then the chain's.
        step: the last step that was predicted, while it runs.
        outcome: of the last run.
    """

    def __init__(
        self,
        model: ModelPatcher,
        path: DiffusionPath,
        positive: Conditioning,
        negative: Conditioning,
        cfg: float,
        edits: Edits = (),
    ) -> None:
        """Give the guider the source's prompts too, if an edit needs them."""
        self.edits = (*path.edits, *edits)
        asked = any(Need.PROMPT in edit.needs for edit in self.edits)
        prompts = {
            "positive": positive,
            "negative": negative,
            "source": path.positive if asked else None,
            "source_negative": path.negative if asked else None,
        }
        own = [one for edit in self.edits for one in edit.conditionings]
        prompts |= {f"edit {number}": one for number, one in enumerate(own)}
        super().__init__(with_models(model, self.edits), prompts)
        self.set_cfg(cfg)
        self.path = path
        self.step: Any = None
        self.outcome: Outcome
        self.prepared: Edits = ()
        self.pending: Step | None = None

    def inner_sample(self, *args: Any, **named: Any) -> Tensor:
        """As before, and where the source was put back it is the source bit for bit."""
        output = super().inner_sample(*args, **named)
        source = self.outcome.source
        if source is None:
            return output
        return torch.where(source.to(output.device), self.path.clean.to(output), output)

    def begin(self, sigmas: Tensor) -> None:
        """Prepare the edits on the device.

        Raises:
            ValueError: the sampler begins above the path, where there is no source.
        """
        denoiser, conditions = self.denoiser, self.conditions
        denoiser.needs_attention = any(Need.ATTENTION in edit.needs for edit in self.edits)
        source = Source(
            self.path,
            denoiser.percent_to_sigma,
            denoiser.latent_in,
            conditions["source"],
            conditions["source_negative"],
        )
        first = float(sigmas[0])
        if first > source.levels[0] * (1 + 1e-4) and any(
            Need.PATH in one.needs for one in self.edits
        ):
            raise ValueError(
                f"Diffusion Path Guider: the sampler begins at noise level {first:.4g}, above the "
                f"path's first, {source.levels[0]:.4g}; connect the sigmas of the guider, or make "
                "the path with more noise."
            )
        where_to = denoiser.device, denoiser.dtype
        self.prepared = tuple(edit.prepare(source, *where_to) for edit in self.edits)
        self.levels = sigmas.tolist()
        self.pending = None
        self.step = Step(
            source=source,
            denoiser=denoiser,
            x=torch.empty(0),
            sigma=first,
            sigma_next=first,
            condition=conditions["positive"],
            negative=conditions["negative"],
            cfg=self.cfg,
            prompts={
                id(one): conditions[name]
                for name, one in self.given.items()
                if name.startswith("edit ")
            },
        )

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006, as ComfyUI calls it
        seed: int | None = None,
    ) -> Tensor:
        """The denoised estimate (B, C, ...) that the walk follows."""
        own = self.pending is not None
        step = self.pending or self._found(x, float(timestep[0]))
        inner = self.denoiser.within(step.sigma, timestep, model_options, seed)
        denoised, step = predict(replace(step, x=x, denoiser=inner), self.prepared)
        self.step = replace(step, denoiser=self.denoiser)
        return denoised if own else self._with_latents(denoised, step)

    def _found(self, x: Tensor, sigma: float) -> Step:
        """The step that a sampler of ComfyUI's own takes.

        Raises:
            ValueError: an edit takes steps of its own.
        """
        for edit in self.prepared:
            if type(edit).transitions is not Edit.transitions:
                raise ValueError(
                    f"Diffusion Path Guider: {type(edit).__name__} takes steps of its own, and "
                    "this sampler knows nothing of them; connect Path Sampler in its place."
                )
        below = [level for level in self.levels if level < sigma * (1 - 1e-6)]
        return self.step.at(x, sigma, max(below, default=0.0))

    def _with_latents(self, denoised: Tensor, step: Step) -> Tensor:
        """The estimate with which an Euler step ends where the edits want the latent."""
        part = step.sigma_next - step.sigma
        reached = x = step.x + part * (step.x - denoised) / step.sigma
        for edit in self.prepared:
            x = edit.latent(step, x)
        return denoised if x is reached else step.x - step.sigma * (x - step.x) / part

    def end(self) -> None:
        source, mask = self.step.source, where(self.prepared, self.step)
        first = source.index(self.levels[0])
        self.outcome = Outcome(
            evaluations=self.denoiser.evaluations,
            kept=self.denoiser.attention.kept,
            mask=None if mask is None else mask.float().cpu(),
            source=self._put_back(),
            idle=tuple(edit for edit in self.edits if edit.steps(source).stop <= first),
        )

    def _put_back(self) -> Tensor | None:
        step, source = self.step, self.step.source
        masked = tuple(one for one in self.prepared if step.index in one.steps(source))
        mask = where(masked, step)
        if mask is None or step.sigma_next != source.levels[-1]:
            return None
        return (mask == 0).cpu()

    def forget(self) -> None:
        super().forget()
        self.step, self.pending, self.prepared = None, None, ()


def progress_of(
    callback: Callable[[int, Tensor, Tensor, int], None] | None, total: int
) -> Progress:
    """What to tell of each step, as ComfyUI's samplers tell it."""
    if callback is None:
        return no_progress
    return lambda number, denoised, x: callback(number, denoised, x, total)


def with_models(model: ModelPatcher, edits: Edits) -> ModelPatcher:
    """The model, loaded as a whole if edits need gradients; and a clone of it if edits have models
    of their own, to load with it.

    Raises:
        ValueError: edits need gradients, and the model has none.
    """
    if any(Need.GRADIENTS in edit.needs for edit in edits):
        model = with_gradients(model, distilled=True)
    beside = [one for edit in edits for one in edit.models]
    if not beside:
        return model
    model = model.clone()
    model.set_additional_models(OURS, beside)
    return model


class PathSampler(comfy.samplers.Sampler):
    """A SAMPLER that walks along the path of its guider.

    Attributes:
        latents: of the walk that was taken last, in the scale of a wire and in ordinary memory: at
            each level that of its last visit.
    """

    def __init__(
        self,
        eta: float = 0.0,
        seed: int | None = None,
        first: int | None = None,
        pure: bool | None = None,
        keeps: bool = False,
    ) -> None:
        """Keep the settings.

        Args:
            eta: fresh noise at each step, 0 to 1.
            seed: of that noise; None takes the sampler's.
            first: the step of the path to begin at; None begins at the noise that is handed in.
            pure: whether that is nothing but noise; None says it by the noise level, as ComfyUI.
            keeps: whether to keep the latents of the walk.
        """
        self.eta, self.seed, self.first, self.pure = eta, seed, first, pure
        self.keeps = keeps
        self.latents: list[Tensor] = []

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
    ) -> Tensor:
        """Called by the guider with the model loaded."""
        if not isinstance(model_wrap, PathGuider):
            raise ValueError(
                "Path Sampler: the guider holds no path; connect the guider of "
                "Diffusion Path Guider."
            )
        guider, denoiser, path = model_wrap, model_wrap.denoiser, model_wrap.path
        try:
            check_eta(path.residuals is not None, self.eta)
        except ValueError as error:
            raise ValueError(f"Path Sampler: {error}.") from None
        masked = comfy.samplers.KSamplerX0Inpaint(guider, sigmas)
        masked.latent_image, masked.noise = latent_image, noise
        seed = extra_args.get("seed")
        generator = torch.Generator().manual_seed((seed if self.seed is None else self.seed) or 0)

        def noise_of(x: Tensor, sigma: float, fresh: float) -> Tensor:
            if path.residuals is not None:
                return guider.step.source.residual(sigma)
            return fresh * torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)

        def ask(step: Step) -> tuple[Tensor, Step]:
            guider.step = guider.pending = step
            timestep = step.x.new_full((len(step.x),), step.sigma)
            try:
                denoised = masked(step.x, timestep, denoise_mask, extra_args["model_options"], seed)
            finally:
                guider.pending = None
            return denoised, guider.step

        self.latents = []
        try:
            transitions = transitions_of(guider.prepared, guider.step.source, guider.levels)
        except ValueError as error:
            raise ValueError(f"Path Sampler: {error}.") from None
        reached = iter([guider.levels[0], *(level for _, level in transitions)])
        latents: dict[float, Tensor] = {}

        def keep(x: Tensor) -> None:
            latents[next(reached)] = denoiser.latent_out(x)

        x, guider.step = walk(
            ask,
            replace(guider.step, x=self._start(guider, sigmas, noise, latent_image)),
            transitions,
            solver_of(path.solver, denoiser.mixing, self.eta, noise_of),
            guider.prepared,
            keep if self.keeps else None,
            progress_of(callback, len(transitions)),
            noise_of,
        )
        self.latents = list(latents.values())
        return x

    def _start(
        self, guider: PathGuider, sigmas: Tensor, noise: Tensor, latent_image: Tensor | None
    ) -> Tensor:
        if self.first is not None:
            return guider.step.source.latent(self.first)
        pure = self.max_denoise(guider, sigmas) if self.pure is None else self.pure
        sampling = guider.inner_model.model_sampling
        return sampling.noise_scaling(sigmas[0], noise, latent_image, pure)


Loop = Callable[[ComfyDenoiser, dict[str, Any], Progress], T]
"""What runs inside a guider: given the model, the conditions by name, and whom to tell."""


class LoopSampler(comfy.samplers.Sampler, Generic[T]):
    """A SAMPLER that runs a loop of ours; the loop's own result is in `result` afterwards."""

    def __init__(self, loop: Loop[T]):
        """Keep the loop."""
        self.loop = loop
        self.result: T

    def sample(
        self,
        model_wrap: PairGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[int, Tensor, Tensor, int], None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor | None:
        """Called by the guider with the model loaded; returns the latent it was given."""
        progress = progress_of(callback, len(sigmas) - 1)
        self.result = self.loop(model_wrap.denoiser, model_wrap.conditions, progress)
        return latent_image


def run(
    model: ModelPatcher,
    prompts: Mapping[str, Conditioning | None],
    latent: Tensor,
    sigmas: Tensor,
    loop: Loop[T],
    *,
    steps: int,
    seed: int = 0,
) -> T:
    """Run `loop(denoiser, conditions, progress)` inside ComfyUI's guider for `model`.

    Args:
        prompts: by name: "positive" and "negative", and further pairs; None stays None.
        latent: a LATENT's samples (B, C, ...), for shape, device and inpainting models.
        sigmas: the noise levels that the loop visits, for hooks and schedules.
        steps: how many times the loop reports progress.
    Returns:
        What `loop` returned.
    """
    sampler = LoopSampler(loop)
    sample(PairGuider(model, prompts), sampler, latent, sigmas, steps=steps, seed=seed)
    return sampler.result


def sample(
    guider: PairGuider,
    sampler: comfy.samplers.Sampler,
    latent: Tensor,
    sigmas: Tensor,
    *,
    steps: int | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Sample as ComfyUI's nodes do, with previews; returns a LATENT's samples (B, C, ...).

    Args:
        steps: how many times the sampler reports progress; None is as many as it says.
    """
    show = latent_preview.prepare_callback(guider.model_patcher, steps or len(sigmas) - 1)
    return guider.sample(
        torch.zeros_like(latent) if noise is None else noise,
        latent,
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=lambda step, denoised, x, total: show(step, denoised, x, steps or total),
        disable_pbar=True,
        seed=seed,
    )
