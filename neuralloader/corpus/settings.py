"""How videos are read: the rate and size of the frames that are kept, and what becomes of damaged files."""

from dataclasses import dataclass
from typing import Literal, get_args

from neuralloader.corpus.selection import MAX_FRAME_RATE, check_frame_rate

Resize = Literal["squash", "crop", "pad"]

_MAX_SIDE = 16384  # pixels; past it even one frame is a gigabyte


@dataclass(frozen=True)
class ReadSettings:
    """What is kept of each video; checked when made.

    Attributes:
        frame_rate: frames per second to keep: frame i is the one shown at i / frame_rate seconds. None keeps each.
        size: (height, width) in pixels of the frames kept.
        resize: how a frame of another shape gets there: "squash" stretches it, "crop" covers the size and cuts off
            what hangs over on both sides, "pad" fits it in between black bars.
        image_frame_rate: frames per second of what has no rate of its own: folders of images, and arrays.
        keep_partial: keep what a damaged video decodes to before the damage, where that is one frame or more.

    Raises:
        ValueError: a rate, size or way to resize that is out of range.
    """

    frame_rate: float | None
    size: tuple[int, int]
    resize: Resize = "squash"
    image_frame_rate: float = 30.0
    keep_partial: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))  # lists are welcome, and equal
        check_frame_rate(self.frame_rate)
        if not 0 < self.image_frame_rate <= MAX_FRAME_RATE:
            raise ValueError(
                f"image_frame_rate={self.image_frame_rate} must be above 0 and at most {MAX_FRAME_RATE:g} frames per"
                " second"
            )
        if len(self.size) != 2 or not 1 <= min(self.size) <= max(self.size) <= _MAX_SIDE:
            raise ValueError(f"size={self.size} must be (height, width) in pixels, each 1 to {_MAX_SIDE}")
        if self.resize not in get_args(Resize):
            raise ValueError(f"resize={self.resize!r} must be one of {', '.join(get_args(Resize))}")

    @property
    def bytes_per_frame(self) -> int:
        """Of a stored frame, uint8 RGB."""
        return self.size[0] * self.size[1] * 3
