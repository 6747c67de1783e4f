"""Decoded key-frames, kept within a bound of bytes: the least recently used go first."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class KeyframeCache:
    """Key-frames on a device.

    Args:
        read: decodes rows of the key-frame table to (n, H, W, 3) uint8.
        device: where the key-frames are kept.
        max_bytes: bound on what is kept; one request may exceed it while it is served.
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], device: torch.device, max_bytes: int):
        self._read, self._device, self._max_bytes = read, device, max_bytes
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, rows: np.ndarray) -> Tensor:
        """Key-frames by row: (n,) -> (n, 3, H, W) uint8 on the device; each missing one is decoded once."""
        missing = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in self._kept], dtype=np.int64)
        if len(missing):
            images = torch.from_numpy(self._read(missing)).to(self._device)
            for row, image in zip(missing.tolist(), images, strict=True):
                self._kept[row] = image.clone()  # a slice would keep the whole request alive
                self._bytes += image.nbytes
        found = []
        for row in rows.tolist():
            self._kept.move_to_end(row)
            found.append(self._kept[row])
        while self._bytes > self._max_bytes:
            _, image = self._kept.popitem(last=False)
            self._bytes -= image.nbytes
        return torch.stack(found).permute(0, 3, 1, 2)
