"""Fixed cosine transforms: the published waves against plain loops, and the orthonormal DCT against its definition."""

import itertools
import math

import pytest
import torch

from neuralloader.backends.cosine import CosineTransform, dct_waves, published_waves

# --- the published waves --------------------------------------------------------------------------------------------


def test_transform_against_plain_loops() -> None:
    images = torch.rand(2, 3, 8, 18, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach it
        found = CosineTransform(published_waves(4, 3, 1.15), published_waves(6, 3, 1.15))(images)
    assert found.shape == (2, 27, 2, 3)
    assert found.dtype == torch.float32
    for m, c, p, q, row, column in itertools.product(*(range(n) for n in (2, 3, 3, 3, 2, 3))):
        total = 0.0
        for y in range(4):
            for x in range(6):
                wave = math.cos(1.15**p * math.pi * (y + 0.5) / 4) * math.cos(1.15**q * math.pi * (x + 0.5) / 6)
                total += wave * float(images[m, c, 4 * row + y, 6 * column + x])
        assert float(found[m, 9 * c + 3 * p + q, row, column]) == pytest.approx(total / 24, abs=1e-6)


def test_transform_is_fixed_and_not_saved() -> None:
    transform = CosineTransform(published_waves(4, 3, 1.15), published_waves(6, 3, 1.15))
    assert not list(transform.parameters())
    assert not transform.state_dict()


# --- the DCT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "num_waves"), [(16, 16), (16, 10), (8, 8), (5, 3), (16, 1)])
def test_waves_are_orthonormal(side: int, num_waves: int) -> None:
    waves = dct_waves(side, num_waves)
    assert waves.shape == (side, num_waves)
    assert waves.dtype == torch.float32
    torch.testing.assert_close(waves.T @ waves, torch.eye(num_waves), atol=1e-6, rtol=0)
    assert torch.equal(waves, dct_waves(side, side)[:, :num_waves]), "the lowest of all"


def test_waves_are_those_of_the_dct() -> None:
    waves = dct_waves(16, 16)
    for x, k in itertools.product(range(16), range(16)):
        expected = math.sqrt((1 if k == 0 else 2) / 16) * math.cos(math.pi * (2 * x + 1) * k / 32)
        assert float(waves[x, k]) == pytest.approx(expected, abs=1e-6)


def test_a_constant_block_has_one_coefficient() -> None:
    waves = dct_waves(16, 10)
    found = CosineTransform(waves, waves)(torch.tensor([0.25, -1.0, 3.0]).view(1, 3, 1, 1).expand(2, 3, 32, 16))
    assert found.shape == (2, 300, 2, 1)
    coefficients = found.view(2, 3, 100, 2)
    expected = torch.tensor([0.25, -1.0, 3.0]).view(1, 3, 1).expand(2, 3, 2) * 16
    torch.testing.assert_close(coefficients[:, :, 0], expected)
    assert coefficients[:, :, 1:].abs().max() < 1e-5


def test_all_waves_keep_everything() -> None:
    """Energy, and the picture itself: the transform is inverted by its own waves."""
    waves = dct_waves(16, 16)
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = CosineTransform(waves, waves)(images)
    torch.testing.assert_close(found.square().sum(), images.square().sum())
    blocks = torch.einsum("yp,xq,ncpqij->nciyjx", waves, waves, found.unflatten(1, (3, 16, 16)))
    torch.testing.assert_close(blocks.reshape(2, 3, 32, 48), images, atol=1e-5, rtol=0)
