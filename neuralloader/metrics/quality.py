"""How close decoded frames are to their originals, on uint8 frames, one figure a frame."""

import torch
from pytorch_msssim import ssim as _ssim
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
    _check_frames("PSNR", decoded, original)
    mse = (decoded.float() - original.float()).square().mean(dim=(1, 2, 3), dtype=torch.float64)
    return (10 * torch.log10(255**2 / mse)).clamp(max=PSNR_CAP_DB)


def ssim(decoded: Tensor, original: Tensor) -> Tensor:
    """Structural similarity of each frame: Gaussian window of 11 pixels, sigma 1.5, mean over pixels and channels.

    Args:
        decoded: (n, 3, H, W) uint8, sides of 11 pixels or more.
        original: the same shape, dtype and device.

    Returns:
        (n,) float32, 1 for identical frames.
    """
    _check_frames("SSIM", decoded, original)
    return _ssim(decoded.float(), original.float(), data_range=255, size_average=False)


def _check_frames(metric: str, decoded: Tensor, original: Tensor) -> None:
    if decoded.dtype != torch.uint8 or original.dtype != torch.uint8 or decoded.shape != original.shape:
        raise ValueError(
            f"{metric} compares uint8 frames of one shape, not {decoded.dtype} {tuple(decoded.shape)} "
            f"with {original.dtype} {tuple(original.shape)}"
        )
