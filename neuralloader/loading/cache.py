"""Key-frames at hand: their features on the device, and their pixels on the host, each within a bound of bytes."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import KeyFeatures
from neuralloader.loading.transfer import upload, upload_images

CacheMode = Literal["auto", "device", "host", "none"]
DEFAULT_BYTES = 1 << 30
DEVICE_SHARE = 0.25  # of a GPU's free memory, which "auto" takes where it needs that much
ABSENT = -1


class FeatureCache:
    """Features of key-frames in slots of one tensor each, which networks index directly.

    Slots that are not needed now are given anew, the least recently used first.

    Args:
        num_keys: key-frames in the pack.
        read: decodes rows of the key-frame table to (n, H, W, 3) uint8.
        encode: makes features of (n, 3, H, W) uint8 on the device, ``Backend.encode_keyframes``.
        example: features of one key-frame, of the types to keep them in, on the device to keep them on.
        max_bytes: bound on the slots.
        min_slots: there are so many, whatever the bound: what has to be there at once.
        keys_per_step: most key-frames that are encoded together.
    """

    def __init__(
        self,
        num_keys: int,
        read: Callable[[np.ndarray], np.ndarray],
        encode: Callable[[Tensor], KeyFeatures],
        example: KeyFeatures,
        *,
        max_bytes: int,
        min_slots: int,
        keys_per_step: int,
    ):
        self._read, self._encode, self._keys_per_step = read, encode, keys_per_step
        num_slots = min(num_keys, max(min_slots, max_bytes // feature_bytes(example)))
        self.features: KeyFeatures = tuple(f.new_empty((num_slots, *f.shape[1:])) for f in example)
        self._device = example[0].device
        self._slot = np.full(num_keys, ABSENT)  # of each row
        self._row = np.full(num_slots, ABSENT)  # in each slot
        self._used_at = np.zeros(num_slots, np.int64)  # when each slot was last asked for
        self._clock = 0

    @property
    def num_slots(self) -> int:
        """Key-frames that can be there at once."""
        return len(self._row)

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of some different rows that are not there."""
        return rows[self._slot[rows] == ABSENT]

    def slots(self, rows: np.ndarray) -> np.ndarray:
        """The slots of some different rows, at most ``num_slots``; what is missing is read and encoded.

        Returns:
            (len(rows),) int64. They hold until the next call.
        """
        self._touch(rows)
        missing = self.missing(rows)
        if len(missing):
            self._put(missing, self._read(missing))
        return self._slot[rows]

    def put(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Keep key-frames that were read elsewhere, as many as there is room for.

        Args:
            rows: (n,) different rows.
            images: (n, H, W, 3) uint8.
        """
        self._touch(rows)
        absent = np.flatnonzero(self._slot[rows] == ABSENT)[: self.num_slots]
        self._put(rows[absent], images[absent])

    def _touch(self, rows: np.ndarray) -> None:
        """Begin a call that asks for some rows: those that are there are the last to go."""
        self._clock += 1
        present = self._slot[rows]
        self._used_at[present[present != ABSENT]] = self._clock

    def _put(self, rows: np.ndarray, images: np.ndarray) -> None:
        for start in range(0, len(rows), self._keys_per_step):
            part = rows[start : start + self._keys_per_step]
            pixels = upload_images(images[start : start + self._keys_per_step], self._device)
            free = np.argpartition(self._used_at, len(part) - 1)[: len(part)]
            (where,) = upload([free], self._device)
            for kept, feature in zip(self.features, self._encode(pixels.permute(0, 3, 1, 2)), strict=True):
                kept.index_copy_(0, where, feature.to(kept.dtype))
            given_up = self._row[free]
            self._slot[given_up[given_up != ABSENT]] = ABSENT
            self._row[free], self._slot[part], self._used_at[free] = part, free, self._clock


def feature_bytes(features: KeyFeatures) -> int:
    """What the features of one key-frame take."""
    return sum(feature[0].numel() * feature.element_size() for feature in features)


class PixelCache:
    """Decoded key-frames on the host; the least recently used go first.

    Args:
        read: decodes rows of the key-frame table to (n, H, W, 3) uint8.
        max_bytes: bound on what is kept; one request may exceed it while it is served.
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], max_bytes: int):
        self._read, self._max_bytes = read, max_bytes
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Key-frames by row: (n,) -> (n, H, W, 3) uint8; each missing one is decoded once."""
        missing = self.missing(rows)
        if len(missing):
            self._keep(missing, self._read(missing))
        for row in rows.tolist():
            self._kept.move_to_end(row)
        images = np.stack([self._kept[row] for row in rows.tolist()])
        self._let_go()
        return images

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Different rows that are not there."""
        return np.array([row for row in dict.fromkeys(rows.tolist()) if row not in self._kept], np.int64)

    def put(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Keep key-frames that were read elsewhere, as many as there is room for: the last ones.

        Args: as ``FeatureCache.put``.
        """
        self._keep(rows, images)
        self._let_go()

    def _keep(self, rows: np.ndarray, images: np.ndarray) -> None:
        for row, image in zip(rows.tolist(), images, strict=True):
            if row not in self._kept:
                self._kept[row] = image.copy()  # a slice would keep the whole request alive
                self._bytes += image.nbytes

    def _let_go(self) -> None:
        while self._bytes > self._max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def check_cache(mode: str, max_bytes: int | None) -> None:
    """Refuse, with a ValueError, an unknown mode, and a bound below 0."""
    if mode not in get_args(CacheMode):
        raise ValueError(f"cache={mode!r} must be one of {', '.join(get_args(CacheMode))}")
    if max_bytes is not None and max_bytes < 0:
        raise ValueError(f"cache_bytes={max_bytes} must be 0 or more")


def choose_bounds(mode: CacheMode, max_bytes: int | None, needed_bytes: int, device: torch.device) -> tuple[int, int]:
    """What may be kept on the device, and what on the host, in bytes.

    Args:
        mode: ``device`` keeps features on the device; ``host`` decoded pixels on the host; ``none`` no more than
            a step needs; ``auto`` features on the device, and where those of the whole pack have no room, pixels, too.
        max_bytes: bound where things are kept; None is 1 GiB, and on a GPU with ``auto`` a quarter of its free memory.
        needed_bytes: what the features of the whole pack may take.
        device: where networks run.

    Raises:
        ValueError: an unknown mode, or a bound below 0.
    """
    check_cache(mode, max_bytes)
    bound = DEFAULT_BYTES if max_bytes is None else max_bytes
    if mode == "none":
        return 0, 0
    if mode == "host":
        return (bound, 0) if device.type == "cpu" else (0, bound)  # on a CPU they are one
    if mode == "device" or device.type == "cpu":
        return bound, 0
    on_device = bound if max_bytes is not None else int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
    return on_device, 0 if needed_bytes <= on_device else bound
