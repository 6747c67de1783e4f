"""How much video a file's header promises, so that a file cut short is noticed.

Decoders take a truncated AVI or Matroska file for a shorter one and say nothing. AVI states its number of frames,
Matroska its number of bytes. MP4 needs nothing here: its frame table lies in one place, and a file that ends before
the frames it lists fails to decode.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER_BYTES = 1 << 16
_AV1_NAMES = (b"av01", b"V_AV1")  # in MP4, in Matroska
_UNKNOWN = {0, 0xFFFFFFFF}  # what AVI writers leave when they could not seek back


@dataclass(frozen=True)
class Promise:
    """What the header states: frames in the video stream, bytes in the file; None where it does not say."""

    num_frames: int | None = None
    num_bytes: int | None = None


def read_promise(path: Path) -> Promise:
    """Read the header of a video file; a file of another or a damaged kind promises nothing.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Promise(num_frames=_avi_frames(head))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return Promise(num_bytes=_matroska_bytes(head))
    return Promise()


def is_transport_stream(path: Path) -> bool:
    """Whether a file is MPEG-TS: each packet of 188 bytes (192 with a time in front) starts with the letter G."""
    with open(path, "rb") as file:
        head = file.read(1024)
    return any(head[first::size][:5] == b"GGGGG" for first, size in ((0, 188), (4, 192)))


def names_av1(path: Path) -> bool:
    """Whether AV1 is named where MP4 and Matroska name their codec: near the file's start or end."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
        file.seek(max(0, path.stat().st_size - _HEADER_BYTES))
        return any(name in part for part in (head, file.read()) for name in _AV1_NAMES)


def _avi_frames(head: bytes) -> int | None:
    """dwLength of the first video stream header: ``strh`` size ``vids`` ... with the length 32 bytes in."""
    start = head.find(b"strh")
    while start >= 0 and start + 8 + 36 <= len(head):
        if head[start + 8 : start + 12] == b"vids":
            (length,) = struct.unpack_from("<I", head, start + 8 + 32)
            return None if length in _UNKNOWN else length
        start = head.find(b"strh", start + 4)
    return None


def _matroska_bytes(head: bytes) -> int | None:
    """Where the Segment, which follows the EBML header and holds all else, says it ends."""
    header_size, start = _vint(head, 4)
    if header_size is None or head[start + header_size : start + header_size + 4] != b"\x18\x53\x80\x67":
        return None
    segment_size, start = _vint(head, start + header_size + 4)
    return None if segment_size is None else start + segment_size


def _vint(data: bytes, start: int) -> tuple[int | None, int]:
    """EBML's number of variable width at `start`, None if unknown or cut off, and where it ends."""
    if start >= len(data) or data[start] == 0:
        return None, start
    width = 9 - data[start].bit_length()
    stop = start + width
    value = int.from_bytes(data[start:stop], "big") - (1 << 7 * width)  # less the bit that marks the width
    is_unknown = stop > len(data) or value == (1 << 7 * width) - 1
    return (None if is_unknown else value), stop
