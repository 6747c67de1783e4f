"""The frame size that AV1 data declares, read before a decoder allocates for it. Nothing is decoded here.

    AV1 data   [temporal delimiter][sequence header: largest frame size ...][frame: header, tiles]     each is an OBU
    an OBU     [type, flags (1 byte)][size of the content (leb128)][content]

An image file says its size in its boxes, but the decoder goes by the sequence header; and where that is a full one, not
the reduced one for still pictures, a frame may say a size of its own. Numbers in parentheses are sections of the AV1
specification. What no encoder of still pictures writes is refused by name rather than read: layers, timing, a second
frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from neuralloader.errors import PackError

_SEQUENCE_HEADER, _TEMPORAL_DELIMITER, _FRAME_HEADER, _TILE_GROUP, _METADATA, _FRAME, _PADDING = 1, 2, 3, 4, 5, 6, 15
_WITHOUT_SIZES = (_TEMPORAL_DELIMITER, _TILE_GROUP, _METADATA, _PADDING)
_MAX_LEB128_BYTES = 8
# Both headers end long before, at the bits that are read here.
_MAX_HEADER_BYTES = 64
_SELECT = 2  # "each frame says it" in the sequence header's choices of tools
_KEY_FRAME = 0


@dataclass(frozen=True)
class _SequenceHeader:
    """What a frame header's meaning, up to its size, hangs on.

    Attributes:
        size: (height, width), the largest that a frame may have.
        is_reduced: frames have this very size, and say nothing about it.
        screen_content_tools, integer_mv: 0 off, 1 on, 2 each frame says it.
        num_frame_id_bits: of the frame's number; 0 where it has none.
    """

    size: tuple[int, int]
    is_reduced: bool
    screen_content_tools: int = _SELECT
    integer_mv: int = _SELECT
    num_frame_id_bits: int = 0


class _Bits:
    """Reads unsigned numbers, the highest bit first, from the start of an OBU's content."""

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data[:_MAX_HEADER_BYTES])
        self._num_left = 8 * len(data[:_MAX_HEADER_BYTES])

    def take(self, num_bits: int) -> int:
        self._num_left -= num_bits
        if self._num_left < 0:
            raise PackError("a key-frame's AV1 data ends within a header")
        return self._value >> self._num_left & (1 << num_bits) - 1


def check_av1_size(obus: bytes, size: tuple[int, int]) -> None:
    """Make sure that a decoder will meet one still picture of one size.

    Args:
        obus: AV1 data as it stands in an image file: open bitstream units, one behind the other.
        size: (height, width) that every sequence header must declare, and that the frame may not override.

    Raises:
        PackError: another size, or data that is damaged, or more than one layer or frame.
    """
    header, num_frames = None, 0
    for kind, content in _split_obus(obus):
        if kind == _SEQUENCE_HEADER:
            header = _read_sequence_header(_Bits(content))
            if header.size != tuple(size):
                raise PackError(
                    f"a key-frame of {header.size[0]}x{header.size[1]} pixels where {size[0]}x{size[1]} belong, by its "
                    "AV1 sequence header"
                )
        elif kind in (_FRAME, _FRAME_HEADER):
            if header is None:
                raise PackError("a key-frame's AV1 data has a frame before its sequence header")
            num_frames += 1
            if num_frames > 1:
                raise PackError("a key-frame's AV1 data has more than one frame")
            if not header.is_reduced:
                _check_frame_header(_Bits(content), header)
        elif kind not in _WITHOUT_SIZES:
            raise PackError(f"a key-frame's AV1 data has a unit of type {kind}, which is none of a still picture")
    if not num_frames:
        raise PackError("a key-frame's AV1 data has no frame")


def _split_obus(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and content of each unit (5.3.2). The last may leave out its size and reach to the end."""
    position = 0
    while position < len(data):
        flags = data[position]
        position += 1
        if flags & 0b1000_0001:
            raise PackError(f"a key-frame's AV1 data is damaged: a unit starts with the reserved bits of {flags:#04x}")
        if flags & 0b0000_0100:
            raise PackError("a key-frame's AV1 data has temporal or spatial layers; a still picture has none")
        end = len(data)
        if flags & 0b0000_0010:
            num_bytes, position = _read_leb128(data, position)
            end = position + num_bytes
            if end > len(data):
                raise PackError(
                    f"a key-frame's AV1 data has a unit of {num_bytes} bytes where {len(data) - position} are left"
                )
        yield flags >> 3 & 0b1111, data[position:end]
        position = end


def _read_leb128(data: bytes, position: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first (4.10.5), and the position behind it."""
    value = 0
    for i, byte in enumerate(data[position : position + _MAX_LEB128_BYTES]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise PackError("a key-frame's AV1 data has a unit whose size does not end")


def _read_sequence_header(bits: _Bits) -> _SequenceHeader:
    """The start of a sequence header (5.5.1), up to the choices that tell a frame header's layout."""
    bits.take(3 + 1)  # profile, still picture
    is_reduced = bits.take(1) == 1
    if is_reduced:
        bits.take(5)  # level
        return _SequenceHeader(_read_size(bits), is_reduced)

    if bits.take(1):
        raise PackError("a key-frame's AV1 data has timing; a still picture has none")
    has_display_delay = bits.take(1)
    if bits.take(5) or bits.take(12):
        raise PackError("a key-frame's AV1 data has several operating points; a still picture has one, without layers")
    if bits.take(5) > 7:  # level
        bits.take(1)  # tier
    if has_display_delay and bits.take(1):
        bits.take(4)
    size = _read_size(bits)
    num_frame_id_bits = 0
    if bits.take(1):
        num_frame_id_bits = bits.take(4) + 2 + bits.take(3) + 1
    bits.take(3)  # superblocks of 128, intra filter, intra edge filter
    bits.take(4)  # four tools between frames
    if bits.take(1):  # order of frames
        bits.take(2)
    screen_content_tools = _SELECT if bits.take(1) else bits.take(1)
    integer_mv = _SELECT
    if screen_content_tools:
        integer_mv = _SELECT if bits.take(1) else bits.take(1)
    return _SequenceHeader(size, is_reduced, screen_content_tools, integer_mv, num_frame_id_bits)


def _read_size(bits: _Bits) -> tuple[int, int]:
    """(height, width), stored as numbers of bits of each, and then each less 1, width first."""
    num_width_bits, num_height_bits = bits.take(4) + 1, bits.take(4) + 1
    width = bits.take(num_width_bits) + 1
    return bits.take(num_height_bits) + 1, width


def _check_frame_header(bits: _Bits, header: _SequenceHeader) -> None:
    """Read a full frame header (5.9.2) up to the flag for a size of its own, which must be off."""
    shows_existing, kind, is_shown = bits.take(1), bits.take(2), bits.take(1)
    if shows_existing or kind != _KEY_FRAME or not is_shown:
        raise PackError("a key-frame's AV1 data has a frame that is no shown key-frame")
    bits.take(1)  # whether probabilities stay as they are
    uses_screen_content = bits.take(1) if header.screen_content_tools == _SELECT else header.screen_content_tools
    if uses_screen_content and header.integer_mv == _SELECT:
        bits.take(1)
    bits.take(header.num_frame_id_bits)
    if bits.take(1):
        raise PackError("a key-frame's AV1 data has a frame with a size of its own")
