"""Video files, decoded by decord; by PyAV, where it is installed, what decord cannot read.

Frames are read strictly in order: by index decord returns other frames than in order on some files, and its skipping
relies on timestamps that AVI files lack. Reading goes on to the end of the file even when no frame is wanted any more,
because only then is it known whether the file is whole. Both libraries are imported on first use: the caller's process
must never load decord (it hangs when forked).
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neuralloader.corpus.opened import OpenedVideo
from neuralloader.corpus.promise import Promise, is_transport_stream, names_av1, read_promise
from neuralloader.corpus.selection import frame_times
from neuralloader.errors import SourceError

# XviD in AVI leaves two or three packets without a picture (the encoder's delay); more than that is damage.
MAX_PACKETS_WITHOUT_PICTURE = 3

_MAX_ATTEMPTS = 8


def open_file(path: Path) -> OpenedVideo:
    """Open a video file.

    Args:
        path: the file, absolute: FFmpeg takes `-`, `http:` and the like at the start of a relative name for options.

    Raises:
        SourceError: it is no video, or a damaged one.
        OSError: it cannot be read.
    """
    promise, problem = _read_promise(path)
    try:
        if is_transport_stream(path) and _has_pyav():  # decord goes back to its start by time, and may land behind it
            return PyAVVideo(path, problem)
        return DecordVideo(path, promise, problem)
    except _UnknownToDecord as error:
        if not _has_pyav():
            raise SourceError(problem or f"{error}; `pip install av` may provide a decoder that can") from error
        return PyAVVideo(path, problem)
    except SourceError as error:
        raise SourceError(problem or str(error)) from error


def open_damaged(path: Path) -> OpenedVideo:
    """Open a file that has raised an `UnsteadyError`, so that the frames before its damage come, the same every time.

    PyAV loses none of them. Where it is not installed decord reads several times, which nearly always finds all.

    Raises:
        SourceError: it cannot be opened.
        OSError: it cannot be read.
    """
    promise, problem = _read_promise(path)
    return PyAVVideo(path, problem) if _has_pyav() else DecordVideo(path, promise, problem, is_damaged=True)


class UnsteadyError(SourceError):
    """The decoder stopped at an error after some frames, more or fewer by the timing of its threads."""


class _UnknownToDecord(SourceError):
    """The file may be good, but decord cannot read its kind."""


class DecordVideo(OpenedVideo):
    """A file that decord has opened: all packets are counted, nothing is decoded."""

    def __init__(self, path: Path, promise: Promise, problem: str, *, is_damaged: bool = False):
        self._path, self._is_damaged = path, is_damaged
        self._reader = _open_decord(path)
        num_packets = len(self._reader)
        rate = self._reader.get_avg_fps()
        if not (math.isfinite(rate) and rate > 0):
            raise SourceError(f"its frame rate is {rate}")
        times = frame_times(self._reader.get_frame_timestamp(list(range(num_packets)))[:, 0], rate)
        nominal = max(num_packets, promise.num_frames or 0)
        if times[-1] * rate + 1 > nominal - MAX_PACKETS_WITHOUT_PICTURE:
            nominal = num_packets  # the missing ones are AVI's empty chunks (show the last frame again): gaps in times
        super().__init__(times, rate, 0 if problem else nominal, problem)  # a file cut short tells bytes, not frames

    def frames(self, is_wanted: np.ndarray) -> Iterator[np.ndarray | None]:
        import decord

        # The count stays out of the reason, as it depends on timing.
        reason = f"damaged: decoding stops with an error before the last of its {self.num_nominal} frames"
        num_done = 0  # frames handed out
        for attempt in range(_MAX_ATTEMPTS):
            # After an error decord loses the frames it has decoded ahead, more or fewer. A file that is known to be
            # damaged is read until it ends twice at the furthest.
            furthest, reached = num_done, 0
            try:
                for decoded in _decode(self._reader if attempt == 0 else _open_decord(self._path)):
                    reached += 1
                    if reached > num_done:
                        yield _rgb(decoded.asnumpy()) if is_wanted[num_done] else None
                        num_done = reached
                break
            except decord.DECORDError as error:
                if not self._is_damaged:
                    raise UnsteadyError(reason) from error
                if (attempt and reached == furthest) or attempt == _MAX_ATTEMPTS - 1:
                    raise SourceError(reason) from error
        _check_all_came(num_done, self.num_nominal)


class PyAVVideo(OpenedVideo):
    """A file that PyAV has opened: all packets are counted, nothing is decoded."""

    def __init__(self, path: Path, problem: str):
        import av.error

        self._path = path
        try:
            with _open_pyav(path) as container:
                stream = _best_stream(container)
                rate = float(stream.average_rate or stream.guessed_rate or 0)
                packets = [packet.pts for packet in container.demux(stream) if packet.size]
                unit = float(stream.time_base or 0)
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceError("not a video, or damaged: no video stream can be opened") from error
        if not packets:
            raise SourceError("its video stream is empty")
        if not rate > 0:
            raise SourceError(f"its frame rate is {rate}")
        is_timed = unit > 0 and None not in packets
        stamps = np.sort(np.array(packets, np.float64)) * unit if is_timed else np.full(len(packets), np.nan)
        super().__init__(frame_times(stamps - stamps[0], rate), rate, 0 if problem else len(packets), problem)

    def frames(self, is_wanted: np.ndarray) -> Iterator[np.ndarray | None]:
        import av.error

        num_done = 0
        try:
            with _open_pyav(self._path) as container:
                for frame in container.decode(_best_stream(container)):
                    if num_done == len(is_wanted):
                        break
                    # np.rot90 turns to the left, as the angle counts
                    yield (
                        np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                        if is_wanted[num_done]
                        else None
                    )
                    num_done += 1
        except av.error.FFmpegError as error:
            text = f"damaged: decoding stops with an error before the last of its {self.num_nominal} frames"
            raise SourceError(text) from error
        _check_all_came(num_done, self.num_nominal)


def _check_all_came(num_decoded: int, num_nominal: int) -> None:
    if num_decoded == 0 or num_decoded < num_nominal - MAX_PACKETS_WITHOUT_PICTURE:
        raise SourceError(f"decoded {num_decoded} of {num_nominal} frames")


def _read_promise(path: Path) -> tuple[Promise, str]:
    """The header's promise, and what is wrong if the file is shorter than that."""
    num_bytes = path.stat().st_size
    promise = read_promise(path)
    if num_bytes == 0:
        raise SourceError("the file is empty (0 bytes)")
    if promise.num_bytes is not None and num_bytes < promise.num_bytes:
        return promise, f"the file is cut short: {num_bytes} of {promise.num_bytes} bytes"
    return promise, ""


