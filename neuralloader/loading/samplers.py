"""Clip samplers: which frames of a video make an item of a dataset. Small, picklable and pure.

A sampler knows how many frames each video has and nothing else. The random numbers it uses are handed to it
(``draws``), so that the same numbers give the same frames in every process. Words and policies are torchcodec's:

    AllWindows       every window of consecutive frames, an item each; what torchvision's video datasets serve
    RandomClips      clips at random places of a video            an item a video, as for all below
    RegularClips     clips at even distances
    Segments         a frame from each of equal parts of a video (TSN, TSM); also the two clips of ``twice_sample``
    DenseSegments    frames a fixed step apart within a span of a video (I3D, TSM's ``dense_sample``)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

Policy = Literal["repeat_last", "wrap", "error"]


class ClipSampler(ABC):
    """How items are made of videos.

    Attributes:
        num_clips: clips in an item.
        num_frames_per_clip: T, frames in a clip.
        num_draws: random numbers that an item takes; 0 where nothing is random.
    """

    num_clips: int
    num_frames_per_clip: int
    num_draws: int

    def count_items(self, num_frames: np.ndarray) -> np.ndarray:
        """Items that each video makes: (num_videos,) int64 from (num_videos,) frames."""
        return np.ones(len(num_frames), np.int64)

    @abstractmethod
    def choose(self, num_frames: np.ndarray, number: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The frames of B items.

        Args:
            num_frames: (B,) int64, frames of each item's video, 1 or more.
            number: (B,) int64, which of its video's items each is.
            draws: (B, num_draws) float64, 0 to 1, 1 excluded.

        Returns:
            (B, num_clips, T) int64, frame numbers inside the video.

        Raises:
            ValueError: a clip reaches past its video's end, with ``policy="error"``.
        """


@dataclass(frozen=True, kw_only=True)
class _SteppedClips(ClipSampler):
    """What samplers of clips share: frames a fixed step apart, and what follows a video's end."""

    num_frames_per_clip: int = 8
    num_indices_between_frames: int = 1
    policy: Policy = "repeat_last"

    def __post_init__(self) -> None:
        _check_counts(self, "num_clips", "num_frames_per_clip", "num_indices_between_frames")
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy={self.policy!r} must be one of {', '.join(get_args(Policy))}")

    @property
    def span(self) -> int:
        """Frames from a clip's first to its last one, both counted."""
        return (self.num_frames_per_clip - 1) * self.num_indices_between_frames + 1

    def _fill(self, start: np.ndarray, num_frames: np.ndarray) -> np.ndarray:
        """The frames of clips that start inside their videos: (B, N) and (B,) -> (B, N, T)."""
        place = np.arange(self.num_frames_per_clip)
        # of a clip's frames, those inside the video: 1 to T
        num_inside = 1 + (num_frames[:, None, None] - 1 - start[..., None]) // self.num_indices_between_frames
        if self.policy == "wrap":
            place = place % num_inside
        elif self.policy == "repeat_last":
            place = np.minimum(place, num_inside - 1)
        elif (num_inside < self.num_frames_per_clip).any():
            short = int(num_frames[(num_inside < self.num_frames_per_clip).any(axis=(1, 2))].min())
            raise ValueError(
                f"a clip of {self.num_frames_per_clip} frames, {self.num_indices_between_frames} apart, reaches past "
                f"the end of a video of {short} frames; use policy='repeat_last' or 'wrap'"
            )
        return start[..., None] + place * self.num_indices_between_frames


