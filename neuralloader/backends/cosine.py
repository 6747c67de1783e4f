"""Fixed cosine transforms of a frame's blocks: what CNeRV makes its embeddings of, and fast D-NeRV its latents."""

from math import pi

import torch
from torch import Tensor, nn


class CosineTransform(nn.Module):
    """Gamma(c, p, q): the sum over a block of row_p(y) column_q(x) I(c, y, x), for fixed waves (CNeRV, section 3.2).

    Args:
        row_waves: (h, P), the waves along a block's height.
        column_waves: (w, Q), the waves along its width.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, row_waves: Tensor, column_waves: Tensor):
        super().__init__()
        self.register_buffer("rows", row_waves, persistent=False)
        self.register_buffer("columns", column_waves, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(M, C, rows * h, columns * w) in 0..1 -> (M, C * P * Q, rows, columns) float32, for blocks of h x w."""
        height, width = len(self.rows), len(self.columns)
        with torch.autocast(images.device.type, enabled=False):  # means, which differ little between frames
            x = images.float().unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (M, C, rows, h, columns, w)
            x = (x @ self.columns).transpose(3, 5)  # (M, C, rows, Q, columns, h)
            x = x @ self.rows  # (M, C, rows, Q, columns, P)
        return x.permute(0, 1, 5, 3, 2, 4).flatten(1, 3)


def published_waves(side: int, num_waves: int, base: float) -> Tensor:
    """cos(base^i pi x) / side, i = 0 .. num_waves-1, at the centres x of a block's pixels: (side, num_waves) float32.

    Divided by the side, a product sums to the mean over the block. The paper has the sum, which grows with the block,
    to 6e4; the two differ by a factor that the convolution behind them learns.
    """
    frequencies = torch.tensor([base**i * pi for i in range(num_waves)], dtype=torch.float64)
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    return (torch.outer(centres, frequencies).cos() / side).float()


def dct_waves(side: int, num_waves: int) -> Tensor:
    """The lowest waves of the orthonormal DCT-II: (side, num_waves) float32, columns of length 1."""
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    waves = torch.outer(centres, torch.arange(num_waves, dtype=torch.float64) * pi).cos()
    return torch.nn.functional.normalize(waves, dim=0).float()
