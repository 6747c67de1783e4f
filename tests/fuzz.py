"""Damaged and hostile packs, made from a whole one and two numbers; and the reading that must survive them.

    unsigned   damage of disks and networks: hashes and checksums stay those of the whole pack
    signed     a stranger's work: every hash and CRC32 is right, and what they vouch for is nonsense

A mutation of a pack is a function of (seed, number) alone. What is left out: that a stranger's file which can be read
shows anything sensible. As a program, this file reads many mutations and tells what became of them, and how much
memory that took.
"""

import argparse
import faulthandler
import hashlib
import io
import json
import lzma
import resource
import signal
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zstandard
from PIL import Image

from neuralloader.backends import BACKENDS
from neuralloader.container.blobs import blob_to_tensors
from neuralloader.container.layout import (
    DTYPES,
    RESERVED_MANIFEST_KEYS,
    canonical_json,
    dtype_name,
    sha256_hex,
)
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import ByteStream
from neuralloader.errors import PackError
from neuralloader.loading.decode import Decoder
from neuralloader.packfile import Pack, stored_parameters
from neuralloader.report.measure import describe_pack, info_lines

KEYFRAMES_PER_STEP = 64
FRAMES_TO_DECODE = 4
MAX_PIXELS_TO_DECODE = 1 << 16  # frames of a stranger's pack that are larger are not decoded: that takes long
HUGE = (2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (-1, 0, 1, 2, 3, 7, 8, 16, 17, 255, 256, 257, 4096, 1 << 20, (1 << 20) + 1, *HUGE)
NONSENSE: tuple[Any, ...] = (
    *(None, True, False, "", "8", "\ud800", "a\0b", 0.5, -1.5, 1e300, [], {}, [[]], [1] * 17, {"a": 1}),
    *([1, 2], [16384, 16384], [0, 0], ["x"], [None], "\x1b[2J", "../x", *NUMBERS),
)

Outcome = Literal["refused", "identical", "read"]


@dataclass(frozen=True)
class Mutation:
    """A pack that is not what it was.

    Attributes:
        what: what was done to it.
        data: the file.
        is_signed: whether its hashes are right.
    """

    what: str
    data: bytes
    is_signed: bool


@dataclass
class Parts:
    """A pack taken apart, to be changed and put together again.

    Attributes:
        manifest: what its packer had to say.
        tensors: by name, in the order of the file.
        entries: what header and manifest claim of a tensor against the truth, such as {"shape": [3]}.
        edit_header: changes the text of the header last of all.
    """

    manifest: dict[str, Any]
    tensors: dict[str, np.ndarray]
    entries: dict[str, dict[str, Any]]
    edit_header: Callable[[str], str] = str

    @classmethod
    def of(cls, path: Path) -> "Parts":
        with PackReader(path) as reader:
            manifest = {name: value for name, value in reader.manifest.items() if name not in RESERVED_MANIFEST_KEYS}
            return cls(json.loads(json.dumps(manifest)), {n: reader.tensor(n) for n in reader.tensor_names}, {})

    def set_items(self, prefix: str, items: list[bytes]) -> None:
        """Replace the items of a blob; sizes and CRC32s are right."""
        for name, tensor in blob_to_tensors(prefix, items).items():
            self.tensors[name] = np.frombuffer(b"".join(items), np.uint8) if isinstance(tensor, ByteStream) else tensor

    def items(self, prefix: str) -> list[bytes]:
        ends = np.cumsum(self.tensors[f"{prefix}.size"], dtype=np.int64)
        data = self.tensors[f"{prefix}.data"].tobytes()
        return [data[end - size : end] for end, size in zip(ends, self.tensors[f"{prefix}.size"], strict=True)]

    def sign(self) -> bytes:
        """The file, every hash right. Written by hand, as the library's writer refuses much of what is wanted here."""
        header: dict[str, Any] = {}
        table: dict[str, Any] = {}
        position = 0
        for name, tensor in self.tensors.items():
            entry = {
                "dtype": dtype_name(tensor.dtype),
                "shape": list(tensor.shape),
                "data_offsets": [position, position + tensor.nbytes],
                **self.entries.get(name, {}),
            }
            header[name] = entry
            table[name] = [entry["dtype"], entry["shape"], sha256_hex(tensor.tobytes())]
            position += tensor.nbytes
        manifest = canonical_json({"format": "nvpack", "version": 1, "tensors": table, **self.manifest})
        header["__metadata__"] = {"neuralloader": manifest, "neuralloader.sha256": sha256_hex(manifest.encode())}
        text = self.edit_header(canonical_json(header)).encode("utf-8", "surrogateescape")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + b"".join(t.tobytes() for t in self.tensors.values())


def mutate(path: Path, seed: int, number: int) -> Mutation:
    """The mutation of a pack that belongs to two numbers; kinds take turns."""
    rng = np.random.default_rng([seed, number])
    kinds: list[Callable[..., Any]] = [*DAMAGES, *FORGERIES, _several]
    kind = kinds[number % len(kinds)]
    if kind in DAMAGES:
        what, data = kind(path.read_bytes(), rng)
        return Mutation(what, data, is_signed=False)
    parts = Parts.of(path)
    if kind in NEED_KEYFRAMES and "keyframes.data" not in parts.tensors:
        kind = _pick(rng, [each for each in FORGERIES if each not in NEED_KEYFRAMES])
    what = kind(parts, rng)
    return Mutation(f"{kind.__name__.strip('_')}: {what}", parts.sign(), is_signed=True)


# --- damage ---------------------------------------------------------------------------------------------------------


def _edges(data: bytes) -> list[int]:
    """Where in a whole pack something begins or ends."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    ends = [8 + size + offset for name, entry in header.items() if name != "__metadata__" for offset in _offsets(entry)]
    return sorted({0, 8, 8 + size, len(data), *ends})


def _offsets(entry: dict[str, Any]) -> list[int]:
    return entry["data_offsets"]


def _place(data: bytes, rng: np.random.Generator) -> int:
    """A byte of a pack: each tensor has the same chance, however small."""
    edges = _edges(data)
    part = int(rng.integers(len(edges) - 1))
    return int(rng.integers(edges[part], edges[part + 1]))


def _flip_bits(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    changed = bytearray(data)
    places = [_place(data, rng) for _ in range(int(rng.choice([1, 1, 1, 2, 9])))]
    for place in places:
        changed[place] ^= 1 << int(rng.integers(8))
    return f"bits flipped at {places}", bytes(changed)


def _overwrite(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    start = _place(data, rng)
    end = min(len(data), start + int(rng.choice([1, 2, 16, 512, 4096])))
    part = np.frombuffer(data[start:end], np.uint8)
    how = str(rng.choice(["zeros", "ones", "shuffled", "random"]))
    new = {
        "zeros": np.zeros_like(part),
        "ones": np.full_like(part, 255),
        "shuffled": rng.permutation(part),
        "random": rng.integers(0, 256, len(part), dtype=np.uint8),
    }[how]
    return f"bytes {start} to {end} {how}", data[:start] + new.tobytes() + data[end:]


def _truncate(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    end = int(np.clip(int(rng.choice(_edges(data))) + int(rng.integers(-2, 3)), 0, len(data) - 1))
    return f"truncated at {end}", data[:end]


def _insert(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    at, new = int(rng.choice(_edges(data))), bytes(int(rng.choice([1, 7, 8, 4096])))
    return f"{len(new)} zeros inserted at {at}", data[:at] + new + data[at:]


def _remove(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    start = _place(data, rng)
    end = min(len(data), start + int(rng.choice([1, 8, 100])))
    return f"bytes {start} to {end} taken out", data[:start] + data[end:]


def _swap(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    a, b = sorted(_place(data, rng) for _ in range(2))
    size = min(64, b - a, len(data) - b)
    swapped = data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    return f"{size} bytes at {a} and {b} swapped", swapped


def _edit_entries(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The header rewritten: what it says of tensors is changed, and the hashes are not."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    a, b = (str(name) for name in rng.choice(names, 2, replace=False))
    how = str(
        rng.choice(["swap", "overlap", "shape", "dtype", "offset", "drop", "rename", "metadata", "twice", "deep"])
    )
    if how == "swap":
        header[a]["data_offsets"], header[b]["data_offsets"] = header[b]["data_offsets"], header[a]["data_offsets"]
    elif how == "overlap":
        header[a]["data_offsets"] = header[b]["data_offsets"]
    elif how == "shape":
        header[a]["shape"] = [int(rng.choice(np.array(NUMBERS, object)))] * int(rng.integers(1, 10))
    elif how == "dtype":
        header[a]["dtype"] = str(rng.choice([*DTYPES, "BF16", "BOOL", ""]))
    elif how == "offset":
        header[a]["data_offsets"][int(rng.integers(2))] = int(rng.choice(np.array(NUMBERS, object)))
    elif how == "drop":
        del header[a]
    elif how == "rename":
        header[str(rng.choice(["../a", "a", "x.y", "", "a" * 300 + ".b", "é.b"]))] = header.pop(a)
    elif how == "metadata":
        header["__metadata__"] = rng.choice(np.array([None, 3, [], {}, {"neuralloader": "{}"}], object))
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    if how == "twice":
        text = text[:-1] + f", {json.dumps(a)}: {json.dumps(header[a])}}}"
    if how == "deep":
        text = text[:-1] + ', "x.y": ' + "[" * int(rng.choice([31, 33, 10**5])) + "}"
    new = text.encode() + b" " * (-len(text) % 8)
    return f"header: {how} of {a}", len(new).to_bytes(8, "little") + new + data[8 + size :]


DAMAGES = (_flip_bits, _overwrite, _truncate, _insert, _remove, _swap, _edit_entries)


# --- forgeries ------------------------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, values: Any) -> Any:
    values = list(values)
    return values[int(rng.integers(len(values)))]


def _manifest_field(parts: Parts, rng: np.random.Generator) -> str:
    name = _pick(rng, sorted(parts.manifest))
    if rng.random() < 0.15:
        del parts.manifest[name]
        return f"{name} missing"
    parts.manifest[name] = _pick(rng, [*NONSENSE, *parts.manifest.values()])
    return f"{name} = {parts.manifest[name]!r:.80}"


def _figures(parts: Parts, rng: np.random.Generator) -> str:
    """What is for information only."""
    deep: Any = 1
    for _ in range(28):
        deep = [deep]
    name = _pick(rng, ["quality", "training"])
    key = _pick(rng, ["psnr_db", "worst_psnr_db", "x", "", "\ud800"])
    parts.manifest[name] = {**parts.manifest[name], key: _pick(rng, [*NONSENSE, deep, -0.0, 1e308])}
    return f"{name}[{key!r}] = {parts.manifest[name][key]!r:.80}"


def _network_field(parts: Parts, rng: np.random.Generator) -> str:
    network = parts.manifest["network"]
    name = _pick(rng, sorted(network))
    if isinstance(network[name], list) and rng.random() < 0.7:
        network[name][int(rng.integers(len(network[name])))] = _pick(rng, NONSENSE)
    else:
        network[name] = _pick(rng, [*NONSENSE, *NUMBERS])
    if rng.random() < 0.3:
        network[_pick(rng, ["x", "width", "__class__", "frame_size"])] = 1
    return f"{name} = {network[name]!r:.80}"


def _other_network(parts: Parts, rng: np.random.Generator) -> str:
    """Another network, with the table of weights, codes and scales that belong to it."""
    network = parts.manifest["network"]
    changed = {}
    for name in rng.permutation(sorted(network))[: int(rng.integers(1, 3))].tolist():
        value = network[name]
        if isinstance(value, list):
            changed[name] = [_pick(rng, (part, part, 1, 2, 64, 300)) for part in value]
        else:
            changed[name] = _pick(rng, (1, 2, 5, 64, 256, 1000, 4096, 1 << 17, 1 << 20, *HUGE))
    network.update(changed)
    parts.manifest["frame_size"] = network["frame_size"]
    if "frames_per_clip" in changed:
        parts.manifest["frames_per_clip"] = parts.manifest["key_interval"] = changed["frames_per_clip"]
    return f"{changed}; {fit_weights(parts, rng)}"


def fit_weights(parts: Parts, rng: np.random.Generator) -> str:
    """Weights as the network of the manifest wants them."""
    record, backend = BACKENDS[parts.manifest["backend"], parts.manifest["config"]]
    network = {name: tuple(v) if isinstance(v, list) else v for name, v in parts.manifest["network"].items()}
    try:
        with torch.device("meta"):
            shapes = {name: list(p.shape) for name, p in stored_parameters(backend(record(**network))).items()}
    except Exception as error:  # the library must find out too
        return f"no such network ({type(error).__name__})"
    parts.manifest["weights"] = [[name, shape, None] for name, shape in shapes.items()]
    num_networks = len(parts.tensors["videos.num_frames"]) if parts.manifest.get("scope") == "video" else 1
    num_codes = num_networks * sum(int(np.prod(np.array(shape, object))) for shape in shapes.values())
    bytes_per_code = 1 if parts.manifest["weight_levels"] in range(257) else 2
    parts.tensors["weights.codes"] = np.frombuffer(_zeros_frame(bytes_per_code * num_codes), np.uint8)
    parts.tensors["scales.minimum"] = np.full(num_networks * len(shapes), _pick(rng, [0, 0.01, -3]), np.float16)
    parts.tensors["scales.scale"] = np.zeros(num_networks * len(shapes), np.float16)
    return f"{num_codes} weights"


def _zeros_frame(num_bytes: int) -> bytes:
    """A zstandard frame of so many zeros, or one that says so."""
    if num_bytes <= 1 << 26:
        return zstandard.ZstdCompressor(write_checksum=True).compress(bytes(num_bytes))
    full, rest = divmod(min(num_bytes, 1 << 34), 1 << 17)
    blocks = struct.pack("<I", (1 << 17) << 3 | 2)[:3] + b"\0"  # a run of 128 KiB
    end = struct.pack("<I", rest << 3 | 3)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd\xc0\x38" + struct.pack("<Q", num_bytes % 2**64) + blocks * full + end


def _codes(parts: Parts, rng: np.random.Generator) -> str:
    codes = parts.tensors["weights.codes"].tobytes()
    content = unpack_codes(codes)
    compress = zstandard.ZstdCompressor().compress
    how = _pick(
        rng,
        [
            *("run", "two frames", "rest", "short", "long", "empty", "unknown size", "skippable", "levels", "random"),
            *("xz", "long xz", "short xz", "cut xz", "two of xz", "flipped xz", "old lzma", "unchecked xz", "large xz"),
        ],
    )
    xz = lzma.compress(content)
    flipped = bytearray(xz)
    flipped[int(rng.integers(len(xz)))] ^= 1 << int(rng.integers(8))
    if how == "levels":
        parts.manifest["weight_levels"] = _pick(rng, [2, 16, 255, 256, 257, *NUMBERS])
    new = {
        "run": _zeros_frame(_pick(rng, [len(content), *HUGE])),
        "two frames": codes + codes,
        "rest": codes + b"\0" * 100,
        "short": compress(content[:-1]),
        "long": compress(content + bytes(10**7)),
        "empty": b"",
        "unknown size": zstandard.ZstdCompressor(write_content_size=False).compress(content),
        "skippable": b"\x50\x2a\x4d\x18" + struct.pack("<I", _pick(rng, [0, 2**32 - 1])) + codes,
        "levels": codes,
        "random": compress(rng.bytes(len(content))),
        "xz": xz,
        "long xz": lzma.compress(content + bytes(10**8), preset=0) if how == "long xz" else b"",
        "short xz": lzma.compress(content[:-1]),
        "cut xz": xz[: int(rng.integers(len(xz)))],
        "two of xz": xz + xz,
        "flipped xz": bytes(flipped),
        "old lzma": lzma.compress(content, lzma.FORMAT_ALONE),
        "unchecked xz": lzma.compress(content, check=lzma.CHECK_NONE),
        "large xz": _large_dictionary(xz),
    }[how]
    parts.tensors["weights.codes"] = np.frombuffer(new, np.uint8)
    return how


def unpack_codes(codes: bytes) -> bytes:
    """The content of ``weights.codes``, which is xz or zstandard."""
    return lzma.decompress(codes) if codes[:1] == b"\xfd" else zstandard.ZstdDecompressor().decompress(codes)


def _large_dictionary(xz: bytes) -> bytes:
    """An xz stream that asks its decoder for a dictionary of 4 GiB; its header's checksum is right."""
    size = 4 * (xz[12] + 1)  # of the block header, which starts behind the 12 bytes of the stream's
    header = bytearray(xz[12 : 12 + size])
    header[4] = 40
    return xz[:12] + header[:-4] + struct.pack("<I", zlib.crc32(header[:-4])) + xz[12 + size :]


def _weight_rows(parts: Parts, rng: np.random.Generator) -> str:
    rows = parts.manifest["weights"]
    row = rows[int(rng.integers(len(rows)))]
    how = _pick(rng, ["name", "shape", "axis", "row", "twice", "drop", "order", "more"])
    if how == "name":
        row[0] = _pick(rng, ["", "x", "\ud800", "head.out.weight", 3, None])
    elif how == "shape":
        row[1] = _pick(rng, [[], [0], [2**40, 2**40], row[1][::-1], [*row[1], 1], [2**63] * 8, [2**62, 0], None, [1.0]])
    elif how == "axis":
        row[2] = _pick(rng, [None, 0, 1, 2, 3, 4, -1, 2**63, "0", True])
    elif how == "row":
        rows[0] = _pick(rng, NONSENSE)
    elif how == "twice":
        rows.append(row)
    elif how == "drop":
        rows.remove(row)
    elif how == "order":
        rows.reverse()
    else:
        rows += [[f"w{i}", [1 << 16], None] for i in range(_pick(rng, [1, 1000]))]
    return f"{how} of {row!r:.80}"


def _scales(parts: Parts, rng: np.random.Generator) -> str:
    name = _pick(rng, ["scales.minimum", "scales.scale"])
    values = parts.tensors[name].copy()
    where = rng.random(len(values)) < _pick(rng, [0.01, 0.5, 1])
    values[where] = _pick(rng, [np.nan, np.inf, -np.inf, -1, -0.0, 65504, 6e-8, 300])
    parts.tensors[name] = values
    return f"{name}: {values[where][:1]}"


INTEGER_TABLES = (
    *("videos.num_frames", "videos.num_source_frames", "videos.label", "videos.source_size", "clips.video"),
    *("videos.splits", "videos.num_nominal_frames"),
    *("clips.first_frame", "clips.num_valid", "clips.start_key", "clips.end_key", "keys.video", "keys.frame"),
    *("keyframes.size", "keyframes.crc32", "latents.size", "latents.crc32"),
)


def _table_value(parts: Parts, rng: np.random.Generator) -> str:
    name = _pick(rng, [name for name in INTEGER_TABLES if name in parts.tensors and parts.tensors[name].size])
    values = parts.tensors[name].astype(object).ravel()
    row = int(rng.integers(len(values)))
    values[row] = _pick(rng, (*NUMBERS, *values, -(2**63)))
    kind = next(k for k in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8") if _holds(np.dtype(k), values))
    if name.startswith(("keyframes", "latents")) and rng.random() < 0.8:
        kind, values = parts.tensors[name].dtype, values % 2**16
    parts.tensors[name] = values.astype(kind).reshape(parts.tensors[name].shape)
    return f"{name}[{row}] = {values[row]}"


def _holds(dtype: np.dtype, values: np.ndarray) -> bool:
    high = np.iinfo(dtype).max if max(values) < 2**63 or dtype == np.uint64 else -1
    return np.iinfo(dtype).min <= min(values) and (max(values) <= high or dtype == np.int64)


def _table_shape(parts: Parts, rng: np.random.Generator) -> str:
    name = _pick(rng, sorted(parts.tensors))
    values = parts.tensors[name]
    rows = len(values) if values.ndim else 0
    how = _pick(rng, ["drop", "more", "none", "column", "scalar", "dtype", "order", "many", "axes", "missing", "zero"])
    new = {
        "drop": values[:-1],
        "more": np.concatenate([values, values[-1:]]),
        "none": values[:0],
        "column": values[:, None],
        "scalar": np.zeros((), values.dtype),
        "dtype": _cast(values, _pick(rng, list(DTYPES.values()))),
        "order": values[rng.permutation(rows)],
        "many": np.tile(values, (_pick(rng, [2, 50]), *[1] * (values.ndim - 1))),
        "axes": values.reshape(*[1] * 7, -1),
        "missing": values,
        "zero": np.zeros_like(values),
    }[how]
    parts.tensors[name] = new
    if how == "missing":
        del parts.tensors[name]
    return f"{how} of {name}"


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def _entry(parts: Parts, rng: np.random.Generator) -> str:
    """Header and manifest agree on what cannot be."""
    name = _pick(rng, sorted(parts.tensors))
    size = parts.tensors[name].nbytes
    how = _pick(rng, ["bytes", "axes", "empty", "offsets", "dtype", "product", "extra", "names"])
    if how == "bytes":
        parts.entries[name] = {"dtype": "U8", "shape": [size]}
    elif how == "axes":
        parts.entries[name] = {"dtype": "U8", "shape": [*[1] * _pick(rng, [6, 7, 8, 60]), size]}
    elif how == "empty":
        parts.tensors[name] = np.zeros(0, parts.tensors[name].dtype)
        parts.entries[name] = {"shape": _pick(rng, [[0], [0] * 8, [2**40, 0], [0, 2**20, 2**20], [7, 0]])}
    elif how == "offsets":
        start = _pick(rng, NUMBERS)
        parts.entries[name] = {
            "data_offsets": _pick(rng, [[start, min(start + size, 2**64 - 1)], [size, 0], [0, size], [0.0, size], []])
        }
    elif how == "dtype":
        parts.entries[name] = {"dtype": _pick(rng, [*DTYPES, "F8", None, 3, ["U8"]])}
    elif how == "product":
        parts.entries[name] = {"dtype": "U8", "shape": [2**32, 2**32, max(1, size)]}
    elif how == "extra":
        parts.tensors["unknown.data"] = np.zeros(_pick(rng, [0, 1, 1000]), np.uint8)
    else:
        parts.tensors = {
            _pick(rng, ["a", "../x.y", "é.x", f"x.{n}"]) if n == name else n: t for n, t in parts.tensors.items()
        }
    return f"{how} of {name} {parts.entries.get(name, '')!r:.80}"


def _header_text(parts: Parts, rng: np.random.Generator) -> str:
    how, text = _pick(
        rng,
        [
            ("NaN", '"x":NaN'),
            ("Infinity", '"x":-Infinity'),
            ("digits", '"x":' + "9" * 30000),
            ("exponent", '"x":1e999'),
            ("deep", '"x":' + "[" * 2000 + "]" * 2000),
            ("deeper", '"x":' + "[" * 10**6),
            ("twice", '"__metadata__":{}'),
            ("many", ",".join(f'"x{i}.y":0' for i in range(50000))),
            ("strings", '"x":"' + "\\" * 99999),
            ("no UTF-8", '"x":"\udcff\udcfe"'),
            ("surrogate", '"\\ud800.x":{}'),
            ("byte order", ""),
            ("brackets in strings", '"x":["' + "[{" * 5000 + '"]'),
        ],
    )
    if how == "byte order":
        parts.edit_header = lambda header: "\ufeff" + header
    else:
        parts.edit_header = lambda header: "{" + text + "," + header[1:]
    return how


def _names(parts: Parts, rng: np.random.Generator) -> str:
    names = parts.tensors["videos.names"].tobytes().split(b"\0")[:-1]
    bad = _pick(
        rng,
        [
            *(b"../x", b"/etc/x", b"a/../../x", b"a\\b", b"", b".", b"a//b", b"\xff\xfe", b"\xed\xa0\x80", b"C:x"),
            *(b"a\0b", names[-1], b"x" * 10**6, b"a/" * 5000 + b"x", b"\x1b[2Jx", "\u202eavi.x".encode(), b"CON"),
        ],
    )
    names[int(rng.integers(len(names)))] = bad
    table = _pick(rng, ["videos.names", "videos.names", "skipped.text", "videos.problems"])
    end = _pick(rng, [b"\0", b"\0", b"\0", b"", b"\0\0"])
    parts.tensors[table] = np.frombuffer(b"\0".join(names) + end, np.uint8)
    return f"{table}: {bad!r:.60}"


def _classes(parts: Parts, rng: np.random.Generator) -> str:
    many = [f"c{i}" for i in range(20000)]
    parts.manifest["classes"] = _pick(
        rng,
        [
            [],
            ["a"],
            ["a", "a"],
            ["", "b"],
            ["\ud800", "b"],
            ["a", "\x1b[2J"],
            ["a", 3],
            many,
            [["a"], ["b"]],
            ["a" * 10**5, "b"],
        ],
    )
    return f"{len(parts.manifest['classes'])} like {parts.manifest['classes'][:1]!r:.60}"


def _rates(parts: Parts, rng: np.random.Generator) -> str:
    name = _pick(rng, ["videos.frame_rate", "videos.source_frame_rate"])
    values = parts.tensors[name].copy()
    values[0] = _pick(rng, [np.nan, np.inf, -1.0, 0.0, 5e-324, 1.7e308])
    parts.tensors[name] = values
    return f"{name} = {values[0]}"


def _videos(parts: Parts, rng: np.random.Generator) -> str:
    """Other videos, clips and key-frames, which tile; only the pictures are missing."""
    frames_per_clip = _pick(rng, [1, 8, 255, 256])
    lengths = _pick(rng, [[1], [9] * 100, [256 * 100], [256 * 20000], [2**40], [1] * 3000])
    parts.manifest |= {"frames_per_clip": frames_per_clip, "key_interval": frames_per_clip * _pick(rng, [1, 2, 2**40])}
    if "frames_per_clip" in parts.manifest["network"]:
        parts.manifest["network"]["frames_per_clip"] = frames_per_clip
    num_clips = [min(20000, -(-length // frames_per_clip)) for length in lengths]
    first = np.concatenate([np.arange(n) * frames_per_clip for n in num_clips])
    video = np.repeat(np.arange(len(lengths)), num_clips)
    num_valid = np.minimum(frames_per_clip, np.array(lengths)[video] - first)
    every = {"videos.num_frames": lengths, "videos.num_source_frames": lengths, "videos.label": [0] * len(lengths)}
    for name in ("videos.num_nominal_frames", "videos.splits", "videos.problems"):
        parts.tensors.pop(name, None)  # a pack without them is as good
    tables = every | {"clips.video": video, "clips.first_frame": first, "clips.num_valid": num_valid}
    has_keys = rng.random() < 0.7
    key = video if has_keys else np.full(len(video), -1)
    tables |= {"clips.start_key": key, "clips.end_key": key}
    tables |= {"keys.video": np.arange(len(lengths) * has_keys), "keys.frame": np.zeros(len(lengths) * has_keys, int)}
    if rng.random() < 0.5:  # the end key of every clip at its video's start would be refused
        tables["clips.start_key"], tables["clips.end_key"] = key, key
        num_valid[first > 0] = frames_per_clip
    parts.tensors |= {name: np.array(values, np.int64) for name, values in tables.items()}
    for name in ("videos.frame_rate", "videos.source_frame_rate"):
        parts.tensors[name] = np.full(len(lengths), 10.0)
    parts.tensors["videos.source_size"] = np.full((len(lengths), 2), 48, np.uint8)
    parts.tensors["videos.names"] = np.frombuffer(b"".join(b"%d\0" % i for i in range(len(lengths))), np.uint8)
    parts.set_items("keyframes", [parts.items("keyframes")[0]] * (len(lengths) * has_keys))
    if "latents.size" in parts.tensors:
        parts.set_items("latents", [b""] * _pick(rng, [len(video), max(0, len(video) - 1)]))
        if rng.random() < 0.7:
            _constant_latents(parts)
    return f"{len(lengths)} of {lengths[0]} frames in clips of {frames_per_clip}, keys {has_keys}"


def _constant_latents(parts: Parts) -> None:
    """Tables by which no latent takes a byte."""
    parts.tensors["latents.offset"] = np.zeros_like(parts.tensors["latents.offset"])
    parts.tensors["latents.frequencies"] = np.full((len(parts.tensors["latents.offset"]), 1), 4096, np.uint16)


def _no_keys(parts: Parts, rng: np.random.Generator) -> str:
    """No key-frame at all, in a pack whose network needs them."""
    num_clips = len(parts.tensors["clips.video"])
    for name in ("clips.start_key", "clips.end_key"):
        parts.tensors[name] = np.full(num_clips, -1, np.int8)
    parts.tensors["keys.video"] = parts.tensors["keys.frame"] = np.zeros(0, np.uint8)
    if rng.random() < 0.8:
        parts.set_items("keyframes", [])
    parts.manifest["key_interval"] = _pick(rng, [8, 8, 16, None])
    if "latents.size" in parts.tensors and rng.random() < 0.8:
        parts.set_items("latents", [b""] * num_clips)
        _constant_latents(parts)
    return f"interval {parts.manifest['key_interval']}"


def _latent_tables(parts: Parts, rng: np.random.Generator) -> str:
    if "latents.offset" not in parts.tensors:
        parts.tensors["latents.offset"] = np.zeros(8, np.int16)
        parts.tensors["latents.frequencies"] = np.full((8, 1), 4096, np.uint16)
        parts.set_items("latents", [b""] * len(parts.tensors["clips.video"]))
        return "where none belong"
    channels = len(parts.tensors["latents.offset"])
    how = _pick(rng, ["one", "even", "wide", "sum", "skewed", "offset", "grid", "grid of nonsense", "columns"])
    columns = _pick(rng, [2, 16, 256])
    frequencies = np.full((channels, columns), 4096 // columns, np.uint16)
    if how == "one":
        _constant_latents(parts)
    elif how == "even":
        parts.tensors["latents.frequencies"] = frequencies
    elif how == "wide":
        parts.tensors["latents.frequencies"] = np.full((channels, 4096), 1, np.uint16)
    elif how == "sum":
        frequencies[0, 0] = _pick(rng, [0, 65535])
        parts.tensors["latents.frequencies"] = frequencies
    elif how == "skewed":
        frequencies[:] = 0
        frequencies[:, 0], frequencies[:, 1] = 4095, 1
        parts.tensors["latents.frequencies"] = frequencies
    elif how == "offset":
        parts.tensors["latents.offset"] = np.full(channels, _pick(rng, [-128, 127, 128, -32768, 32767]), np.int16)
    elif how == "columns":
        parts.tensors["latents.frequencies"] = np.zeros((channels, 0), np.uint16)
    else:
        value = 1.0 if how == "grid" else _pick(rng, [np.nan, np.inf, -5, 65504])
        parts.tensors["latents.minimum"] = np.full(_pick(rng, [channels, channels, 1]), value, np.float16)
        if rng.random() < 0.8:
            parts.tensors["latents.scale"] = parts.tensors["latents.minimum"]
    return how


def _items(parts: Parts, rng: np.random.Generator) -> str:
    """An item of a blob is other bytes, and its CRC32 is theirs."""
    prefix = _pick(rng, [p for p in ("keyframes", "latents") if f"{p}.size" in parts.tensors])
    items = parts.items(prefix)
    row = int(rng.integers(len(items)))
    item = bytearray(items[row])
    how = _pick(rng, ["empty", "short", "long", "random", "flipped", "flipped", "flipped", "swapped", "ones", "huge"])
    if how == "flipped" and item:
        for _ in range(_pick(rng, [1, 3, 20])):
            item[int(rng.integers(len(item)))] ^= 1 << int(rng.integers(8))
    new = {
        "empty": b"",
        "short": bytes(item[: int(rng.integers(max(1, len(item))))]),
        "long": bytes(item) + rng.bytes(2),
        "random": rng.bytes(len(item)),
        "flipped": bytes(item),
        "swapped": items[row - 1],
        "ones": b"\xff" * len(item),
        "huge": bytes(item) * 300,
    }[how]
    items[row] = new
    parts.set_items(prefix, items)
    return f"{how}: {prefix} {row}"


def _images(parts: Parts, rng: np.random.Generator) -> str:
    """Key-frames of another codec, size or mode, and files that claim to be larger than they are."""
    codec = _pick(rng, ["png", "jpeg", "webp", "avif", "gif"])
    height, width = parts.manifest["frame_size"]
    size = _pick(rng, [(width, height), (width, height), (width, height), (height, width), (1, 1), (200, 100)])
    mode = _pick(rng, ["RGB", "RGB", "RGB", "L", "RGBA", "P"])
    options: dict[str, Any] = {**_pick(rng, [{}, {}, {"lossless": True}, {"progressive": True}, {"save_all": True}])}
    if codec == "jpeg":
        options.pop("save_all", None)
    if mode in ("P", "RGBA") and codec == "jpeg":
        mode = "L"
    pixels = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    file = io.BytesIO()
    pixels.save(file, codec.upper(), **options)
    data = bytearray(file.getvalue())
    claim = _pick(rng, [None, None, (16384, 16384), (65535, 65535), (0, 0)])
    if claim:
        _claim_size(data, codec, claim)
        if rng.random() < 0.5:
            side = max(1, min(16384, claim[0]))
            parts.manifest["frame_size"] = parts.manifest["network"]["frame_size"] = [side, side]
    parts.manifest["keyframe_codec"] = _pick(rng, [codec, codec, codec, "png", "avif"])
    parts.tensors["keyframes.template"] = np.zeros(0, np.uint8)
    parts.set_items("keyframes", [bytes(data)] * len(parts.tensors["keys.video"]))
    return f"{codec} {size} {mode} {options}, claims {claim}"


def _claim_size(data: bytearray, codec: str, size: tuple[int, int]) -> None:
    """Write another size into the header of an image file."""
    width, height = size
    if codec == "png":
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif codec == "jpeg" and (at := data.find(b"\xff\xc0")) > 0:
        struct.pack_into(">HH", data, at + 5, height, width)
    elif codec == "webp" and data[12:16] == b"VP8 ":
        struct.pack_into("<HH", data, 26, width & 0x3FFF, height & 0x3FFF)
    elif codec == "avif" and (at := data.find(b"ispe")) > 0:
        struct.pack_into(">II", data, at + 8, width, height)


def _frame_size(parts: Parts, rng: np.random.Generator) -> str:
    """Frames of another size, with the weights that belong to them; the key-frames stay as they are, or go to PNG."""
    size = _pick(rng, [[16384, 16384], [16, 16384], [4096, 4096], [16, 16], [64, 48], [1, 1], [8192, 16], [768, 512]])
    parts.manifest["frame_size"] = parts.manifest["network"]["frame_size"] = size
    return f"{size}; {fit_weights(parts, rng)}"


def _template(parts: Parts, rng: np.random.Generator) -> str:
    template = bytearray(parts.tensors["keyframes.template"].tobytes())
    how = _pick(rng, ["flipped", "flipped", "flipped", "short", "long", "random", "doubled", "image"])
    if how == "flipped" and template:
        for _ in range(_pick(rng, [1, 3])):
            template[int(rng.integers(len(template)))] ^= 1 << int(rng.integers(8))
    new = {
        "flipped": bytes(template),
        "short": bytes(template[: int(rng.integers(len(template) + 1))]),
        "long": bytes(template) + bytes(_pick(rng, [1, 10**5, 4 << 20])),
        "random": rng.bytes(100),
        "doubled": bytes(template) * 2,
        "image": bytes(template) + parts.items("keyframes")[0],
    }[how]
    parts.tensors["keyframes.template"] = np.frombuffer(new, np.uint8)
    return how


def _several(parts: Parts, rng: np.random.Generator) -> str:
    told = []
    for _ in range(int(rng.integers(2, 5))):
        kind = _pick(rng, FORGERIES)
        try:
            told.append(f"{kind.__name__} {kind(parts, rng)}")
        except Exception:  # two changes that do not go together are one
            told.append(f"{kind.__name__} in vain")
    try:
        parts.sign()
    except Exception:
        parts.manifest["weights"] = parts.entries = {}
    return ", ".join(told)


FORGERIES = (
    *(_manifest_field, _figures, _network_field, _other_network, _codes, _weight_rows, _scales, _table_value),
    *(_table_shape, _entry, _header_text, _names, _classes, _rates, _videos, _no_keys, _latent_tables, _items, _images),
    *(_frame_size, _template),
)


NEED_KEYFRAMES: tuple[Callable[..., Any], ...] = (_videos, _no_keys, _images, _template, _several)


# --- reading --------------------------------------------------------------------------------------------------------


def read_everything(path: Path, *, decode: bool) -> str:
    """Everything that a program may ask of a pack; gives a digest of the answers.

    Args:
        path: the pack.
        decode: whether to decode some frames too.
    """
    digest = hashlib.sha256()
    pack = Pack(path)
    digest.update(
        repr((pack.description, tuple(pack.index.videos), pack.index.skipped)).encode("utf-8", "surrogatepass")
    )
    for table in (pack.index.clips, pack.index.keys, pack.frames.all):
        for column in vars(table).values():
            digest.update(column.tobytes())
    facts = describe_pack(pack)
    told = "\n".join(info_lines(facts)).replace(str(path), "").encode()
    digest.update(told + json.dumps({**facts, "path": ""}).encode())
    for name, values in pack.load_backend(with_encoder=pack.is_appendable).named_parameters():
        digest.update(name.encode() + values.numpy().tobytes())
    if pack.latent_shape is not None:
        latents = pack.latents()
        digest.update(latents.symbols.tobytes() + repr(latents.grid).encode())
    if pack.description.key_interval is not None:
        for start in range(0, len(pack.index.keys), KEYFRAMES_PER_STEP):
            rows = np.arange(start, min(start + KEYFRAMES_PER_STEP, len(pack.index.keys)))
            digest.update(pack.keyframes(rows).tobytes())
    if (
        decode
        and pack.frame_size[0] * pack.frame_size[1] * pack.description.frames_per_clip <= 8 * MAX_PIXELS_TO_DECODE
    ):
        rows = np.linspace(0, len(pack.frames) - 1, FRAMES_TO_DECODE).astype(int)
        digest.update(Decoder(pack, torch.device("cpu")).decode(rows).numpy().tobytes())
    return digest.hexdigest()


def check(mutation: Mutation, path: Path, intact: str, *, decode: bool) -> Outcome:
    """Read a mutation, and see that nothing happens that must not.

    Args:
        mutation: what to read.
        path: where to write it.
        intact: what ``read_everything`` gives for the whole pack.
        decode: as there.

    Raises:
        AssertionError: it was read as something else, or refused in a way that helps nobody.
    """
    path.write_bytes(mutation.data)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            found = read_everything(path, decode=decode)
    except PackError as error:
        text = str(error)
        assert str(path) in text, f"which file is it? {text}"
        assert len(text) - len(str(path)) > 10, f"what is wrong with it? {text}"
        assert len(text) < 3000, f"a message of {len(text)} characters: {text[:500]}"
        return "refused"
    if found == intact:
        return "identical"
    assert mutation.is_signed, "damage was read as if it belonged there"
    return "read"


class TookTooLong(BaseException):
    """A file that holds its reader up. No ``Exception``, so that nothing on the way takes it for its own."""


def main() -> None:
    """Read many mutations of a pack; prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="0 reads the whole pack only")
    parser.add_argument("--seconds", type=int, default=30, help="for one file")
    parser.add_argument("--tell", action="store_true", help="what every mutation became")
    options = parser.parse_args()
    torch.set_num_threads(1)
    intact = {decode: read_everything(options.pack, decode=decode) for decode in (False, True)}
    start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    growth: list[tuple[int, int, str]] = []

    def stop(*unused: object) -> None:
        raise TookTooLong

    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.first, options.first + options.count):
            mutation = mutate(options.pack, options.seed, number)
            decode = number % 3 == 0
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            faulthandler.dump_traceback_later(4 * options.seconds, exit=True)  # where no signal gets through
            signal.alarm(options.seconds)
            try:
                outcome: str = check(mutation, Path(folder) / "fuzzed.nvpack", intact[decode], decode=decode)
            except (Exception, TookTooLong) as error:
                outcome = "failed"
                problems.append(f"{number} ({mutation.what:.300}): {type(error).__name__}: {error!s:.600}")
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
            outcomes[outcome] += 1
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if after - before > 20 << 10:
                growth.append((number, (after - before) >> 10, mutation.what[:200]))
            if options.tell:
                print(number, outcome, mutation.what[:150], file=sys.stderr)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"outcomes": outcomes, "problems": problems, "growth_mib": growth}
    print(json.dumps({**facts, "intact_kib": start_kib, "peak_kib": peak_kib}))


if __name__ == "__main__":
    main()
