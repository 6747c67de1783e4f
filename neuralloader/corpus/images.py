"""Folders of numbered images, each one video, read with Pillow.

Files count as a video's frames when their name ends in a number: ``1.png``, ``img_00001.jpg``. Others beside them (a
cover, a text) are left alone, and so are the ``flow_x`` and ``flow_y`` images that optical-flow tools put there.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from neuralloader.corpus.opened import OpenedVideo
from neuralloader.corpus.source import printable
from neuralloader.errors import SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_NUMBERED = re.compile(rf"(.*?)(\d+)({'|'.join(map(re.escape, IMAGE_SUFFIXES))})", re.IGNORECASE | re.DOTALL)
_MAX_NOMINAL = 10**9  # images; past it the numbers are dates, or the like
_MIN_EVEN = 3  # images from which on equal steps of more than one are taken for intended


def is_numbered_image(name: str) -> bool:
    """Whether a file of that name can be a frame."""
    return _NUMBERED.fullmatch(name) is not None


class ImageFolder(OpenedVideo):
    """The numbered images of one folder in the order of their numbers; decoding opens those that are wanted."""

    def __init__(self, folder: Path, frame_rate: float):
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
        self._paths, num_nominal, problem = _put_in_order(folder, names)
        super().__init__(np.arange(len(self._paths)) / frame_rate, frame_rate, num_nominal, problem)

    def frames(self, is_wanted: np.ndarray) -> Iterator[np.ndarray | None]:
        size: tuple[int, ...] | None = None
        for path, wanted in zip(self._paths, is_wanted.tolist(), strict=True):
            frame = _read_image(path) if wanted else None
            if frame is not None:
                size = size or frame.shape
                if frame.shape != size:
                    first, other = (f"{shape[0]}x{shape[1]}" for shape in (size, frame.shape))
                    raise SourceError(f"image {_shown(path)} is {other} pixels, the first one {first}")
            yield frame


def _put_in_order(folder: Path, names: Iterable[str]) -> tuple[list[Path], int, str]:
    """The frames up to the first gap, how many there should be, and what is wrong."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            kinds.setdefault(match[1], []).append((int(match[2]), name))
    if len(kinds) > 1:
        kinds = {prefix: images for prefix, images in kinds.items() if not prefix.lower().startswith("flow")} or kinds
    if not kinds:
        raise SourceError("a folder without numbered images")
    if len(kinds) > 1:
        examples = ", ".join(repr(images[0][1]) for _, images in sorted(kinds.items())[:3])
        raise SourceError(f"its images have several kinds of names ({examples}); keep one kind")
    ((_, images),) = kinds.items()
    images.sort()
    numbers = np.array([number for number, _ in images], object)  # as large as they like
    steps = np.diff(numbers)
    twice = np.flatnonzero(steps == 0)
    if len(twice):
        first, second = (images[twice[0] + side][1] for side in (0, 1))
        raise SourceError(f"images {first!r} and {second!r} have the same number")
    is_even = len(images) >= _MIN_EVEN and len(set(steps)) == 1
    step = steps[0] if is_even else 1
    gaps = np.flatnonzero(steps != step)
    paths = [folder / name for _, name in images]
    if not len(gaps):
        return paths, len(paths), ""
    at = int(gaps[0])
    problem = f"its images jump from number {numbers[at]} to {numbers[at + 1]}"
    num_nominal = int(numbers[-1] - numbers[0] + 1)
    return paths[: at + 1], num_nominal if num_nominal <= _MAX_NOMINAL else 0, problem


def _read_image(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB; turned as its camera was held, transparency left out."""
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more
        raise SourceError(f"image {_shown(path)} is damaged, or no image") from error
    if upright.mode.startswith("I"):  # 16 bits of grey; Pillow would cut them off at 255
        grey = np.asarray(upright).astype(np.int64) >> 8
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(upright.convert("RGB"))


def _shown(path: Path) -> str:
    return repr(printable(path.name))
