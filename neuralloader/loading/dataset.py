"""A pack as a map-style PyTorch dataset of video clips."""

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from neuralloader.clips import VideoTable
from neuralloader.loading.cache import CacheMode
from neuralloader.loading.decode import DecodeCounts, DecodeSettings, checked_device
from neuralloader.loading.draws import draw_for_items
from neuralloader.loading.items import ItemTable, choose_videos
from neuralloader.loading.joined import FrameDecoder, JoinedPlan, open_decoder
from neuralloader.loading.output import OutputFormat, arrange, check_output
from neuralloader.loading.planner import DecodePlan
from neuralloader.loading.samplers import AllWindows, ClipSampler
from neuralloader.loading.videos import Videos
from neuralloader.packfile import open_pack

FRAMES_PER_CLIP = 8


@dataclass(frozen=True)
class BatchPlan:
    """A batch that is chosen and planned, but not decoded.

    Attributes:
        items: (B,) int64, the dataset's items.
        rows: (B, num_clips, T) int64, the rows of the frame table that they ask for.
        frames: how to decode these.
    """

    items: np.ndarray
    rows: np.ndarray
    frames: DecodePlan | JoinedPlan


class NeuralVideoDataset(Dataset[tuple[Any, ...]]):
    """Clips of a pack: ``(video, label)``, the video uint8 RGB of shape (T, 3, H, W).

    Works in a plain ``DataLoader``, where a whole batch is decoded in one go (``__getitems__``), and in
    ``NeuralVideoLoader``, which decodes ahead. Unless a sampler says otherwise, items are all windows of
    ``frames_per_clip`` frames that start at multiples of ``step_between_clips``, in video order; a window that reaches
    past the end of its video repeats the last frame, so that every frame is in some window.

    Args:
        path: a .nvpack file or URL, or a list of them that is read as one: their classes and splits are merged by name.
        frames_per_clip: T, frames in an item; independent of the clips inside the pack. None is 8.
        step_between_clips: frames between the starts of neighbouring windows; None means ``frames_per_clip``.
        frame_rate: frames per second of the clips, as in torchvision's ``VideoClips``: stored frames are left out, or
            repeated, evenly. None is the pack's.
        sampler: what an item is, from ``neuralloader.loading.samplers``, in the place of ``frames_per_clip`` and
            ``step_between_clips``. With more than one clip an item, videos are (num_clips, T, 3, H, W).
        seed: of what the sampler draws. With a number, the frames of an item depend on it, on the epoch
            (``set_epoch``) and on the item alone; with None, on torch's generator, as in other datasets.
        videos: names of the videos to use, paths below the packed folder; or a text file with one a line, such as
            UCF101's lists, whose labels are passed over. None is all.
        split: use only the videos of this one of the pack's ``splits``, such as "train". None is all.
        device: where to decode. None is CUDA where it is there and this is the main process, else the CPU.
        dtype: torch.uint8, or torch.float32, float16 or bfloat16 for 0 to 1 (then not rounded to grey levels).
        output_format: order of a clip's axes: "TCHW", "THWC" or "CTHW"; the latter two may be views.
        size: (height, width) to decode to; None is the pack's. ``docs/loader.md`` says when this saves work.
        cache: where decoded key-frames are kept: "device", "host", "none", or "auto" for the first that has room.
        cache_bytes: bound on them; None is 1 GiB, or a quarter of a GPU's free memory.
        precision: torch.float32, bfloat16 or float16 for the network; None is bfloat16 where the device is fast at it.
        compile: run the network through ``torch.compile``.
        cuda_graphs: replay recorded CUDA graphs.
        transform: applied to each video, on its device.
        target_transform: applied to each label.
        transforms: applied to both, ``video, label = transforms(video, label)``; excludes the other two.
        return_info: add a third item, a dict with ``video_index`` (int) and ``pts_seconds`` (float64, of the shape of
            the frames: (T,) or (num_clips, T)).

    Attributes:
        classes: class names, sorted.
        class_to_idx: name to label. Both are the pack's, whatever videos are used.
        splits: names of the pack's splits; none in a pack that was made without lists of videos.
        targets: label of each item; -1 in a pack without classes.
        samples: (video name, label) of each item.
        pack: the opened pack, or several as one.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: the file is no pack, or is damaged.
        ValueError: an argument is out of range, or some do not go together; or packs do not.
        TypeError: a number of frames that is no whole number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        frames_per_clip: int | None = None,
        step_between_clips: int | None = None,
        frame_rate: float | None = None,
        sampler: ClipSampler | None = None,
        seed: int | None = None,
        videos: Sequence[str] | str | os.PathLike[str] | None = None,
        split: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.uint8,
        output_format: OutputFormat = "TCHW",
        size: tuple[int, int] | None = None,
        cache: CacheMode = "auto",
        cache_bytes: int | None = None,
        precision: torch.dtype | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        return_info: bool = False,
    ):
        if transforms is not None and (transform is not None or target_transform is not None):
            raise ValueError("transforms excludes transform and target_transform: give one or the other")
        if frame_rate is not None and not 0 < frame_rate < float("inf"):
            raise ValueError(f"frame_rate={frame_rate} must be above 0")
        check_output(dtype, output_format)
        self.sampler = _choose_sampler(sampler, frames_per_clip, step_between_clips)
        self.seed = None if seed is None else operator.index(seed)
        self.pack = open_pack(path)
        self.device = None if device is None else checked_device(device)
        self.dtype, self.return_info = dtype, return_info
        self.output_format: OutputFormat = output_format
        self.transform, self.target_transform, self.transforms = transform, target_transform, transforms
        self.classes: list[str] = list(self.pack.classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.splits: list[str] = list(self.pack.splits)
        self._settings = DecodeSettings(_checked_size(size), cache, cache_bytes, precision, compile, cuda_graphs)
        every = VideoTable.of(self.pack.index.videos)
        chosen = choose_videos(every, self.splits, wanted=videos, split=split)
        self._frame_rate = every.frame_rate
        self._items = ItemTable(self.pack.frames, chosen, self._frame_rate, self.sampler, frame_rate)
        self._labels = every.label.astype(np.int64)[self._items.video]
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # of all workers, too, that live on
        self._decoder: FrameDecoder | None = None
        self._decoder_pid = 0

    @property
    def frames_per_clip(self) -> int:
        return self.sampler.num_frames_per_clip

    @property
    def targets(self) -> list[int]:
        return self._labels.tolist()

    @property
    def samples(self) -> list[tuple[str, int]]:
        names = VideoTable.of(self.pack.index.videos).names
        return [(names[int(video)], label) for video, label in zip(self._items.video, self.targets, strict=True)]

    @property
    def videos(self) -> Videos:
        """All videos of the pack one by one, by frame number and by time; on the dataset's device, uint8."""
        return Videos(self.pack, self.ready_decoder())

    @property
    def counts(self) -> DecodeCounts:
        """What this process has decoded so far: frames used and decoded, key-frames read."""
        return DecodeCounts() if self._decoder is None else self._decoder.counts

    @property
    def decodes_on(self) -> torch.device:
        """Where this process decodes.

        Raises:
            RuntimeError: this is a ``DataLoader``'s worker, and the device is a GPU.
        """
        return self._device_here()

    @property
    def is_compiled(self) -> bool:
        """Whether the network is compiled, or recorded as CUDA graphs."""
        return self._settings.compile or self._settings.cuda_graphs

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Any, ...]:
        """Item ``index``; negative counts from the end. A list of items gives them as a batch, each part stacked.

        Raises:
            IndexError: there is no such item.
            ValueError: an empty list.
        """
        if isinstance(index, list | tuple | range | np.ndarray | Tensor) and np.ndim(index) == 1:
            if not len(index):
                raise ValueError("a batch of no items has no shape; for a list of none, call __getitems__([])")
            return tuple(default_collate(self.__getitems__(index)))  # type: ignore[arg-type]
        return self.__getitems__([index])[0]  # type: ignore[list-item]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Several items, decoded together; what a ``DataLoader`` calls for a batch."""
        items = np.array([self._checked_index(index) for index in indices], dtype=np.int64)
        if not len(items):
            return []
        plan = self.plan_batch(items, self.seed, int(self._epoch))
        videos = self.ready_decoder().stream.call(lambda: self.decode_batch(plan))
        return self.make_items(plan, videos)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins: with a ``seed``, the sampler's draws depend on it. Reaches workers that live on."""
        self._epoch.fill_(operator.index(epoch))

    def plan_batch(self, items: np.ndarray, seed: int | None, epoch: int) -> BatchPlan:
        """Choose and plan the frames of some items; their pixels are not touched yet.

        Args:
            items: (B,) int64, 0 to ``len(self) - 1``.
            seed: of what the sampler draws; None draws from torch's generator.
            epoch: which one.

        Raises:
            ValueError: as the sampler says, with ``policy="error"``.
        """
        num_draws = self.sampler.num_draws
        if seed is None:
            draws = torch.rand(len(items), num_draws, dtype=torch.float64).numpy()
        else:
            draws = draw_for_items(seed, epoch, items, num_draws)
        rows = self._items.rows(items, draws)
        return BatchPlan(items, rows, self.ready_decoder().plan(rows.reshape(-1)))

    def decode_batch(self, plan: BatchPlan) -> Tensor:
        """The videos of a planned batch, (B, T, ...) or (B, num_clips, T, ...); on the decoder's stream.

        Raises:
            PackError: a key-frame is damaged.
        """
        shape = plan.rows.shape if self.sampler.num_clips > 1 else (plan.rows.shape[0], plan.rows.shape[2])
        frames = self.ready_decoder().run(plan.frames, self.dtype)
        return arrange(frames.unflatten(0, shape), self.output_format)

    def make_items(self, plan: BatchPlan, videos: Tensor) -> list[tuple[Any, ...]]:
        """The items of a decoded batch, with what transforms make of them."""
        items = []
        for video, target in zip(videos, self.labels(plan).tolist(), strict=True):
            if self.transforms is not None:
                video, target = self.transforms(video, target)
            if self.transform is not None:
                video = self.transform(video)
            if self.target_transform is not None:
                target = self.target_transform(target)
            items.append((video, target))
        if not self.return_info:
            return items
        return [(*item, info) for item, info in zip(items, self.infos(plan), strict=True)]

    def labels(self, plan: BatchPlan) -> np.ndarray:
        """(B,) int64, the labels of a planned batch."""
        return self._labels[plan.items]

    def infos(self, plan: BatchPlan) -> list[dict[str, Any]]:
        """What ``return_info`` adds to each item."""
        video = self._items.video[plan.items]
        frames = plan.rows - self.pack.frames.first_row[video][:, None, None]
        pts_seconds = frames / self._frame_rate[video][:, None, None]
        if self.sampler.num_clips == 1:
            pts_seconds = pts_seconds[:, 0]
        return [
            {"video_index": int(v), "pts_seconds": torch.from_numpy(p)} for v, p in zip(video, pts_seconds, strict=True)
        ]

    def ready_decoder(self) -> FrameDecoder:
        """The decoder for this process and its device; made when it is first needed."""
        device = self._device_here()
        if self._decoder is None or self._decoder.device != device or self._decoder_pid != os.getpid():
            self._decoder, self._decoder_pid = open_decoder(self.pack, device, self._settings), os.getpid()
        return self._decoder

    def end_threads(self) -> None:
        """End the threads that decode on a CPU; they start again when they are needed."""
        if self._decoder is not None and self._decoder_pid == os.getpid():
            self._decoder.end_threads()

    def _checked_index(self, index: int) -> int:
        if isinstance(index, Tensor) and index.dtype == torch.bool:  # part of a mask, which would count as 0 and 1
            raise TypeError("an index is a whole number, not a bool; a mask's are mask.nonzero()[:, 0]")
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} is out of range: the dataset has {len(self)} items")
        return position % len(self)

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a copy has an epoch of its own; a worker's is shared already


def _use_cuda(in_worker: bool) -> bool:
    return not in_worker and torch.cuda.is_available()


def _choose_sampler(sampler: ClipSampler | None, frames_per_clip: int | None, step: int | None) -> ClipSampler:
    if sampler is None:
        frames = FRAMES_PER_CLIP if frames_per_clip is None else frames_per_clip
        _check_count("frames_per_clip", frames)
        if step is not None:
            _check_count("step_between_clips", step)
        return AllWindows(num_frames_per_clip=frames, step_between_clips=step)
    if frames_per_clip is not None or step is not None:
        raise ValueError(
            "frames_per_clip and step_between_clips belong to a dataset without a sampler: give them to it"
        )
    if not isinstance(sampler, ClipSampler):
        raise TypeError(
            f"sampler={sampler!r} must be a clip sampler, from neuralloader.loading.samplers; the order of items is "
            "for the loader to sample"
        )
    return sampler


def _checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise TypeError(f"size={size!r} must be two whole numbers, height and width") from None
    if min(height, width) < 1:
        raise ValueError(f"size={size!r} must be 1 or more each")
    return height, width


def _check_count(name: str, value: int) -> None:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number") from None
    if count < 1:
        raise ValueError(f"{name}={value} must be 1 or more")
