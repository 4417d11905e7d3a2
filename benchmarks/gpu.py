"""What the pack costs on a graphics card, at the true sizes of the model families.

`python -m diffusion_path.benchmarks.gpu` needs a card and writes `benchmarks/results/gpu.md`. It
downloads nothing: weights are random, which takes as long. `--small` runs the same on tiny models,
also without a card, and writes to `bench-output/`, as `--only` does.

Each node is timed against the bare network: the calls that the node has made of the diffusion
model, with as many rows and ways back, made again without ComfyUI's samplers and without us. The
two take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attention.align import PromptPair
from ..tests import tiny_models
from ..tools.setup import ROOT
from .attention import SD15, SOURCE, TARGET
from .batch import Demo, node
from .edits import RESULTS
from .speed import seconds

Steps = tuple[int, int]
"""Of two runs: memory is measured in both, time in the longer one."""
STEPS, SMALL_STEPS = (4, 12), (2, 3)
REPEATS = 3
INNER_STEPS = 2
CFG = 5.0

Technique = Literal["Sampler", "Sampler with Prompt-to-Prompt", "Null-Text Inversion"]
SAMPLER: Technique = "Sampler"
PROMPT_TO_PROMPT: Technique = "Sampler with Prompt-to-Prompt"
NULL_TEXT: Technique = "Null-Text Inversion"
UNET = (SAMPLER, PROMPT_TO_PROMPT, NULL_TEXT)

SDXL = SD15 | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "context_dim": 2048,
}
SD35_MEDIUM = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "input_size": None,
    "adm_in_channels": 2048,
    "num_patches": 384 * 384,
    "pos_embed_max_size": 384,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "x_block_self_attn_layers": list(range(13)),
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
}


@dataclass(frozen=True)
class Family:
    """A model to measure, and what it is given.

    Attributes:
        name: with the picture's size.
        model: makes the MODEL.
        latent: (C, H, W).
        tokens: of its prompts.
        pooled: width of the pooled vector; None if it reads none.
        guidance: what a guidance-distilled model is told.
    """

    name: str
    model: Callable[[], Any]
    latent: tuple[int, int, int]
    techniques: tuple[Technique, ...]
    tokens: int = 77
    pooled: int | None = None
    guidance: float | None = None


def configured(config_class: str, unet_config: dict[str, Any], device: str = "cpu") -> Any:
    """A model as ComfyUI makes it of a file in half precision, before it has weights."""
    import comfy.model_management
    import comfy.supported_models

    config = getattr(comfy.supported_models, config_class)(unet_config)
    card, types = comfy.model_management.get_torch_device(), config.supported_inference_dtypes
    dtype = comfy.model_management.unet_dtype(card, supported_dtypes=types)
    cast = comfy.model_management.unet_manual_cast(dtype, card, types)
    config.set_inference_dtype(dtype, cast)
    return config.get_model({}, device=torch.device(device)).eval()


def full(config_class: str, unet_config: dict[str, Any]) -> Any:
    """A MODEL of true size; its random weights keep activations in bounds."""
    import comfy.model_management
    import comfy.model_patcher

    model = configured(config_class, unet_config)
    card = comfy.model_management.get_torch_device()
    generator = torch.Generator(card).manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.diffusion_model.parameters(), *model.diffusion_model.buffers()):
            scale = 0.5 / max(tensor[0].numel(), 1) ** 0.5 if tensor.ndim > 1 else 0.1
            values = torch.randn(
                tensor.shape, generator=generator, device=card, dtype=torch.float32
            )
            tensor.copy_(values * scale)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=card, offload_device=torch.device("cpu")
    )


FULL = {
    "sd15": Family("SD1.5, 512 x 512", partial(full, "SD15", SD15), (4, 64, 64), UNET),
    "sdxl": Family(
        "SDXL, 1024 x 1024", partial(full, "SDXL", SDXL), (4, 128, 128), UNET, pooled=1280
    ),
    "sd3": Family(
        "SD3.5 Medium, 1024 x 1024",
        partial(full, "SD3", SD35_MEDIUM),
        (16, 128, 128),
        (SAMPLER, NULL_TEXT),
        tokens=154,
        pooled=2048,
    ),
    "flux_dev": Family(
        "Flux dev, 1024 x 1024",
        partial(full, "Flux", FLUX | {"guidance_embed": True}),
        (16, 128, 128),
        (SAMPLER,),
        tokens=256,
        pooled=768,
        guidance=3.5,
    ),
    "flux_without_guidance": Family(
        "Flux without guidance as an input, 1024 x 1024",
        partial(full, "FluxSchnell", FLUX | {"guidance_embed": False}),
        (16, 128, 128),
        (NULL_TEXT,),
        tokens=256,
        pooled=768,
    ),
}


def tiny(name: str, techniques: tuple[Technique, ...]) -> Family:
    """A family of the tests'."""
    shape = tiny_models.SHAPES[name]
    return Family(
        f"tiny {name}",
        getattr(tiny_models, name),
        (shape.channels, 8, 12),
        techniques,
        pooled=shape.pooled,
        guidance=shape.guidance,
    )


