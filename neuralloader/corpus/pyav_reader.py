"""Clips through PyAV, by number: FFmpeg finds frames by time stamp, so a file's time stamps are listed first."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralloader.corpus.clip_readers import ClipReader, VideoFile
from neuralloader.errors import SourceError


@dataclass(frozen=True, eq=False)
class Stamps:
    """The time stamps of a file's frames, in its stream's units.

    Attributes:
        of_frame: the stamp of each frame, by number.
        number_of: the number of each frame, by stamp.
        keys: (num_keys,) int64, numbers of the key-frames, ascending, 0 among them.
    """

    of_frame: list[int]
    number_of: dict[int, int]
    keys: np.ndarray


class PyAVReader(ClipReader):
    """Seeks to the key-frame before a wanted frame, decodes forward, and seeks again where that saves frames.

    Every file's time stamps are listed once, when the reader is made (it decodes each file for that), and travel with
    it.

    Raises:
        ImportError: PyAV is not installed.
        SourceError: a file has two frames of one time stamp, or fewer frames than the pack knows.
    """

    def __init__(self, files: Sequence[VideoFile], size: tuple[int, int]):
        super().__init__(files, size)
        self._stamps = [_list_stamps(file) for file in self.files]

    @staticmethod
    def check_library() -> None:
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{error}; `pip install 'neuralloader[report]'` provides it") from error

    def _open(self, path: Path, video: int) -> Any:
        container = _open_container(path)
        return container, self._stamps[video]

    def _read(self, handle: Any, numbers: np.ndarray) -> np.ndarray:
        container, stamps = handle
        wanted = np.unique(numbers)
        keys = stamps.keys[np.searchsorted(stamps.keys, wanted, side="right") - 1]
        frames: dict[int, np.ndarray] = {}
        position = -1  # of the frame decoded last
        decoded: Iterator[tuple[int, Any]] = iter(())  # yields the next
        for number, key in zip(wanted.tolist(), keys.tolist(), strict=True):
            if position < 0 or key > position + 1:
                decoded = self._decode_from(container, stamps, key)
            position, frame = next((each for each in decoded if each[0] >= number), (-1, None))
            if frame is None or position != number:
                raise SourceError(f"{Path(container.name).name}: PyAV finds no frame {number} from key-frame {key} on")
            frames[number] = frame.to_ndarray(format="rgb24", width=self.size[1], height=self.size[0])
        return np.stack([frames[number] for number in numbers.tolist()])

    def _decode_from(self, container: Any, stamps: Stamps, key: int) -> Iterator[tuple[int, Any]]:
        """(number, frame) from a key-frame on; from the file's start on where seeking lands behind the key-frame."""
        frames = self._seek(container, stamps, key)
        first = next(frames, None)
        if first is None or first[0] > key:
            return self._seek(container, stamps, 0)
        return itertools.chain([first], frames)

    def _seek(self, container: Any, stamps: Stamps, number: int) -> Iterator[tuple[int, Any]]:
        stream = container.streams.video[0]
        container.seek(stamps.of_frame[number], stream=stream)
        for frame in container.decode(stream):
            self._num_decoded += 1
            yield stamps.number_of.get(frame.pts, -1), frame

    def _close(self, handle: Any) -> None:
        handle[0].close()


def _open_container(path: Path) -> Any:
    import av

    container = av.open(str(path.absolute()), metadata_errors="ignore")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _list_stamps(file: VideoFile) -> Stamps:
    with _open_container(file.path) as container:
        frames = [(frame.pts, frame.key_frame) for frame in container.decode(container.streams.video[0])]
    of_frame = [stamp for stamp, _ in frames]
    number_of = {stamp: number for number, stamp in enumerate(of_frame)}
    if None in number_of or len(number_of) < len(of_frame):
        raise SourceError(f"{file.path.name}: its frames cannot be told apart by their time stamps")
    if file.numbers.max() >= len(of_frame):
        wanted = file.numbers.max()
        raise SourceError(f"{file.path.name}: frame {wanted} is wanted, and PyAV decodes {len(of_frame)} frames")
    keys = np.flatnonzero([is_key for _, is_key in frames])
    return Stamps(of_frame, number_of, np.union1d(keys, [0]))
