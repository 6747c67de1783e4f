"""PSNR against numpy, SSIM frame by frame, and what they refuse to compare."""

import numpy as np
import pytest
import pytorch_msssim
import torch

from neuralloader.metrics.quality import PSNR_CAP_DB, psnr_db, ssim


def test_against_numpy() -> None:
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (4, 3, 20, 30), dtype=np.uint8)
    decoded = rng.integers(0, 256, original.shape, dtype=np.uint8)
    decoded[1] = original[1] ^ 1  # off by one everywhere: the MSE is 1
    decoded[2] = 255 - original[2]
    mse = ((decoded.astype(float) - original) ** 2).mean(axis=(1, 2, 3))
    result = psnr_db(torch.from_numpy(decoded), torch.from_numpy(original))
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result, 10 * np.log10(255**2 / mse), rtol=1e-6)
    assert float(result[1]) == pytest.approx(48.13, abs=0.01)


def test_identical_frames_are_capped() -> None:
    frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert psnr_db(frames, frames).tolist() == [PSNR_CAP_DB] * 2


def test_each_frame_has_its_own_figure() -> None:
    original = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    decoded = original.clone()
    decoded[1] = 255
    assert psnr_db(decoded, original).tolist() == pytest.approx([PSNR_CAP_DB, 0])


@pytest.mark.parametrize(
    ("decoded", "text"),
    [
        (torch.zeros(2, 3, 8, 8), r"not torch.float32 \(2, 3, 8, 8\) with torch.uint8 \(2, 3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"not torch.uint8 \(1, 3, 8, 8\) with torch.uint8 \(2, 3, 8, 8\)"),
    ],
)
def test_what_cannot_be_compared(decoded: torch.Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=f"PSNR compares uint8 frames of one shape, {text}"):
        psnr_db(decoded, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


# --- SSIM -----------------------------------------------------------------------------------------------------------


def _pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Three frames: one nearly right, one noise, one identical."""
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (3, 3, 20, 33), dtype=torch.uint8, generator=generator)
    decoded = original.clone()
    decoded[0, :, ::4] += 9  # wraps here and there
    decoded[1] = torch.randint(0, 256, (3, 20, 33), dtype=torch.uint8, generator=generator)
    return decoded, original


def test_ssim_of_each_frame_alone() -> None:
    decoded, original = _pairs()
    result = ssim(decoded, original)
    assert result.dtype == torch.float32
    assert result.shape == (3,)
    for k in range(3):
        alone = pytorch_msssim.ssim(decoded[k : k + 1].double(), original[k : k + 1].double(), data_range=255)
        assert float(result[k]) == pytest.approx(float(alone), abs=1e-5)
    assert float(result[1]) < 0.1 < float(result[0]) < 0.99
    assert float(result[2]) == 1


def test_ssim_of_identical_frames_is_one() -> None:
    frames = torch.full((2, 3, 11, 11), 200, dtype=torch.uint8)
    assert ssim(frames, frames).tolist() == [1, 1]


def test_ssim_by_its_formula() -> None:
    """Flat frames have no variance: only the means are left."""
    a, b = 100.0, 130.0
    frames = [torch.full((1, 3, 16, 16), value, dtype=torch.uint8) for value in (a, b)]
    c1 = (0.01 * 255) ** 2
    assert float(ssim(*frames)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-4)


@pytest.mark.parametrize(
    "decoded", [torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 15, dtype=torch.uint8), torch.zeros(3, 16, 16)]
)
def test_what_ssim_cannot_compare(decoded: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="SSIM compares uint8 frames of one shape, not"):
        ssim(decoded, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
