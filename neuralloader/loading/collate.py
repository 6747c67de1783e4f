"""From the parts of a batch to the batch: decode, transform, stack."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from neuralloader.loading.sources import BatchPart
from neuralloader.loading.transfer import upload


def collate(parts: Sequence[BatchPart], collate_fn: Callable[[list[Any]], Any] | None) -> Any:
    """Decode the parts of a batch and make it: ``[videos, labels]``, and infos where the datasets give some.

    Args:
        parts: of the batch, whose datasets' streams the first one's is made to wait for.
        collate_fn: makes the batch of a list of items, instead.

    Raises:
        PackError: a key-frame is damaged.
    """
    decoders = [part.dataset.ready_decoder() for part in parts]
    videos = [
        decoder.stream.call(lambda part=part: part.dataset.decode_batch(part.plan))
        for part, decoder in zip(parts, decoders, strict=True)
    ]
    order = np.argsort(np.concatenate([part.here for part in parts]), kind="stable")
    changes_items = any(
        function is not None
        for part in parts
        for function in (part.dataset.transform, part.dataset.target_transform, part.dataset.transforms)
    )
    if collate_fn is not None or changes_items:
        made = [
            item for part, own in zip(parts, videos, strict=True) for item in part.dataset.make_items(part.plan, own)
        ]
        items = [made[place] for place in order.tolist()]
        if collate_fn is not None:
            return collate_fn(items)
        batch = default_collate(items)
    else:
        stacked = videos[0] if len(videos) == 1 else _in_order(videos, order)
        labels = np.concatenate([part.dataset.labels(part.plan) for part in parts])[order]
        batch = [stacked, torch.from_numpy(labels)]
        if parts[0].dataset.return_info:
            infos = [info for part in parts for info in part.dataset.infos(part.plan)]
            batch.append(default_collate([infos[place] for place in order.tolist()]))
    if isinstance(batch, list) and isinstance(batch[1], Tensor) and decoders[0].device.type == "cuda":
        batch[1] = pin(batch[1]).to(decoders[0].device, non_blocking=True)
    return batch


def _in_order(videos: Sequence[Tensor], order: np.ndarray) -> Tensor:
    (places,) = upload([order], videos[0].device)
    return torch.cat(list(videos)).index_select(0, places)


def tensors_in(batch: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(batch, lambda tensor: found.append(tensor) or tensor)
    return found


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A batch with its tensors changed, in lists, tuples and dicts."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def can_pin() -> bool:
    """Without an accelerator there is no pinned memory: a warning, as ``DataLoader`` gives, and no pinning."""
    if not torch.accelerator.is_available():
        warnings.warn("pin_memory=True has no effect: no accelerator is found", stacklevel=3)
        return False
    return True


def pin(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_cuda else tensor.pin_memory()
