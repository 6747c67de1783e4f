"""The rivals of a pack: its original videos, and the frames it stores kept in other ways, each with a reader.

    originals ---------------------- decord, PyAV, torchcodec
        '--(decoded once)-- frames - raw uint8 in a memory map
                              |----- JPEG files
                              '----- H.264 at the pack's size and rate: decord, PyAV, torchcodec

One whose library is not installed, or which fails at its preparation, is listed with the reason.
"""

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuralloader.clips import VideoInfo
from neuralloader.corpus.cache import Ingested, ingest
from neuralloader.corpus.clip_files import JPEG_QUALITY, X264_CRF, write_jpegs, write_x264
from neuralloader.corpus.clip_readers import (
    ClipReader,
    DecordReader,
    JpegReader,
    RawReader,
    TorchCodecReader,
    VideoFile,
)
from neuralloader.corpus.find import Source, find_videos
from neuralloader.corpus.pyav_reader import PyAVReader
from neuralloader.corpus.read import stored_numbers
from neuralloader.errors import SourceError

VIDEO_READERS: dict[str, type[ClipReader]] = {
    "decord": DecordReader,
    "PyAV": PyAVReader,
    "torchcodec": TorchCodecReader,
}
_SPACE_FACTOR = 2.0  # bytes to have free, of those of the raw frames: for them, the JPEG files and H.264


@dataclass(frozen=True)
class Rival:
    """One way to read the frames.

    Attributes:
        name: such as "decord, originals".
        reader: gives the frames; None where it cannot be measured.
        size_bytes: of the files it reads.
        why_not: why there is no reader.
    """

    name: str
    reader: ClipReader | None = None
    size_bytes: int = 0
    why_not: str = ""


@dataclass(frozen=True)
class PreparedRivals:
    """The rivals, and what they are held against.

    Attributes:
        rivals: one for each way, also those that cannot be measured.
        decoded: the stored frames of all videos before the pack's compression; their file is there as long as this is.
        first_row: (num_videos + 1,) int64, where each video starts in them.
    """

    rivals: tuple[Rival, ...]
    decoded: Ingested
    first_row: np.ndarray


def find_originals(source: Path, videos: Sequence[VideoInfo]) -> list[Source]:
    """The original of each packed video, by its name below the folder that was packed.

    Raises:
        FileNotFoundError: there is nothing at source.
        ValueError: a video is not there.
    """
    found = {each.name: each for each in find_videos(source).sources}
    missing = [video.name for video in videos if video.name not in found]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(videos)} videos of the pack are not below {source}, {missing[0]!r} for one; give "
            "the folder that was packed"
        )
    return [found[video.name] for video in videos]


def prepare_rivals(
    source: Path,
    videos: Sequence[VideoInfo],
    *,
    frame_rate: float | None,
    size: tuple[int, int],
    folder: Path,
    progress: Callable[[float, str], None] = lambda done, note: None,
) -> PreparedRivals:
    """Find the originals, check them against the pack, and write their frames in all other ways.

    Args:
        source: the folder (or video) that was packed.
        videos: of the pack, those to prepare.
        frame_rate: the pack's; None is every frame.
        size: the pack's (height, width).
        folder: where everything is written; it is the caller's to remove.
        progress: called with the share that is done and what is being done.

    Raises:
        FileNotFoundError: there is nothing at source.
        ValueError: a video is not there.
        SourceError: one cannot be decoded, or is another than the one that was packed.
        OSError: the folder's disk has too little room.
        ImportError: decord is not installed.
    """
    originals = find_originals(source, videos)
    first_row = np.cumsum([0, *(video.num_frames for video in videos)])
    _check_space(folder, int(first_row[-1]) * size[0] * size[1] * 3)
    decoded = ingest(
        originals,
        frame_rate=frame_rate,
        size=size,
        folder=folder / "decoded",
        progress=lambda done, total: progress(done / total / 3, "decode the originals"),
    )
    for expected, found in zip(videos, decoded.videos, strict=True):
        _check_same(expected, found)
    frames = [decoded.frames[start:stop] for start, stop in itertools.pairwise(first_row.tolist())]

    numbers = [np.arange(video.num_frames) for video in videos]
    original_files = [
        VideoFile(original.path, stored_numbers(original.path, frame_rate, video.num_frames))
        for original, video in zip(originals, videos, strict=True)
    ]
    jpeg_files = [VideoFile(folder / f"{place}.jpegs", each) for place, each in enumerate(numbers)]
    raw_files = []
    for start, each in zip(first_row.tolist(), numbers, strict=False):
        raw_path, first = decoded.frames.locate(start)
        raw_files.append(VideoFile(raw_path, first + each))
    for place, file in enumerate(jpeg_files):
        write_jpegs(file.path, frames[place])
        progress((1 + (place + 1) / len(videos)) / 3, "write JPEG files")
    rivals = [
        *_video_rivals("originals", original_files, size),
        *_x264_rivals(frames, videos, size, folder, lambda done: progress((2 + done) / 3, "write H.264")),
        _rival(f"JPEG quality {JPEG_QUALITY}", JpegReader, jpeg_files, size),
        _rival("raw uint8", RawReader, raw_files, size),
    ]
    return PreparedRivals(tuple(rivals), decoded, first_row)


def _x264_rivals(
    frames: Sequence[np.ndarray],
    videos: Sequence[VideoInfo],
    size: tuple[int, int],
    folder: Path,
    progress: Callable[[float], None],
) -> list[Rival]:
    name = f"x264 crf {X264_CRF}"
    files = [VideoFile(folder / f"{place}.mp4", np.arange(len(own))) for place, own in enumerate(frames)]
    try:
        PyAVReader.check_library()
        for place, (file, video) in enumerate(zip(files, videos, strict=True)):
            write_x264(file.path, frames[place], video.frame_rate)
            progress((place + 1) / len(videos))
    except Exception as error:
        return [Rival(name, why_not=failure_reason(error))]
    return _video_rivals(name, files, size)


def _video_rivals(name: str, files: Sequence[VideoFile], size: tuple[int, int]) -> list[Rival]:
    return [_rival(f"{library}, {name}", make, files, size) for library, make in VIDEO_READERS.items()]


def _rival(name: str, make: type[ClipReader], files: Sequence[VideoFile], size: tuple[int, int]) -> Rival:
    try:
        make.check_library()
        return Rival(name, make(files, size), sum(_size_bytes(path) for path in {file.path for file in files}))
    except Exception as error:
        return Rival(name, why_not=failure_reason(error))


def failure_reason(error: Exception) -> str:
    """Why a rival cannot be measured. Its library may raise anything; what is not ours to word also gets its type."""
    return str(error) if isinstance(error, ImportError | SourceError) else f"{type(error).__name__}: {error}"


def _size_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in path.iterdir()) if path.is_dir() else path.stat().st_size


def _check_space(folder: Path, raw_bytes: int) -> None:
    need, free = _SPACE_FACTOR * raw_bytes, shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            f"{need / 1e6:.4g} MB are needed in {folder.parent} for the rivals' files, {free / 1e6:.4g} MB are free; "
            "use fewer videos (--videos), or set TMPDIR to another folder"
        )


def _check_same(expected: VideoInfo, found: VideoInfo) -> None:
    """Raises: SourceError: a file is another than the one that was packed."""
    for what in ("num_source_frames", "source_size", "num_frames"):
        packed, now = getattr(expected, what), getattr(found, what)
        if packed != now:
            raise SourceError(
                f"{expected.name!r} is another video than the one that was packed: its {what} is {now}, the pack has "
                f"{packed}; give the folder that was packed"
            )