SMALL = {
    "sd15": tiny("sd15", UNET),
    "sdxl": tiny("sdxl", UNET),
    "sd3": tiny("sd3", (SAMPLER, NULL_TEXT)),
    "flux_dev": tiny("flux_dev", (SAMPLER,)),
    "flux_without_guidance": tiny("flux_schnell", (NULL_TEXT,)),
}


@dataclass
class Asked:
    """Calls of the network that are alike.

    Attributes:
        inputs, named: those of the first, less its `transformer_options`, which hold our patches.
        sparing: whether the way back computes again what it has not kept.
    """

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    sparing: bool
    calls: int = 0
    backwards: int = 0


@dataclass
class Calls:
    """What was asked of the network, to be asked again without whoever did.

    Attributes:
        asked: by the number of rows, and by whether there is a way back.
    """

    network: nn.Module
    asked: dict[tuple[int, bool], Asked] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """Rows in all; one is one latent under one condition."""
        return sum(rows * asked.calls for (rows, _), asked in self.asked.items())

    @property
    def backwards(self) -> int:
        """Ways back in all."""
        return sum(asked.backwards for asked in self.asked.values())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, calls are written down."""
        handle = self.network.register_forward_hook(self._note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _note(
        self, network: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        from ..host.gradients import blocks

        key = len(inputs[0]), output.requires_grad
        if key not in self.asked:
            named = {name: value for name, value in named.items() if name != "transformer_options"}
            sparing = "forward" in next(blocks(network)).__dict__
            self.asked[key] = Asked(inputs, named, sparing)
        asked = self.asked[key]
        asked.calls += 1
        if output.requires_grad:
            output.register_hook(lambda _: self._note_back(asked))

    @staticmethod
    def _note_back(asked: Asked) -> None:
        asked.backwards += 1

    def again(self) -> None:
        """The same calls of the bare network."""
        for (_, differentiable), asked in self.asked.items():
            if differentiable:
                self._there_and_back(asked)
            else:
                for _ in range(asked.calls):
                    self.network(*asked.inputs, **asked.named, transformer_options={})

    def _there_and_back(self, asked: Asked) -> None:
        from comfy.ldm.modules.attention import attention_pytorch

        from ..host.gradients import checkpointed, norms_keep_copies, ordinary_weights, training

        def attention(_: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
            return attention_pytorch(*args, **named)

        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(ordinary_weights([self.network]))
            stack.enter_context(norms_keep_copies(self.network))
            stack.enter_context(training())
            if asked.sparing:
                stack.enter_context(checkpointed(self.network))
            inputs = tuple(map(ordinary, asked.inputs))
            named = {name: ordinary(value) for name, value in asked.named.items()}
            context = named["context"].requires_grad_()
            for call in range(asked.calls):
                options = {"optimized_attention_override": attention}
                output = self.network(*inputs, **named, transformer_options=options)
                if call < asked.backwards:
                    torch.autograd.grad(output, context, torch.ones_like(output))
                del output


def ordinary(value: Any) -> Any:
    """A copy of a tensor that autograd takes; anything else as it is."""
    return value.detach().clone() if torch.is_tensor(value) else value


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        precision: of the weights.
        evaluations, backwards: of the network, for each step.
        seconds: for each step.
        ratio: the time over that of the bare network.
        peaks: bytes on the device in the two runs; None without a card.
        bare_peak: that of the bare network.
        failed: why there are no figures.
    """

    family: str
    technique: Technique
    precision: str
    evaluations: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0
    ratio: float = 0.0
    peaks: tuple[int, int] | None = None
    bare_peak: int | None = None
    failed: str = ""


