"""Entropy coders on the weights and latents of packs: bytes against the entropy, and speed.

    python benchmarks/entropy_coders.py [fast.nvpack paper.nvpack ...] [--bits 8 7 6 5 4]

Weights are those of the packs, quantised again at each number of bits; without packs, both kinds of symbols are made
up: Gaussian weights, and Laplace latents of about one bit a symbol. Every coder is checked to give its symbols back.
Its bytes include its probability tables, compressed with zstd: for weights one table for each large tensor and one for
all small ones ("each"), or a single one ("one"); for latents a table a channel, as in a pack. Speeds are symbols (a
byte each) by CPU time of one thread. Coders: zstandard at level 22, lzma at preset 9 "extreme", rANS (``codecs.rans``),
and constriction where it is installed (pip install constriction). Prints two Markdown tables.
"""

import argparse
import lzma
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralloader.codecs.lossless import compress_bytes, decompress_bytes
from neuralloader.codecs.quantize import quantize
from neuralloader.codecs.rans import LatentTables, decode_blocks, encode_blocks, fit_tables
from neuralloader.packfile import Pack, stored_parameters

try:
    import constriction  # pyright: ignore[reportMissingImports]
except ImportError:
    constriction = None

LARGE_TENSOR = 2048  # codes, from which on a tensor has a table of its own
CODES_PER_LANE, MAX_LANES = 4096, 64  # a lane costs 4 bytes
WHEELS = {
    "zstd": "yes",
    "zstd a block": "yes",
    "lzma": "in Python",
    "rANS one": "ours, numpy",
    "rANS each": "ours, numpy",
    "rANS": "ours, numpy",
    "constriction": "none for aarch64 Linux",
    "constriction each": "none for aarch64 Linux",
}

Bytes = Sequence[bytes]


@dataclass(frozen=True)
class Coded:
    """What a coder made of some symbols.

    Attributes:
        num_bytes: with its tables.
        encode_seconds, decode_seconds: CPU time.
    """

    num_bytes: int
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Weights:
    """Codes of a network's weights.

    Attributes:
        name: to show.
        bits: of a code.
        tensors: uint8, one for each parameter.
    """

    name: str
    bits: int
    tensors: list[np.ndarray]

    @property
    def groups(self) -> list[np.ndarray]:
        """What has a table of its own: each large tensor, and all small ones together."""
        small = [tensor for tensor in self.tensors if len(tensor) < LARGE_TENSOR]
        large = [tensor for tensor in self.tensors if len(tensor) >= LARGE_TENSOR]
        return large + ([np.concatenate(small)] if small else [])


@dataclass(frozen=True)
class Latents:
    """Symbols of latents.

    Attributes:
        name: to show.
        symbols: (N, C, h, w) int8.
        per_block: (num_blocks,) frames of each block.
    """

    name: str
    symbols: np.ndarray
    per_block: np.ndarray


def measure(encode: Callable[[], Bytes], decode: Callable[[Bytes], np.ndarray], expected: np.ndarray) -> Coded:
    """Run a coder there and back; the tables it needs are measured elsewhere."""
    start = time.process_time()
    coded = encode()
    middle = time.process_time()
    decoded = decode(coded)
    end = time.process_time()
    if not np.array_equal(decoded.ravel(), expected.ravel()):
        raise AssertionError("a coder did not give its symbols back")
    return Coded(sum(map(len, coded)), middle - start, end - middle)


