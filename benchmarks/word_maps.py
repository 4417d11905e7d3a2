"""Where the words are in the flow model's blocks: how well each one's maps find the objects.

`python -m diffusion_path.benchmarks.word_maps` writes `benchmarks/results/word_maps.md`: the blocks
that `host.dit` looks at were chosen by its figures on the tune split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ..attention.maps import attention_maps
from ..core.families import Block
from ..core.path import Source
from ..demo.world import SIZE, Split, caption, object_mask, random_scene, render
from .batch import Demo, node, stock
from .edits import RESULTS
from .machine import write_page

SCENES, SEED, THRESHOLD = 40, 5, 0.3
STEPS = (6, 10, 14, 18)
"""Those of the path's 28 in which the maps are looked at."""


class Picture(NamedTuple):
    """A path, its prompt, the columns of its objects' names, and where they are (n, h, w)."""

    path: Any
    prompt: Any
    columns: list[tuple[int, ...]]
    truth: Tensor


def pictures(demo: Demo, split: Split, count: int) -> Iterator[Picture]:
    """Rendered scenes of two objects."""
    rng = np.random.default_rng(SEED)
    for _ in range(count):
        scene = random_scene(rng, split, 2)
        image = torch.from_numpy(render(scene).copy()).float()[None] / 255
        latent = stock("VAEEncode", vae=demo.vae, pixels=image)
        text = caption(scene)
        positive, _, pair = node(
            "PromptPair", clip=demo.clip, source_prompt=text, target_prompt=text
        )
        path = node(
            "StraightPath",
            model=demo.model,
            positive=positive,
            latent_image=latent,
            **demo.steps,
        )
        masks = [object_mask(scene, i).astype(np.float32) for i in range(2)]
        places = SIZE // 16
        truth = torch.from_numpy(np.stack(masks)).view(2, places, 16, places, 16).mean((2, 4))
        columns = [pair.source.columns(item.name) for item in scene.objects]
        yield Picture(path, pair.source, columns, truth > 0.5)


def maps_in(demo: Demo, picture: Picture, blocks: Collection[Block]) -> Tensor:
    """The objects' maps (n, h, w) in some blocks."""
    from ..host import dit
    from ..host.guider import run

    def look(denoiser: Any, conditions: dict[str, Any], progress: Any) -> Tensor:
        positive = conditions["positive"]
        source = Source(picture.path, denoiser.percent_to_sigma, denoiser.latent_in, positive)
        return attention_maps(
            denoiser, source, picture.prompt, picture.columns, steps=STEPS, progress=progress
        ).cpu()

    path = picture.path
    prompts = {"positive": path.positive}
    with patch.object(dit, "maps_of", lambda network: frozenset(blocks)):
        return run(demo.model, prompts, path.clean, path.sigmas, look, steps=len(STEPS))[0]


def scores(maps: Tensor, truth: Tensor) -> tuple[float, float]:
    """How often a place of the object is brighter than one elsewhere; and the IoU of the place
    where the map is above `THRESHOLD` of its largest value."""
    inside, outside = maps[truth], maps[~truth]
    order = float((inside[:, None] > outside).float().mean())
    found = maps > THRESHOLD * maps.max()
    return order, float((found & truth).sum() / (found | truth).sum())


def main(split: Split = "held_out", count: int = SCENES) -> None:
    """Measure and write."""
    from ..host.dit import blocks_of, maps_of

    with torch.inference_mode():
        demo = Demo.load("flow")
        network = demo.model.model.diffusion_model
        blocks, chosen = blocks_of(network), maps_of(network)
        rows: list[tuple[str, Collection[Block]]] = [
            *((f"{kind} {number}", [(kind, number)]) for kind, number in blocks),
            ("all", blocks),
            ("**those that are looked at**", chosen),
        ]
        seen = list(pictures(demo, split, count))
        lines = ["| block | order | IoU |", "|---|--:|--:|"]
        for name, some in rows:
            found = [
                scores(each, truth)
                for picture in seen
                for each, truth in zip(maps_in(demo, picture, some), picture.truth, strict=True)
            ]
            order, overlap = np.mean(found, axis=0)
            lines.append(f"| {name} | {order:.0%} | {overlap:.2f} |")
            print(lines[-1], flush=True)
    text = (
        f"# Word maps in the blocks of the demo's flow model\n\n{count} {split.replace('_', '-')} "
        "pictures of two objects on straight paths; maps of the objects' names, the mean of "
        f"{len(STEPS)} steps. Order: how often a place of the object has more of its word than "
        f"one elsewhere; 50 % is chance. IoU: of the true place and where the map is above "
        f"{THRESHOLD} of its largest value.\n\n" + "\n".join(lines) + "\n"
    )
    RESULTS.mkdir(exist_ok=True)
    write_page(RESULTS / "word_maps.md", text)


if __name__ == "__main__":
    main()
