"""How good the demo model is: `make bench-model`.

Everything is measured on the held-out split. The autoencoder and the denoiser were never trained on
its combinations; the judge knows them, from scenes of its own. Writes `demo_model.md`,
`demo_model.json` and a sheet of samples, `demo_model.png`, to `benchmarks/results/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from ..demo import MODEL
from ..demo.data import pictures, to_uint8
from ..demo.judge import Judge, truth
from ..demo.world import Scene, caption, random_scene, render

RESULTS = Path(__file__).parent / "results"

SEED = 2026
SCENES = 100  # of one object, and as many of two
STEPS = 50
GUIDANCE = 5.0
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
    generated = generate(pipeline, ones + twos)

    results = {
        "autoencoder: PSNR of a round trip, dB": float(psnr(decoded, renders).mean()),
        "judge: right on renders, %": share(judge, renders, ones + twos),
        "judge: right on round trips, %": share(judge, decoded, ones + twos),
        "captions of one object the judge confirms in full, %": share(
            judge, generated[:SCENES], ones
        ),
        "captions of two objects the judge confirms in full, %": share(
            judge, generated[SCENES:], twos
        ),
        "size of the model, MB": size_on_disk(MODEL) / 1e6,
    }
    table = "\n".join(f"| {name} | {value:.1f} |" for name, value in results.items())
    about = (
        f"{SCENES} held-out scenes of one object and {SCENES} of two; DDIM, {STEPS} steps, "
        f"guidance {GUIDANCE:g}."
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo_model.md").write_text(f"{about}\n\n| measure | value |\n|---|---|\n{table}\n")
    (RESULTS / "demo_model.json").write_text(json.dumps(results, indent=1) + "\n")
    shown = np.concatenate([generated[:20], generated[SCENES : SCENES + 30]])
    sheet([renders[:10], decoded[:10], *np.split(shown, 5)])
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


def sheet(rows: Sequence[np.ndarray]) -> None:
    """Renders, their round trips, and generated pictures."""
    image = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(image).save(RESULTS / "demo_model.png", optimize=True)


if __name__ == "__main__":
    main()
