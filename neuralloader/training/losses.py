"""Training losses over frames: each turns the frames' mean squared errors, and the frames, into one number.

Padding is left out by the caller, who has computed the errors anyway.
"""

import torch
from pytorch_msssim import ssim
from torch import Tensor

SMALLEST_MSE = 1e-6  # 60 dB: a frame better than that pulls no further


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each frame: (M, 3, H, W) twice, 0..1 -> (M,) float32."""
    difference = (predicted - target).flatten(1)
    return torch.linalg.vector_norm(difference, dim=1).square() / difference.shape[1]


def psnr_db(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of mean squared errors on the 0..1 scale, in dB, capped at 60."""
    return -10 * torch.log10(mse + SMALLEST_MSE)


def psnr_loss(mse: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Minus the mean PSNR over frames, in dB: the very figure a pack reports.

    Against the mean squared error it gives easy and hard videos the same say, and makes the price of a stored bit a
    plain number of dB.
    """
    return -psnr_db(mse).mean()


def l2_ssim_loss(mse: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """L2 + 0.03 * (1 - SSIM), the loss of D-NeRV's code for UCF101 (window 11, sigma 1.5)."""
    return mse.mean() + 0.03 * (1 - ssim(predicted, target, data_range=1.0))


def l1_ssim_loss(mse: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """0.7 * L1 + 0.3 * (1 - SSIM), the loss of NeRV (section 3.2) and CNeRV."""
    return 0.7 * (predicted - target).abs().mean() + 0.3 * (1 - ssim(predicted, target, data_range=1.0))


def l2_loss(mse: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, the loss of HNeRV (section 4.1)."""
    return mse.mean()


LOSSES = {"psnr": psnr_loss, "l2_ssim": l2_ssim_loss, "l1_ssim": l1_ssim_loss, "l2": l2_loss}
