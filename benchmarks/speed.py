"""What the pack costs beside the network itself, and what it adds to ComfyUI's start.

`python -m diffusion_path.benchmarks.speed` writes `benchmarks/results/speed.md`. Times that are
compared come from the same run, or are taken in turns; the figures are medians.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..tools.host import Server
from ..tools.setup import ROOT
from .batch import Batch, Demo, node, stock
from .edits import RESULTS, draw_edits
from .machine import write_page

REPEATS = 5
STARTS = 3
IMPORTS = 5


def seconds(action: Callable[[], Any]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def overhead(demo: Demo, action: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Network evaluations, and median seconds of an action and of the network calls in it.

    Both are taken in the same runs, so that whatever else the machine does meets them alike.
    """
    model, inside = demo.model.model, 0.0
    apply = model.apply_model

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        started = time.perf_counter()
        result = apply(*args, **kwargs)
        inside += time.perf_counter() - started
        return result

    before = demo.counter.evaluations
    model.apply_model = timed
    try:
        times = []
        for _ in range(repeats):
            inside = 0.0
            times.append((seconds(action), inside))
    finally:
        del model.apply_model
    whole, network = (median(column) for column in zip(*times, strict=True))
    return (demo.counter.evaluations - before) / repeats, whole, network


def actions(batch: Batch) -> dict[str, Callable[[], Any]]:
    """What to time: inversion and an edit, and ComfyUI's KSampler to compare with."""
    model = batch.demo.model
    target = {"model": model, "positive": batch.target, "negative": batch.empty}
    euler = {"seed": 0, "steps": 50, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal"}
    one = next(batch.each())  # its prompts are one pair's, so that words can be aligned
    return {
        "DDIM Inversion": partial(
            node, "DDIMInversion", model=model, positive=batch.source, latent_image=batch.latent
        ),
        "Sampler with MDP-ε": partial(
            node, "Sampler", path=batch.path, edits=node("MDPEpsilon"), **target
        ),
        "Sampler with prompt-to-prompt, one picture": partial(
            node,
            "Sampler",
            model=model,
            path=one.path,
            positive=one.target,
            negative=one.empty,
            edits=node("PromptToPrompt", prompts=one.pair),
        ),
        "ComfyUI's KSampler": partial(
            stock, "KSampler", latent_image=batch.latent, **target, **euler
        ),
    }


def sampling(repeats: int, sizes: tuple[int, ...] = (1, 4)) -> str:
    """The overhead of each action for one picture and for several, as a table."""
    table = [
        "| pictures | | evaluations | seconds | of them in the network | ratio |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    demo, edits = Demo.load(), draw_edits("held_out", 1)
    for size in sizes:
        for name, action in actions(Batch(demo, edits[:size])).items():
            evaluations, whole, bare = overhead(demo, action, repeats)
            pictures = 1 if name.endswith("one picture") else size
            per_picture = f"{evaluations / pictures:.0f}"
            figures = f"{per_picture} | {whole:.2f} | {bare:.2f} | {whole / bare:.2f}"
            table.append(f"| {size} | {name} | {figures} |")
    return "\n".join(table)


IMPORT = """
import asyncio, logging, sys, time
from diffusion_path.tools.host import import_comfy
import_comfy()
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
started = time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node(sys.argv[1]))
print(loaded, 1000 * (time.perf_counter() - started))
"""
"""What ComfyUI does with a custom node pack once its own nodes are there, timed."""


def import_time() -> float:
    """Milliseconds that ComfyUI spends on loading the pack, in a fresh process."""
    command = [sys.executable, "-P", "-c", IMPORT, str(ROOT)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded, milliseconds = answer.split()[-2:]
    assert loaded == "True", answer
    return float(milliseconds)


def start_time(*arguments: str) -> float:
    """Seconds until a fresh ComfyUI answers."""
    started = time.perf_counter()
    with Server(*arguments):
        return time.perf_counter() - started


def starting(imports: int = IMPORTS, starts: int = STARTS) -> str:
    """What the pack adds to ComfyUI's start, in words."""
    milliseconds = [import_time() for _ in range(imports)]
    pairs = [(start_time(), start_time("--disable-all-custom-nodes")) for _ in range(starts)]
    with_pack, without = (median(one) for one in zip(*pairs, strict=True))
    return (
        f"Loading the pack into a ComfyUI that has loaded its own nodes takes "
        f"{median(milliseconds):.0f} ms ({min(milliseconds):.0f} to {max(milliseconds):.0f} in "
        f"{imports} fresh processes). A server answers after {with_pack:.1f} s with the pack and "
        f"after {without:.1f} s without any ({starts} starts of each, in turns)."
    )


def main(folder: Path = RESULTS, repeats: int = REPEATS) -> None:
    """Measure and write."""
    with torch.inference_mode():
        table = sampling(repeats)
    text = (
        "# What the pack costs beside the network\n\n"
        "## Sampling\n\n"
        "The time of a whole node over the time that it spends in ComfyUI's `apply_model`: 50 "
        f"steps, {torch.get_num_threads()} threads, medians of {repeats} repeats. The demo model "
        "is as small as they get, so these ratios are the worst case; KSampler's own is there for "
        "comparison.\n\n"
        f"{table}\n\n## Starting ComfyUI\n\n{starting()}\n"
    )
    folder.mkdir(exist_ok=True)
    write_page(folder / "speed.md", text)
    print(text)


if __name__ == "__main__":
    main()
