"""How good the demo models are: `make bench-model`.

Everything is measured on the held-out split. The autoencoder and the denoisers were never trained
on its combinations; the judge knows them, from scenes of its own. Writes `demo_model.md`,
`demo_model.json` and sheets of samples, `demo_model.png` and `demo_model_flow.png`, to
`benchmarks/results/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from ..demo import FLOW_TOKENS, MODEL
from ..demo.autoencoder import SCALING_FACTOR
from ..demo.data import pictures, to_uint8
from ..demo.flow import velocity
from ..demo.judge import Judge, truth
from ..demo.tokenizer import tokenize
from ..demo.world import Scene, caption, random_scene, render
from .machine import write_page

RESULTS = Path(__file__).parent / "results"

SEED = 2026
SCENES = 100  # of one object, and as many of two
STEPS, GUIDANCE = 50, 5.0
FLOW_STEPS, FLOW_GUIDANCE = 28, 5.0
BATCH = 25


def main() -> None:
    """Measure, print and write the results."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, local_files_only=True).to(device)
    judge = Judge.load()
    rng = np.random.default_rng(SEED)
    ones = [random_scene(rng, "held_out", 1) for _ in range(SCENES)]
    twos = [random_scene(rng, "held_out", 2) for _ in range(SCENES)]
    renders = np.stack([render(scene) for scene in ones + twos])
    decoded = round_trip(pipeline.vae, ones + twos)
    generated = {
        "UNet": generate(pipeline, ones + twos),
        "flow": generate_by_flow(pipeline, ones + twos),
    }

    results = {
        "autoencoder: PSNR of a round trip, dB": float(psnr(decoded, renders).mean()),
        "judge: right on renders, %": share(judge, renders, ones + twos),
        "judge: right on round trips, %": share(judge, decoded, ones + twos),
    }
    for kind, images in generated.items():
        for count, shown, scenes in (
            ("one", images[:SCENES], ones),
            ("two", images[SCENES:], twos),
        ):
            objects = "object" if count == "one" else "objects"
            name = f"{kind}: captions of {count} {objects} the judge confirms in full, %"
            results[name] = share(judge, shown, scenes)
    results["size of both models, MB"] = size_on_disk(MODEL) / 1e6
    table = "\n".join(f"| {name} | {value:.1f} |" for name, value in results.items())
    about = (
        f"{SCENES} held-out scenes of one object and {SCENES} of two. UNet: DDIM, {STEPS} steps, "
        f"guidance {GUIDANCE:g}. Flow model: Euler, {FLOW_STEPS} steps, guidance {FLOW_GUIDANCE:g}."
    )
    RESULTS.mkdir(exist_ok=True)
    write_page(RESULTS / "demo_model.md", f"{about}\n\n| measure | value |\n|---|---|\n{table}")
    (RESULTS / "demo_model.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, images in zip(("demo_model", "demo_model_flow"), generated.values(), strict=True):
        shown = np.concatenate([images[:20], images[SCENES : SCENES + 30]])
        sheet(name, [renders[:10], decoded[:10], *np.split(shown, 5)])
    print((RESULTS / "demo_model.md").read_text())


@torch.no_grad()
def round_trip(autoencoder: AutoencoderKL, scenes: Sequence[Scene]) -> np.ndarray:
    """Renders through the autoencoder: uint8 (N, H, W, 3)."""
    decoded = []
    for images in pictures(scenes).to(autoencoder.device).split(BATCH):
        latents = autoencoder.encode(images).latent_dist.mean
        decoded.append(to_uint8(autoencoder.decode(latents).sample))
    return np.concatenate(decoded)


def generate(pipeline: StableDiffusionPipeline, scenes: Sequence[Scene]) -> np.ndarray:
    """Pictures made from the scenes' captions: uint8 (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(SEED)
    captions = [caption(scene) for scene in scenes]
    images = []
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(captions), BATCH):
        images += pipeline(
            captions[first : first + BATCH],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generator,
        ).images
        print(f"generated {len(images)}/{len(captions)}", flush=True)
    return np.stack([np.asarray(image) for image in images])


@torch.no_grad()
def generate_by_flow(pipeline: StableDiffusionPipeline, scenes: Sequence[Scene]) -> np.ndarray:
    """The same by the flow model, through diffusers' transformer and the pipeline's other parts."""
    device = pipeline.device
    transformer = FluxTransformer2DModel.from_pretrained(MODEL / "transformer").to(device)
    generator = torch.Generator().manual_seed(SEED)
    levels = torch.linspace(1, 0, FLOW_STEPS + 1).tolist()
    images = []
    for first in range(0, len(scenes), BATCH):
        texts = [caption(scene) for scene in scenes[first : first + BATCH]]
        tokens = tokenize([*texts, *[""] * len(texts)])[:, :FLOW_TOKENS]
        text = pipeline.text_encoder(tokens.to(device))
        x: Tensor = torch.randn(len(texts), 4, 16, 16, generator=generator).to(device)
        for sigma, sigma_next in pairwise(levels):
            sigmas = torch.full((2 * len(x),), sigma, device=device)
            cond, uncond = velocity(
                transformer,
                torch.cat([x, x]),
                sigmas,
                text.last_hidden_state,
                text.pooler_output,
            ).chunk(2)
            x = x + (sigma_next - sigma) * (uncond + FLOW_GUIDANCE * (cond - uncond))
        images.append(to_uint8(pipeline.vae.decode(x / SCALING_FACTOR).sample))
        print(f"generated {first + len(texts)}/{len(scenes)} by the flow model", flush=True)
    return np.concatenate(images)


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture, in dB: (N,)."""
    error = np.square(images.astype(float) - truth).mean((1, 2, 3))
    return 10 * np.log10(255**2 / error)


def share(judge: Judge, images: np.ndarray, scenes: Sequence[Scene]) -> float:
    """How many pictures the judge confirms in full, in percent."""
    verdicts = judge.verdict(images)
    right = sum(verdict == truth(scene) for verdict, scene in zip(verdicts, scenes, strict=True))
    return 100 * right / len(scenes)


def size_on_disk(folder: Path) -> int:
    """Bytes in a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def sheet(name: str, rows: Sequence[np.ndarray]) -> None:
    """Renders, their round trips, and generated pictures."""
    image = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(image).save(RESULTS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
