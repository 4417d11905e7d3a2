"""ComfyUI's MODEL as a `Denoiser`, running inside ComfyUI's own guider.

To ComfyUI every network call looks like KSampler's: a condition and an uncondition. What else is
asked rides along as a further part of one of the two, with no weight in it: its own latent is put
in, and its estimate taken out, right before and behind the network.
"""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor, nn

from ..core.denoiser import Answers, Query
from . import conditions
from .attention import AttentionControl, Chunk
from .conditions import Conds
from .experts import experts_of
from .gradients import (
    checkpointed,
    explained,
    norms_keep_copies,
    ordinary_weights,
    saves_copies,
    training,
)
from .model import mixing_of
from .networks import control_of

KEPT = 400 * 1024
"""Bytes that a backward pass keeps for each latent pixel and byte of a number: as much as SDXL.

SD1.5 keeps 230 thousand: 1.8 GB for a picture of 512 x 512 in half precision.
"""

CALC = "sampler_calc_cond_batch_function"
"""The option of a MODEL that takes over the evaluation of both conditions."""

OURS = "diffusion path"
"""The key of our own wrappers."""

OWN_CALL = ("area", "mask", "control", "gligen", "default", "timestep_start", "timestep_end")
"""What in a part depends on the latent, or on other parts, before the network sees it."""

REGROUPED = ("model_function_wrapper", "context_handler", "multigpu_clones")
"""Options with which the network does not see a call's latents one after the other."""


class Network:
    """The innermost wrapper of the network for one run: it counts, and serves those who ride along.

    Attributes:
        attention: what is told of each call.
        evaluations: parts of a call that were evaluated so far.
        sigma: the noise level that was asked for last.
        riders: the latents to put in, by the part of the call; None leaves the call's own.
        heard: their estimates.
    """

    def __init__(self, attention: AttentionControl) -> None:
        """Nobody rides along yet."""
        self.attention = attention
        self.evaluations, self.sigma = 0, math.inf
        self.riders: dict[Chunk, Tensor | None] = {}
        self.heard: dict[Chunk, Tensor] = {}

    def __call__(
        self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **named: Any
    ) -> Tensor:
        """An APPLY_MODEL wrapper."""
        options = next(
            arg
            for arg in (*args, *named.values())
            if isinstance(arg, dict) and "cond_or_uncond" in arg
        )
        chunks = list(zip(options["cond_or_uncond"], options["uuids"], strict=True))
        self.evaluations += len(chunks)
        self.attention.enter(x)
        if not self.riders.keys() & set(chunks):
            return executor(x, *args, **named)
        own = [self.riders.get(chunk) for chunk in chunks]
        parts = zip(own, x.chunk(len(chunks)), strict=True)
        x = torch.cat([part if latent is None else latent.to(part) for latent, part in parts])
        output = executor(x, *args, **named)
        for chunk, part in zip(chunks, output.chunk(len(chunks)), strict=True):
            if chunk in self.riders:
                self.heard[chunk] = part
        return output


