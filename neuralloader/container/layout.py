"""The layout of a .nvpack file, format 1: its names, limits and checks, on bytes and JSON only. It opens no file.

A pack is one safetensors file; any safetensors library reads it.

    [8 bytes: header size, uint64 little-endian][header: JSON, padded with spaces to a multiple of 8][tensors ...]

    header   {"__metadata__": {"neuralloader": MANIFEST, "neuralloader.sha256": HEX},
              NAME: {"dtype": .., "shape": [..], "data_offsets": [begin, end]}, and so on for each tensor}
    MANIFEST a string that is canonical JSON: {"format": "nvpack", "version": 1,
              "tensors": {NAME: [dtype, shape, sha256 of its bytes in hex]}, and what the packer has to say}
    HEX      sha256 of that string's bytes

Tensors follow one another without gaps, those with wide elements first, so that each is aligned; among bytes, latents
and then key-frames come last, so that all but the key-frames can be fetched in one piece. The first part of a tensor's
name is its section in the size ledger. The manifest, its hash and its two names stay as they are in every version.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from neuralloader.errors import PackError, PackVersionError

FORMAT_NAME = "nvpack"
FORMAT_VERSION = 1
MANIFEST_KEY = "neuralloader"
MANIFEST_SHA256_KEY = "neuralloader.sha256"
RESERVED_MANIFEST_KEYS = ("format", "version", "tensors")  # filled in by the writer

MAX_HEADER_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 32
MAX_AXES = 8
MAX_ELEMENTS = 2**60  # of a shape, were none of its sizes 0: numpy makes no larger arrays, not even empty ones
_NAME_PATTERN = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+")
_MAX_NAME_LENGTH = 200

DTYPES = {
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}

# The ledger's rows, in the order of the sections in the file; a tensor of any other name belongs to the tables.
SECTIONS = ("header", "tables", "scales", "weights", "encoder", "latents", "keyframes")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header and the manifest describe it.

    Attributes:
        dtype: a key of DTYPES.
        shape: sizes of its axes, none for a scalar.
        begin: first byte, counted from the end of the header.
        end: the byte after the last.
        sha256: hex digest of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    sha256: str


@dataclass(frozen=True)
class PackHeader:
    """All that the head of a pack says, checked.

    Attributes:
        manifest: the parsed manifest.
        tensors: entry of each tensor, in file order.
        data_start: file position of the first tensor: the size of header and length together.
        sha256: hex digest of the manifest.
    """

    manifest: dict[str, Any]
    tensors: dict[str, TensorEntry]
    data_start: int
    sha256: str


def section_of(name: str) -> str:
    """The ledger section of a tensor: the part of its name before the first dot, or "tables"."""
    prefix = name.partition(".")[0]
    return prefix if prefix in SECTIONS[2:] else "tables"


def check_tensor_name(name: str) -> None:
    """Refuse, with a ValueError, a name that no tensor of a pack may have."""
    if len(name) > _MAX_NAME_LENGTH or not _NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"tensor name {name!r:.{_MAX_NAME_LENGTH}} must be 2 or more words of letters, digits and _, parted by "
            f"dots, at most {_MAX_NAME_LENGTH} characters in all"
        )


def dtype_name(dtype: np.dtype) -> str:
    """The safetensors name of a numpy dtype.

    Raises:
        ValueError: a dtype that packs do not hold.
    """
    for name, known in DTYPES.items():
        if known == dtype.newbyteorder("<"):
            return name
    raise ValueError(f"dtype {dtype} must be one of {', '.join(str(known) for known in DTYPES.values())}")


def sha256_hex(data: bytes | memoryview) -> str:
    """Hex digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> str:
    """Write JSON in one way only: keys sorted, no spaces, ASCII, floats in their shortest form.

    Raises:
        ValueError: a value that JSON has no word for (NaN, a key that is no string, an array), or one nested too deep.
    """
    _check_json_value(value, "manifest", MAX_JSON_DEPTH)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse_json(text: bytes, what: str) -> Any:
    """Read JSON from a stranger.

    Args:
        text: UTF-8, no longer than the caller allows.
        what: its name for the error.

    Raises:
        PackError: no JSON, a key that comes twice, a number beyond 64 bits, or brackets nested too deep.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f"the key {twice!r:.80} comes twice")
        return values

    def whole(digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
            raise ValueError(f"the number {digits:.20} does not fit 64 bits")
        return int(digits)

    def finite(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            raise ValueError(f"the number {digits:.40} is too large")
        return value

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number")

    try:
        # The parser recurses, and how deep it may is a setting of the user's; so brackets are counted beforehand.
        if _nesting(text) > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=finite,
            parse_constant=refuse,
        )
    except ValueError as error:
        raise PackError(f"{what} is damaged: {error}") from error


def header_size(prefix: bytes, file_size: int) -> int:
    """Size in bytes of the header, from the 8 bytes before it.

    Raises:
        PackError: a file that is too short for the size it declares, or a header over MAX_HEADER_BYTES.
    """
    if len(prefix) < 8:
        raise PackError(f"the file is too short for a pack: it has {file_size} bytes")
    size = int.from_bytes(prefix[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise PackError(f"this is no pack: it declares a header of {size} bytes, where {MAX_HEADER_BYTES} are allowed")
    if 8 + size > file_size:
        raise PackError(f"the pack is truncated: its header ends at byte {8 + size}, the file at {file_size}")
    return size


def write_header(manifest: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> bytes:
    """Lay out length, header and padding.

    Args:
        manifest: without the keys of RESERVED_MANIFEST_KEYS.
        tensors: in file order.

    Raises:
        ValueError: a reserved key, a value that is no JSON, or a header over MAX_HEADER_BYTES.
    """
    taken = sorted(set(manifest) & set(RESERVED_MANIFEST_KEYS))
    if taken:
        raise ValueError(f"the manifest keys {', '.join(taken)} are filled in by the writer; leave them out")
    table = {name: [entry.dtype, list(entry.shape), entry.sha256] for name, entry in tensors.items()}
    text = canonical_json({**manifest, "format": FORMAT_NAME, "version": FORMAT_VERSION, "tensors": table})
    entries = {
        name: {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
        for name, entry in tensors.items()
    }
    metadata = {MANIFEST_KEY: text, MANIFEST_SHA256_KEY: sha256_hex(text.encode())}
    header = canonical_json({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"the header takes {len(header)} bytes, where {MAX_HEADER_BYTES} are allowed")
    return len(header).to_bytes(8, "little") + header


def read_header(header: bytes, file_size: int) -> PackHeader:
    """Check everything that the header says, before any of it is trusted.

    Args:
        header: the bytes after the first 8, as many as ``header_size`` tells.
        file_size: bytes of the whole file.

    Raises:
        PackVersionError: a newer version of the format.
        PackError: anything else that is wrong.
    """
    document = parse_json(header, "the header")
    if not isinstance(document, dict):
        raise PackError(f"the header must be a JSON object, not {type(document).__name__}")
    metadata = document.pop("__metadata__", None)
    manifest, digest = _read_manifest(metadata)

    table = manifest.get("tensors")
    if not isinstance(table, dict):
        raise PackError("the manifest has no table of tensors")
    if table.keys() != document.keys():
        odd = sorted(table.keys() ^ document.keys())[0]
        raise PackError(f"tensor {odd!r:.80} is in only one of header and manifest")
    entries = {name: _read_entry(name, document[name], table[name]) for name in document}
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))

    position = 0
    for name, entry in entries.items():
        if entry.begin != position:
            raise PackError(f"tensor {name} starts at byte {entry.begin} of the data, where {position} is next")
        position = entry.end
    data_start = 8 + len(header)
    if data_start + position != file_size:
        raise PackError(f"the pack should be {data_start + position} bytes long, but the file has {file_size}")
    return PackHeader(manifest, entries, data_start, digest)


def _read_manifest(metadata: object) -> tuple[dict[str, Any], str]:
    text = metadata.get(MANIFEST_KEY) if isinstance(metadata, dict) else None
    digest = metadata.get(MANIFEST_SHA256_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str) or not isinstance(digest, str):
        raise PackError(
            f"this is no pack: its metadata lacks {MANIFEST_KEY!r} or {MANIFEST_SHA256_KEY!r}; is it another "
            "safetensors file?"
        )
    data = text.encode("utf-8", "surrogatepass")  # a lone surrogate in a hostile string must not end in another error
    if sha256_hex(data) != digest:
        raise PackError("the manifest is damaged: its bytes do not match its sha256")
    manifest = parse_json(data, "the manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise PackError(f"this is no pack: its manifest does not say format {FORMAT_NAME!r}")
    version = manifest.get("version")
    if type(version) is not int or version < 1:
        raise PackError(f"the manifest's version must be a number from 1, not {version!r:.80}")
    if version > FORMAT_VERSION:
        raise PackVersionError(
            f"the pack has format version {version}, this neuralloader reads up to {FORMAT_VERSION}; "
            "install a newer one: pip install -U neuralloader"
        )
    return manifest, digest


def _read_entry(name: str, entry: object, row: object) -> TensorEntry:
    try:
        check_tensor_name(name)
    except ValueError as error:
        raise PackError(str(error)) from error
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise PackError(f"tensor {name} must have dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise PackError(f"tensor {name} has dtype {dtype!r:.80}, not one of {', '.join(DTYPES)}")
    if not _is_counts(shape) or len(shape) > MAX_AXES or math.prod(max(1, side) for side in shape) >= MAX_ELEMENTS:
        raise PackError(f"tensor {name} has shape {shape!r:.80}, not at most {MAX_AXES} sizes that an array can have")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise PackError(f"tensor {name} has data_offsets {offsets!r:.80}, not two positions")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        raise PackError(f"tensor {name} has {offsets[1] - offsets[0]} bytes, but its dtype and shape need {size}")
    if not isinstance(row, list) or len(row) != 3 or row[:2] != [dtype, shape] or not isinstance(row[2], str):
        raise PackError(f"tensor {name} is {dtype} {shape} in the header, but {row!r:.120} in the manifest")
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1], row[2])


def _is_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _nesting(text: bytes) -> int:
    """How deep the brackets outside of strings go."""
    # Possessive, and content with an end to its last string or without: linear whatever the text.
    outside = np.frombuffer(re.sub(rb'"(?:[^"\\]++|\\.)*+"?', b"", text, flags=re.DOTALL), np.uint8)
    opening = (outside == ord("[")) | (outside == ord("{"))
    closing = (outside == ord("]")) | (outside == ord("}"))
    return int(np.cumsum(opening.astype(np.int8) - closing.astype(np.int8), dtype=np.int64).max(initial=0))


def _check_json_value(value: object, where: str, depth: int) -> None:
    if isinstance(value, dict | list | tuple) and depth == 0:
        raise ValueError(f"{where} is nested more than {MAX_JSON_DEPTH} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}; keys must be strings")
            _check_json_value(item, f"{where}.{key}", depth - 1)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_json_value(item, f"{where}[{position}]", depth - 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(f"{where} is {value}, which does not fit 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; JSON has only finite numbers")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{where} is a {type(value).__name__}; JSON has strings, numbers, lists and objects")