# ---- decord


def _open_decord(path: Path) -> Any:
    """A decord reader that never hands out a repeated frame for one it could not decode."""
    import decord

    try:
        name = str(path)
        name.encode()
    except UnicodeEncodeError as error:
        if sys.platform != "linux":
            raise SourceError("its name is not valid UTF-8; rename the file") from error
        with open(path, "rb") as file:  # decord takes no other names, but this is one
            return _open_decord(Path(f"/proc/self/fd/{file.fileno()}"))
    try:
        # A tiny fault tolerance: decord then raises where it would otherwise repeat the last frame in silence.
        return decord.VideoReader(name, ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)  # type: ignore[arg-type]
    except Exception as error:  # decord raises RuntimeError, AssertionError and two kinds of its own
        if "Failed to measure duration" in str(error):
            raise _UnknownToDecord("it states no duration, which decord needs") from error
        if names_av1(path):
            raise _UnknownToDecord("AV1, which decord cannot decode") from error
        raise SourceError("not a video, or damaged: no video stream can be opened") from error


def _decode(reader: Any) -> Iterator[Any]:
    """Decoded frames, still decord's arrays, until the end, whether or not frames are missing there."""
    import decord

    while True:
        try:
            decoded = reader.next()
        except (StopIteration, decord.DECORDLimitReachedError):  # the latter: the file ended before its frames did
            return
        yield decoded


def _rgb(decoded: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a decoded frame; at a few small widths decord takes the padding of lines for more channels."""
    height, width = decoded.shape[:2]
    return decoded.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


# ---- PyAV


def _has_pyav() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def _open_pyav(path: Path) -> Any:
    import av

    return av.open(str(path), metadata_errors="ignore")


def _best_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise SourceError("not a video, or damaged: no video stream can be opened")
    stream.codec_context.thread_count = 1
    return stream
