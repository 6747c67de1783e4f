"""When each frame of a source is shown, and which frames a pack at another rate stores. Pure arithmetic, no video."""

import math

import numpy as np

from neuralloader.errors import SourceError

MAX_FRAME_RATE = 1000.0  # frames per second that can be asked for
MAX_REPEATS = 1000  # stored frames per source frame: past it the source's clock is nonsense, and would fill the disk

_TOLERANCE_SECONDS = 1e-3  # Matroska rounds its timestamps to milliseconds; decord hands them out as float32


def check_frame_rate(frame_rate: float | None) -> None:
    """Refuse a frame rate that cannot be stored at.

    Raises:
        ValueError: it is neither None nor a number in (0, MAX_FRAME_RATE].
    """
    if frame_rate is not None and not 0 < frame_rate <= MAX_FRAME_RATE:
        raise ValueError(
            f"frame_rate={frame_rate} must be above 0 and at most {MAX_FRAME_RATE:g} frames per second,"
            " or None for every frame of the source"
        )


def frame_times(timestamps: np.ndarray, source_rate: float) -> np.ndarray:
    """The second at which each frame is first shown, counted from the first frame.

    A variable frame rate is honoured where the timestamps make sense; AVI often has none (decord then returns values
    around 1e17) or lists them out of order, and frame k is taken to be shown at k / source_rate.

    Args:
        timestamps: (n,) float, seconds, in frame order, as the decoder reports them; n is 1 or more.
        source_rate: nominal frames per second, finite and positive.

    Returns:
        (n,) float64, seconds, starting at 0 and increasing.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    nominal = np.arange(len(times)) / source_rate
    if not np.isfinite(times).all() or abs(times[0]) > 3600:  # later, float32 is too coarse to tell frames apart
        return nominal
    times = times - times[0]
    spans_agree = nominal[-1] / 2 <= times[-1] <= nominal[-1] * 2
    return times if spans_agree and (np.diff(times) > 0).all() else nominal


def select_frames(times: np.ndarray, source_rate: float, frame_rate: float | None) -> np.ndarray:
    """The source frame shown at i / frame_rate seconds, for every such moment before the video ends.

    The last source frame is shown for 1 / source_rate seconds. Frames repeat where frame_rate is above the source's.

    Args:
        times: (n,) float64 seconds from `frame_times`.
        source_rate: nominal frames per second, finite and positive.
        frame_rate: frames per second to store, or None for every source frame once.

    Returns:
        (num_stored,) int64 source frame numbers, never decreasing, the first one 0.

    Raises:
        SourceError: the source lasts so long for its frames that each would be stored more than MAX_REPEATS times.
    """
    if frame_rate is None:
        return np.arange(len(times))
    tolerance = min(_TOLERANCE_SECONDS, 0.25 / source_rate)
    duration = times[-1] + 1 / source_rate
    num_stored = max(1, math.ceil((duration - tolerance) * frame_rate))
    if num_stored > MAX_REPEATS * len(times):
        raise SourceError(
            f"{len(times)} frames last {duration:.6g} s by the file's clock, which cannot be right:"
            f" at {frame_rate:g} frames/s they would become {num_stored} frames"
        )
    moments = np.arange(num_stored) / frame_rate
    return np.searchsorted(times, moments + tolerance, side="right") - 1
