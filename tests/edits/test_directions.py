"""Principal components from inner products, against the SVD of the whole matrix."""

from __future__ import annotations

import pytest
import torch

from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.directions import Directions, principal

N, STEPS, SHAPE, COUNT = 9, 3, (5, 4, 6), 4


def samples() -> list[torch.Tensor]:
    """h of each step (N, C, height, width), with a mean, and along some directions more."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(N, 4, generator=generator) * torch.tensor([8.0, 4.0, 2.0, 1.0])
    axes = torch.randn(4, STEPS, *SHAPE, generator=generator)
    noise = torch.randn(N, STEPS, *SHAPE, generator=generator)
    return list((3.0 + torch.einsum("nk,ks...->ns...", weights, axes) + 0.3 * noise).unbind(1))


def test_components_and_deviations_are_those_of_the_svd_of_all_steps_jointly():
    h = samples()
    components, deviations, explained = principal(h, COUNT)
    rows = torch.stack(h, dim=1).flatten(1).double()
    _, singular, axes = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    found = components.flatten(1).double()
    assert components.shape == (COUNT, STEPS, *SHAPE)
    torch.testing.assert_close((found @ axes[:COUNT].T).abs(), torch.eye(COUNT).double())
    torch.testing.assert_close(deviations.double(), singular[:COUNT] / (N - 1) ** 0.5)
    variance = singular**2 / (singular**2).sum()
    torch.testing.assert_close(explained.double(), variance[:COUNT])


def test_components_are_orthonormal_and_their_variance_falls():
    components, deviations, explained = principal(samples(), N - 1)
    rows = components.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(N - 1), rtol=0, atol=1e-5)
    assert bool((deviations[1:] <= deviations[:-1]).all())
    torch.testing.assert_close(explained.sum(), torch.tensor(1.0))


def test_a_deviation_is_that_of_the_pictures_along_the_component():
    h = samples()
    components, deviations, _ = principal(h, COUNT)
    along = torch.stack(h, dim=1).flatten(1) @ components.flatten(1).T
    torch.testing.assert_close(along.std(dim=0), deviations)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_component_points_to_where_the_farthest_picture_lies(sign: float):
    h = [sign * one for one in samples()]
    components, _, _ = principal(h, COUNT)
    rows = torch.stack(h, dim=1).flatten(1)
    along = (rows - rows.mean(dim=0)) @ components.flatten(1).T
    farthest = along.gather(0, along.abs().argmax(dim=0, keepdim=True))
    assert bool((farthest > 0).all())


def test_a_step_between_has_the_direction_of_the_nearest_level():
    components, deviations, explained = principal(samples(), COUNT)
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.0])
    found = Directions(components, deviations, explained, sigmas, (4, 8, 8), "BaseModel")
    for sigma, step in ((12.0, 0), (10.0, 0), (4.0, 1), (1.5, 2), (0.1, 2)):
        torch.testing.assert_close(found.at(1, sigma), components[1, step] * deviations[1])


def test_directions_of_another_model_or_size_are_refused():
    found = Directions(
        *principal(samples(), COUNT), torch.tensor([3.0, 1.0, 0.5, 0.0]), (4, 8, 8), "BaseModel"
    )
    path = DiffusionPath(
        sigmas=torch.tensor([3.0, 0.0]),
        latents=torch.zeros(2, 1, 4, 8, 8),
        positive=[],
        negative=None,
        cfg=1.0,
        fingerprint={"model": "BaseModel"},
    )
    found.check(path)
    with pytest.raises(ValueError, match="of the kind SDXL; find them with the model of the path"):
        found.check(path._replace(fingerprint={"model": "SDXL"}))
    with pytest.raises(ValueError, match="latents of 4 x 8 x 8, and the path has 4 x 8 x 12"):
        found.check(path._replace(latents=torch.zeros(2, 1, 4, 8, 12)))