def entropy_bytes(symbols: np.ndarray) -> float:
    """Order-0 entropy of all symbols under one table."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def table_bytes(tables: Sequence[LatentTables]) -> int:
    """Bytes of tables: for each row its first symbol and its number of columns, then all frequencies, compressed."""
    frequencies = b"".join(table.frequencies.tobytes() for table in tables)
    return len(compress_bytes(frequencies)) + 4 * sum(len(table.offset) for table in tables)


def code_stream(symbols: np.ndarray, coder: str) -> Coded:
    """All symbols as one stream of a general compressor."""
    data = symbols.tobytes()
    if coder == "zstd":
        return measure(
            lambda: [compress_bytes(data)],
            lambda coded: np.frombuffer(decompress_bytes(coded[0], len(data)), symbols.dtype),
            symbols,
        )
    return measure(
        lambda: [lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)],
        lambda coded: np.frombuffer(lzma.decompress(coded[0]), symbols.dtype),
        symbols,
    )


def code_rans(groups: Sequence[np.ndarray]) -> Coded:
    """Weights by our rANS, a table for each group, in as many lanes as are worth their bytes."""
    parts = [(group.astype(np.int16) - 128).astype(np.int8).reshape(-1, 1, 1, 1) for group in groups]
    tables = [fit_tables(part) for part in parts]
    lanes = [min(max(len(part) // CODES_PER_LANE, 1), MAX_LANES) for part in parts]
    per_lane = [np.diff(np.linspace(0, len(part), n + 1).astype(int)) for part, n in zip(parts, lanes, strict=True)]

    def encode() -> Bytes:
        return [
            block
            for part, counts, table in zip(parts, per_lane, tables, strict=True)
            for block in encode_blocks(part, counts, table)
        ]

    def decode(blocks: Bytes) -> np.ndarray:
        decoded, first = [], 0
        for counts, table in zip(per_lane, tables, strict=True):
            decoded.append(decode_blocks(blocks[first : first + len(counts)], counts, (1, 1, 1), table).ravel())
            first += len(counts)
        return np.concatenate(decoded)

    coded = measure(encode, decode, np.concatenate(parts))
    sizes = 2 * sum(map(len, per_lane))
    return Coded(coded.num_bytes + sizes + table_bytes(tables), coded.encode_seconds, coded.decode_seconds)


def code_constriction(groups: Sequence[np.ndarray]) -> Coded:
    """Symbols by constriction's ANS, all in one stream, with the tables that our rANS would have."""
    stream: Any = constriction.stream  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    stack, Categorical = stream.stack, stream.model.Categorical
    parts = [group.astype(np.int16) - 128 if group.dtype == np.uint8 else group for group in groups]
    tables = [fit_tables(part.astype(np.int8).reshape(-1, 1, 1, 1)) for part in parts]
    coded_parts = [
        (part.ravel() - int(table.offset[0])).astype(np.int32)
        for part, table in zip(parts, tables, strict=True)
        if table.varies[0]  # it knows no table of one symbol
    ]
    # Model weights are floats, and 0 is not among them; a table's rounding makes no difference at this size.
    models = [
        Categorical(np.maximum(table.frequencies[0], 1e-3).astype(np.float64) / 4096, perfect=False)
        for table in tables
        if table.varies[0]
    ]

    def encode() -> Bytes:
        coder = stack.AnsCoder()
        for part, model in zip(reversed(coded_parts), reversed(models), strict=True):
            coder.encode_reverse(part, model)
        return [coder.get_compressed().tobytes()]

    def decode(coded: Bytes) -> np.ndarray:
        coder = stack.AnsCoder(np.frombuffer(coded[0], np.uint32))
        return np.concatenate([coder.decode(model, len(part)) for part, model in zip(coded_parts, models, strict=True)])

    coded = measure(encode, decode, np.concatenate(coded_parts))
    return Coded(coded.num_bytes + table_bytes(tables), coded.encode_seconds, coded.decode_seconds)


def code_weights(weights: Weights) -> dict[str, Coded]:
    """Every coder on the codes of one network."""
    codes = np.concatenate(weights.tensors)
    coded = {
        "zstd": code_stream(codes, "zstd"),
        "lzma": code_stream(codes, "lzma"),
        "rANS one": code_rans([codes]),
        "rANS each": code_rans(weights.groups),
    }
    if constriction is not None:
        coded["constriction each"] = code_constriction(weights.groups)
    return coded


def code_latents(latents: Latents) -> dict[str, Coded]:
    """Every coder on latents; two of them keep blocks apart, so that each can be read without the others."""
    symbols, per_block = latents.symbols, latents.per_block
    tables = fit_tables(symbols)
    frames = np.split(symbols, np.cumsum(per_block)[:-1])
    rans = measure(
        lambda: encode_blocks(symbols, per_block, tables),
        lambda blocks: decode_blocks(blocks, per_block, symbols.shape[1:], tables),
        symbols,
    )
    a_block = measure(
        lambda: [compress_bytes(part.tobytes()) for part in frames],
        lambda blocks: np.concatenate(
            [
                np.frombuffer(decompress_bytes(block, part.size), np.int8)
                for block, part in zip(blocks, frames, strict=True)
            ]
        ),
        symbols,
    )
    by_channel = np.ascontiguousarray(symbols.transpose(1, 0, 2, 3))  # kinder to compressors without tables
    coded = {
        "zstd": code_stream(by_channel, "zstd"),
        "zstd a block": a_block,
        "lzma": code_stream(by_channel, "lzma"),
        "rANS": Coded(rans.num_bytes + tables_as_stored(tables), rans.encode_seconds, rans.decode_seconds),
    }
    if constriction is not None:
        coded["constriction"] = code_constriction(list(by_channel))
    return coded


def tables_as_stored(tables: LatentTables) -> int:
    """Bytes of the tables in a pack, where they are not compressed."""
    return tables.offset.nbytes + tables.frequencies.nbytes


def estimated_bytes(latents: Latents) -> float:
    """What the stored tables promise: the sum of -log2 of each symbol's probability."""
    tables = fit_tables(latents.symbols)
    channels = np.arange(latents.symbols.shape[1])[None, :, None, None]
    columns = latents.symbols - tables.offset[:, None, None].astype(np.int64)
    return float(-np.log2(tables.frequencies[channels, columns] / 4096).sum() / 8)


