"""Several models as one MODEL, each for a range of noise levels (eDiff-I, Balaji et al. 2022,
arXiv 2211.01324, section 4.1).

The first is the MODEL itself; ComfyUI loads the others beside it. Each predicts as it would alone:
with its own weights, patches, guidance functions and wrappers, and with what a run or later nodes
have added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import CallbacksMP, WrappersMP, merge_nested_dicts
from comfy.samplers import CFGGuider
from torch import Tensor

from .model import EXPERTS, fingerprint, fits

WHOLE = (
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.PREPARE_SAMPLING,
    WrappersMP.SAMPLER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
)
"""Wrappers of a MODEL around more than a prediction of its own."""

Options = dict[str, Any]


class Experts:
    """What hands each prediction to the model whose turn it is.

    Attributes:
        switches: where the next model's turn begins, as fractions of the first one's schedule, 0 is
            its noisy end; rising.
        own: the options of the first model without what came later.
    """

    def __init__(self, switches: tuple[float, ...], own: Options) -> None:
        """Nobody's turn yet."""
        self.switches, self.own = switches, own
        self._at: ModelPatcher | None = None

    def __call__(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timestep: Tensor,
        model_options: Options,
        seed: int | None = None,
    ) -> Tensor:
        """A PREDICT_NOISE wrapper."""
        guider: Any = executor.class_obj  # type: ignore[attr-defined]
        before = guider.inner_model
        guider.inner_model, options = self.turn(guider, float(timestep[0]), x, model_options)
        try:
            return executor(x, timestep, options, seed)
        finally:
            guider.inner_model = before

    def turn(
        self, guider: CFGGuider, sigma: float, x: Tensor, options: Options
    ) -> tuple[BaseModel, Options]:
        """The model whose turn it is at a noise level, loaded, and a run's options with its own in
        the place of the first one's."""
        first: ModelPatcher = guider.model_patcher
        turns = [first, *first.get_additional_models_with_key(EXPERTS)]
        passed = [sigma <= level * (1 + 1e-5) for level in levels_of(first, self.switches)]
        taken = turns[sum(passed)]
        if taken is not self._at:
            self._load(guider, taken, turns, x)
            self._at = taken
        if taken is not first:
            options = exchanged(options, self.own, options_of(taken))
        return taken.model, options

    @staticmethod
    def _load(guider: CFGGuider, taken: ModelPatcher, turns: list[ModelPatcher], x: Tensor) -> None:
        """Load a model whose turn begins, in place of another if both have the same weights, or if
        there is no room for both."""
        others = [one for one in guider.loaded_models if one not in turns]
        memory, least = comfy.sampler_helpers.estimate_memory(taken, x.shape, guider.conds)
        comfy.model_management.load_models_gpu(
            [taken, *others], memory_required=memory, minimum_memory_required=least
        )
        if taken.model.current_patcher is not taken:
            taken.pre_run()

    def begin(self, first: ModelPatcher) -> None:
        """ON_PRE_RUN: a run begins."""
        self._at = None

    def register(
        self, first: ModelPatcher, hooks: Any, targets: Any, options: Options, registered: Any
    ) -> None:
        """ON_REGISTER_ALL_HOOK_PATCHES: what prompts do to the weights, they do to all."""
        for one in first.get_additional_models_with_key(EXPERTS):
            one.register_all_hook_patches(hooks, targets, create_model_options_clone(options))

    def end(self, first: ModelPatcher) -> None:
        """ON_CLEANUP: a run ends, also by an interruption."""
        self._at = None
        for one in first.get_additional_models_with_key(EXPERTS):
            one.cleanup()
            one.restore_hook_patches()


def experts_of(model: ModelPatcher) -> Experts | None:
    """What hands over between the models that a MODEL is; None if it is one."""
    return next(iter(model.get_wrappers(WrappersMP.PREDICT_NOISE, EXPERTS)), None)


