"""Paint with words on held-out layouts: does the judge find each object where it was painted?

`python -m diffusion_path.benchmarks.painting` writes `benchmarks/results/painting.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..demo.judge import Judge
from ..demo.world import SIZE, Scene, Split, caption, random_scene
from .batch import MODELS, Demo, node, stock, to_uint8
from .edits import RESULTS
from .machine import write_page

LAYOUTS, SEED = 50, 2026
STEPS: dict[str, dict[str, Any]] = {
    "unet": {"steps": 20, "cfg": 7.5},
    "flow": {"steps": 28, "spacing": "simple", "cfg": 4.0},
}
STRENGTHS = (0.0, 0.4, 0.6)


@dataclass(frozen=True)
class Layout:
    """Two objects, the one to paint left and the one to paint right, and the background."""

    left: str
    right: str
    background: str
    scene: Scene


def draw_layouts(split: Split, count: int) -> list[Layout]:
    """Layouts of a split, always the same ones."""
    rng = np.random.default_rng(SEED)
    scenes = [random_scene(rng, split, 2) for _ in range(count)]
    return [
        Layout(scene.objects[0].name, scene.objects[1].name, scene.background, scene)
        for scene in scenes
    ]


def in_place(layout: Layout) -> str:
    """A prompt that says the places as they are painted."""
    return caption(layout.scene)


def contrary(layout: Layout) -> str:
    """A prompt that says them the other way round."""
    left, right = layout.scene.objects
    return caption(Scene((right, left), layout.background))


def paint(demo: Demo, layout: Layout, prompt: str, strength: float, seed: int) -> Tensor:
    """The picture (1, H, W, 3) sampled with each object painted onto its half."""
    (positive,), (negative,) = (
        (stock("CLIPTextEncode", clip=demo.clip, text=text),) for text in (prompt, "")
    )
    half = torch.zeros(1, SIZE, SIZE)
    half[:, :, : SIZE // 2] = 1
    edits: tuple = ()
    for phrase, mask in ((layout.left, half), (layout.right, 1 - half)) if strength else ():
        edits, *_ = node(
            "PaintWithWords",
            clip=demo.clip,
            prompt=prompt,
            phrase=phrase,
            mask=mask,
            strength=strength,
            edits=edits,
        )
    _, latent = node(
        "RecordPath",
        model=demo.model,
        positive=positive,
        negative=negative,
        latent_image={"samples": torch.zeros(1, 4, SIZE // 8, SIZE // 8)},
        seed=seed,
        edits=edits,
        **STEPS[demo.kind],
    )
    return stock("VAEDecode", vae=demo.vae, samples=latent)


def rates(
    demo: Demo, judge: Judge, layouts: list[Layout], say: Callable[[Layout], str], strength: float
) -> tuple[float, float]:
    """How often each object is on its side, and how often the whole scene is right."""
    sides = whole = 0
    for seed, layout in enumerate(layouts):
        picture = to_uint8(paint(demo, layout, say(layout), strength, seed))
        background, objects = judge.verdict(picture)[0]
        sides += objects == (layout.left, layout.right)
        whole += (background, objects) == (layout.background, (layout.left, layout.right))
    return sides / len(layouts), whole / len(layouts)


HEAD = """\
| model | prompt | strength | each on its side | and the background right |
|---|---|--:|--:|--:|"""

PROMPTS: dict[str, Callable[[Layout], str]] = {
    "as painted": in_place,
    "the other way round": contrary,
}

EXPLANATION = """\
# Paint with words

{count} {split} layouts of two objects, one painted onto the left half and one onto the right; a
seed for each layout. UNet: 20 steps, guidance 7.5. Flow model: 28 steps, guidance 4. The demo
models were only ever shown captions that say where both objects are, so the prompt says it too: as
painted, or the other way round. The judge sees the picture only.
"""


def main(split: Split = "held_out", count: int = LAYOUTS, kinds: Sequence[str] = MODELS) -> None:
    """Measure and write."""
    lines = [HEAD]
    print(HEAD, flush=True)
    with torch.inference_mode():
        judge, layouts = Judge.load(), draw_layouts(split, count)
        for kind in kinds:
            demo = Demo.load(kind)
            for name, say in PROMPTS.items():
                for strength in STRENGTHS:
                    sides, whole = rates(demo, judge, layouts, say, strength)
                    shown = strength or "not painted"
                    lines.append(f"| {kind} | {name} | {shown} | {sides:.0%} | {whole:.0%} |")
                    print(lines[-1], flush=True)
    if split == "held_out":
        text = EXPLANATION.format(count=count, split=split.replace("_", "-"))
        RESULTS.mkdir(exist_ok=True)
        write_page(RESULTS / "painting.md", text + "\n" + "\n".join(lines))


if __name__ == "__main__":
    if "tune" in sys.argv:
        main("tune", 24)
    else:
        main()
