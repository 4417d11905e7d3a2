"""Composite Edit: the original's own pixels outside the mask, whatever the sizes."""

from __future__ import annotations

import pytest
import torch

from diffusion_path.tests.calls import results


def pictures(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An original and an edited picture."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(2, *shape, 3, generator=generator).split(1))  # type: ignore[return-value]


def hole(height: int, width: int) -> torch.Tensor:
    """A mask with a white square in its middle."""
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return mask


@pytest.mark.parametrize("feather", [0, 1, 5, 16])
def test_outside_of_the_soft_edge_the_pixels_are_the_originals(comfy, feather: int):
    original, edited = pictures(96, 128)
    mask = hole(96, 128)
    image, soft = results("Composite", original=original, edited=edited, mask=mask, feather=feather)
    far = torch.nn.functional.max_pool2d(mask, 2 * feather + 1, 1, feather)[0] == 0
    assert far.any()
    assert torch.equal(image[0][far], original[0][far])
    assert torch.equal(image[0][mask[0] == 1], edited[0][mask[0] == 1])
    assert (soft[0] > 0).sum() > mask.sum() or feather == 0
    between = (soft > 0) & (soft < 1)
    assert bool(between.any()) == (feather > 0)


def test_the_edge_falls_evenly(comfy):
    original, edited = pictures(96, 128)
    _, soft = results("Composite", original=original, edited=edited, mask=hole(96, 128), feather=12)
    row = soft[0, 48, 64:]
    assert (row[1:] <= row[:-1] + 1e-6).all()


def test_a_picture_that_vae_encode_has_cropped_fits_in_its_middle(comfy):
    original, _ = pictures(101, 131)
    _, edited = pictures(96, 128)
    mask = torch.ones(1, 96, 128)
    image, whole = results("Composite", original=original, edited=edited, mask=mask, feather=0)
    assert image.shape == original.shape and whole.shape == (1, 101, 131)
    assert torch.equal(image[:, 2:98, 1:129], edited)
    assert torch.equal(image[:, :2], original[:, :2])
    assert torch.equal(image[:, :, 129:], original[:, :, 129:])
    assert float(whole.sum()) == 96 * 128


def test_a_mask_of_the_latents_size_is_enlarged(comfy):
    original, edited = pictures(96, 128)
    image, _ = results("Composite", original=original, edited=edited, mask=hole(12, 16), feather=0)
    assert torch.equal(image[:, :16], original[:, :16])
    assert torch.equal(image[:, 40:56, 56:72], edited[:, 40:56, 56:72])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"edited": torch.zeros(2, 96, 128, 3)}, "original holds 1 pictures and edited 2"),
        ({"edited": torch.zeros(1, 96, 128, 4)}, "3 channels and edited 4"),
        ({"edited": torch.zeros(1, 200, 128, 3)}, "96 pixels and edited 128 x 200"),
        ({"edited": torch.zeros(1, 32, 128, 3)}, "96 pixels and edited 128 x 32"),
        ({"mask": torch.zeros(3, 96, 128)}, "3 masks for 1 pictures"),
        ({"mask": torch.zeros(1, 128, 96)}, "proportions"),
        ({"mask": torch.zeros(1, 0, 96)}, "no pixel"),
    ],
)
def test_what_does_not_fit_is_refused(comfy, inputs: dict, words: str):
    original, edited = pictures(96, 128)
    wanted = {"original": original, "edited": edited, "mask": hole(96, 128)} | inputs
    with pytest.raises(ValueError, match=words) as error:
        results("Composite", **wanted)
    assert str(error.value).startswith("Put the Original Back (Composite Edit): ")