class ComfyDenoiser:
    """A loaded model inside its guider, as a `Denoiser`; a condition is a list of conds.

    Attributes:
        network: counts the network's evaluations.
        attention: what changes attention during this run.
        needs_attention: whether something of this run changes attention or looks at it.
    """

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        model_options: dict[str, Any],
        seed: int | None,
        shape: torch.Size,
    ):
        """Put the wrapper into the run's own options."""
        self.guider, self.model = guider, guider.inner_model
        self.patcher = guider.model_patcher
        self.options, self.seed, self.shape = model_options, seed, shape
        self.experts, self._run_options = experts_of(self.patcher), model_options
        self.device = self.patcher.load_device
        self.dtype = self.model.get_dtype_inference()
        self.mixing = mixing_of(self.patcher)
        self.attention = control_of(self.model.diffusion_model)
        self.network = Network(self.attention)
        self.needs_attention = False
        self._given: tuple[float, Tensor] | None = None
        self._rest: list[Tensor] = []
        self._owned: dict[tuple[uuid.UUID, Any], bool] = {}
        self._with_patches: tuple[dict[str, Any], bool, dict[str, Any]] | None = None
        self._keyframes = list(_keyframes(guider.all_conds()))
        wrappers = model_options["transformer_options"].get("wrappers", {})
        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        self.compiled = COMPILE_KEY in wrappers.get(kind, {})
        comfy.patcher_extension.add_wrapper_with_key(
            kind, OURS, self.network, model_options, is_model_options=True
        )

    def within(
        self, sigma: float, timestep: Tensor, model_options: dict[str, Any], seed: int | None
    ) -> ComfyDenoiser:
        """The denoiser inside one call of the guider, with what its wrappers have passed on."""
        inner = copy.copy(self)
        inner._given, inner.options, inner.seed = (sigma, timestep), model_options, seed
        inner.model = self.guider.inner_model  # of several, that whose turn it is
        return inner

    @property
    def evaluations(self) -> int:
        """Network evaluations so far."""
        return self.network.evaluations

    def latent_in(self, latent: Tensor) -> Tensor:
        """A LATENT's samples (B, C, ...) in the model's scale and on its device."""
        return self.model.process_latent_in(latent.to(self.device, torch.float32))

    def latent_out(self, latent: Tensor) -> Tensor:
        """A latent (B, C, ...) in the scale of a LATENT on a wire, in ordinary memory."""
        return self.model.process_latent_out(latent).to("cpu", torch.float32)

    def percent_to_sigma(self, percent: float) -> float:
        return float(self.patcher.get_model_object("model_sampling").percent_to_sigma(percent))

    def predict(self, queries: Sequence[Query], sigma: float) -> Answers:
        """The plain estimates; ComfyUI is handed one condition and one uncondition at a time."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._take_turn(sigma, queries[0].x)
        self._follow_keyframes(sigma)
        self.attention.forget()
        reaches = self._probes or any(query.patch is not None for query in queries)
        seen: dict[Any, Tensor] = {}
        main, *others = queries
        # Those with a patch have calls of their own, before the first one's: what that sets up in
        # the attention stays for guidance functions that ask again.
        patched = [query for query in others if query.patch is not None]
        answers: dict[Query, Tensor] = {}
        for query in patched:
            answers |= self._answer([query], sigma, seen)
        rest = [query for query in others if query.patch is None]
        answers |= self._answer([main, *rest], sigma, seen)
        if reaches:
            self.attention.check_reached()
        return Answers([answers[query] for query in queries], seen)

    def _answer(
        self, queries: list[Query], sigma: float, seen: dict[Any, Tensor]
    ) -> dict[Query, Tensor]:
        """Answers in one call of ComfyUI's what can go into one, and the rest in further calls."""
        main, others = queries[0], queries[1:]
        partner = next(
            (
                query
                for query in others
                if query.x is main.x
                and query.patch is None
                and query.condition.negative != main.condition.negative
            ),
            None,
        )
        others = [query for query in others if query is not partner]
        source = next((query for query in queries if query.is_source), None)
        needs_source = main.patch is not None and main.patch.needs_source
        alone = self.attention.apart
        apart = bool(needs_source and source and (alone or not self._rides(source)))
        riders = [
            query for query in others if self._rides(query) and not (alone and query is source)
        ]

        known: dict[Query, Tensor] = {}
        if apart and source is not None:
            self.attention.begin(main.patch, self.shape, source=self._chunk_of(source, main.patch))
            known |= self._call(source, None, [], sigma, self._patched(main))
            seen.update(self.attention.seen)
        if main.patch is not None:
            at = None
            if source in riders:
                at = (int(source.condition.negative), self._rider(source, riders)["uuid"])
            keeps = apart or self._guides_further()
            target = self._chunks_of(main.condition, main.patch.target)
            self.attention.begin(main.patch, self.shape, target, at, keeps, goes_on=apart)
        answered = self._call(main, partner, riders, sigma, self._patched(main))
        if main.patch is not None:
            if self.attention.missed and source is not None and not apart:
                self.attention.apart = True  # memory or hooks keep the source from coming first
                return self._answer(queries, sigma, seen)
            seen.update(self.attention.seen)
            self.attention.end_watching()
        known |= answered
        if rest := [query for query in queries if query not in known]:
            known |= self._answer(rest, sigma, seen)
        return known

    def _call(
        self,
        main: Query,
        partner: Query | None,
        riders: list[Query],
        sigma: float,
        options: dict[str, Any],
    ) -> dict[Query, Tensor]:
        """One call of ComfyUI's for both conditions, and for what rides along."""
        sides: dict[bool, Conds] = {main.condition.negative: main.condition}
        if partner is not None:
            sides[partner.condition.negative] = partner.condition
        conds: list[Any] = [sides.get(False, []), sides.get(True)]
        at: dict[Query, Chunk] = {}
        for query in riders:
            number, part = int(query.condition.negative), self._rider(query, riders)
            conds[number] = [*(conds[number] or []), part]
            at[query] = (number, part["uuid"])
        self.network.riders = {
            chunk: None if query.x is main.x else query.x for query, chunk in at.items()
        }
        self.network.heard = {}
        args = {"conds": conds, "input": main.x, "sigma": self._sigmas(main.x, sigma)}
        try:
            if CALC in options:
                output = options[CALC]({**args, "model": self.model, "model_options": options})
            else:
                output = comfy.samplers.calc_cond_batch(
                    self.model, conds, main.x, args["sigma"], options
                )
            heard = self.network.heard
        finally:
            self.network.riders, self.network.heard = {}, {}
        if partner is not None:
            self._rest = list(output[2:])
        found = {query: heard[chunk] for query, chunk in at.items() if chunk in heard}
        for side in (main, partner):
            if side is not None:
                found[side] = output[int(side.condition.negative)]
        return found

    def guides(self, scale: float) -> bool:
        """As in `comfy.samplers.sampling_function`."""
        return not math.isclose(scale, 1.0) or self.options.get("disable_cfg1_optimization", False)

    def guide(
        self,
        cond: Tensor,
        uncond: Tensor | None,
        scale: float,
        query: Query,
        negative: Conds,
        sigma: float,
    ) -> Tensor:
        """ComfyUI's own guidance, which gets these estimates instead of making its own."""
        self._take_turn(sigma, query.x)
        options = dict(self._patched(query))
        theirs = options.get(CALC)

        def answer(_: dict[str, Any]) -> list[Tensor]:
            if theirs is None:
                del options[CALC]
            else:
                options[CALC] = theirs
            return [cond, torch.zeros_like(cond) if uncond is None else uncond, *self._rest]

        options[CALC] = answer
        timestep = self._sigmas(query.x, sigma)
        guidance = saves_copies(comfy.samplers.sampling_function)
        return guidance(
            self.model, query.x, timestep, negative, query.condition, scale, options, self.seed
        )

    def _take_turn(self, sigma: float, x: Tensor) -> None:
        """Let that of several models answer whose turn it is. In a call of the guider it is already
        so."""
        if self.experts is not None and self._given is None:
            turn = self.experts.turn(self.guider, sigma, x, self._run_options)
            self.model, self.options = turn

    def same(self, a: Conds, b: Conds) -> bool:
        """Whether they say the same, on a model that nothing tells a negative from a positive."""
        kinds = ("patches", "patches_replace", "wrappers", "optimized_attention_override")
        transformer = self.options.get("transformer_options", {})
        functions = (CALC, "model_function_wrapper", "context_handler")
        theirs = {kind for kind in kinds if _used(transformer.get(kind))}
        return (
            not theirs
            and not any(one in self.options for one in functions)
            and conditions.same(a, b)
        )

    def mixes(self, a: Conds, b: Conds) -> bool:
        return conditions.mixes(a, b)

    def mix(self, a: Conds, b: Conds, weight: float) -> Conds:
        return conditions.mix(a, b, weight)

    def embedding(self, condition: Conds) -> Tensor:
        return conditions.embedding(condition).to(self.device, torch.float32)

    def with_embedding(self, condition: Conds, embedding: Tensor) -> Conds:
        return conditions.with_embedding(condition, embedding)

    def _sigmas(self, x: Tensor, sigma: float) -> Tensor:
        """The noise level of each latent (B,), as it came in if it came from outside."""
        if self._given is not None and self._given[0] == sigma and len(self._given[1]) == len(x):
            return self._given[1]
        return x.new_full((len(x),), sigma)

    def _patched(self, query: Query) -> dict[str, Any]:
        """The options for a query, with its patch in them; those of the run stay as they are."""
        self.attention.idle = query.patch is None
        # What torch.compile has compiled with patches looks for them in every call.
        if query.patch is None and not self.compiled and not self._probes:
            return self.options
        kept, features = self._with_patches, self.attention.with_features
        if kept is None or kept[0] is not self.options or kept[1] != features:
            kept = self.options, features, self.attention.options(self.options)
            self._with_patches = kept
        return kept[2]

    @property
    def _probes(self) -> bool:
        """Whether the next call of the network is the first, and shows if its attention can be
        reached."""
        return self.needs_attention and not self.network.evaluations

    def _guides_further(self) -> bool:
        """Whether guidance functions may ask the network again."""
        return any(
            self.options.get(name)
            for name in ("sampler_pre_cfg_function", "sampler_post_cfg_function")
        )

    def _rides(self, query: Query) -> bool:
        """Whether a query can be a part of another's call."""
        if query.patch is not None or len(query.condition) != 1:
            return False
        return not any(key in query.condition[0] for key in OWN_CALL) and not any(
            key in self.options for key in REGROUPED
        )

    @staticmethod
    def _rider(query: Query, riders: list[Query]) -> dict[str, Any]:
        """The part of a call that a query rides along as; the same one at every step."""
        number = riders.index(query)
        name = uuid.uuid5(query.condition[0]["uuid"], f"rides along {number}")
        return {**query.condition[0], "uuid": name, "strength": 0.0}

    def _chunk_of(self, source: Query, patch: Any) -> Chunk:
        """Where the source's attention is, in a call of its own."""
        (first, *_) = self._chunks_of(source.condition, patch.source) or [(0, None)]
        return first

    def _chunks_of(self, condition: Conds, prompt: Any) -> list[Chunk]:
        """The parts of a call that belong to a prompt; whose a part is, is found out once."""
        found = []
        for part in condition:
            key = part["uuid"], prompt
            if key not in self._owned:
                self._owned[key] = conditions.is_of(part.get("cross_attn"), part, prompt)
            if self._owned[key]:
                found.append((int(condition.negative), part["uuid"]))
        return found

    def _follow_keyframes(self, sigma: float) -> None:
        """Bring hooks with keyframes to the strength that they have when sampling gets here.

        ComfyUI moves them on only as the noise level falls.
        """
        last, self.network.sigma = self.network.sigma, sigma
        options = self.options.get("transformer_options", {})
        if not self._keyframes or sigma <= last < math.inf or "sample_sigmas" not in options:
            return
        before = [group.strength for group in self._keyframes]
        for group in self._keyframes:
            group.reset()
            for level in options["sample_sigmas"]:
                if float(level) >= sigma * (1 - 1e-6):
                    group.prepare_current_keyframe(level, options)
        if before != [group.strength for group in self._keyframes]:
            self.patcher.clean_hooks()

    @contextmanager
    def differentiable(self, sparing: bool | None = None) -> Iterator[None]:
        """Aliases the weights for as long, those of ControlNets too, and calls PyTorch's attention.

        Args:
            sparing: whether to compute again in the backward pass what takes memory to store; by
                default where memory is short.
        Raises:
            ValueError: some of the weights are not where they are computed with, or something
                on the model has no gradient.
        """
        network = self.model.diffusion_model
        if any(weight.device.type != self.device.type for weight in network.parameters()):
            raise ValueError(
                "only a part of the model fits into the graphics card's memory, and gradients need "
                "all of it; free some (smaller pictures or batches, --reserve-vram), or use a node "
                "that needs none, such as Negative-Prompt Inversion"
            )
        with ExitStack() as stack:
            stack.enter_context(explained())
            stack.enter_context(torch.inference_mode(False))
            controls = list(self._control_networks())
            stack.enter_context(ordinary_weights([network, *controls]))
            stack.enter_context(norms_keep_copies(network))
            stack.enter_context(self._differentiable_options(bool(controls)))
            stack.enter_context(training())
            if self._memory_is_short() if sparing is None else sparing:
                stack.enter_context(checkpointed(network))
            yield

    def _control_networks(self) -> Iterator[nn.Module]:
        for conds in self.guider.all_conds():
            for cond in conds:
                control = cond.get("control")
                while control is not None:
                    network = getattr(control, "control_model", None)
                    if isinstance(network, nn.Module):
                        yield network
                    control = control.previous_controlnet

    @contextmanager
    def _differentiable_options(self, controlled: bool) -> Iterator[None]:
        """Inside, what stands in a gradient's way is replaced in the run's own options: ComfyUI's
        fastest attentions, and patches and ControlNets that change a UNet's skips in place."""
        kept = self.options
        self.options = comfy.patcher_extension.copy_nested_dicts(kept)
        options = self.options["transformer_options"]
        theirs = options.get("optimized_attention_override")

        def override(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            if theirs is None:
                return attention_pytorch(*args, **kwargs)
            return theirs(attention_pytorch, *args, **kwargs)

        options["optimized_attention_override"] = override
        patches = options.setdefault("patches", {})
        for name, functions in patches.items():
            patches[name] = [saves_copies(function) for function in functions]
        if controlled:
            after = patches.setdefault("input_block_patch_after_skip", [])
            after.append(lambda h, _: h.clone())
        try:
            yield
        finally:
            self.options = kept

    def _memory_is_short(self) -> bool:
        batch, _, *sizes = self.shape
        number = comfy.model_management.dtype_size(self.dtype)
        kept = batch * math.prod(sizes) * number * KEPT * self.model.memory_usage_factor
        return kept > self.patcher.get_free_memory(self.device)


def _keyframes(conditions: Iterable[Conds]) -> Iterable[Any]:
    """The groups of keyframes of all hooks, each once."""
    groups = (
        hook.hook_keyframe
        for conds in conditions
        for cond in conds
        if cond.get("hooks") is not None
        for hook in cond["hooks"].hooks
    )
    return {id(group): group for group in groups if not group.is_empty()}.values()


def _used(found: Any) -> bool:
    """Whether something other than our own wrappers is in a dict of patches."""
    if isinstance(found, dict):
        return any(_used(value) for key, value in found.items() if key != OURS)
    return bool(found)
