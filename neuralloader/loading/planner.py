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
class DecodeStep:
    """Units that go through the network together.

    Attributes:
        places: (V * n,) int64, which of a plan's units; where V networks decode n units each, a network that has fewer
            repeats its last.
        networks: (V,) int64, the network of every n units; None where one network decodes all.
    """

    places: np.ndarray
    networks: np.ndarray | None


NETWORK_COST = 0.5  # of fetching one more network for a step, in units decoded


def plan_steps(num_units: int, units_per_step: int) -> list[DecodeStep]:
    """The units of a plan in steps, for one network."""
    return [
        DecodeStep(np.arange(start, min(start + units_per_step, num_units)), None)
        for start in range(0, num_units, units_per_step)
    ]


def plan_network_steps(network_of_unit: np.ndarray, units_per_step: int) -> list[DecodeStep]:
    """The units of a plan in steps, where each belongs to one of many networks.

    The networks of a step decode equally many units, n. It is chosen so that little is decoded twice (a network with
    fewer units repeats one) and few networks are fetched twice (one with more units comes again).

    Args:
        network_of_unit: (num_units,) int64, ascending.
        units_per_step: bound on V * n, but for one network's n.
    """
    if not len(network_of_unit):
        return []
    networks, first, counts = np.unique(network_of_unit, return_index=True, return_counts=True)

    def cost(n: int) -> float:
        return float((-(-counts // n)).sum() * (n + NETWORK_COST))

    most = min(int(counts.max()), units_per_step)
    n = min(range(1, most + 1), key=cost) if most <= 64 else most
    turns = -(-counts // n)  # how often each network comes
    of_turn = np.repeat(np.arange(len(networks)), turns)
    number = np.arange(len(of_turn)) - np.repeat(np.cumsum(turns) - turns, turns)
    within = np.minimum(number[:, None] * n + np.arange(n), counts[of_turn, None] - 1)  # (turns, n)
    places = first[of_turn, None] + within
    networks_per_step = max(1, units_per_step // n)
    return [
        DecodeStep(
            places[start : start + networks_per_step].ravel(), networks[of_turn[start : start + networks_per_step]]
        )
        for start in range(0, len(of_turn), networks_per_step)
    ]


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
