"""Key-frames: RGB images to AVIF, WebP, JPEG or PNG bytes and back, through Pillow, one by one or in threads.

Decoding trusts no file: only the plain layouts that ``encode_keyframe`` writes are read (``plain``). What AVIF files
share is stored once (``avif``).
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

import numpy as np
from PIL import AvifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin, features

from neuralloader.codecs.avif import join_avif, take_template
from neuralloader.codecs.plain import check_plain, check_size
from neuralloader.errors import PackError

KeyframeCodec = Literal["avif", "webp", "jpeg", "png"]

_PILLOW_FORMATS = {"avif": "AVIF", "webp": "WEBP", "jpeg": "JPEG", "png": "PNG"}
_PILLOW_FEATURES = {"avif": "avif", "webp": "webp", "jpeg": "jpg", "png": "zlib"}
# Not through Image.open: it warns of images above a size, looks for more pictures in a JPEG, and asks other plugins.
_PILLOW_CLASSES = {
    "avif": AvifImagePlugin.AvifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
}
_AVIF_SPEED = 4  # 0 slowest to 10; 4 saves 2% of the bytes against 6 and costs 50 ms a frame of 128x160
_MAX_THREADS = 32

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


def decode_keyframes(
    files: Sequence[bytes], codec: KeyframeCodec, size: tuple[int, int], *, num_threads: int | None = None
) -> np.ndarray:
    """Decompress images of one size in threads.

    Args:
        files: N complete image files.
        codec: as in ``decode_keyframe``.
        size: (height, width).
        num_threads: images at once; None is one for each processor.

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
        _map_in_threads(decode_into_place, len(files), num_threads)
    return images


def pack_keyframes(files: Sequence[bytes], codec: KeyframeCodec) -> tuple[bytes, Sequence[bytes]]:
    """Take out of all key-frames of a pack what they share.

    Args:
        files: complete image files; they need not all be in memory.
        codec: what they are.

    Returns:
        The template, and a payload for each file. The template is empty, and each payload the whole file, where the
        codec is not AVIF, or where a file is laid out in its own way.
    """
    return take_template(files) if codec == "avif" and files else (b"", files)


def unpack_keyframe(template: bytes, payload: bytes) -> bytes:
    """Give back one complete image file: the inverse of ``pack_keyframes``.

    Raises:
        PackError: a template that is not empty and no start of an AVIF file.
    """
    return join_avif(template, payload) if template else payload


def _decode(data: bytes, codec: KeyframeCodec, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    try:
        check_plain(data, codec, size)
        with _PILLOW_CLASSES[codec](io.BytesIO(data)) as image:
            check_size((image.size[1], image.size[0]), size)
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


def _map_in_threads(function: Callable[[int], _Result], count: int, most: int | None = None) -> list[_Result]:
    """Call a function that leaves the GIL with 0 to count - 1; order is kept, and the pool ends with the call."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_threads = min(num_cpus if most is None else most, _MAX_THREADS, count)
    if num_threads <= 1:
        return [function(i) for i in range(count)]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="keyframes") as pool:
        return list(pool.map(function, range(count)))
