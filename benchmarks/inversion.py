"""Every inversion on held-out pictures: how well it leads back, how well it edits, what it costs.

`python -m diffusion_path.benchmarks.inversion` writes `benchmarks/results/inversion.md`. The
published null-text inversion and ours take turns, picture by picture, so that whatever else the
machine does meets both alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from ..demo import MODEL
from ..demo.judge import Judge
from ..edits.null_text import NullText
from .batch import Batch, Demo, node
from .edits import RESULTS, draw_edits
from .machine import write_page
from .reference_null_text import Reference
from .scores import mean, score
from .techniques import DIRECT, INVERSIONS, Edited, Inversion

PER_KIND = 8
REFERENCE = "null-text as published"
OURS = "null-text"


@dataclass
class Cost:
    """Seconds, and forward and backward evaluations of the network, for one picture."""

    seconds: float
    forward: float
    backward: float


@dataclass
class Turns:
    """One of two ways to the embeddings: its path of each picture, and what each has cost."""

    paths: list[Any] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    def path(self) -> Any:
        """The path of all the pictures together."""
        latents = torch.cat([path.latents for path in self.paths], dim=1)
        owns = [own for path in self.paths for own in path.edits]
        embeddings = torch.cat([own.embeddings for own in owns], dim=1)
        negative = [[torch.cat([path.negative[0][0] for path in self.paths]), {}]]
        own = NullText(embeddings=embeddings, cfg=owns[0].cfg)
        return self.paths[0]._replace(latents=latents, edits=(own,), negative=negative)


@contextmanager
def backwards(network: torch.nn.Module) -> Iterator[list[int]]:
    """Counts backward passes through a network, one for each latent."""
    counted: list[int] = []

    def gradient_came(gradient: Tensor) -> None:
        counted.append(len(gradient))

    def watch(network: torch.nn.Module, inputs: Any, output: Any) -> None:
        sample = getattr(output, "sample", output)
        if sample.requires_grad:
            sample.register_hook(gradient_came)

    handle = network.register_forward_hook(watch)
    try:
        yield counted
    finally:
        handle.remove()


def take_turns(demo: Demo, batches: list[Batch]) -> tuple[Turns, Turns]:
    """The published algorithm and ours on the same pictures, one after the other."""
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    reference, published, ours = Reference(pipeline), Turns(), Turns()
    scale = pipeline.vae.config.scaling_factor
    for batch in batches:
        (edit,) = batch.edits
        source, empty = reference.encode(edit.source_prompt), reference.encode("")
        with torch.inference_mode():
            inverted = batch.path
        shrink = (1 + inverted.sigmas**2).sqrt().view(-1, 1, 1, 1, 1)
        path = list((inverted.latents * scale / shrink).clone())
        forward, backward = reference.forward, reference.backward
        started = time.perf_counter()
        embeddings, _ = reference.optimize(path, source, empty)
        seconds = time.perf_counter() - started
        published.costs.append(
            Cost(seconds, reference.forward - forward, reference.backward - backward)
        )

        with torch.inference_mode():
            own = NullText(embeddings=torch.stack(embeddings), cfg=7.5)
            published.paths.append(inverted._replace(cfg=7.5, negative=batch.empty, edits=(own,)))
            before = demo.counter.evaluations
            with backwards(demo.model.model.diffusion_model) as counted:
                started = time.perf_counter()
                found, *_ = node(
                    "NullTextInversion", model=demo.model, path=inverted, negative=batch.empty
                )
                seconds = time.perf_counter() - started
            ours.costs.append(Cost(seconds, demo.counter.evaluations - before, sum(counted)))
            ours.paths.append(found)
        line = [f"{one.costs[-1].seconds:.1f} s" for one in (published, ours)]
        print(f"{len(ours.paths)}/{len(batches)}: {', '.join(line)}", flush=True)
    return published, ours


@dataclass
class Line:
    """A row of the table: means over the pictures, in dB where nothing else is said.

    Attributes:
        original, round_trip: PSNR of the reconstruction against the picture itself, and against
            what the autoencoder alone makes of it.
        plain, plain_outside, plain_judge: of the edits by plain sampling from the inverted noise.
        mdp, mdp_outside, mdp_judge: of the edits with MDP-epsilon.
        evaluations: of the network for each picture, inversion included.
    """

    name: str
    original: float
    round_trip: float
    plain: float
    plain_outside: float
    plain_judge: float
    mdp: float
    mdp_outside: float
    mdp_judge: float
    evaluations: float


def psnr(images: Tensor, truth: Tensor) -> float:
    """The mean PSNR of IMAGEs."""
    error = (images.clamp(0, 1) - truth).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())


def measure(name: str, batch: Batch, judge: Judge, evaluations: float, cfg: float = 7.5) -> Line:
    """How well a batch's path leads back at guidance 7.5, and how well its edits come out."""
    decoded = batch.decode(batch.latent)
    if name == DIRECT:
        again = batch.decode({"samples": batch.path.clean})
    else:
        again = batch.sample(positive=batch.source, cfg=cfg)
    figures = {"original": psnr(again, batch.before), "round_trip": psnr(again, decoded)}
    for kind, edits in (("plain", ()), ("mdp", node("MDPEpsilon"))):
        scores = score(Edited(batch.sample(edits=edits)), batch.edits, judge)
        figures[kind] = mean(scores, "psnr") or 0.0
        figures[f"{kind}_outside"] = mean(scores, "outside") or 0.0
        figures[f"{kind}_judge"] = mean(scores, "confirmed") or 0.0
    return Line(name=name, evaluations=evaluations, **figures)


