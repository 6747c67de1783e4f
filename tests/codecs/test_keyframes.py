"""Images survive every codec; AVIF boilerplate is parted and joined exactly; foreign and damaged files are refused."""

import base64
import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image

from neuralloader.codecs import keyframes
from neuralloader.codecs.avif import join_avif, split_avif
from neuralloader.codecs.keyframes import (
    check_codec_available,
    decode_keyframe,
    decode_keyframes,
    encode_keyframe,
    encode_keyframes,
    pack_keyframes,
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
    with pytest.raises(PackError, match=f"in mode {mode} where RGB belongs|plain lossy WebP|item location of 36"):
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


# AV1 data of a grey image of 8000x8000 pixels, as libaom writes it at its lowest quality: 759 bytes.
HUGE_AV1 = zlib.decompress(
    base64.b85decode(
        "c-j+U;Nq75Y*+vJTL(vmiGtBnRtf&^?X9Bs|Nnn<{s03*)cI4I$EVnwyj&2wf8UgjjO;B7?>xV_Ld}OQp~Ys+uJ2!`wJ*84=1Xgz{b}!o++Tv"
        "G%w6X$V(nmLHt+4_;yFD2MHXxBJghUEekkSjlq9~O)#@K(KeU*MpJQ7aFEUik4kN<so6-^j*F((ZW^mrwQgd!jHTN}J?JdVTvb<Z3{hdq$+IxO?-"
        "!owSZW*y^>s+_flQ@4l_Ftl%o8uaWs@b#&>IDD-uZdF"
    )
)

_MEASURE = """
import sys
from pathlib import Path
from neuralloader.codecs import keyframes, plain
from neuralloader.errors import PackError

def peak():  # getrusage's also counts the parent before it started us
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

good, forged = (Path(path).read_bytes() for path in sys.argv[1:3])
keyframes.decode_keyframe(good, "avif", (32, 48))
if sys.argv[3] == "unchecked":
    plain.check_av1_size = lambda obus, size: None
before, said = peak(), ""
try:
    keyframes.decode_keyframe(forged, "avif", (32, 48))
except PackError as error:
    said = str(error)
print(peak() - before, said)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_small_avif_file_with_a_huge_frame_is_refused_before_memory_grows(tmp_path):
    good = encode_keyframe(_images(1)[0], "avif", 60)
    forged = join_avif(split_avif(good)[0], HUGE_AV1)  # boxes of 32x48 pixels
    assert len(forged) < 1200
    (tmp_path / "good.avif").write_bytes(good)
    (tmp_path / "forged.avif").write_bytes(forged)

    def measure(checked: str) -> tuple[int, str]:
        command = [sys.executable, "-W", "error", "-c", _MEASURE, "good.avif", "forged.avif", checked]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        num_bytes, _, said = run.stdout.strip().partition(" ")
        return int(num_bytes), said

    num_bytes, said = measure("checked")
    assert said == "a key-frame of 8000x8000 pixels where 32x48 belong, by its AV1 sequence header"
    assert num_bytes < 8 << 20
    assert measure("unchecked")[0] > 64 << 20  # so the file is as hostile as it is meant to be


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (17, 31), (700, 1301)])
@pytest.mark.parametrize("codec", CODECS)
def test_our_own_files_are_read_at_any_size(codec, size):
    image = np.full((*size, 3), (200, 120, 40), np.uint8)
    decoded = decode_keyframe(encode_keyframe(image, codec, 50), codec, size)
    assert np.abs(decoded.astype(int) - image).max() < 12


def test_an_image_above_the_size_that_pillow_warns_of_is_read_in_silence(monkeypatch):
    files = {codec: encode_keyframe(_images(1)[0], codec, 80) for codec in CODECS}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 32x48 are 1536: a warning, and an error above twice this
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(files["png"])):
            assert [warning.category for warning in caught] == [Image.DecompressionBombWarning]
        caught.clear()
        for codec, file in files.items():
            assert decode_keyframe(file, codec, (32, 48)).shape == (32, 48, 3)  # pyright: ignore[reportArgumentType]
    assert not caught


def _refused_in_silence(file: bytes, codec, message: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(PackError, match=message):
            decode_keyframe(file, codec, (32, 48))
    assert not caught


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 << 20))),
        _chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(1000))),
        _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1000))),
        _chunk(b"acTL", struct.pack(">II", 0, 0)),  # an animation without frames: Pillow warns
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)),
    ],
)
def test_png_with_more_than_pixels_is_refused(chunk):
    file = encode_keyframe(_images(1)[0], "png", 0)
    for position in (33, len(file) - 12):  # behind the header, before the end
        _refused_in_silence(
            file[:position] + chunk + file[position:], "png", f"a PNG key-frame has a chunk {chunk[4:8]!r}"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progressive": True}, "a segment 0xc2, which a plain baseline file has not"),
        ({"exif": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"}, "a segment 0xe1, which"),
        ({"icc_profile": bytes(200)}, "a segment 0xe2, which"),
        ({"comment": b"hello"}, "a segment 0xfe, which"),
    ],
)
def test_jpeg_with_more_than_a_baseline_image_is_refused(options, message):
    file = io.BytesIO()
    Image.fromarray(_images(1)[0]).save(file, "JPEG", **options)
    _refused_in_silence(file.getvalue(), "jpeg", message)


def test_jpeg_headers_that_decoders_may_read_in_two_ways_are_refused():
    file = encode_keyframe(_images(1)[0], "jpeg", 60)
    frame, scan = file.index(b"\xff\xc0"), file.index(b"\xff\xda")
    header = file[frame : frame + 19]
    huge = header[:5] + struct.pack(">HH", 60000, 60000) + header[9:]
    _refused_in_silence(file[:scan] + huge + file[scan:], "jpeg", "a segment 0xc0, which a plain baseline file has not")
    _refused_in_silence(file[:frame] + huge + file[frame:], "jpeg", "a key-frame of 60000x60000 pixels where 32x48")
    _refused_in_silence(file[:frame] + file[frame + 19 :], "jpeg", "a segment 0xda, which")
    _refused_in_silence(file[: scan + 4] + b"\1" + file[scan + 5 :], "jpeg", "a segment 0xda, which")
    _refused_in_silence(file[:2] + b"\xff\xe0\0\0" + file[2:], "jpeg", "its segments do not follow one another")
    _refused_in_silence(file[:frame] + b"junk" + file[frame:], "jpeg", "its segments do not follow one another")
    _refused_in_silence(file[:2] + b"\xff" + file[2:], "jpeg", "a segment 0xff, which")


def _box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def test_avif_with_more_than_one_image_in_one_piece_is_refused():
    file = encode_keyframe(_images(1)[0], "avif", 60)
    meta, iloc, mdat = file.index(b"meta") - 4, file.index(b"iloc") - 4, file.index(b"mdat") - 4
    (meta_size,) = struct.unpack_from(">I", file, meta)
    (iloc_size,) = struct.unpack_from(">I", file, iloc)

    def in_meta(box: bytes, position: int) -> bytes:
        grown = file[:meta] + struct.pack(">I", meta_size + len(box)) + file[meta + 4 :]
        return grown[:position] + box + grown[position:]

    for position in (0, meta, mdat):
        for box in (_box(b"moov"), _box(b"free", b"1234")):
            _refused_in_silence(file[:position] + box + file[position:], "avif", f"has a box {box[4:8]!r}, where only")
    _refused_in_silence(file + _box(b"moov"), "avif", "must hold its one image at the end, in one piece")
    _refused_in_silence(in_meta(file[iloc : iloc + iloc_size], iloc), "avif", "has a box b'iloc' too many")
    _refused_in_silence(in_meta(_box(b"mdat"), iloc), "avif", "has a box b'mdat' too many")
    _refused_in_silence(file[:mdat] + file[meta:], "avif", "has a box b'iloc' too many")
    animated = io.BytesIO()
    first, second = (Image.fromarray(image) for image in _images(2))
    first.save(animated, "AVIF", save_all=True, append_images=[second])
    _refused_in_silence(animated.getvalue(), "avif", "an AVIF key-frame has")


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
