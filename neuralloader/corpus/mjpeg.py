"""Write a video as Motion-JPEG in AVI through Pillow: each frame a JPEG of its own, read frame-exactly by any decoder.

    RIFF AVI
      LIST hdrl:  avih, LIST strl:  strh, strf
      LIST movi:  00dc (a JPEG), 00dc, ...
      idx1:       one row for each 00dc

For demos and tests: no sound, one RIFF chunk, so less than 4 GiB.
"""

import io
import math
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

_MAX_BYTES = (1 << 32) - 1  # sizes and offsets are 32-bit
_KEY_FRAME = 0x10  # index flag: every JPEG can be decoded alone
_HAS_INDEX = 0x10  # header flag


def write_mjpeg_avi(
    path: Path, frames: np.ndarray | Iterable[np.ndarray], frame_rate: float, *, quality: int = 90
) -> None:
    """Write frames as they come; a file that cannot be finished is removed.

    Args:
        path: the file to write, usually ``.avi``; overwritten.
        frames: (T, H, W, 3) uint8 RGB, or an iterable of (H, W, 3) frames of one size.
        frame_rate: frames per second.
        quality: Pillow's JPEG quality, 1 to 100.

    Raises:
        ValueError: no frames, frames that differ in size or are not RGB uint8, a rate or quality out of range, or
            more than 4 GiB.
    """
    if not (math.isfinite(frame_rate) and 1e-3 <= frame_rate <= 1e6):
        raise ValueError(f"frame_rate={frame_rate} must be between 0.001 and 1000000 frames per second")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality} must be between 1 and 100")
    path = Path(path)
    try:
        with open(path, "w+b") as file:
            _write(file, frames, Fraction(frame_rate).limit_denominator(10_000), quality)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write(file: IO[bytes], frames: Iterable[np.ndarray], rate: Fraction, quality: int) -> None:
    header_size = len(_header((0, 0), rate, [], 0))
    file.write(bytes(header_size))  # filled in at the end, when the counts are known
    size: tuple[int, int] | None = None
    chunk_sizes: list[int] = []
    for number, frame in enumerate(frames):
        frame = np.asarray(frame)
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            raise ValueError(f"frame {number} is {frame.dtype} {frame.shape}; each must be (H, W, 3) uint8")
        size = size or (frame.shape[0], frame.shape[1])
        if frame.shape[:2] != size:
            raise ValueError(f"frame {number} is {frame.shape[:2]}, the first one {size}; all must have one size")
        jpeg = io.BytesIO()
        Image.fromarray(frame).save(jpeg, "JPEG", quality=quality)
        data = jpeg.getvalue()
        if file.tell() + len(data) + 16 * (number + 3) > _MAX_BYTES:
            raise ValueError(f"the file would pass 4 GiB at frame {number}; write fewer frames or a lower quality")
        file.write(b"00dc" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2))
        chunk_sizes.append(len(data))
    if size is None:
        raise ValueError("there are no frames to write")

    index = bytearray()
    offset = 4  # from the word `movi`
    for chunk_size in chunk_sizes:
        index += b"00dc" + struct.pack("<III", _KEY_FRAME, offset, chunk_size)
        offset += 8 + chunk_size + chunk_size % 2
    file.write(_chunk(b"idx1", bytes(index)))
    file_size = file.tell()
    file.seek(0)
    file.write(_header(size, rate, chunk_sizes, file_size))


def _header(size: tuple[int, int], rate: Fraction, chunk_sizes: list[int], file_size: int) -> bytes:
    """All that stands before the first frame; its length does not depend on the values."""
    height, width = size
    num_frames, largest = len(chunk_sizes), max(chunk_sizes, default=0)
    microseconds = min(round(1e6 / rate), _MAX_BYTES)
    main = struct.pack("<14I", microseconds, 0, 0, _HAS_INDEX, num_frames, 0, 1, largest + 8, width, height, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack(
        "<IHHIIIIIIII4H", 0, 0, 0, 0, rate.denominator, rate.numerator, 0, num_frames, largest + 8, 0xFFFFFFFF, 0,
        0, 0, min(width, 0xFFFF), min(height, 0xFFFF),
    )  # fmt: skip
    bitmap = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    streams = _list(b"strl", _chunk(b"strh", stream) + _chunk(b"strf", bitmap))
    headers = _list(b"hdrl", _chunk(b"avih", main) + streams)
    movi_size = 4 + sum(8 + chunk_size + chunk_size % 2 for chunk_size in chunk_sizes)
    return (
        b"RIFF" + struct.pack("<I", max(0, file_size - 8)) + b"AVI " + headers
        + b"LIST" + struct.pack("<I", movi_size) + b"movi"
    )  # fmt: skip


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _list(name: bytes, content: bytes) -> bytes:
    return _chunk(b"LIST", name + content)
