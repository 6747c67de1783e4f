"""Decode one source to resized RGB frames, or count them. Runs inside a reader process.

path --(open: video_file | images | arrays)--> OpenedVideo --(select, resize)--> frames, (H, W, 3) uint8
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neuralloader.corpus.arrays import ARRAY_SUFFIX, ArrayFile
from neuralloader.corpus.images import ImageFolder
from neuralloader.corpus.opened import OpenedVideo
from neuralloader.corpus.resize import resize_frame
from neuralloader.corpus.selection import check_frame_rate, select_frames
from neuralloader.corpus.settings import ReadSettings, Resize
from neuralloader.corpus.video_file import UnsteadyError, open_damaged, open_file
from neuralloader.errors import SourceError


@dataclass(frozen=True)
class SourceFacts:
    """What decoding a source told about it.

    Attributes:
        num_frames: frames stored.
        num_source_frames: frames the source decoded to.
        source_frame_rate: nominal frames per second of the source.
        frame_rate: frames per second of the stored frames.
        source_size: (height, width) of the source in pixels, after its rotation.
        num_nominal_frames: frames that the source promises; 0 where it does not tell.
        problem: why it was kept in part; empty where it is whole.
    """

    num_frames: int
    num_source_frames: int
    source_frame_rate: float
    frame_rate: float
    source_size: tuple[int, int]
    num_nominal_frames: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Probe:
    """What opening a source told about it; a few fewer frames may come of decoding it.

    Attributes:
        num_frames: frames to store.
        num_nominal_frames: frames that the source promises; 0 where it does not tell.
        source_size: (height, width) of the source in pixels, after its rotation.
    """

    num_frames: int
    num_nominal_frames: int
    source_size: tuple[int, int]


@dataclass(frozen=True)
class DecodedVideo:
    """The stored frames of one video, (T, H, W, 3) uint8 RGB, and the facts about its source."""

    frames: np.ndarray
    facts: SourceFacts


def read_video(
    path: Path,
    *,
    frame_rate: float | None,
    size: tuple[int, int],
    resize: Resize = "squash",
    image_frame_rate: float = 30.0,
    keep_partial: bool = False,
) -> DecodedVideo:
    """Decode a whole video into memory.

    Args:
        path: a video file, a folder of numbered images, or a file of ``save_arrays``.
        frame_rate, size, resize, image_frame_rate, keep_partial: as ``ReadSettings`` has them.

    Returns:
        The frames and the facts about their source.

    Raises:
        SourceError: it cannot be decoded to its end; the text names it and the reason.
        ValueError: a setting is out of range.
    """
    settings = ReadSettings(frame_rate, size, resize, image_frame_rate, keep_partial)
    frames: list[np.ndarray] = []
    try:
        facts = decode_video(path, settings, store=frames.append, restart=frames.clear)
    except SourceError as error:
        raise SourceError(f"{Path(path).name}: {error}") from error
    return DecodedVideo(frames=np.stack(frames), facts=facts)


def decode_video(
    path: Path,
    settings: ReadSettings,
    *,
    store: Callable[[np.ndarray], object],
    restart: Callable[[], object],
    announce: Callable[[int], object] = lambda num_frames: None,
) -> SourceFacts:
    """Decode a video frame by frame, holding one frame at a time.

    Args:
        path: as in `read_video`.
        settings: what to keep of it.
        store: called with each stored frame in order, (H, W, 3) uint8 RGB, which it must not change.
        restart: called when the frames stored so far are to be forgotten: all come once more, in another way.
        announce: called before the first frame with the number of frames to expect; a few fewer may come.

    Returns:
        The facts about the source.

    Raises:
        SourceError: the file cannot be decoded to its end, and nothing of it is to be kept. The text is the reason
            alone, free of paths and the same on every run, so that it can be stored in a pack.
    """
    opened = _open(path, settings.image_frame_rate)
    try:
        return _decode(opened, settings, store, announce)
    except UnsteadyError as error:
        if not settings.keep_partial:
            raise
        problem = opened.problem or str(error)
    restart()
    facts = _decode(_open_damaged(path), settings, store, announce)
    return replace(facts, num_nominal_frames=opened.num_nominal, problem=problem)


def _decode(
    opened: OpenedVideo,
    settings: ReadSettings,
    store: Callable[[np.ndarray], object],
    announce: Callable[[int], object],
) -> SourceFacts:
    selected = _select(opened, settings.frame_rate)
    if opened.problem and not settings.keep_partial:
        raise SourceError(opened.problem)
    announce(len(selected))
    copies = np.bincount(selected, minlength=len(opened.times))  # (n,) how often each source frame is stored

    num_decoded = num_stored = 0
    source_size = (0, 0)
    problem = opened.problem
    try:
        for frame in opened.frames(copies > 0):
            if frame is not None:
                source_size = (int(frame.shape[0]), int(frame.shape[1]))
                resized = resize_frame(frame, settings.size, settings.resize)
                for _ in range(copies[num_decoded]):
                    store(resized)
                    num_stored += 1
            num_decoded += 1
    except UnsteadyError:
        raise
    except SourceError as error:
        problem = problem or str(error)
        if not (settings.keep_partial and num_stored):
            raise SourceError(problem) from error
    return SourceFacts(
        num_frames=num_stored,
        num_source_frames=num_decoded,
        source_frame_rate=float(opened.source_rate),
        frame_rate=float(settings.frame_rate or opened.source_rate),
        source_size=source_size,
        num_nominal_frames=opened.num_nominal,
        problem=problem,
    )


def probe_video(path: Path, settings: ReadSettings) -> Probe:
    """Count the frames that `decode_video` will store; decodes no more than the first one, for its size.

    Raises:
        SourceError: as `decode_video`, where the damage shows at the start.
    """
    opened = _open(path, settings.image_frame_rate)
    if opened.problem and not settings.keep_partial:
        raise SourceError(opened.problem)
    try:
        size = _first_size(opened)
    except UnsteadyError:
        if not settings.keep_partial:
            raise
        size = _first_size(_open_damaged(path))
    return Probe(len(_select(opened, settings.frame_rate)), opened.num_nominal, size)


def _first_size(opened: OpenedVideo) -> tuple[int, int]:
    """(height, width) of the first frame."""
    is_wanted = np.zeros(len(opened.times), bool)
    is_wanted[0] = True
    first = next(opened.frames(is_wanted), None)
    if first is None:
        raise SourceError("its first frame is missing")
    return int(first.shape[0]), int(first.shape[1])


def stored_numbers(path: Path, frame_rate: float | None, num_stored: int) -> np.ndarray:
    """Which frames of a video `decode_video` stores, without decoding it. Imports decord in the caller's process.

    Args:
        path: the video file.
        frame_rate: as it was when they were stored.
        num_stored: frames that it stored; a file's last packets may have no picture.

    Returns:
        (num_stored,) int64 source frame numbers, never decreasing.

    Raises:
        SourceError: the file cannot be opened, or its frame rate makes no sense.
        ValueError: the frame rate is out of range.
    """
    check_frame_rate(frame_rate)
    return _select(_open(path), frame_rate)[:num_stored]


def _select(opened: OpenedVideo, frame_rate: float | None) -> np.ndarray:
    return select_frames(opened.times, opened.source_rate, frame_rate)


def _open(path: Path, image_frame_rate: float = 30.0) -> OpenedVideo:
    """Open whatever is there."""
    path = Path(path).absolute()
    try:
        if not path.exists():
            raise SourceError("the file is not there")
        if path.is_dir():
            return ImageFolder(path, image_frame_rate)
        if not path.is_file():
            raise SourceError("not a regular file")
        if path.suffix == ARRAY_SUFFIX:
            return ArrayFile(path, image_frame_rate)
        return open_file(path)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error


def _open_damaged(path: Path) -> OpenedVideo:
    try:
        return open_damaged(Path(path).absolute())
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
