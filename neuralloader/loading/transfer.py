"""From the host to a device, without waiting: through pinned memory, in few copies."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays as tensors on a device; to a GPU in one copy for each dtype, which nothing waits for."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    uploaded: list[Tensor] = list(tensors)
    for dtype in {t.dtype for t in tensors}:
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        flat = torch.cat([tensors[i].flatten() for i in places]).pin_memory().to(device, non_blocking=True)
        for i, part in zip(places, flat.split([tensors[i].numel() for i in places]), strict=True):
            uploaded[i] = part.view(tensors[i].shape)
    return uploaded


def upload_images(images: np.ndarray, device: torch.device) -> Tensor:
    """Images on a device, through pinned memory where there is a copy to make."""
    tensor = torch.from_numpy(images)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
