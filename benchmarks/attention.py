"""What a step with attention control costs, in plain guided steps.

`python -m diffusion_path.benchmarks.attention` writes `benchmarks/results/attention.md`: on the
demo models, and on networks of the size of Stable Diffusion 1.5 and of Flux with random weights,
of which the latter has few of its blocks. The ways take turns, so that whatever else the machine
does meets all alike; figures are medians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..attention.align import PAD, Prompt, PromptPair
from ..attention.plan import Attention, Watch, marks
from ..core.edit import Edit, Need, Step
from ..core.path import DiffusionPath
from .batch import Demo, node
from .edits import RESULTS
from .machine import write_page
from .speed import seconds

SOURCE, TARGET = "a horse on a green background", "a zebra on a green background"
CFG, MAPS = 4.0, "word maps alone"
LIMIT, MAPS_LIMIT = 1.6, 1.1
"""What a step of prompt-to-prompt may cost, and one with word maps in five blocks."""

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
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "guidance_embed": False,
}
"""Flux's transformer, with one double and one single block in place of 19 and 38."""
FLUX_TOKENS, FLUX_BLOCKS, FLUX_MAPS = 256, 57, 5

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "context_dim": 768,
}
"""Stable Diffusion 1.5's UNet, as ComfyUI describes it."""


def random_model(family: str, sizes: dict[str, Any]) -> Any:
    """A MODEL of a family of ComfyUI's, in float32 on a CPU, with random weights."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, family)(dict(sizes))
    device = comfy.model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.diffusion_model.parameters():
            scale = 0.5 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return comfy.model_patcher.ModelPatcher(model.eval(), device, torch.device("cpu"))


def prompts(
    clip: Any, width: int | None = None, tokens: int = 77, pooled: int | None = None
) -> tuple[Any, Any, PromptPair]:
    """Both prompts; with random embeddings of another width for a model without a text encoder."""
    source, target, pair = node("PromptPair", clip=clip, source_prompt=SOURCE, target_prompt=TARGET)
    if width is None:
        return source, target, pair
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 1, tokens, width, generator=generator)
    options = {} if pooled is None else {"pooled_output": torch.randn(1, pooled)}

    def longer(prompt: Prompt, embedding: torch.Tensor) -> Prompt:
        more = (PAD,) * (tokens - len(prompt.tokens))
        return replace(prompt, tokens=(*prompt.tokens, *more)[:tokens], embedding=embedding)

    pair = PromptPair(source=longer(pair.source, one), target=longer(pair.target, other))
    return [[one, options]], [[other, options]], pair


def ways(
    model: Any,
    clip: Any,
    size: int,
    steps: int,
    width: int | None = None,
    spacing: str = "leading",
    **text: int,
) -> dict[str, Callable[[], Any]]:
    """A plain run of the sampler, and others in which each step has control."""
    from ..host.model import fingerprint
    from ..nodes.support import path_sigmas

    source, target, pair = prompts(clip, width, **text)
    sigmas = path_sigmas(model, steps, spacing)
    channels = model.get_model_object("latent_format").latent_channels
    noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    path = DiffusionPath(
        sigmas=sigmas,
        latents=torch.stack([float(sigma) * noise for sigma in sigmas]),
        positive=source,
        negative=None,
        cfg=1.0,
        fingerprint=fingerprint(model),
    )
    whole = {"prompts": pair, "cross_replace": 1.0, "self_replace": 1.0, "joint_replace": 1.0}
    injected = node("PromptToPrompt", **whole)
    words = {"source_words": "horse", "target_words": "zebra", "start": 0.0}
    blended = node("LocalBlend", prompts=pair, edits=injected, **words)
    reweighted = node("Reweight", prompts=pair, words="zebra: 2")
    negative = [[source[0][0] * 0, source[0][1]]]
    walk = partial(
        node, "Sampler", model=model, path=path, positive=target, negative=negative, cfg=CFG
    )
    watch = Watch(weights=marks(pair.target, [pair.target.columns("zebra")]), resolution=0)
    looked = (Looks(Attention(target=pair.target, watched=(watch,))),)
    return {
        "plain guided step": walk,
        "prompt-to-prompt": partial(walk, edits=injected),
        "prompt-to-prompt and local blend": partial(walk, edits=blended),
        "reweight alone": partial(walk, edits=reweighted),
        MAPS: partial(walk, edits=looked),
    }


class Looks(Edit):
    """Looks at a word's maps, and changes nothing."""

    needs = Need.ATTENTION

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    def patch(self, step: Step, patch: Any) -> Attention:
        return self.attention


def table(runs: dict[str, Callable[[], Any]], steps: int, repeats: int, scaled: float = 1.0) -> str:
    """Seconds of a step each way, and the ratio to the first, taken in turns.

    Args:
        scaled: of what word maps add, the part that falls on a step of the whole network, where
            the one measured has them in more of its blocks.
    """
    for run in runs.values():
        run()
    turns = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    plain = next(iter(runs))
    lines = ["| | seconds | ratio |", "|---|--:|--:|"]
    for name in runs:
        ratio = median(turn[name] / turn[plain] for turn in turns)
        if name == MAPS:
            ratio = 1 + (ratio - 1) * scaled
        time = median(turn[name] for turn in turns) / steps
        lines.append(f"| {name} | {time:.3f} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main(folder: Path = RESULTS, small: int = 7, large: int = 3) -> None:
    """Measure and write; `small` and `large` are the turns taken on networks of either size."""
    with torch.inference_mode():
        demo, flow = Demo.load(), Demo.load("flow")
        unet = table(ways(demo.model, demo.clip, 16, 20), steps=20, repeats=small)
        transformer = table(
            ways(flow.model, flow.clip, 16, 20, spacing="simple"), steps=20, repeats=small
        )
        sd15 = table(
            ways(random_model("SD15", SD15), demo.clip, 64, 1, 768), steps=1, repeats=large
        )
        text = {"tokens": FLUX_TOKENS, "pooled": 768}
        flux = ways(
            random_model("FluxSchnell", FLUX), demo.clip, 64, 1, 4096, spacing="simple", **text
        )
        part = FLUX_MAPS / FLUX_BLOCKS  # both of its blocks are looked at
        largest = table(flux, steps=1, repeats=large, scaled=part)
    text_ = (
        "# What a step with attention control costs\n\n"
        "Each step of the run has control, which a run with the node's defaults has not; a plain "
        "step is one with guidance, of two network evaluations, and prompt-to-prompt needs a third "
        f"for the source: 1.5 is the least, {LIMIT} the aim; for word maps it is {MAPS_LIMIT}. "
        f"Threads: {torch.get_num_threads()}.\n\n"
        f"## Demo model, 128 x 128\n\n{unet}\n\n"
        f"## The demo's flow model, 128 x 128\n\n{transformer}\n\n"
        f"## Stable Diffusion 1.5's size with random weights, 512 x 512\n\n{sd15}\n\n"
        "## Flux's size with random weights, 512 x 512\n\n"
        "One double and one single block. What word maps add is that of these blocks, as a part "
        f"of {FLUX_BLOCKS} blocks of which {FLUX_MAPS} are looked at.\n\n{largest}\n"
    )
    folder.mkdir(exist_ok=True)
    write_page(folder / "attention.md", text_)
    print(text_)


if __name__ == "__main__":
    main()
