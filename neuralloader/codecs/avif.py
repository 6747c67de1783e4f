"""The boilerplate of AVIF files, stored once: a template that all key-frames of a pack share, and a payload for each.

A small AVIF file is a quarter boilerplate: boxes that are equal in all key-frames of a pack but for two lengths. So is
the start of the AV1 data (its sequence header), where all share it:

    [ftyp][meta: .. iloc{.. length ..} ..][mdat size "mdat" | AV1 data ............]
    [------------ template, lengths zeroed ----------------- shared]   one a pack
                                                            [ payload ------------]   one a key-frame

A file is rebuilt exactly. What the AV1 data means is not known here.
"""

import struct
from collections.abc import Iterator, Sequence

from neuralloader.errors import PackError

_MAX_SHARED_START = 64  # the AV1 sequence header takes about 14 bytes
_BOXES = (b"ftyp", b"meta", b"mdat")


def take_template(files: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
    """Find what some files share.

    Args:
        files: complete AVIF files; run through once, and each again when its payload is asked for.

    Returns:
        The template, and a payload for each file. The template is empty, and each payload the whole file, where one is
        laid out in its own way.
    """
    template, first, shared = b"", b"", _MAX_SHARED_START
    try:
        for number, data in enumerate(files):
            boilerplate, payload = split_avif(data)
            if number == 0:
                template, first = boilerplate, payload
            elif boilerplate != template:
                return b"", files
            limit = min(shared, len(payload) - 1)
            shared = next((i for i in range(limit) if payload[i] != first[i]), max(limit, 0))
    except PackError:
        return b"", files
    template += first[:shared]
    return template, _Payloads(files, len(template))


class _Payloads(Sequence[bytes]):
    """Files without their first bytes."""

    def __init__(self, files: Sequence[bytes], num_bytes: int):
        self._files, self._num_bytes = files, num_bytes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._files[index][self._num_bytes :]


def split_avif(data: bytes) -> tuple[bytes, bytes]:
    """Part an AVIF file with one image into its boilerplate, both lengths zeroed, and its AV1 data.

    Raises:
        PackError: a file that is laid out in another way than Pillow writes them.
    """
    length_at, start = _find_length_and_data(data)
    (mdat_size,) = struct.unpack_from(">I", data, start - 8)
    offset, length = struct.unpack_from(">II", data, length_at - 4)
    if mdat_size != len(data) - (start - 8) or offset != start or length != len(data) - start:
        raise PackError("an AVIF key-frame must hold its one image at the end, in one piece")
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


def _find_length_and_data(data: bytes) -> tuple[int, int]:
    """Find where an AVIF file, or its template, has the extent length of its one item, and where its mdat starts."""
    length_at = None
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind not in _BOXES:  # such as moov, of an animation
            raise PackError(f"an AVIF key-frame has a box {kind!r}, where only those of a still image belong")
        if kind == b"meta":
            for child, child_start, child_end in _boxes(data, start + 4, end):  # 4 bytes of version and flags
                if child == b"mdat" or (child == b"iloc" and length_at is not None):
                    raise PackError(f"an AVIF key-frame has a box {child!r} too many")
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
