"""The size in AV1 data is read as encoders write it; what could make a decoder allocate more is refused by name."""

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from neuralloader.codecs.av1 import check_av1_size
from neuralloader.codecs.avif import split_avif
from neuralloader.codecs.keyframes import encode_keyframe
from neuralloader.errors import PackError

SIZE = (32, 48)
DELIMITER, PADDING = b"\x12\x00", b"\x7a\x02\0\0"


def _bits(*fields: tuple[int, int]) -> bytes:
    """Numbers of some bits each, (value, bits), highest bit first, and the bit that ends a header."""
    text = "".join(f"{value:0{num_bits}b}" for value, num_bits in fields) + "1"
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def _unit(kind: int, content: bytes, *, flags: int = 0b010, num_size_bytes: int = 1) -> bytes:
    size = bytearray((len(content) >> 7 * i & 0x7F) | 0x80 for i in range(num_size_bytes))
    size[-1] &= 0x7F
    return bytes([kind << 3 | flags]) + (bytes(size) if flags & 0b010 else b"") + content


def _size(height: int, width: int, num_bits: int = 16) -> list[tuple[int, int]]:
    return [(num_bits - 1, 4), (num_bits - 1, 4), (width - 1, num_bits), (height - 1, num_bits)]


def _reduced(height: int, width: int, num_bits: int = 16) -> bytes:
    """Profile, still picture, reduced header, level; size; the rest is the decoder's."""
    return _unit(1, _bits((0, 3), (1, 1), (1, 1), (8, 5), *_size(height, width, num_bits), (0, 20)))


def _full(
    *,
    height: int = 32,
    width: int = 48,
    timing: int = 0,
    display_delay: list[tuple[int, int]] | None = None,
    operating_point: tuple[int, int] = (0, 0),
    level: list[tuple[int, int]] | None = None,
    frame_id: list[tuple[int, int]] | None = None,
    order: list[tuple[int, int]] | None = None,
    tools: list[tuple[int, int]] | None = None,
) -> bytes:
    fields = [(0, 3), (1, 1), (0, 1), (timing, 1), (int(display_delay is not None), 1)]
    fields += [(operating_point[0], 5), (operating_point[1], 12), *(level or [(4, 5)]), *(display_delay or [])]
    fields += [*_size(height, width), *(frame_id or [(0, 1)]), (0, 3), (0, 4), *(order or [(0, 1)])]
    return _unit(1, _bits(*fields, *(tools or [(1, 1), (1, 1)]), (0, 20)))


def _frame(*between: tuple[int, int], start: tuple[int, ...] = (0, 0, 1), overrides: int = 0, kind: int = 6) -> bytes:
    """Shows an old frame, type, is shown; probabilities stay; what hangs on the sequence header; a size of its own."""
    fields = list(zip(start, (1, 2, 1), strict=True))
    return _unit(kind, _bits(*fields, (0, 1), *between, (overrides, 1), (0, 30)))


STILL = DELIMITER + _reduced(*SIZE) + _unit(6, b"tiles")


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 3), (33, 47), (128, 160), (300, 1100)])
def test_what_our_encoder_writes_passes_for_its_own_size_only(size):
    image = np.full((*size, 3), 90, np.uint8)
    _, obus = split_avif(encode_keyframe(image, "avif", 30))
    check_av1_size(obus, size)
    height, width = size
    for other in ((height + 1, width), (height, width + 1), (2 * height, 3 * width)):
        with pytest.raises(PackError, match=f"key-frame of {height}x{width} pixels where {other[0]}x{other[1]} belong"):
            check_av1_size(obus, other)


def test_a_full_header_of_a_real_encoder_is_understood():
    file, image = io.BytesIO(), Image.new("RGB", (48, 32), "red")
    image.save(file, "AVIF", save_all=True, append_images=[Image.new("RGB", (48, 32), "blue")])  # an animation
    obus = file.getvalue()[file.getvalue().index(b"mdat") + 4 :]
    first = 2 + 2 + obus[3]  # the delimiter, the sequence header; then the frame, whose size takes one byte
    end = first + 2 + obus[first + 1]
    assert (obus[2] >> 3, obus[first] >> 3, obus[first + 1] < 0x80) == (1, 6, True)
    check_av1_size(obus[:end], SIZE)
    with pytest.raises(PackError, match="key-frame of 32x48 pixels where 32x49 belong"):
        check_av1_size(obus[:end], (32, 49))
    with pytest.raises(PackError, match="more than one frame"):
        check_av1_size(obus, SIZE)