def way(
    family: Family, model: Any, clip: Any, technique: Technique, steps: int
) -> Callable[[], Any]:
    """A run of a technique's node on an inverted path of as many steps."""
    from ..host.model import text_width

    generator = torch.Generator().manual_seed(0)
    latent = {"samples": torch.randn(1, *family.latent, generator=generator)}
    width = text_width(model)
    assert width is not None
    source, target, negative = (
        tiny_models.conditioning(width, family.tokens, family.pooled, seed) for seed in range(3)
    )
    if family.guidance is not None:
        for _, options in (*source, *target, *negative):
            options["guidance"] = family.guidance
    path, _ = node(
        "DDIMInversion",
        model=model,
        positive=source,
        latent_image=latent,
        steps=steps,
        solver="euler",
    )
    run = partial(node, model=model, path=path, negative=negative, cfg=CFG)
    if technique == NULL_TEXT:
        adam = {"optimizer": "adam", "inner_steps": INNER_STEPS, "early_stop": 1e-12}
        return partial(run, "NullTextInversion", **adam)
    if technique == SAMPLER:
        return partial(run, "Sampler", positive=target)
    _, _, pair = node("PromptPair", clip=clip, source_prompt=SOURCE, target_prompt=TARGET)
    pair = PromptPair(
        source=replace(pair.source, embedding=source[0][0]),
        target=replace(pair.target, embedding=target[0][0]),
    )
    edits = node("PromptToPrompt", prompts=pair, cross_replace=1.0, self_replace=1.0)
    return partial(run, "Sampler", positive=target, edits=edits)


def timed(action: Callable[[], Any]) -> tuple[float, int | None]:
    """Seconds that it takes until the device is done, and the most memory held there, in bytes."""
    import comfy.model_management

    def finished() -> None:
        action()
        comfy.model_management.synchronize()

    on_card = torch.cuda.is_available()
    if on_card:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    time = seconds(finished)
    return time, torch.cuda.max_memory_allocated() if on_card else None


def measure(
    family: Family, model: Any, clip: Any, technique: Technique, steps: Steps, repeats: int
) -> Row:
    """A technique on a model, beside the bare network."""
    precision = str(model.model.get_dtype()).removeprefix("torch.")
    try:
        few, many = (way(family, model, clip, technique, number) for number in steps)
        calls = Calls(model.model.diffusion_model)
        with calls.listening():
            many()
        calls.again()
        _, least = timed(few)
        turns = [(timed(many), timed(calls.again)) for _ in range(repeats)]
    except Exception as error:  # the other rows are worth having
        traceback.print_exc()
        return Row(family.name, technique, precision, failed=reason(error))
    most, bare = (max((peak or 0 for _, peak in of)) for of in zip(*turns, strict=True))
    return Row(
        family.name,
        technique,
        precision,
        evaluations=calls.evaluations / steps[-1],
        backwards=calls.backwards / steps[-1],
        seconds=median(time for (time, _), _ in turns) / steps[-1],
        ratio=median(time / alone for (time, _), (alone, _) in turns),
        peaks=None if least is None else (least, most),
        bare_peak=None if least is None else bare,
    )


