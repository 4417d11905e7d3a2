"""What a step changes in the attention: the sizes of maps that published numbers mean."""

from __future__ import annotations

import pytest
import torch

from diffusion_path.attention.plan import Watch, side


@pytest.mark.parametrize(
    ("published", "latent", "wanted"),
    [(16, 64, 16), (32, 64, 32), (16, 128, 32), (32, 96, 48), (16, 16, 16), (32, 8, 32)],
)
def test_a_published_size_grows_with_the_picture_and_never_shrinks(
    published: int, latent: int, wanted: int
):
    """Published for 512 x 512 pixels, a latent of 64 x 64."""
    assert side(published, latent) == wanted


@pytest.mark.parametrize(
    ("sizes", "latent", "wanted"),
    [
        ([(64, 64), (32, 32), (16, 16), (8, 8)], 64, (16, 16)),  # SD 1.5 at 512 x 512
        ([(96, 128), (48, 64), (24, 32), (12, 16)], 96, (24, 32)),  # at 768 x 1024
        ([(64, 64), (32, 32)], 128, (32, 32)),  # SDXL at 1024 x 1024
        ([(16, 16), (8, 8)], 16, (16, 16)),  # the demo model
    ],
)
def test_without_a_resolution_the_maps_nearest_to_the_papers_are_looked_at(
    sizes: list, latent: int, wanted: tuple
):
    assert Watch(weights=torch.ones(77, 1), resolution=0).size(sizes, latent) == wanted


def test_a_resolution_is_that_of_a_layer_or_refused_with_those_there_are():
    sizes = [(32, 48), (16, 24)]
    assert Watch(weights=torch.ones(77, 1), resolution=32).size(sizes, 32) == (32, 48)
    with pytest.raises(ValueError, match=r"resolution 24 .* choose one of 32, 16, or 0"):
        Watch(weights=torch.ones(77, 1), resolution=24).size(sizes, 32)
