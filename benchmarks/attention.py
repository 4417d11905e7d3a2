"""What a step with attention control costs, in plain guided steps.

`python -m diffusion_path.benchmarks.attention` writes `benchmarks/results/attention.md`: on the
demo model and on a network of Stable Diffusion 1.5's size with random weights. The ways take
turns, so that whatever else the machine does meets all alike; figures are medians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from ..attention.align import PromptPair
from ..core.path import DiffusionPath
from .batch import Demo, node
from .edits import RESULTS
from .speed import seconds

SOURCE, TARGET = "a horse on a green background", "a zebra on a green background"
LIMIT = 1.6
"""What a step of prompt-to-prompt may cost."""


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


def sd15() -> Any:
    """A MODEL of Stable Diffusion 1.5's size in float32 with random weights."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(dict(SD15))
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


def prompts(clip: Any, width: int | None = None) -> tuple[Any, Any, PromptPair]:
    """Both prompts; with random embeddings of another width for a model without a text encoder."""
    source, target, pair = node("PromptPair", clip=clip, source_prompt=SOURCE, target_prompt=TARGET)
    if width is None:
        return source, target, pair
    one, other = torch.randn(2, 1, 77, width, generator=torch.Generator().manual_seed(0))
    pair = PromptPair(
        source=replace(pair.source, embedding=one), target=replace(pair.target, embedding=other)
    )
    return [[one, {}]], [[other, {}]], pair


def ways(
    model: Any, clip: Any, size: int, steps: int, width: int | None
) -> dict[str, Callable[[], Any]]:
    """A plain run of the sampler, and others in which each step has control."""
    from ..host.model import fingerprint
    from ..nodes.support import path_sigmas

    source, target, pair = prompts(clip, width)
    sigmas = path_sigmas(model, steps, "leading")
    noise = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    path = DiffusionPath(
        sigmas=sigmas,
        latents=torch.stack([float(sigma) * noise for sigma in sigmas]),
        positive=source,
        negative=None,
        cfg=1.0,
        fingerprint=fingerprint(model),
    )
    whole = {"prompts": pair, "cross_replace": 1.0, "self_replace": 1.0}
    injected = node("PromptToPrompt", **whole)
    words = {"source_words": "horse", "target_words": "zebra", "start": 0.0}
    blended = node("LocalBlend", prompts=pair, edits=injected, **words)
    reweighted = node("Reweight", prompts=pair, words="zebra: 2")
    walk = partial(
        node, "Sampler", model=model, path=path, positive=target, negative=[[source[0][0] * 0, {}]]
    )
    return {
        "plain guided step": walk,
        "prompt-to-prompt": partial(walk, edits=injected),
        "prompt-to-prompt and local blend": partial(walk, edits=blended),
        "reweight alone": partial(walk, edits=reweighted),
    }


def table(runs: dict[str, Callable[[], Any]], steps: int, repeats: int) -> str:
    """Seconds of a step each way, and the ratio to the first, taken in turns."""
    for run in runs.values():
        run()
    turns = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    plain = next(iter(runs))
    lines = ["| | seconds | ratio |", "|---|--:|--:|"]
    for name in runs:
        ratio = median(turn[name] / turn[plain] for turn in turns)
        time = median(turn[name] for turn in turns) / steps
        lines.append(f"| {name} | {time:.3f} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    with torch.inference_mode():
        demo = Demo.load()
        small = table(ways(demo.model, demo.clip, 16, 20, None), steps=20, repeats=7)
        large = table(ways(sd15(), demo.clip, 64, 1, 768), steps=1, repeats=3)
    text = (
        "# What a step with attention control costs\n\n"
        "Each step of the run has control, which a run with the node's defaults has not; a plain "
        "step is one with guidance, of two network evaluations, and prompt-to-prompt needs a third "
        f"for the source: 1.5 is the least, {LIMIT} the aim. Threads: "
        f"{torch.get_num_threads()}.\n\n"
        f"## Demo model, 128 x 128\n\n{small}\n\n"
        f"## Stable Diffusion 1.5's size with random weights, 512 x 512\n\n{large}\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "attention.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
