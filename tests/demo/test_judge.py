from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_path.demo.judge import Judge, truth
from diffusion_path.demo.world import Object, Scene, random_scene, render


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_it_is_right_on_99_in_100_held_out_renders(judge):
    rng = np.random.default_rng(11)
    scenes = [random_scene(rng, "held_out") for _ in range(400)]
    verdicts = judge.verdict(np.stack([render(scene) for scene in scenes]))
    right = [verdict == truth(scene) for verdict, scene in zip(verdicts, scenes, strict=True)]
    assert np.mean(right) >= 0.99


def test_it_confirms_a_scene_only_in_full(judge):
    scene = Scene((Object("cat", (28, 64), 56), Object("star", (100, 60), 56)), "gray")
    image = render(scene)
    assert judge.confirms(image, scene)
    assert not judge.confirms(image, replace(scene, background="blue"))
    assert not judge.confirms(image, replace(scene, objects=scene.objects[:1]))
    assert not judge.confirms(image, replace(scene, objects=scene.objects[::-1]))


def test_noise_is_nothing_it_knows(judge):
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    assert all(objects == () for _, objects in judge.verdict(noise))
