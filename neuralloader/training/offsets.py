"""What training adds to a frame's latent beyond what the encoder made of the frame.

An encoder must serve all frames; a latent only its own. In the last part of a training each stored latent is the
encoder's plus an offset, which is trained like a weight by the steps that show its frame (docs/experiments.md).
"""

import numpy as np
import torch
from torch import Tensor

from neuralloader.training.dataset import TrainingSet

BETAS = (0.9, 0.99)
EPS = 1e-8


class LatentOffsets:
    """An offset for each stored latent, with an Adam of its own that steps the rows it is shown.

    Args:
        num_latents: of the corpus, at least 1.
        shape: (channels, height, width) of one.
        device: where they are kept.

    Attributes:
        values: (num_latents, *shape) float32.
    """

    def __init__(self, num_latents: int, shape: tuple[int, int, int], device: torch.device):
        self.shape = shape
        self.values, self._mean, self._square = (torch.zeros(num_latents, *shape, device=device) for _ in range(3))
        self._steps = torch.zeros(num_latents, 1, 1, 1, device=device)

    def rows(self, data: TrainingSet, unit_rows: np.ndarray) -> Tensor:
        """(N * T,) int64: the latent of each frame of some units; -1 for a frame that stores none."""
        frames = data.units.rows[unit_rows].reshape(-1)
        rows = np.where(data.table.is_key(frames), -1, data.table.latent_row(frames))
        return torch.from_numpy(rows).to(self.values.device)

    def at(self, rows: Tensor) -> Tensor:
        """(len(rows), *shape) float32: the offsets of some rows, a new tensor; 0 where a row is -1."""
        return self.values[rows.clamp_min(0)] * (rows >= 0).view(-1, 1, 1, 1)

    @torch.no_grad()
    def step(self, rows: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """Adam on some rows, each with its own count of steps. A row that comes twice (padding) is stepped once."""
        kept, place = torch.unique(rows, return_inverse=True)
        summed = torch.zeros(len(kept), *gradients.shape[1:], device=gradients.device)
        summed.index_add_(0, place, gradients)
        kept, summed = kept[kept >= 0], summed[kept >= 0]
        if not len(kept):
            return
        steps = self._steps[kept] + 1
        mean = torch.lerp(summed, self._mean[kept], BETAS[0])
        square = torch.lerp(summed.square(), self._square[kept], BETAS[1])
        rate = (mean / (1 - BETAS[0] ** steps)) / ((square / (1 - BETAS[1] ** steps)).sqrt() + EPS)
        self.values[kept] -= learning_rate * rate
        self._mean[kept], self._square[kept], self._steps[kept] = mean, square, steps

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on besides the values, by name: the very tensors, to be kept or written to."""
        return {"mean": self._mean, "square": self._square, "steps": self._steps}
