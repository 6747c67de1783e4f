"""Single videos of a pack, in the words of torchcodec's ``VideoDecoder``: by frame number, and by time.

Frame k is shown from k / frame_rate seconds to (k + 1) / frame_rate. Between stored frames,
``get_frames_interpolated_at`` asks the network instead of repeating one.
"""

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from neuralloader.clips import VideoInfo
from neuralloader.loading.decode import checked_device
from neuralloader.loading.joined import FrameDecoder, open_decoder
from neuralloader.packfile import JoinedPack, Pack, open_pack

SNAP = 1e-6  # frames: a time so close to a frame is that frame


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        data: (3, H, W) uint8 RGB.
        pts_seconds: when it is shown.
        duration_seconds: for how long.
    """

    data: Tensor
    pts_seconds: float
    duration_seconds: float


@dataclass(frozen=True)
class FrameBatch:
    """Several frames.

    Attributes:
        data: (N, 3, H, W) uint8 RGB.
        pts_seconds: (N,) float64, when each is shown.
        duration_seconds: (N,) float64, for how long; 0 for a time between frames.
    """

    data: Tensor
    pts_seconds: Tensor
    duration_seconds: Tensor

    def __len__(self) -> int:
        return len(self.data)


class NeuralVideo(Sequence[Tensor]):
    """One video of a pack: ``len``, ``video[3]``, ``video[-1]``, ``video[::2]``, and frames with their times.

    Made by ``Videos``.

    Attributes:
        info: what the pack knows about it: name, label, frames, rates, size of the source.
        begin_stream_seconds, end_stream_seconds: when its first frame begins to be shown, and its last one ends.
    """

    def __init__(self, decoder: FrameDecoder, first_row: int, info: VideoInfo):
        self._decoder, self._first_row, self.info = decoder, first_row, info
        self.begin_stream_seconds = 0.0
        self.end_stream_seconds = info.num_frames / info.frame_rate

    def __len__(self) -> int:
        return self.info.num_frames

    def __repr__(self) -> str:
        return f"NeuralVideo({self.info.name!r}, {len(self)} frames at {self.info.frame_rate:g} frames/s)"

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Tensor: ...
    def __getitem__(self, index: int | slice) -> Tensor:
        """Frame ``index`` as (3, H, W), or a slice of frames as (N, 3, H, W), uint8 RGB.

        Raises:
            IndexError: there is no such frame.
        """
        if isinstance(index, slice):
            return self._decode(np.arange(*index.indices(len(self))))
        return self.get_frame_at(index).data

    def get_frame_at(self, index: int) -> Frame:
        """Frame ``index``; negative counts from the end.

        Raises:
            IndexError: there is no such frame.
        """
        return _single(self.get_frames_at([index]))

    def get_frames_at(self, indices: Iterable[int]) -> FrameBatch:
        """Frames by number, in the order asked for, repeats allowed; decoded together.

        Raises:
            IndexError: there is no such frame.
        """
        return self._batch(np.array([self._checked_index(index) for index in indices], np.int64))

    def get_frames_in_range(self, start: int, stop: int, step: int = 1) -> FrameBatch:
        """Frames start, start + step, ... before stop.

        Raises:
            IndexError: start or stop lies outside of the video.
            ValueError: a step below 1.
            TypeError: one of them is no whole number.
        """
        start, stop, step = (operator.index(number) for number in (start, stop, step))
        if step < 1:
            raise ValueError(f"step={step} must be 1 or more")
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"frames {start} to {stop} are not within 0 to {len(self)} of {self.info.name}")
        return self._batch(np.arange(start, stop, step))

    def get_frame_played_at(self, seconds: float) -> Frame:
        """The frame shown at a time.

        Raises:
            IndexError: the video has not begun then, or has ended.
        """
        return _single(self.get_frames_played_at([seconds]))

    def get_frames_played_at(self, seconds: Iterable[float]) -> FrameBatch:
        """The frames shown at some times.

        Raises:
            IndexError: the video has not begun then, or has ended.
        """
        positions = self._positions(seconds, last=self.end_stream_seconds, is_last_included=False)
        return self._batch(np.minimum(np.floor(positions + SNAP).astype(np.int64), len(self) - 1))

    def get_frames_played_in_range(self, start_seconds: float, stop_seconds: float) -> FrameBatch:
        """All frames shown within [start_seconds, stop_seconds).

        Raises:
            ValueError: the range is no range, or not within the video.
        """
        if not self.begin_stream_seconds <= start_seconds <= stop_seconds <= self.end_stream_seconds:
            raise ValueError(
                f"{start_seconds} to {stop_seconds} seconds are not within {self.begin_stream_seconds} to "
                f"{self.end_stream_seconds:g} of {self.info.name}"
            )
        if start_seconds == stop_seconds:
            return self._batch(np.arange(0))
        rate = self.info.frame_rate
        first = int(np.floor(start_seconds * rate + SNAP))
        end = int(np.ceil(stop_seconds * rate - SNAP))
        return self._batch(np.arange(first, min(max(end, first + 1), len(self))))

    def get_frames_interpolated_at(self, seconds: Iterable[float]) -> FrameBatch:
        """What the network sees at times between stored frames.

        D-NeRV moves its key-frames by the flow of that time; CNeRV and HNeRV decode a latent between those of the two
        frames around it. A time that falls on a frame gives that frame.

        Args:
            seconds: times from the first frame to the last one, in any order.

        Returns:
            The frames, with the times asked for and durations of 0.

        Raises:
            IndexError: a time before the first frame or after the last one.
            ValueError: a time between frames, where the network knows none (NeRV), with the reason.
        """
        last = (len(self) - 1) / self.info.frame_rate
        positions = self._positions(seconds, last=last, is_last_included=True)
        nearest = np.rint(positions)
        positions = np.where(np.abs(positions - nearest) < SNAP, nearest, positions)
        frame = np.floor(positions).astype(np.int64)
        offset = positions - frame
        rows, is_between = self._first_row + frame, offset > 0
        on_frame = self._decoder.decode(rows[~is_between])
        between = self._decoder.decode_between(rows[is_between], offset[is_between])
        frames = on_frame.new_empty((len(rows), *on_frame.shape[1:]))
        where = torch.from_numpy(is_between).to(frames.device)
        frames[~where], frames[where] = on_frame, between
        return FrameBatch(frames, torch.from_numpy(positions / self.info.frame_rate), torch.zeros(len(rows)).double())

    def _batch(self, frames: np.ndarray) -> FrameBatch:
        pts_seconds = torch.from_numpy(frames / self.info.frame_rate)
        return FrameBatch(self._decode(frames), pts_seconds, torch.full_like(pts_seconds, 1 / self.info.frame_rate))

    def _decode(self, frames: np.ndarray) -> Tensor:
        return self._decoder.decode(self._first_row + frames)

    def _checked_index(self, index: int) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"frame {position} is out of range: {self.info.name} has {len(self)} frames")
        return position % len(self)

    def _positions(self, seconds: Iterable[float], *, last: float, is_last_included: bool) -> np.ndarray:
        """Times in frames, checked to be 0 to ``last`` seconds."""
        times = np.array([float(time) for time in seconds], np.float64)
        is_good = (times >= 0) & ((times <= last + SNAP / self.info.frame_rate) if is_last_included else (times < last))
        if not is_good.all():
            end = f"{last:g}" if is_last_included else f"before {last:g}"
            raise IndexError(f"{times[is_good.argmin()]} seconds are out of range: {self.info.name} has 0 to {end}")
        return np.minimum(times * self.info.frame_rate, len(self) - 1 if is_last_included else np.inf)


class Videos(Sequence[NeuralVideo]):
    """The videos of a pack, in its order: by number, negative number, or slice.

    Args:
        pack: an opened pack, or several read as one.
        decoder: theirs.
    """

    def __init__(self, pack: Pack | JoinedPack, decoder: FrameDecoder):
        self._pack, self._decoder = pack, decoder

    def __len__(self) -> int:
        return len(self._pack.index.videos)

    @overload
    def __getitem__(self, index: int) -> NeuralVideo: ...
    @overload
    def __getitem__(self, index: slice) -> list[NeuralVideo]: ...
    def __getitem__(self, index: int | slice) -> NeuralVideo | list[NeuralVideo]:
        """Video ``index``, or a list of several.

        Raises:
            IndexError: there is no such video.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"video {position} is out of range: the pack has {len(self)}")
        position %= len(self)
        return NeuralVideo(self._decoder, int(self._pack.frames.first_row[position]), self._pack.index.videos[position])


def open_videos(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, device: str | torch.device | None = None
) -> Videos:
    """The videos of a pack, or of several as one.

    Args:
        path: a .nvpack file or URL, or a list of them.
        device: where to decode; None is CUDA where it is there, else the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: a file is no pack, or is damaged.
        ValueError: packs that do not go together, or a device that is not there.
    """
    pack = open_pack(path)
    chosen = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Videos(pack, open_decoder(pack, chosen))


def _single(batch: FrameBatch) -> Frame:
    return Frame(batch.data[0], float(batch.pts_seconds[0]), float(batch.duration_seconds[0]))
