"""What latents cost, estimated so that training can price them: a Laplace distribution around 0 for each channel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.blocks import spread

MIN_SCALE = 0.05  # keeps the estimate finite where a channel is unused


class LaplaceRate(nn.Module):
    """Bits of whole-numbered latents, with a learned scale a channel. Needed while packing only."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """(M, C, h, w) -> (M,) bits: minus log2 of the distribution integrated over each rounding interval, summed."""
        scale, distance = F.softplus(spread(self.log_scale, 3, len(latents))) + MIN_SCALE, latents.abs()
        probability = laplace_cdf((0.5 - distance) / scale) - laplace_cdf((-0.5 - distance) / scale)
        return -probability.clamp_min(1e-9).log2().sum(dim=(1, 2, 3))


def laplace_cdf(x: Tensor) -> Tensor:
    """Distribution function of the Laplace distribution of scale 1."""
    return 0.5 - 0.5 * x.sign() * torch.expm1(-x.abs())
