"""PSNR against numpy, and what it refuses to compare."""

import numpy as np
import pytest
import torch

from neuralloader.metrics.quality import PSNR_CAP_DB, psnr_db


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