@dataclass(frozen=True, kw_only=True)
class AllWindows(_SteppedClips):
    """Every window that starts at a multiple of the step, an item each.

    No frame is left out: a window may reach past its video's end, where the policy says what follows, and a window
    that would hold nothing but such frames and frames of the window before it does not exist. (torchvision's
    ``VideoClips`` leaves such ends out.)

    Args:
        num_frames_per_clip: T.
        step_between_clips: frames between the starts of neighbouring windows; None is a window's span.
        num_indices_between_frames: step from frame to frame in a window.
        policy: what follows a video's end: its ``repeat_last`` frame, the window again (``wrap``), or an ``error``.
    """

    step_between_clips: int | None = None
    num_clips: int = field(default=1, init=False)
    num_draws: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_between_clips is not None:
            _check_counts(self, "step_between_clips")

    @property
    def step(self) -> int:
        return self.span if self.step_between_clips is None else self.step_between_clips

    def count_items(self, num_frames: np.ndarray) -> np.ndarray:
        if self.step > self.span:  # windows with gaps: the last one must still start inside the video
            return 1 + (num_frames - 1) // self.step
        return 1 + -(-np.maximum(0, num_frames - self.span) // self.step)

    def choose(self, num_frames: np.ndarray, number: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return self._fill((number * self.step)[:, None], num_frames)


@dataclass(frozen=True, kw_only=True)
class RandomClips(_SteppedClips):
    """Clips at random places, each of which lies inside its video where that is long enough.

    Args:
        num_clips: clips in an item.
        num_frames_per_clip: T.
        num_indices_between_frames: step from frame to frame in a clip.
        policy: as in ``AllWindows``.
    """

    num_clips: int = 1

    @property
    def num_draws(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.num_clips

    def choose(self, num_frames: np.ndarray, number: np.ndarray, draws: np.ndarray) -> np.ndarray:
        num_starts = np.maximum(1, num_frames - self.span + 1)
        return self._fill((draws * num_starts[:, None]).astype(np.int64), num_frames)


@dataclass(frozen=True, kw_only=True)
class RegularClips(_SteppedClips):
    """Clips at even distances, the first at a video's start, the last (of several) at its end.

    Args: as ``RandomClips``.
    """

    num_clips: int = 1
    num_draws: int = field(default=0, init=False)

    def choose(self, num_frames: np.ndarray, number: np.ndarray, draws: np.ndarray) -> np.ndarray:
        last_start = np.maximum(0, num_frames - self.span)[:, None]
        return self._fill(last_start * np.arange(self.num_clips) // max(1, self.num_clips - 1), num_frames)


SegmentFrame = Literal["random", "centre", "twice"]


@dataclass(frozen=True, kw_only=True)
class Segments(ClipSampler):
    """A frame from each of equal parts of a video (TSN; TSM's training and evaluation).

    Args:
        num_segments: T.
        frame: ``random`` in each segment, for training; its ``centre``, for evaluation; or ``twice``: two clips, of
            the segments' centres and of their starts (TSM's ``twice_sample``).
        rule: ``clamp`` parts every video evenly, however short it is: frames repeat where it has fewer than segments.
            ``official`` is TSM's published code to the number: random frames come from segments of a whole number of
            frames, which leaves a video's end out, and a video with fewer frames than segments (or, but for random
            frames, as many) gives its first frame T times.
    """

    num_segments: int = 8
    frame: SegmentFrame = "random"
    rule: Literal["clamp", "official"] = "clamp"

    def __post_init__(self) -> None:
        _check_counts(self, "num_segments")
        if self.frame not in get_args(SegmentFrame):
            raise ValueError(f"frame={self.frame!r} must be one of {', '.join(get_args(SegmentFrame))}")
        if self.rule not in ("clamp", "official"):
            raise ValueError(f"rule={self.rule!r} must be clamp or official")

    @property
    def num_clips(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 if self.frame == "twice" else 1

    @property
    def num_frames_per_clip(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.num_segments

    @property
    def num_draws(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.num_segments if self.frame == "random" else 0

    def choose(self, num_frames: np.ndarray, number: np.ndarray, draws: np.ndarray) -> np.ndarray:
        frames_per_segment = num_frames[:, None] / self.num_segments  # (B, 1)
        segment = np.arange(self.num_segments)
        if self.frame == "random" and self.rule == "official":
            whole = np.floor(frames_per_segment)
            chosen = (whole * (segment + draws))[:, None]  # all 0 where a segment is less than a frame
        elif self.frame == "random":
            chosen = (frames_per_segment * (segment + draws))[:, None]
        else:
            share = np.array([0.5, 0.0] if self.frame == "twice" else [0.5])[:, None]  # (num_clips, 1)
            chosen = frames_per_segment[..., None] * (segment + share)
            if self.rule == "official":
                chosen = chosen * (num_frames > self.num_segments)[:, None, None]
        return np.minimum(chosen.astype(np.int64), num_frames[:, None, None] - 1)


@dataclass(frozen=True, kw_only=True)
class DenseSegments(ClipSampler):
    """Frames ``span // num_segments`` apart from a random place on; past the video's end they go on at its start.

    (TSM's ``dense_sample``, after I3D. Its published code never starts a clip at the last place where it fits.)

    Args:
        num_segments: T.
        num_clips: clips in an item; more than one start at even distances, as TSM's test with 10 does.
        span: frames that a clip reaches over.
    """

    num_segments: int = 8
    num_clips: int = 1
    span: int = 64

    def __post_init__(self) -> None:
        _check_counts(self, "num_segments", "num_clips", "span")
        if self.span < self.num_segments:
            raise ValueError(f"span={self.span} must be num_segments={self.num_segments} or more")

    @property
    def num_frames_per_clip(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.num_segments

    @property
    def num_draws(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 if self.num_clips == 1 else 0

    def choose(self, num_frames: np.ndarray, number: np.ndarray, draws: np.ndarray) -> np.ndarray:
        num_starts = np.maximum(1, num_frames - self.span + 1)[:, None]
        if self.num_clips == 1:
            start = (draws * num_starts).astype(np.int64)
        else:
            start = (num_starts - 1) * np.arange(self.num_clips) // (self.num_clips - 1)
        frames = start[..., None] + np.arange(self.num_segments) * (self.span // self.num_segments)
        return frames % num_frames[:, None, None]


def _check_counts(sampler: ClipSampler, *names: str) -> None:
    for name in names:
        value = getattr(sampler, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name}={value!r} must be a whole number")
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more")