def weights_of_packs(packs: Sequence[Pack], bits: Sequence[int]) -> list[Weights]:
    """The dequantised weights of packs, quantised again to 2^bits levels by their networks' choice of axes."""
    found = []
    for pack in packs:
        backend = pack.load_backend()
        values = {name: p.detach().numpy() for name, p in stored_parameters(backend).items()}
        for num_bits in bits:
            codes = [
                quantize(v, bits=num_bits, axis=backend.scale_axis(name, v.shape)).codes.ravel()
                for name, v in values.items()
            ]
            found.append(Weights(Path(pack.path).stem, num_bits, codes))
    return found


def made_up_weights(bits: Sequence[int]) -> list[Weights]:
    rng = np.random.default_rng(0)
    shapes = [(64, 80, 3, 3), (128, 64, 3, 3), (128, 32, 3, 3), (48, 32, 3, 3), (128, 32, 1, 1), *[(64,)] * 5]
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return [
        Weights(
            "Gaussian",
            num_bits,
            [quantize(v, bits=num_bits, axis=0 if v.ndim > 1 else None).codes.ravel() for v in values],
        )
        for num_bits in bits
    ]


def made_up_latents() -> Latents:
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.05, 1, 8)[:, None, None]
    symbols = np.rint(rng.laplace(size=(1050, 8, 8, 10)) * scales).astype(np.int8)
    return Latents("Laplace", symbols, np.full(150, 7))


def latents_of(pack: Pack) -> Latents:
    per_clip = pack.frames.latents_per_clip()
    return Latents(Path(pack.path).stem, pack.latents().symbols, per_clip[per_clip > 0])


def speeds(num_symbols: int, coded: Sequence[dict[str, Coded]]) -> list[tuple[str, list[str]]]:
    """The last rows of a table: speed of each coder over all rows, and where it is to be had."""
    seconds = [
        ("encode, MB/s", {name: sum(row[name].encode_seconds for row in coded) for name in coded[0]}),
        ("decode, MB/s", {name: sum(row[name].decode_seconds for row in coded) for name in coded[0]}),
    ]
    rows = [(what, [f"{num_symbols / 1e6 / max(s, 1e-6):.3g}" for s in each.values()]) for what, each in seconds]
    return [*rows, ("wheels", [WHEELS[name] for name in coded[0]])]


def print_weights(rows: Sequence[Weights]) -> None:
    coded = [code_weights(row) for row in rows]
    names = list(coded[0])
    print("Weights: bits a code by order-0 entropy; then bytes against the entropy under one table, tables included.\n")
    print(f"| weights | codes | bits | entropy, one table | a table each | {' | '.join(names)} | each against zstd |")
    print("|---" * (6 + len(names)) + "|")
    for row, results in zip(rows, coded, strict=True):
        codes = np.concatenate(row.tensors)
        entropy, entropy_each = entropy_bytes(codes), sum(map(entropy_bytes, row.groups))
        saved = 1 - results["rANS each"].num_bytes / results["zstd"].num_bytes
        print(
            f"| {row.name} | {len(codes):,} | {row.bits} | {8 * entropy / len(codes):.3f} "
            f"| {8 * entropy_each / len(codes):.3f} "
            + "".join(f"| {result.num_bytes / entropy:.4f} " for result in results.values())
            + f"| {-saved:+.1%} |"
        )
    for what, cells in speeds(sum(len(t) for row in rows for t in row.tensors), coded):
        print(f"| {what} | | | | | {' | '.join(cells)} | |")


def print_latents(rows: Sequence[Latents]) -> None:
    coded = [code_latents(row) for row in rows]
    names = list(coded[0])
    print("\nLatents: bits a symbol by order-0 entropy, a table a channel; bytes against it, tables included.\n")
    print(f"| latents | symbols | blocks | entropy | tables' estimate | {' | '.join(names)} | rANS against estimate |")
    print("|---" * (6 + len(names)) + "|")
    for row, results in zip(rows, coded, strict=True):
        entropy = sum(entropy_bytes(row.symbols[:, c]) for c in range(row.symbols.shape[1]))
        estimate = estimated_bytes(row)
        extra = results["rANS"].num_bytes - estimate
        print(
            f"| {row.name} | {row.symbols.size:,} | {len(row.per_block)} | {8 * entropy / row.symbols.size:.3f} "
            f"| {estimate / entropy:.4f} "
            + "".join(f"| {result.num_bytes / entropy:.4f} " for result in results.values())
            + f"| {extra / estimate:+.2%} ({extra / len(row.per_block):.1f} bytes a block) |"
        )
    for what, cells in speeds(sum(row.symbols.size for row in rows), coded):
        print(f"| {what} | | | | | {' | '.join(cells)} | |")
    print("\nzstd, lzma and constriction code all latents in one stream here; the others keep each block apart.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="*", type=Path)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 7, 6, 5, 4], help="of the weights")
    options = parser.parse_args()
    packs = [Pack(path) for path in options.packs]
    print_weights(weights_of_packs(packs, options.bits) if packs else made_up_weights(options.bits))
    latents = [latents_of(pack) for pack in packs if pack.latent_shape is not None] if packs else [made_up_latents()]
    if latents:
        print_latents(latents)


if __name__ == "__main__":
    main()
