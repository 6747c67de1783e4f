"""Key-frames: RGB images to AVIF, WebP, JPEG or PNG bytes and back, through Pillow, one by one or in threads.

A small AVIF file is a quarter boilerplate: boxes that are equal in all key-frames of a pack but for two lengths. They
are stored once, as a template; so is the start of the AV1 data (its sequence header), where all share it:

    [ftyp][meta: .. iloc{.. length ..} ..][mdat size "mdat" | AV1 data ............]
    [------------ template, lengths zeroed ----------------- shared]   one a pack
                                                            [ payload ------------]   one a key-frame

A key-frame's bytes are rebuilt exactly. Other codecs have an empty template, and their payload is the whole file.
"""

import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

import numpy as np
from PIL import AvifImagePlugin, Image, features

from neuralloader.errors import PackError

KeyframeCodec = Literal["avif", "webp", "jpeg", "png"]

_PILLOW_FORMATS = {"avif": "AVIF", "webp": "WEBP", "jpeg": "JPEG", "png": "PNG"}
_PILLOW_FEATURES = {"avif": "avif", "webp": "webp", "jpeg": "jpg", "png": "zlib"}
_AVIF_SPEED = 4  # 0 slowest to 10; 4 saves 2% of the bytes against 6 and costs 50 ms a frame of 128x160
_MAX_THREADS = 32
_MAX_SHARED_START = 64  # the AV1 sequence header takes about 14 bytes

_Result = TypeVar("_Result")


def check_codec_available(codec: str) -> None:
    """Make sure that this Pillow can read and write a codec.

    Raises:
        ValueError: an unknown codec.
        ImportError: a Pillow built without it; the text says what to install.
    """
    if codec not in _PILLOW_FORMATS:
        raise ValueError(f"codec={codec!r} must be one of {', '.join(get_args(KeyframeCodec))}")
    if not features.check(_PILLOW_FEATURES[codec]):
        raise ImportError(
            f"this Pillow has no support for {codec} key-frames; install a wheel that has: pip install 'pillow>=11.3'"
        )


def encode_keyframe(image: np.ndarray, codec: KeyframeCodec, quality: int) -> bytes:
    """Compress one image.

    Args:
        image: (H, W, 3) uint8 RGB.
        codec: png is lossless.
        quality: 0 to 100, the codec's own scale; png ignores it.

    Returns:
        A complete image file; the same for the same input.

    Raises:
        ValueError: another shape, dtype, codec or quality.
        ImportError: a Pillow built without the codec.
    """
    check_codec_available(codec)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"a key-frame must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if not 0 <= quality <= 100:
        raise ValueError(f"quality={quality} must be 0 to 100")
    options: dict[str, object]
    if codec == "avif":  # one thread a file: more change its bytes
        options = {"quality": quality, "speed": _AVIF_SPEED, "subsampling": "4:2:0", "max_threads": 1}
    elif codec == "webp":
        options = {"quality": quality, "method": 6}
    elif codec == "jpeg":
        options = {"quality": quality, "optimize": True}
    else:
        options = {"optimize": True}
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, _PILLOW_FORMATS[codec], **options)
    return file.getvalue()


def decode_keyframe(data: bytes, codec: KeyframeCodec, size: tuple[int, int]) -> np.ndarray:
    """Decompress one image.

    Args:
        data: a complete image file.
        codec: what it must be; no other format is tried.
        size: (height, width) it must have; checked before any pixel is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        PackError: a damaged file, or one of another format, size or mode.
        ValueError: an unknown codec.
        ImportError: a Pillow built without the codec.
    """
    check_codec_available(codec)
    with _one_avif_thread_an_image():
        return _decode(data, codec, size)


def encode_keyframes(images: np.ndarray | Sequence[np.ndarray], codec: KeyframeCodec, quality: int) -> list[bytes]:
    """Compress images, (N, H, W, 3) uint8 RGB, in threads: as ``encode_keyframe`` does, in order."""
    return _map_in_threads(lambda i: encode_keyframe(images[i], codec, quality), len(images))


def decode_keyframes(files: Sequence[bytes], codec: KeyframeCodec, size: tuple[int, int]) -> np.ndarray:
    """Decompress images of one size in threads.

    Args:
        files: N complete image files.
        codec: as in ``decode_keyframe``.
        size: (height, width).

    Returns:
        (N, H, W, 3) uint8 RGB, in order.

    Raises:
        PackError: as ``decode_keyframe``, naming the first file that is wrong by its position.
    """
    check_codec_available(codec)
    images = np.empty((len(files), *size, 3), np.uint8)

    def decode_into_place(position: int) -> None:
        try:
            images[position] = _decode(files[position], codec, size)
        except PackError as error:
            raise PackError(f"image {position} of {len(files)}: {error}") from error

    with _one_avif_thread_an_image():
        _map_in_threads(decode_into_place, len(files))
    return images


def split_avif(data: bytes) -> tuple[bytes, bytes]:
    """Part an AVIF file with one image into its boilerplate, both lengths zeroed, and its AV1 data.

    Raises:
        PackError: a file that is laid out in another way than Pillow writes them.
    """
    length_at, start = _find_length_and_data(data)
    (mdat_size,) = struct.unpack_from(">I", data, start - 8)
    offset, length = struct.unpack_from(">II", data, length_at - 4)
    if mdat_size != len(data) - (start - 8) or offset != start or length != len(data) - start:
        raise PackError("an AVIF file must hold its one image at the end, in one piece")
    template = bytearray(data[:start])
    struct.pack_into(">I", template, length_at, 0)
    struct.pack_into(">I", template, start - 8, 0)
    return bytes(template), data[start:]