def joined(high: ModelPatcher, low: ModelPatcher, switch: float) -> ModelPatcher:
    """Two models as one; the first may be several already.

    Args:
        switch: the fraction of the first one's schedule where the second takes over.
    Raises:
        ValueError: they are not of one kind, or cannot be two of one run.
    """
    before = experts_of(high)
    check_pair(high, low)
    switches = (*(before.switches if before else ()), switch)
    if sorted(set(switches)) != list(switches):
        raise ValueError(
            f"high_noise is several models already, and switches at {switches[-2]:g} for the last "
            f"time; raise switch_at, which is {switch:g}"
        )
    experts = Experts(switches, before.own if before else options_of(high))
    model = high.clone()
    others = model.get_additional_models_with_key(EXPERTS)
    model.set_additional_models(EXPERTS, [*others, low.clone()])
    model.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, EXPERTS)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, EXPERTS, experts)
    for kind, callback in (
        (CallbacksMP.ON_PRE_RUN, experts.begin),
        (CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, experts.register),
        (CallbacksMP.ON_CLEANUP, experts.end),
    ):
        model.remove_callbacks_with_key(kind, EXPERTS)
        model.add_callback_with_key(kind, EXPERTS, callback)
    return model


def check_pair(high: ModelPatcher, low: ModelPatcher) -> None:
    """Raise ValueError if two models are not of one kind, or cannot be two of one run."""
    theirs = fingerprint(low)
    for name, value in fingerprint(high).items():
        if not fits(value, theirs[name]):
            raise ValueError(
                f"the two models are of different kinds: the {name} is {value} for high_noise and "
                f"{theirs[name]} for low_noise; connect two models of one family"
            )
    if network_of(high) != network_of(low):
        raise ValueError(
            "the networks of the two models differ in their size or in what they read; connect two "
            "models of one family"
        )
    if experts_of(low):
        raise ValueError("low_noise is several models already; connect those to high_noise instead")
    if any(low.get_all_wrappers(kind) for kind in WHOLE):
        raise ValueError(
            "something on low_noise acts on the whole of sampling (EasyCache, LazyCache), of which "
            "this model does a part; connect it behind this node"
        )
    if any(one.get_additional_models_with_key("multigpu") for one in (high, low)):
        raise ValueError(
            "one of the models runs on more than one graphics card, where two cannot take turns; "
            "connect it without that"
        )


def network_of(model: ModelPatcher) -> tuple[type, dict[str, Any]]:
    """What two networks must share so that what is prepared for one is right for the other: all
    but the type of the weights."""
    config = model.model.model_config.unet_config
    return type(model.model.diffusion_model), {k: v for k, v in config.items() if k != "dtype"}


def levels_of(first: ModelPatcher, switches: tuple[float, ...]) -> list[float]:
    """The noise levels at which the turns change."""
    sampling = first.get_model_object("model_sampling")
    return [float(sampling.percent_to_sigma(switch)) for switch in switches]


def options_of(model: ModelPatcher) -> Options:
    """A model's own options, with its wrappers and callbacks where a run has them."""
    options = create_model_options_clone(model.model_options)
    inner = options.setdefault("transformer_options", {})
    for name, own in (("wrappers", model.wrappers), ("callbacks", model.callbacks)):
        inner[name] = merge_nested_dicts(inner.get(name, {}), own)
    return options


def exchanged(
    run: Mapping[str, Any], mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Options:
    """The options of a run that began with `mine`, as if it had begun with `theirs`: what is not
    `mine` in them was added, and stays."""
    found: Options = {}
    for key in {**theirs, **run}:
        now, was, other = run.get(key), mine.get(key), theirs.get(key)
        if isinstance(now, dict) or isinstance(other, dict):
            inner = (one if isinstance(one, dict) else {} for one in (now, was, other))
            found[key] = exchanged(*inner)
        elif isinstance(now, list) or isinstance(other, list):
            added = [one for one in now or [] if not any(one is own for own in was or [])]
            found[key] = [*(other or []), *added]
        elif key in run and now is not was:
            found[key] = now
        elif key in theirs:
            found[key] = other
        nothing = isinstance(found.get(key), (dict, list)) and not found[key]
        if nothing and key in mine and key not in theirs:
            del found[key]  # nothing was added to what is the first one's alone
    return found
