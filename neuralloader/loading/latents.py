"""The latents of a pack on a device: entropy-decoded once, kept as int8."""

import numpy as np
import torch
from torch import Tensor

from neuralloader.loading.planner import NO_LATENT
from neuralloader.packfile import Pack
from neuralloader.packfile.latents import SYMBOL_OF_CODE_0


class DeviceLatents:
    """Latents by row.

    Args:
        pack: an opened pack whose network has latents.
        device: where they are kept.

    Raises:
        PackError: they are damaged.
    """

    def __init__(self, pack: Pack, device: torch.device):
        stored = pack.latents()
        symbols = torch.from_numpy(stored.symbols)
        nothing = symbols.new_zeros((1, *symbols.shape[1:]))  # the last row: row NO_LATENT counts from the end
        self._symbols = torch.cat([symbols, nothing]).to(device)
        self._grid: tuple[Tensor, Tensor] | None = None
        if stored.grid is not None:
            minimum, scale = (
                torch.from_numpy(part).to(device).float()[..., None, None]
                for part in (stored.grid.minimum, stored.grid.scale)
            )
            self._grid = minimum - SYMBOL_OF_CODE_0 * scale, scale

    def get(self, rows: Tensor, videos: Tensor | None) -> Tensor:
        """Latents of frames.

        Args:
            rows: (n,) int64, rows of the latents; ``NO_LATENT`` stands for zeros.
            videos: (n,) int64, the video of each, where every video has a grid of its own; else None.

        Returns:
            (n, channels, height, width) float32.
        """
        values = self._symbols.index_select(0, rows % len(self._symbols)).float()
        if self._grid is None:
            return values
        offset, scale = self._grid if videos is None else (part.index_select(0, videos) for part in self._grid)
        return torch.addcmul(offset, values, scale) * (rows != NO_LATENT).view(-1, 1, 1, 1)


def repeat_for_units(networks: np.ndarray, num_rows: int) -> np.ndarray:
    """The network of each of the rows that V networks decode in turn: (V,) -> (num_rows,)."""
    return np.repeat(networks, num_rows // len(networks))