def join_avif(template: bytes, payload: bytes) -> bytes:
    """Put an AVIF file together again: the inverse of ``split_avif``, and of the shared start in a template.

    Raises:
        PackError: a template that is no AVIF file up to its AV1 data.
    """
    length_at, start = _find_length_and_data(template)
    data = bytearray(template + payload)
    struct.pack_into(">I", data, length_at, len(data) - start)
    struct.pack_into(">I", data, start - 8, len(data) - start + 8)
    return bytes(data)


def pack_keyframes(files: Sequence[bytes], codec: KeyframeCodec) -> tuple[bytes, list[bytes]]:
    """Take out of all key-frames of a pack what they share.

    Args:
        files: complete image files.
        codec: what they are.

    Returns:
        The template, and a payload for each file. The template is empty, and each payload the whole file, where the
        codec is not AVIF, or where a file is laid out in its own way.
    """
    if codec != "avif" or not files:
        return b"", list(files)
    try:
        parts = [split_avif(data) for data in files]
    except PackError:
        return b"", list(files)
    template = parts[0][0]
    payloads = [payload for _, payload in parts]
    shared = min(_shared_start(payloads), _MAX_SHARED_START)
    template, payloads = template + payloads[0][:shared], [payload[shared:] for payload in payloads]
    if any(join_avif(template, payload) != data for payload, data in zip(payloads, files, strict=True)):
        return b"", list(files)
    return template, payloads


def unpack_keyframe(template: bytes, payload: bytes) -> bytes:
    """Give back one complete image file: the inverse of ``pack_keyframes``.

    Raises:
        PackError: a template that is not empty and no start of an AVIF file.
    """
    return join_avif(template, payload) if template else payload


def _decode(data: bytes, codec: KeyframeCodec, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    try:
        if codec == "webp":
            _check_plain_webp(data, size)
        with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[codec]]) as image:
            if image.size != (width, height):
                raise PackError(f"a key-frame of {image.size[1]}x{image.size[0]} pixels where {height}x{width} belong")
            if image.mode != "RGB":
                raise PackError(f"a key-frame in mode {image.mode} where RGB belongs")
            pixels = np.asarray(image)
    except PackError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsing runs into
        raise PackError(f"a key-frame is no readable {codec} image: {error or type(error).__name__}") from error
    if pixels.shape != (height, width, 3):
        raise PackError(f"a key-frame decoded to shape {pixels.shape}, not {(height, width, 3)}")
    return pixels


def _check_plain_webp(data: bytes, size: tuple[int, int]) -> None:
    """Read the size from a lossy WebP's header, because Pillow allocates the whole canvas on opening."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8 " or len(data) < 30:
        raise PackError("a key-frame is no readable webp image: it does not start as a plain lossy WebP file")
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    if (height, width) != tuple(size):
        raise PackError(f"a key-frame of {height}x{width} pixels where {size[0]}x{size[1]} belong")


@contextmanager
def _one_avif_thread_an_image() -> Iterator[None]:
    """Keep the AVIF decoder from starting a thread per core for each small image, which is 4 times slower on 16 cores.

    Pillow has only a module-wide setting for this. Two batches at once may restore it out of turn; that changes
    nothing but the number of threads. A user's own setting is kept.
    """
    if AvifImagePlugin.DEFAULT_MAX_THREADS:
        yield
        return
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    try:
        yield
    finally:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 0


def _map_in_threads(function: Callable[[int], _Result], count: int) -> list[_Result]:
    """Call a function that leaves the GIL with 0 to count - 1; order is kept, and the pool ends with the call."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_threads = min(num_cpus, _MAX_THREADS, count)
    if num_threads <= 1:
        return [function(i) for i in range(count)]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="keyframes") as pool:
        return list(pool.map(function, range(count)))


def _find_length_and_data(data: bytes) -> tuple[int, int]:
    """Find where an AVIF file, or its template, has the extent length of its one item, and where its mdat starts."""
    length_at = None
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"meta":
            for child, child_start, child_end in _boxes(data, start + 4, end):  # 4 bytes of version and flags
                if child == b"iloc":
                    length_at = _find_extent_length(data[child_start:child_end]) + child_start
        elif kind == b"mdat":
            if length_at is None:
                raise PackError("an AVIF key-frame has no item location before its data")
            return length_at, start
    raise PackError("an AVIF key-frame has no data box")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Walk boxes: (type, start and end of the content). An mdat reaches to the end, as its size may be zeroed."""
    while start < end:
        if end - start < 8:
            raise PackError("an AVIF key-frame ends within a box header")
        size, kind = struct.unpack_from(">I4s", data, start)
        if kind == b"mdat":
            size = end - start
        if not 8 <= size <= end - start:
            raise PackError(f"an AVIF key-frame has a box {kind!r} of {size} bytes where {end - start} are left")
        yield kind, start + 8, start + size
        start += size


def _find_extent_length(iloc: bytes) -> int:
    """Position of the extent length in an iloc box of version 0 with one item in one extent and 4-byte fields.

    version, flags (4) | sizes 0x44 0x00 (2) | items = 1 (2) | id (2) | source = 0 (2) | extents = 1 (2) | offset (4) |
    length (4)
    """
    if len(iloc) != 22:
        raise PackError(f"an AVIF key-frame has an item location of {len(iloc)} bytes, not 22")
    version, sizes, num_items, _, source, num_extents = struct.unpack_from(">IHHHHH", iloc)
    if (version, sizes, num_items, source, num_extents) != (0, 0x4400, 1, 0, 1):
        raise PackError("an AVIF key-frame has an item location that is not one extent of one item")
    return 18


def _shared_start(payloads: Sequence[bytes]) -> int:
    """Bytes that all payloads start with, short of the smallest one's last byte."""
    first, last = min(payloads), max(payloads)  # in sorted order, the ends share what all share
    limit = min(len(payload) for payload in payloads) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))
