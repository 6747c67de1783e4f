"""Other ways to the frames that a pack stores, which ``neuralloader bench`` measures beside it: a reader for each.

    VideoFile(path, numbers)    stored frame k of a video is frame numbers[k] of a file
    ClipReader.read(video, frames) -> (T, H, W, 3) uint8 RGB at the pack's size

decord, torchcodec, JPEG files and raw frames are here, PyAV in ``pyav_reader``. Every reader gives the frames it is
asked for by number, opens a file when it first needs it and keeps it open, pickles without what is open, and imports
its library only where it reads. None seeks by guessing from a time.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_OPEN_FILES = 64


@dataclass(frozen=True, eq=False)
class VideoFile:
    """Where the stored frames of one packed video are found.

    Attributes:
        path: a file, or a folder of images.
        numbers: (num_frames,) int64, the number in that file of each stored frame.
    """

    path: Path
    numbers: np.ndarray


class ClipReader(ABC):
    """Frames of videos by number.

    Args:
        files: one for each video.
        size: (height, width) of the frames to give.

    Attributes:
        counts_frames: whether ``frames_decoded`` is known.
    """

    counts_frames = True

    def __init__(self, files: Sequence[VideoFile], size: tuple[int, int]):
        self.files, self.size = tuple(files), size
        self._handles: OrderedDict[int, Any] = OrderedDict()  # by video, the least recently used first
        self._num_decoded = 0

    @property
    def frames_decoded(self) -> int | None:
        """Frames decoded so far; None where the library does not tell."""
        return self._num_decoded if self.counts_frames else None

    @staticmethod
    @abstractmethod
    def check_library() -> None:
        """Raises: ImportError: what the reader needs is not installed; the text tells how to."""

    def read(self, video: int, frames: np.ndarray) -> np.ndarray:
        """Read frames of a video.

        Args:
            video: place in ``files``.
            frames: (T,) int64, stored frames in any order, repeats allowed.

        Returns:
            (T, H, W, 3) uint8 RGB.

        Raises:
            SourceError: a frame cannot be found in the file.
        """
        if video not in self._handles:
            self._handles[video] = self._open(self.files[video].path, video)
            if len(self._handles) > MAX_OPEN_FILES:
                self._close(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(video)
        return self._read(self._handles[video], self.files[video].numbers[frames])

    def close(self) -> None:
        """Close all files; reading opens them again."""
        while self._handles:
            self._close(self._handles.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    @abstractmethod
    def _open(self, path: Path, video: int) -> Any: ...

    @abstractmethod
    def _read(self, handle: Any, numbers: np.ndarray) -> np.ndarray:
        """Frames by their numbers in the file: (T,) -> (T, H, W, 3)."""

    def _close(self, handle: Any) -> None:  # noqa: B027, most handles close when they are dropped
        pass


class DecordReader(ClipReader):
    """decord's random access, as its documents show it: ``get_batch``, the frames resized by decord.

    On some files, XviD in AVI among them, decord gives other frames than it is asked for; nothing is done about that.
    """

    counts_frames = False

    @staticmethod
    def check_library() -> None:
        try:
            import decord  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{error}; `pip install decord` provides it") from error

    def _open(self, path: Path, video: int) -> Any:
        import decord

        height, width = self.size
        return decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), width=width, height=height)  # type: ignore[arg-type]

    def _read(self, handle: Any, numbers: np.ndarray) -> np.ndarray:
        return handle.get_batch(numbers.tolist()).asnumpy()


class TorchCodecReader(ClipReader):
    """torchcodec's ``get_frames_at`` with its exact seeking, the frames resized by torchcodec."""

    counts_frames = False

    @staticmethod
    def check_library() -> None:
        try:
            from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

            VideoDecoder(b"")  # some versions look for FFmpeg only when they are used
        except Exception as error:
            if isinstance(error, ImportError) or "Could not load libtorchcodec" in str(error):
                reason = str(error).partition(". ")[0]
                way_out = "`pip install torchcodec` provides it, for a system with FFmpeg"
                raise ImportError(f"{reason}; {way_out}") from error

    def _open(self, path: Path, video: int) -> Any:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
        from torchcodec.transforms import Resize  # pyright: ignore[reportMissingImports]

        return VideoDecoder(path.absolute(), dimension_order="NHWC", transforms=[Resize(self.size)])

    def _read(self, handle: Any, numbers: np.ndarray) -> np.ndarray:
        return handle.get_frames_at(numbers.tolist()).data.numpy()


class JpegReader(ClipReader):
    """A folder of JPEG files for each video, named by ``jpeg_name``, decoded with Pillow."""

    @staticmethod
    def check_library() -> None:
        """Pillow is always there."""

    def _open(self, path: Path, video: int) -> Path:
        return path

    def _read(self, handle: Path, numbers: np.ndarray) -> np.ndarray:
        self._num_decoded += len(numbers)
        return np.stack([np.asarray(Image.open(handle / jpeg_name(number))) for number in numbers.tolist()])


class RawReader(ClipReader):
    """uint8 frames in a memory map, (N, H, W, 3) without a header: what a corpus is that has the room."""

    @staticmethod
    def check_library() -> None:
        """NumPy is always there."""

    def _open(self, path: Path, video: int) -> np.ndarray:
        return np.memmap(path, np.uint8, mode="r").reshape(-1, *self.size, 3)

    def _read(self, handle: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        self._num_decoded += len(numbers)
        return np.asarray(handle[numbers])  # a copy: indexing by numbers makes one


def jpeg_name(number: int) -> str:
    """The file of a frame in its video's folder."""
    return f"{number:08d}.jpg"
