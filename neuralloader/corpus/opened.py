"""What the kinds of sources have in common once they are open: frames that are counted and timed, then decoded once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np


class OpenedVideo(ABC):
    """A source of frames, opened and not yet decoded.

    Args:
        times: (n,) float64, the second at which each frame is first shown, from 0 on, increasing; n is 1 or more.
        source_rate: nominal frames per second.
        num_nominal: frames that the source promises; 0 where it does not tell.
        problem: what is known to be wrong with it before decoding; empty is nothing.
    """

    def __init__(self, times: np.ndarray, source_rate: float, num_nominal: int, problem: str = ""):
        self.times, self.source_rate = times, source_rate
        self.num_nominal, self.problem = num_nominal, problem

    @abstractmethod
    def frames(self, is_wanted: np.ndarray) -> Iterator[np.ndarray | None]:
        """Decode all frames in order; once.

        Args:
            is_wanted: (n,) bool, the frames that are needed.

        Yields:
            (h, w, 3) uint8 RGB of one size, or None for a frame that is not needed.

        Raises:
            SourceError: at the first frame that cannot be had, also at the end where frames are missing. The text is
                the reason alone, free of paths and the same on every run.
        """
