"""How close decoded frames are to their originals, on uint8 frames, one figure a frame."""

import torch
from torch import Tensor

PSNR_CAP_DB = 100.0  # of identical frames, whose PSNR would be infinite


def psnr_db(decoded: Tensor, original: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame over all pixels and channels, peak 255.

    Args:
        decoded: (n, 3, H, W) uint8.
        original: the same shape, dtype and device.

    Returns:
        (n,) float64 in dB, at most ``PSNR_CAP_DB``.
    """
    if decoded.dtype != torch.uint8 or original.dtype != torch.uint8 or decoded.shape != original.shape:
        raise ValueError(
            f"PSNR compares uint8 frames of one shape, not {decoded.dtype} {tuple(decoded.shape)} "
            f"with {original.dtype} {tuple(original.shape)}"
        )
    mse = (decoded.float() - original.float()).square().mean(dim=(1, 2, 3), dtype=torch.float64)
    return (10 * torch.log10(255**2 / mse)).clamp(max=PSNR_CAP_DB)
