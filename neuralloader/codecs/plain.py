"""Is an image file plain? Only the layouts that ``keyframes.encode_keyframe`` writes are read back.

A stranger's file may hold metadata, animation, more images, thousands of scans, text that unfolds to megabytes, or a
size in one place that is another in the next. Here its layout and its size are checked on its bytes, before an image
library sees them, so that a small file allocates no more than its image and prints no warning.
"""

import struct

from neuralloader.codecs.av1 import check_av1_size
from neuralloader.codecs.avif import split_avif
from neuralloader.errors import PackError

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"IDAT", b"IEND")
# of JPEG: JFIF, tables, restarts; then the one frame header, baseline; then the one scan
_JPEG_SEGMENTS, _JPEG_FRAME, _JPEG_SCAN = (0xE0, 0xDB, 0xC4, 0xDD), 0xC0, 0xDA


def check_plain(data: bytes, codec: str, size: tuple[int, int]) -> None:
    """Make sure that a file is a plain image of its format.

    Args:
        data: the file.
        codec: "avif", "webp", "jpeg" or "png".
        size: (height, width) it must have.

    Raises:
        PackError: another format, layout or size.
    """
    _CHECKS[codec](data, size)


def check_size(found: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse, with a PackError, an image of another (height, width)."""
    if found != tuple(size):
        raise PackError(f"a key-frame of {found[0]}x{found[1]} pixels where {size[0]}x{size[1]} belong")


def _check_avif(data: bytes, size: tuple[int, int]) -> None:
    """One image in one piece at the end, whose AV1 data has the size that its boxes may only claim."""
    check_av1_size(split_avif(data)[1], size)


def _check_webp(data: bytes, size: tuple[int, int]) -> None:
    """The lossy format without extensions, whose size is in its header; Pillow allocates the canvas on opening."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8 " or len(data) < 30:
        raise PackError("a key-frame is no readable webp image: it does not start as a plain lossy WebP file")
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    check_size((height, width), size)


def _check_png(data: bytes, size: tuple[int, int]) -> None:
    """A header, and pixels: text may unfold to 64 MB, and other chunks are animation or colour profiles."""
    if data[:8] != _PNG_START or data[12:16] != b"IHDR" or len(data) < 24:
        raise PackError("a key-frame is no readable png image: it does not start as a PNG file")
    width, height = struct.unpack_from(">II", data, 16)
    check_size((height, width), size)
    position = 8
    while position < len(data):
        if len(data) - position < 12:
            raise PackError("a key-frame is no readable png image: it ends within a chunk")
        num_bytes, kind = struct.unpack_from(">I4s", data, position)
        if kind not in _PNG_CHUNKS or (kind == b"IHDR") != (position == 8):
            raise PackError(f"a PNG key-frame has a chunk {kind!r}, where only pixels belong")
        position += 12 + num_bytes


def _check_jpeg(data: bytes, size: tuple[int, int]) -> None:
    """Tables, a baseline frame header, and a scan of all its components: a progressive file may have thousands of scans
    over the whole image, and in EXIF or MPO data Pillow may find something to warn about."""
    if data[:3] != b"\xff\xd8\xff":
        raise PackError("a key-frame is no readable jpeg image: it does not start as a JPEG file")
    position, num_components = 2, None
    while True:
        if len(data) - position < 10:
            raise PackError("a key-frame is no readable jpeg image: it ends within its header")
        start, kind, num_bytes = struct.unpack_from(">BBH", data, position)
        if start != 0xFF or num_bytes < 2:
            raise PackError("a key-frame is no readable jpeg image: its segments do not follow one another")
        if kind == _JPEG_FRAME and num_components is None:
            height, width, num_components = struct.unpack_from(">HHB", data, position + 5)
            check_size((height, width), size)
        elif kind == _JPEG_SCAN and data[position + 4] == num_components:
            return
        elif kind not in _JPEG_SEGMENTS:
            raise PackError(f"a JPEG key-frame has a segment {kind:#04x}, which a plain baseline file has not")
        position += 2 + num_bytes


_CHECKS = {
    "avif": _check_avif,
    "webp": _check_webp,
    "jpeg": _check_jpeg,
    "png": _check_png,
}