HEAD = """\
| inversion | reconstruction | against the autoencoder | edit | outside | judge | MDP-ε edit \
| outside | judge | evaluations |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""


def row(line: Line) -> str:
    """A line as text."""
    cells = [line.name, *(f"{value:.1f}" for value in (line.original, line.round_trip))]
    for kind in ("plain", "mdp"):
        cells += [f"{getattr(line, name):.1f}" for name in (kind, f"{kind}_outside")]
        cells += [f"{getattr(line, f'{kind}_judge'):.0%}"]
    return "| " + " | ".join([*cells, f"{line.evaluations:.0f}"]) + " |"


def speed(published: Turns, ours: Turns) -> str:
    """The two ways beside each other, as a table."""
    table = [
        "| | seconds | forward evaluations | backward evaluations |",
        "|---|--:|--:|--:|",
    ]
    for name, turns in ((REFERENCE, published), (OURS, ours)):
        means = [
            fmean(getattr(cost, key) for cost in turns.costs) for key in asdict(turns.costs[0])
        ]
        table.append(f"| {name} | {means[0]:.1f} | {means[1]:.0f} | {means[2]:.0f} |")
    pairs = zip(published.costs, ours.costs, strict=True)
    ratios = sorted(theirs.seconds / own.seconds for theirs, own in pairs)
    times = [sum(cost.seconds for cost in turns.costs) for turns in (published, ours)]
    middle = ratios[len(ratios) // 2]
    return "\n".join(table) + (
        f"\n\nOurs took 1/{times[0] / times[1]:.1f} of the time; picture by picture "
        f"1/{ratios[0]:.1f} to 1/{ratios[-1]:.1f}, in the middle 1/{middle:.1f}."
    )


EXPLANATION = """\
# Inversions of the demo world

{count} held-out pictures, each with a combination of objects and background that the model was
never trained on; 50 steps, guidance 7.5, each node's defaults unless the row says otherwise.

- reconstruction: the picture sampled again from the path under the source prompt, against the
  picture; the autoencoder alone reaches {limit:.1f} dB. Against the autoencoder: against what that
  makes of it. In dB, means over the pictures.
- edit: sampled under the target prompt, without any edit node and with MDP-ε, against the picture
  that the edit should give, which the renderer knows exactly; outside of the pixels that should
  change; and how many the judge confirms as the target scene in full.
- evaluations: of the network for each picture, forward, for the path with all that was optimised.
- direct inversion reads the source off its path; its edits are those of the path it reads.
- as published: the paper's algorithm and settings on diffusers (`reference_null_text.py`); its
  paths are walked by our sampler, as all are.
"""


def write(text: str, lines: list[Line], costs: dict[str, list[Cost]], limit: float) -> None:
    """The tables and the figures, as far as they have come."""
    count = len(costs[OURS])
    head = EXPLANATION.format(count=count, limit=limit)
    table = "\n".join([HEAD, *map(row, lines)])
    RESULTS.mkdir(exist_ok=True)
    write_page(RESULTS / "inversion.md", f"{head}\n{table}\n\n## Speed\n\n{text}")
    figures = {
        "rows": [asdict(line) for line in lines],
        "costs": {name: [asdict(cost) for cost in each] for name, each in costs.items()},
    }
    (RESULTS / "inversion.json").write_text(json.dumps(figures, indent=1) + "\n")


def main(per_kind: int = PER_KIND) -> None:
    """Measure, print, and write after each row."""
    edits, judge = draw_edits("held_out", per_kind), Judge.load()
    with torch.inference_mode():
        demo = Demo.load()
        single, batch = [Batch(demo, [edit]) for edit in edits], Batch(demo, edits)
    turns = dict(zip((REFERENCE, OURS), take_turns(demo, single), strict=True))
    costs = {name: one.costs for name, one in turns.items()}
    text = speed(*turns.values())
    print(f"{text}\n{HEAD}", flush=True)

    def fixed(one: Turns) -> Inversion:
        return lambda _: one.path()

    lines: list[Line] = []
    with torch.inference_mode():
        limit = psnr(batch.decode(batch.latent), batch.before)
        ways = {name: fixed(one) for name, one in turns.items()} | INVERSIONS
        for name, inversion in ways.items():
            inverted = batch.inverted(inversion)
            evaluations = inverted.inversion_cost / len(edits)
            if name in turns:
                steps = turns[name].paths[0].steps
                evaluations = steps + fmean(cost.forward for cost in costs[name])
            lines.append(measure(name, inverted, judge, evaluations))
            print(row(lines[-1]), flush=True)
            write(text, lines, costs, limit)


if __name__ == "__main__":
    main()
