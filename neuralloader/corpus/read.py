"""Decode one video file to resized RGB frames. Runs inside a reader process; decord is imported on first use.

Frames are read strictly in order: by index decord returns other frames than in order on some files, and its skipping
relies on timestamps that AVI files lack. Reading goes on to the end of the file even when no frame is wanted any more,
because only then is it known whether the file is whole.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuralloader.corpus.promise import Promise, read_promise
from neuralloader.corpus.selection import check_frame_rate, frame_times, select_frames
from neuralloader.errors import SourceError

# XviD in AVI leaves two or three packets without a picture (the encoder's delay); more than that is damage.
MAX_PACKETS_WITHOUT_PICTURE = 3


@dataclass(frozen=True)
class SourceFacts:
    """What decoding a source told about it.

    Attributes:
        num_frames: frames stored.
        num_source_frames: frames the source decoded to.
        source_frame_rate: nominal frames per second of the source.
        frame_rate: frames per second of the stored frames.
        source_size: (height, width) of the source in pixels, after its rotation.
    """

    num_frames: int
    num_source_frames: int
    source_frame_rate: float
    frame_rate: float
    source_size: tuple[int, int]


@dataclass(frozen=True)
class DecodedVideo:
    """The stored frames of one video, (T, H, W, 3) uint8 RGB, and the facts about its source."""

    frames: np.ndarray
    facts: SourceFacts


def read_video(path: Path, *, frame_rate: float | None, size: tuple[int, int]) -> DecodedVideo:
    """Decode a whole video into memory.

    Args:
        path: the video file.
        frame_rate: frames per second to keep; frame i is the one shown at i / frame_rate seconds. None keeps each.
        size: (height, width) in pixels that each frame is squashed to.

    Returns:
        The frames and the facts about their source.

    Raises:
        SourceError: the file cannot be decoded to its end; the text names it and the reason.
        ValueError: the frame rate is out of range.
    """
    frames: list[np.ndarray] = []
    try:
        facts = decode_video(path, frame_rate=frame_rate, size=size, store=frames.append)
    except SourceError as error:
        raise SourceError(f"{Path(path).name}: {error}") from error
    return DecodedVideo(frames=np.stack(frames), facts=facts)


def decode_video(
    path: Path,
    *,
    frame_rate: float | None,
    size: tuple[int, int],
    store: Callable[[np.ndarray], object],
    announce: Callable[[int], object] = lambda num_frames: None,
) -> SourceFacts:
    """Decode a video frame by frame, holding one frame at a time.

    Args:
        path: the video file.
        frame_rate: as in `read_video`.
        size: as in `read_video`.
        store: called with each stored frame in order, (H, W, 3) uint8 RGB, which it must not change.
        announce: called before the first frame with the number of frames to expect; a few fewer may come.

    Returns:
        The facts about the source.

    Raises:
        SourceError: the file cannot be decoded to its end. The text is the reason alone, free of paths and the same
            on every run, so that it can be stored in a pack.
        ValueError: the frame rate is out of range.
    """
    check_frame_rate(frame_rate)
    path = Path(path).absolute()  # FFmpeg takes `-`, `http:` and the like at the start of a relative name for options
    promise = _read_promise(path)
    reader = _open(path)
    num_packets = len(reader)
    times, source_rate = _times(reader)
    selected = select_frames(times, source_rate, frame_rate)
    announce(len(selected))
    copies = np.bincount(selected, minlength=num_packets)  # (num_packets,) how often each source frame is stored

    num_decoded = num_stored = 0
    source_size = (0, 0)
    nominal = max(num_packets, promise.num_frames or 0)
    if times[-1] * source_rate + 1 > nominal - MAX_PACKETS_WITHOUT_PICTURE:
        nominal = num_packets  # the missing ones are AVI's empty chunks (show the last frame again): gaps in the times
    while (decoded := _next_frame(reader, nominal)) is not None:
        if num_decoded == 0:
            source_size = (int(decoded.shape[0]), int(decoded.shape[1]))
        if copies[num_decoded]:
            frame = _resize(_rgb(decoded.asnumpy()), size)
            for _ in range(copies[num_decoded]):
                store(frame)
                num_stored += 1
        num_decoded += 1
    if num_decoded == 0 or num_decoded < nominal - MAX_PACKETS_WITHOUT_PICTURE:
        raise SourceError(f"decoded {num_decoded} of {nominal} frames")
    return SourceFacts(
        num_frames=num_stored,
        num_source_frames=num_decoded,
        source_frame_rate=float(source_rate),
        frame_rate=float(frame_rate or source_rate),
        source_size=source_size,
    )


def stored_numbers(path: Path, frame_rate: float | None, num_stored: int) -> np.ndarray:
    """Which frames of a video `decode_video` stores, without decoding it. Imports decord in the caller's process.

    Args:
        path: the video file.
        frame_rate: as in `read_video`.
        num_stored: frames that `decode_video` stored; a file's last packets may have no picture.

    Returns:
        (num_stored,) int64 source frame numbers, never decreasing.

    Raises:
        SourceError: the file cannot be opened, or its frame rate makes no sense.
    """
    times, source_rate = _times(_open(Path(path).absolute()))
    return select_frames(times, source_rate, frame_rate)[:num_stored]


def _times(reader: Any) -> tuple[np.ndarray, float]:
    """(num_packets,) float64, the second at which each frame is shown, and the nominal frames per second."""
    source_rate = reader.get_avg_fps()
    if not (math.isfinite(source_rate) and source_rate > 0):
        raise SourceError(f"its frame rate is {source_rate}")
    timestamps = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
    return frame_times(timestamps, source_rate), source_rate


def _read_promise(path: Path) -> Promise:
    """The header's promise, once the file is known to be there and as long as it says."""
    if not path.exists():
        raise SourceError("the file is gone")
    if not path.is_file():
        raise SourceError("not a regular file")
    try:
        promise = read_promise(path)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise SourceError("the file is empty (0 bytes)")
    if promise.num_bytes is not None and num_bytes < promise.num_bytes:
        raise SourceError(f"the file is cut short: {num_bytes} of {promise.num_bytes} bytes")
    return promise


def _open(path: Path) -> Any:
    """A decord reader that never hands out a repeated frame for one it could not decode."""
    import decord  # here and not above: the caller's process must never load it (it hangs when forked)

    try:
        # A tiny fault tolerance: decord then raises where it would otherwise repeat the last frame in silence.
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)  # type: ignore[arg-type]
    except UnicodeEncodeError as error:
        raise SourceError("its name is not valid UTF-8; rename the file") from error
    except Exception as error:  # decord raises RuntimeError, AssertionError and two kinds of its own
        raise SourceError("not a video, or damaged: no video stream can be opened") from error


def _next_frame(reader: Any, nominal: int) -> Any:
    """The next decoded frame, still decord's array; None at the end, whether or not frames are missing there."""
    import decord

    try:
        return reader.next()
    except (StopIteration, decord.DECORDLimitReachedError):  # the latter: the file ended before its frames did
        return None
    except decord.DECORDError as error:
        # How far the decoder came depends on thread timing, so the count stays out of the reason.
        raise SourceError(f"damaged: decoding stops with an error before the last of its {nominal} frames") from error


def _rgb(decoded: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a decoded frame; at a few small widths decord takes the padding of lines for more channels."""
    height, width = decoded.shape[:2]
    return decoded.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Squash (h, w, 3) uint8 to (H, W, 3) with Pillow's LANCZOS, or return it as it is."""
    if frame.shape[:2] == tuple(size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))
