"""A pack as a map-style PyTorch dataset of video clips."""

import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from neuralloader.loading.decode import FrameDecoder, checked_device, open_decoder
from neuralloader.loading.planner import all_windows, window_rows
from neuralloader.loading.videos import Videos
from neuralloader.packfile import open_pack


class NeuralVideoDataset(Dataset[tuple[Any, ...]]):
    """Clips of a pack: ``(video, label)``, the video uint8 RGB of shape (T, 3, H, W).

    Works in a plain ``DataLoader``; a whole batch is then decoded in one go (``__getitems__``). Items are all windows
    of ``frames_per_clip`` frames that start at multiples of ``step_between_clips``, in video order; a window that
    reaches past the end of its video repeats the last frame, so that every frame is in some window.

    Args:
        path: a .nvpack file or URL, or a list of them that is read as one: their classes are merged by name.
        frames_per_clip: T, frames in an item; independent of the clips inside the pack.
        step_between_clips: frames between the starts of neighbouring windows; None means ``frames_per_clip``.
        device: where to decode. None is CUDA where it is there and this is the main process, else the CPU.
        transform: applied to each video, (T, 3, H, W) uint8 on the device.
        return_info: add a third item, a dict with ``video_index`` (int) and ``pts_seconds`` ((T,) float64).

    Attributes:
        classes: class names, sorted.
        class_to_idx: name to label.
        targets: label of each item; -1 in a pack without classes.
        samples: (video name, label) of each item.
        pack: the opened pack, or several as one.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: the file is no pack, or is damaged.
        ValueError: an argument is out of range, or packs do not go together.
        TypeError: a number of frames that is no whole number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        frames_per_clip: int = 8,
        step_between_clips: int | None = None,
        device: str | torch.device | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        return_info: bool = False,
    ):
        step = frames_per_clip if step_between_clips is None else step_between_clips
        self.frames_per_clip = _checked_count("frames_per_clip", frames_per_clip)
        self.step_between_clips = _checked_count("step_between_clips", step)
        self.pack = open_pack(path)
        self.device = None if device is None else checked_device(device)
        self.transform, self.return_info = transform, return_info
        self.classes: list[str] = list(self.pack.classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self._windows = all_windows(
            self.pack.frames, frames_per_clip=self.frames_per_clip, step_between_clips=self.step_between_clips
        )
        self._labels = np.array([video.label for video in self.pack.index.videos], np.int64)[self._windows.video]
        self._decoder: FrameDecoder | None = None

    @property
    def targets(self) -> list[int]:
        return self._labels.tolist()

    @property
    def samples(self) -> list[tuple[str, int]]:
        names = [self.pack.index.videos[video].name for video in self._windows.video]
        return list(zip(names, self.targets, strict=True))

    @property
    def videos(self) -> Videos:
        """The pack's videos one by one, by frame number and by time; on the dataset's device."""
        return Videos(self.pack, self._ready_decoder())

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Item ``index``; negative counts from the end.

        Raises:
            IndexError: there is no such item.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Several items, decoded together; what a ``DataLoader`` calls for a batch."""
        items = np.array([self._checked_index(index) for index in indices], dtype=np.int64)
        if not len(items):
            return []
        rows = window_rows(self._windows, items, self.pack.frames, self.frames_per_clip)  # (B, T)
        videos = self._ready_decoder().decode(rows.reshape(-1)).unflatten(0, rows.shape)  # (B, T, 3, H, W)
        return [self._item(int(item), video, row) for item, video, row in zip(items, videos, rows, strict=True)]

    def _item(self, item: int, video: Tensor, rows: np.ndarray) -> tuple[Any, ...]:
        label = int(self._labels[item])
        transformed = video if self.transform is None else self.transform(video)
        if not self.return_info:
            return transformed, label
        index = int(self._windows.video[item])
        pts_seconds = self.pack.frames.at(rows).frame / self.pack.index.videos[index].frame_rate
        return transformed, label, {"video_index": index, "pts_seconds": torch.from_numpy(pts_seconds)}

    def _checked_index(self, index: int) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} is out of range: the dataset has {len(self)} items")
        return position % len(self)

    def _ready_decoder(self) -> FrameDecoder:
        device = self._device_here()
        if self._decoder is None or self._decoder.device != device:
            self._decoder = open_decoder(self.pack, device)
        return self._decoder

    def _device_here(self) -> torch.device:
        """The device to decode on in this process."""
        in_worker = get_worker_info() is not None
        if self.device is None:
            return torch.device("cuda", torch.cuda.current_device()) if _use_cuda(in_worker) else torch.device("cpu")
        if in_worker and self.device.type == "cuda":
            raise RuntimeError(
                f"a NeuralVideoDataset with device={str(self.device)!r} cannot decode inside a DataLoader worker: use "
                "num_workers=0, which decodes whole batches on the GPU, or device='cpu' to decode in the workers"
            )
        return self.device

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}  # rebuilt where it is needed, on the device of that process


def _use_cuda(in_worker: bool) -> bool:
    return not in_worker and torch.cuda.is_available()


def _checked_count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number") from None
    if count < 1:
        raise ValueError(f"{name}={value} must be 1 or more")
    return count
