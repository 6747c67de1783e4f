"""The one dial, as a user turns it: "0.08bpp" or "20MB". What to do about it is decided in ``choice``."""

import math
import re
from dataclasses import dataclass

BITS_PER_PIXEL = "bpp"
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}  # bytes
MAX_BITS_PER_PIXEL = 24.0  # raw frames
MAX_BYTES = 2**60

_NUMBER_AND_UNIT = re.compile(r"\s*([+-]?[\d_.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True)
class Budget:
    """How big the finished file may be: exactly one of the two.

    Attributes:
        bits_per_pixel: all bits of the file over the pixels of all stored frames.
        size_bytes: of the file.
    """

    bits_per_pixel: float | None = None
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.bits_per_pixel is None) == (self.size_bytes is None):
            raise ValueError(
                f"give bits_per_pixel or size_bytes, not both: bits_per_pixel={self.bits_per_pixel}, "
                f"size_bytes={self.size_bytes}"
            )
        if self.bits_per_pixel is not None and not 0 < self.bits_per_pixel <= MAX_BITS_PER_PIXEL:
            raise ValueError(
                f"bits_per_pixel={self.bits_per_pixel} must be above 0, and at most the {MAX_BITS_PER_PIXEL:g} of raw "
                "frames; 0.05 to 0.5 is usual"
            )
        if self.size_bytes is not None and not 1 <= self.size_bytes <= MAX_BYTES:
            raise ValueError(f"size_bytes={self.size_bytes} must be 1 to {MAX_BYTES}")

    def __str__(self) -> str:
        """As ``parse_budget`` reads it."""
        if self.bits_per_pixel is not None:
            return f"{self.bits_per_pixel!r}{BITS_PER_PIXEL}"
        return f"{self.size_bytes}B"

    def num_bytes(self, num_frames: int, frame_size: tuple[int, int]) -> int:
        """The most bytes that a file of so many frames may have.

        Args:
            num_frames: stored frames, padding not counted.
            frame_size: (height, width).
        """
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.bits_per_pixel is not None
        return math.floor(self.bits_per_pixel * num_frames * frame_size[0] * frame_size[1] / 8)


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Args:
        text: a number and a unit: "0.08bpp", or bytes as "20MB", "20MiB", "500kB", "1234567B".

    Raises:
        ValueError: it is no such text, or no possible size.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or math.isnan(number):
        raise _refuse(text, "it is no number with a unit")
    unit = "kB" if match[2] == "KB" else match[2]
    if unit != BITS_PER_PIXEL and unit not in UNITS:
        raise _refuse(text, f"the unit {unit!r} is unknown" if unit else "it has no unit")
    try:
        if unit == BITS_PER_PIXEL:
            return Budget(bits_per_pixel=number)
        return Budget(size_bytes=math.floor(_whole_or_float(match[1]) * UNITS[unit]))
    except (ValueError, OverflowError) as error:
        raise _refuse(text, str(error)) from error


def _whole_or_float(digits: str) -> int | float:
    """Large whole numbers of bytes stay exact."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _refuse(text: str, reason: str) -> ValueError:
    return ValueError(
        f"budget={text!r}: {reason}; give bits per pixel, as in 0.08bpp, or the file's size, as in 20MB "
        f"({', '.join(UNITS)})"
    )
