"""From the frames a batch needs to the units that must be decoded, each once. Pure index arithmetic."""

from dataclasses import dataclass

import numpy as np

from neuralloader.clips import FrameTable, UnitTable


@dataclass(frozen=True)
class DecodePlan:
    """Units to decode, and where each requested frame comes out of them.

    Attributes:
        units: (num_units,) int64, rows of the unit table, ascending, none twice.
        position: (num_requests,) int64, index of each requested frame in the decoded (num_units * T) frames.
    """

    units: np.ndarray
    position: np.ndarray


def plan_frames(rows: np.ndarray, frames: FrameTable, units: UnitTable) -> DecodePlan:
    """Plan the decoding of frames.

    Args:
        rows: (num_requests,) rows of the frame table, in any order, repeats allowed.
        frames: the frame table.
        units: the backend's units.
    """
    frames_per_unit = units.rows.shape[1]
    unit = rows if frames_per_unit == 1 else frames.at(rows).clip
    needed, place = np.unique(unit, return_inverse=True)
    return DecodePlan(needed, place * frames_per_unit + rows - units.rows[unit, 0])


@dataclass(frozen=True)
class ClipWindows:
    """Windows of consecutive frames over every video: what a dataset's items are.

    Attributes:
        video: (num_windows,) int64, row in the video list.
        start: (num_windows,) int64, first frame, counted inside the video.
    """

    video: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.video)


def all_windows(frames: FrameTable, *, frames_per_clip: int, step_between_clips: int) -> ClipWindows:
    """Every window that starts at a multiple of the step inside its video.

    No frame is left out: a window that reaches past its video's end repeats the last frame (``window_rows``), and a
    window that would hold nothing but such repeats and frames of the window before it does not exist.

    Args:
        frames: the frame table.
        frames_per_clip: frames in a window, 1 or more.
        step_between_clips: frames between the starts of neighbouring windows, 1 or more.
    """
    num_frames = np.diff(frames.first_row)
    missing = np.maximum(0, num_frames - frames_per_clip)  # frames that the first window leaves over
    num_windows = 1 + -(-missing // step_between_clips)
    if step_between_clips > frames_per_clip:  # windows with gaps: the last one must still start inside the video
        num_windows = 1 + (num_frames - 1) // step_between_clips
    video = np.repeat(np.arange(len(num_frames)), num_windows)
    number = np.arange(len(video)) - (np.cumsum(num_windows) - num_windows)[video]
    return ClipWindows(video, number * step_between_clips)


def window_rows(windows: ClipWindows, items: np.ndarray, frames: FrameTable, frames_per_clip: int) -> np.ndarray:
    """Rows of the frame table for some windows: (len(items), frames_per_clip) int64, the last frame repeated."""
    video = windows.video[items]
    wanted = windows.start[items][:, None] + np.arange(frames_per_clip)
    last = np.diff(frames.first_row)[video] - 1
    return frames.first_row[video][:, None] + np.minimum(wanted, last[:, None])
