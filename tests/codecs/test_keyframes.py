"""Images survive every codec; AVIF boilerplate is parted and joined exactly; foreign and damaged files are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image

from neuralloader.codecs import keyframes
from neuralloader.codecs.keyframes import (
    check_codec_available,
    decode_keyframe,
    decode_keyframes,
    encode_keyframe,
    encode_keyframes,
    join_avif,
    pack_keyframes,
    split_avif,
    unpack_keyframe,
)
from neuralloader.errors import PackError

CODECS = ("avif", "webp", "jpeg", "png")


def _images(num_images: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Smooth colourful images, each another one."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    phase = np.arange(num_images)[:, None, None]
    channels = [np.sin(3 * x + phase), np.cos(4 * y - phase), np.sin(5 * (x + y) + 2 * phase)]
    return np.rint(np.stack(channels, -1) * 100 + 128).astype(np.uint8)


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.maximum(((a.astype(float) - b) ** 2).mean(), 1e-9))


@pytest.mark.parametrize("codec", CODECS)
def test_batches_come_back_in_order_and_alike(codec):
    images = _images(5)
    files = encode_keyframes(images, codec, 80)
    decoded = decode_keyframes(files, codec, (32, 48))
    assert decoded.dtype == np.uint8
    for image, file, result in zip(images, files, decoded, strict=True):
        assert file == encode_keyframe(image, codec, 80)
        assert np.array_equal(result, decode_keyframe(file, codec, (32, 48)))
        assert _psnr(image, result) > (90 if codec == "png" else 30)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_png_is_exact_for_any_size(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(decode_keyframe(encode_keyframe(image, "png", 0), "png", (height, width)), image)


@pytest.mark.parametrize("codec", ["avif", "webp", "jpeg"])
def test_quality_buys_psnr_with_bytes(codec):
    image = _images(1, (64, 64))[0] ^ np.random.default_rng(0).integers(0, 16, (64, 64, 3), np.uint8)
    low, high = (encode_keyframe(image, codec, quality) for quality in (10, 90))
    assert len(low) < len(high)
    assert _psnr(image, decode_keyframe(low, codec, (64, 64))) < _psnr(image, decode_keyframe(high, codec, (64, 64)))


def test_no_images():
    assert encode_keyframes(np.zeros((0, 8, 8, 3), np.uint8), "avif", 50) == []
    assert decode_keyframes([], "avif", (8, 8)).shape == (0, 8, 8, 3)
    assert pack_keyframes([], "avif") == (b"", [])


def test_the_avif_thread_setting_is_put_back(monkeypatch):
    file = encode_keyframe(_images(1)[0], "avif", 50)
    seen = []
    original = keyframes._decode
    monkeypatch.setattr(
        keyframes, "_decode", lambda *args: seen.append(AvifImagePlugin.DEFAULT_MAX_THREADS) or original(*args)
    )
    decode_keyframe(file, "avif", (32, 48))
    assert (seen, AvifImagePlugin.DEFAULT_MAX_THREADS) == ([1], 0)
    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 3)
    decode_keyframe(file, "avif", (32, 48))
    assert (seen, AvifImagePlugin.DEFAULT_MAX_THREADS) == ([1, 3], 3)


def test_avif_boilerplate_is_stored_once_and_files_come_back_exactly():
    files = encode_keyframes(_images(6), "avif", 60)
    template, payloads = pack_keyframes(files, "avif")
    assert [unpack_keyframe(template, payload) for payload in payloads] == files
    assert sum(map(len, payloads)) <= sum(map(len, files)) - 6 * 270
    assert len(template) < 400


def test_split_and_join_are_inverse_and_the_template_has_no_lengths():
    short, long = encode_keyframe(_images(1)[0], "avif", 5), encode_keyframe(_images(2)[1], "avif", 95)
    (template, payload), (same_template, other_payload) = split_avif(short), split_avif(long)
    assert template == same_template
    assert len(payload) != len(other_payload)
    assert join_avif(template, payload) == short
    assert join_avif(template, other_payload) == long
    assert template.endswith(b"\0\0\0\0mdat")


def test_a_single_keyframe_keeps_a_payload():
    (file,) = encode_keyframes(_images(1), "avif", 60)
    template, (payload,) = pack_keyframes([file], "avif")
    assert payload
    assert unpack_keyframe(template, payload) == file


def test_files_that_share_no_template_are_stored_whole():
    images = _images(2)
    files = [encode_keyframe(images[0], "avif", 60), encode_keyframe(images[1, :16], "avif", 60)]
    assert pack_keyframes(files, "avif") == (b"", files)
    with_exif = io.BytesIO()  # a second item, so that the box of locations has another form
    Image.fromarray(images[0]).save(with_exif, "AVIF", quality=60, xmp=b"<x/>")
    files = [files[0], with_exif.getvalue()]
    assert pack_keyframes(files, "avif") == (b"", files)
    assert unpack_keyframe(b"", files[1]) == files[1]


def test_other_codecs_have_no_template():
    files = encode_keyframes(_images(2), "jpeg", 60)
    assert pack_keyframes(files, "jpeg") == (b"", files)


def test_damaged_templates_are_refused_or_give_a_file_that_is():
    image = _images(1)[0]
    file = encode_keyframe(image, "avif", 60)
    template, payload = split_avif(file)
    for size in range(len(template)):
        with pytest.raises(PackError, match="an AVIF key-frame"):
            join_avif(template[:size], payload)
    for bit in range(len(template) * 8):
        damaged = bytearray(template)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            decoded = decode_keyframe(unpack_keyframe(bytes(damaged), payload), "avif", (32, 48))
        except PackError:
            continue
        assert decoded.shape == (32, 48, 3)


@pytest.mark.parametrize("codec", CODECS)
def test_truncated_files_are_refused(codec):
    file = encode_keyframe(_images(1)[0], codec, 60)
    for size in [0, 1, 11, 12, 29, 30, *range(31, len(file) - 24, 37)]:  # pixels are whole before a PNG's end mark
        with pytest.raises(PackError, match="key-frame"):
            decode_keyframe(file[:size], codec, (32, 48))


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits_never_end_in_another_error(codec):
    file = encode_keyframe(_images(1, (16, 16))[0], codec, 40)
    rng = np.random.default_rng(0)
    for bit in [*range(0, 60 * 8, 5), *rng.integers(0, len(file) * 8, 200)]:
        damaged = bytearray(file)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert decode_keyframe(bytes(damaged), codec, (16, 16)).shape == (16, 16, 3)
        except PackError:
            continue


@pytest.mark.parametrize("codec", CODECS)
def test_another_size_or_codec_is_refused(codec):
    image = _images(1)[0]
    file = encode_keyframe(image, codec, 60)
    with pytest.raises(PackError, match="a key-frame of 32x48 pixels where 48x32 belong"):
        decode_keyframe(file, codec, (48, 32))
    other = "png" if codec != "png" else "jpeg"
    with pytest.raises(PackError, match=f"no readable {other} image"):
        decode_keyframe(file, other, (32, 48))


@pytest.mark.parametrize("codec", CODECS)
def test_another_mode_is_refused(codec):
    file = io.BytesIO()
    mode = "L" if codec in ("jpeg", "png") else "RGBA"
    Image.new(mode, (48, 32)).save(file, codec.upper())
    with pytest.raises(PackError, match=f"in mode {mode} where RGB belongs|plain lossy WebP"):
        decode_keyframe(file.getvalue(), codec, (32, 48))


def _bomb(codec: str) -> bytes:
    """A file of a few bytes that declares 16000x16000 pixels or more."""
    if codec == "png":
        header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    file = bytearray(encode_keyframe(_images(1)[0], codec, 60))  # pyright: ignore[reportArgumentType]
    if codec == "webp":
        struct.pack_into("<HH", file, 26, 16383, 16383)
    elif codec == "jpeg":
        struct.pack_into(">HH", file, file.index(b"\xff\xc0") + 5, 60000, 60000)
    else:
        struct.pack_into(">II", file, file.index(b"ispe") + 8, 16000, 16000)
    return bytes(file)


@pytest.mark.parametrize("codec", CODECS)
def test_bombs_are_refused_by_their_declared_size(codec, recwarn):
    with pytest.raises(PackError, match=r"of \d{5}x\d{5} pixels where 32x48 belong|no readable"):
        decode_keyframe(_bomb(codec), codec, (32, 48))


def test_a_batch_names_the_file_that_is_wrong():
    files = encode_keyframes(_images(3), "jpeg", 60)
    files[1] = b"no image"
    with pytest.raises(PackError, match="image 1 of 3: a key-frame is no readable jpeg image"):
        decode_keyframes(files, "jpeg", (32, 48))


def test_wrong_arguments_are_named():
    image = _images(1)[0]
    with pytest.raises(ValueError, match="codec='gif' must be one of avif, webp, jpeg, png"):
        encode_keyframe(image, "gif", 50)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="quality=101 must be 0 to 100"):
        encode_keyframe(image, "avif", 101)
    with pytest.raises(ValueError, match=r"must be uint8 \(H, W, 3\), not float64 \(32, 48, 3\)"):
        encode_keyframe(image / 255, "avif", 50)
    with pytest.raises(ValueError, match=r"must be uint8 \(H, W, 3\), not uint8 \(32, 48\)"):
        encode_keyframe(image[..., 0], "avif", 50)


def test_a_pillow_without_the_codec_says_what_to_install(monkeypatch):
    monkeypatch.setattr(keyframes.features, "check", lambda feature: feature != "avif")
    check_codec_available("jpeg")
    with pytest.raises(ImportError, match=r"no support for avif key-frames; .*pip install 'pillow>=11.3'"):
        check_codec_available("avif")