def reason(error: Exception) -> str:
    """Why a row has no figures, on one line."""
    import comfy.model_management

    if comfy.model_management.is_oom(error):
        return "out of memory"
    return shorten(f"{type(error).__name__}: {error}", 120).replace("|", "/")


def measured(families: Sequence[Family], steps: Steps, repeats: int) -> Iterator[Row]:
    """All rows, family by family; only one is in memory."""
    import comfy.model_management

    with torch.inference_mode():  # as ComfyUI's executor
        clip = Demo.load().clip
        for family in families:
            model = family.model()
            for technique in family.techniques:
                yield measure(family, model, clip, technique, steps, repeats)
            comfy.model_management.unload_all_models()
            del model
            gc.collect()
            comfy.model_management.soft_empty_cache()


def table(rows: Sequence[Row], steps: Steps) -> str:
    """The rows in Markdown."""
    few, many = steps
    lines = [
        "| model | | precision | evaluations | backwards | seconds | ratio "
        f"| GiB, {few} steps | GiB, {many} steps | GiB, bare |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row.family, row.technique, row.precision]
        if row.failed:
            cells += [row.failed, *[""] * 6]
        else:
            cells += [f"{row.evaluations:g}", f"{row.backwards:g}"]
            cells += [f"{row.seconds:.4f}", f"{row.ratio:.2f}"]
            peaks = (None, None, None) if row.peaks is None else (*row.peaks, row.bare_peak)
            cells += ["–" if peak is None else f"{peak / 2**30:.2f}" for peak in peaks]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def device() -> str:
    """The graphics card and its memory, or the number of threads."""
    if not torch.cuda.is_available():
        return f"no graphics card, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def report(rows: Sequence[Row], steps: Steps, repeats: int) -> str:
    """The whole file."""
    import comfyui_version  # type: ignore[import-not-found]

    few, many = steps
    today = datetime.now(timezone.utc).date()
    growth = [row.peaks[1] / row.peaks[0] - 1 for row in rows if row.peaks]
    grown = ""
    if growth:
        grown = f" From {few} to {many} steps the peak grows by {max(growth):.1%} at most."
    return (
        "# What the pack costs on a graphics card\n\n"
        f"{device()}; torch {torch.__version__}, ComfyUI {comfyui_version.__version__}; {today}. "
        f"Random weights, one picture, cfg {CFG:g}, medians of {repeats} repeats.\n\n"
        "Evaluations and backwards of the network, and seconds, are for each step. Ratio: the time "
        "of the node over that of the bare network, which is called as often, with as many rows "
        "and ways back, in the same run. GiB: the most memory that tensors held on the card, the "
        "weights included. Prompt-to-Prompt controls each step, and needs a third evaluation for "
        f"the source. Null-Text Inversion takes {INNER_STEPS} iterations of adam a step."
        f"{grown}\n\n"
        f"{table(rows, steps)}\n"
    )


def folder(on_card: bool, partly: bool) -> Path:
    """Where the table goes: what is not the whole of it on a card stays out of git."""
    return RESULTS if on_card and not partly else ROOT / "bench-output"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="What the pack costs on a graphics card.")
    parser.add_argument("--small", action="store_true", help="tiny models, which need no card")
    parser.add_argument("--only", nargs="+", choices=list(FULL), help="these models alone")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each measurement")
    arguments = parser.parse_args()
    if not (arguments.small or torch.cuda.is_available()):
        parser.error("there is no graphics card for models of this size; use --small")
    families, steps = (SMALL, SMALL_STEPS) if arguments.small else (FULL, STEPS)
    chosen = [families[name] for name in arguments.only or families]
    rows = []
    for row in measured(chosen, steps, arguments.repeats):
        rows.append(row)
        print(table([row], steps).splitlines()[-1], flush=True)
    target = folder(torch.cuda.is_available(), arguments.small or bool(arguments.only))
    target.mkdir(exist_ok=True)
    text = report(rows, steps, arguments.repeats)
    (target / "gpu.md").write_text(text)
    print(f"\n{text}\n{target / 'gpu.md'}")


if __name__ == "__main__":
    main()