@pytest.mark.parametrize(
    "obus",
    [
        STILL,
        _reduced(*SIZE, num_bits=6) + _reduced(*SIZE) + PADDING + _unit(5, b"metadata") + _unit(6, b"tiles"),
        DELIMITER + _reduced(*SIZE) + _unit(3, b"header") + _unit(4, b"tiles") + _unit(4, b"tiles"),
        _reduced(*SIZE) + _unit(6, b"to the end", flags=0),
        _unit(15, b"sizes of many bytes", num_size_bytes=8) + STILL,
        _full() + _frame((0, 1)),
        _full() + _frame((1, 1), (0, 1)),  # the frame has screen content, and whole vectors to choose
        _full(tools=[(0, 1), (0, 1)]) + _frame(),
        _full(tools=[(0, 1), (1, 1), (1, 1)]) + _frame((1, 1)),
        _full(tools=[(0, 1), (1, 1), (0, 1), (1, 1)]) + _frame(),
        _full(tools=[(1, 1), (0, 1), (1, 1)]) + _frame((1, 1), kind=3),
        _full(frame_id=[(1, 1), (3, 4), (2, 3)]) + _frame((0, 1), (0xFF, 8)),  # a number of 3 + 2 + 2 + 1 bits
        _full(order=[(1, 1), (3, 2)]) + _frame((0, 1)),
        _full(level=[(8, 5), (1, 1)]) + _frame((0, 1)),
        _full(display_delay=[(1, 1), (15, 4)]) + _frame((0, 1)),
        _full(display_delay=[(0, 1)]) + _frame((0, 1)),
    ],
)
def test_layouts_of_still_pictures_pass(obus):
    check_av1_size(obus, SIZE)
    with pytest.raises(PackError, match="key-frame of 32x48 pixels where 31x48 belong, by its AV1 sequence header"):
        check_av1_size(obus, (31, 48))


@pytest.mark.parametrize(
    ("obus", "message"),
    [
        (_reduced(32, 65536) + _unit(6, b"tiles"), "of 32x65536 pixels where 32x48 belong, by its AV1 sequence header"),
        (_reduced(65536, 48) + _unit(6, b"tiles"), "of 65536x48 pixels where 32x48 belong"),
        (_reduced(16, 16) + _unit(6, b"tiles"), "of 16x16 pixels where 32x48 belong"),
        (STILL + _reduced(9000, 9000), "of 9000x9000 pixels where"),
        (_reduced(9000, 9000) + STILL, "of 9000x9000 pixels where"),
        (_full(width=9000) + _frame((0, 1)), "of 32x9000 pixels where"),
        (_full() + _frame((0, 1), overrides=1), "a frame with a size of its own"),
        (_full() + _frame((0, 1), overrides=1, kind=3), "a frame with a size of its own"),
        (_full() + _frame((1, 1), (1, 1), overrides=1), "a frame with a size of its own"),
        (_full(tools=[(0, 1), (0, 1)]) + _frame(overrides=1), "a frame with a size of its own"),
        (_full(frame_id=[(1, 1), (0, 4), (0, 3)]) + _frame((0, 1), (0, 3), overrides=1), "a frame with a size of its"),
        (_full() + _reduced(*SIZE) + _full() + _frame((0, 1), overrides=1), "a frame with a size of its own"),
        (_full() + _frame((0, 1), start=(1, 0, 1)), "a frame that is no shown key-frame"),
        (_full() + _frame((0, 1), start=(0, 3, 1)), "a frame that is no shown key-frame"),
        (_full() + _frame((0, 1), start=(0, 0, 0)), "a frame that is no shown key-frame"),
        (_full(timing=1) + _frame((0, 1)), "has timing; a still picture has none"),
        (_full(operating_point=(1, 0)) + _frame((0, 1)), "several operating points"),
        (_full(operating_point=(0, 0x103)) + _frame((0, 1)), "several operating points"),
        (_unit(1, b"\0" + _reduced(*SIZE)[2:], flags=0b110), "temporal or spatial layers"),
        (STILL + _unit(6, b"tiles"), "more than one frame"),
        (STILL + _unit(3, b"header"), "more than one frame"),
        (_unit(6, b"tiles") + STILL, "a frame before its sequence header"),
        (STILL + _unit(7, b"header"), "a unit of type 7, which is none of a still picture"),
        (STILL + _unit(8, b"tiles"), "a unit of type 8, which is none of a still picture"),
        (_unit(0, b"") + STILL, "a unit of type 0, which is none"),
        (b"\x92\x00" + STILL, "reserved bits of 0x92"),
        (b"\x13\x00" + STILL, "reserved bits of 0x13"),
        (DELIMITER + _reduced(*SIZE), "has no frame"),
        (b"", "has no frame"),
        (STILL[:-1], "a unit of 5 bytes where 4 are left"),
        (b"\x12", "a unit whose size does not end"),
        (b"\x12" + b"\x80" * 8 + b"\x00" + STILL, "a unit whose size does not end"),
        (b"\x12" + b"\xff" * 7 + b"\x7f" + STILL, f"a unit of {2**56 - 1} bytes where {len(STILL)} are left"),
        (_unit(1, _reduced(*SIZE)[2:6]) + _unit(6, b"tiles"), "ends within a header"),
        (_full() + _unit(6, b""), "ends within a header"),
    ],
)
def test_anything_else_is_refused_by_name(obus, message):
    with pytest.raises(PackError, match=message) as caught:
        check_av1_size(obus, SIZE)
    assert "key-frame" in str(caught.value)


@given(st.binary(max_size=60), st.integers(0, len(STILL)))
@example(b"\x0a" * 60, 0)
def test_random_bytes_end_in_nothing_else(data, position):
    for obus in (data, STILL[:position] + data, data + STILL[position:]):
        try:
            check_av1_size(obus, SIZE)
        except PackError:
            continue
