"""What a pack of a gigabyte costs: memory while it is written and opened, time to open it, random reads from it.

    python benchmarks/big_pack.py [--items 500000] [--folder /tmp]

The pack is made up: key-frames are 64 JPEGs of 2 kB over and over, the network has not been trained; index, weights and
format are real. Each row runs in a process of its own. Memory is the peak over what the process had after importing,
bytes read are those of all its read calls, and "from disk" are those among them that were not in the page cache, which
is dropped before each row (Linux only). Nothing is decoded but where the row says so. Prints two Markdown tables.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from neuralloader.backends import network_of
from neuralloader.clips import VideoInfo, index_corpus, index_frames
from neuralloader.codecs.keyframes import encode_keyframes
from neuralloader.container.blobs import BlobReader
from neuralloader.container.index import PackIndex, index_from_tensors, index_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.packfile import Pack, PackDescription, build_backend, save_pack
from neuralloader.packfile.manifest import read_description

SIZE, QUALITY = (80, 160), 60  # 2 kB a key-frame
FRAMES_PER_VIDEO, KEYS_PER_VIDEO, FRAMES_PER_CLIP = 80, 11, 8
NUM_CLASSES = 400
NUM_READS = 1000
# Megabytes above importing and seconds, where there is a limit.
LIMITS = {"write": (200, None), "open Pack": (50, 0.1)}


class _Keyframes(Sequence[bytes]):
    """Many key-frames that are not in memory: a few over and over, each a new copy as if read or encoded just now."""

    def __init__(self, num_items: int) -> None:
        rng = np.random.default_rng(0)
        smooth = rng.integers(0, 256, (64, SIZE[0] // 16, SIZE[1] // 16, 3)).repeat(16, axis=1).repeat(16, axis=2)
        images = (smooth + rng.integers(-32, 33, (64, *SIZE, 3))).clip(0, 255).astype(np.uint8)
        self._files = encode_keyframes(images, "jpeg", QUALITY)
        self._num_items = num_items

    def __len__(self) -> int:
        return self._num_items

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < self._num_items:
            raise IndexError(index)
        return bytes(bytearray(self._files[index % len(self._files)]))


def _made_up(num_items: int) -> tuple[PackDescription, PackIndex, torch.nn.Module]:
    """Description, index and network of a pack with about ``num_items`` key-frames."""
    num_videos = -(-num_items // KEYS_PER_VIDEO)
    clips, keys = index_corpus(
        np.full(num_videos, FRAMES_PER_VIDEO), frames_per_clip=FRAMES_PER_CLIP, key_interval=FRAMES_PER_CLIP
    )
    videos = tuple(
        VideoInfo(
            name=f"class_{i % NUM_CLASSES:03}/video_{i:07}.avi",
            label=i % NUM_CLASSES,
            num_frames=FRAMES_PER_VIDEO,
            num_source_frames=FRAMES_PER_VIDEO,
            source_frame_rate=25.0,
            frame_rate=25.0,
            source_size=(240, 320),
        )
        for i in range(num_videos)
    )
    torch.manual_seed(0)
    network = network_of("dnerv", "paper", 16, SIZE)
    description = PackDescription(
        backend="dnerv",
        config="paper",
        network=network,
        frame_size=SIZE,
        frames_per_clip=FRAMES_PER_CLIP,
        key_interval=FRAMES_PER_CLIP,
        frame_rate=None,
        classes=tuple(f"class_{i:03}" for i in range(NUM_CLASSES)),
        keyframe_codec="jpeg",
        keyframe_quality=QUALITY,
        weight_bits=8,
        training={},
        quality={},
    )
    return description, PackIndex(videos, (), clips, keys), build_backend("dnerv", "paper", network)


# The rows. Each prepares what is not measured, then does the rest within ``measured``, which gives the row's figures.

Row = dict[str, float]


@contextmanager
def measured(row: Row) -> Iterator[None]:
    """Fill in seconds, megabytes and megabytes_read of a block."""
    resident, (asked, from_disk) = _memory("VmRSS"), _bytes_read()
    started = time.perf_counter()
    yield
    row["seconds"] = time.perf_counter() - started
    # Not what getrusage gives: that includes the peak of the parent which the process was forked from.
    row["megabytes"] = (_memory("VmHWM") - resident) / 1e6
    asked_after, from_disk_after = _bytes_read()
    row["megabytes_read"], row["megabytes_from_disk"] = (asked_after - asked) / 1e6, (from_disk_after - from_disk) / 1e6


def write(path: Path, num_items: int, row: Row) -> None:
    with measured(row):
        description, index, backend = _made_up(num_items)
        save_pack(path, description, index, backend, _Keyframes(len(index.keys)), None, overwrite=True)  # pyright: ignore[reportArgumentType]


def write_index(path: Path, num_items: int, row: Row) -> None:
    """What of the memory above is the index, as objects and as tensors."""
    with measured(row):
        index_to_tensors(_made_up(num_items)[1])


def open_container(path: Path, num_items: int, row: Row) -> None:
    with measured(row):
        BlobReader(PackReader(path), "keyframes")


def open_pack(path: Path, num_items: int, row: Row) -> None:
    with measured(row):
        Pack(path)


def read_items(path: Path, num_items: int, row: Row) -> None:
    blob = BlobReader(PackReader(path), "keyframes")
    rows = np.random.default_rng(1).integers(0, len(blob), NUM_READS).tolist()
    with measured(row):
        for item in rows:
            blob[item]
    row["reads"] = NUM_READS


def read_clips(path: Path, num_items: int, row: Row) -> None:
    """Both key-frames of each clip, decoded."""
    pack = Pack(path)
    clips = np.random.default_rng(1).integers(0, len(pack.index.clips), NUM_READS)
    keys = np.stack([pack.index.clips.start_key[clips], pack.index.clips.end_key[clips]], axis=1)
    with measured(row):
        for pair in keys:
            pack.keyframes(pair)
    row["reads"] = NUM_READS


ROWS: dict[str, Callable[[Path, int, Row], None]] = {
    "write": write,
    "of it, the index": write_index,
    "open PackReader and BlobReader": open_container,
    "open Pack": open_pack,
    f"{NUM_READS} random key-frames": read_items,
    f"{NUM_READS} random clips, both key-frames decoded": read_clips,
}


def profile_opening(path: Path) -> list[tuple[str, float, float]]:
    """The steps of opening a ``Pack``: (step, milliseconds, megabytes that it adds)."""
    steps: list[tuple[str, float, float]] = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        resident, started = _memory("VmRSS"), time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        steps.append((name, 1e3 * elapsed, (_memory("VmRSS") - resident) / 1e6))

    with step("PackReader: header and manifest"):
        reader = PackReader(path)
    with step("read_description"):
        description = read_description(reader.manifest)
    with step("tables: read and hashed"):
        tables = {
            name: reader.tensor(name)
            for name in reader.tensor_names
            if name.partition(".")[0] in ("videos", "skipped", "clips", "keys")
        }
    with step("index_from_tensors: checked, made to objects"):
        index = index_from_tensors(
            tables.__getitem__,
            reader.tensor_names,
            num_classes=len(description.classes),
            num_splits=len(description.splits),
            frames_per_clip=description.frames_per_clip,
        )
    with step("index_frames: the table of all frames"):
        frames = index_frames(index.clips, index.keys)
    with step("BlobReader: sizes, CRC-32s, positions"):
        BlobReader(reader, "keyframes")
    steps.append((f"(of {len(frames):,} frames, {len(index.clips):,} clips, {len(index.videos):,} videos)", 0.0, 0.0))
    return steps


def _memory(field: str) -> int:
    """VmRSS, the memory that is resident now, or VmHWM, its peak; in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _bytes_read() -> tuple[int, int]:
    """Bytes that this process has read, and those of them that came from the disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"]), int(fields["read_bytes"])


def _drop_from_page_cache(path: Path) -> None:
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _in_new_process(task: str, path: Path, num_items: int) -> str:
    _drop_from_page_cache(path)
    command = [sys.executable, __file__, "--items", str(num_items), "--pack", str(path), "--task", task]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _print_tables(path: Path, num_items: int) -> None:
    rows = {name: json.loads(_in_new_process(name, path, num_items)) for name in ROWS}
    print(f"{path.stat().st_size / 1e6:.0f} MB, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| | time | peak memory above importing | limits | read | from disk |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        each = f" ({1e6 * row['seconds'] / row['reads']:.0f} us each)" if "reads" in row else ""
        megabytes, seconds = LIMITS.get(name, (None, None))
        limits = [f"{1e3 * seconds:.0f} ms"] if seconds else []
        limits += [f"{megabytes} MB"] if megabytes else []
        met = row["megabytes"] <= (megabytes or np.inf) and row["seconds"] <= (seconds or np.inf)
        verdict = f"{', '.join(limits)}: {'met' if met else 'missed'}" if limits else ""
        print(
            f"| {name} | {1e3 * row['seconds']:,.0f} ms{each} | {row['megabytes']:.1f} MB | {verdict} "
            f"| {row['megabytes_read']:.1f} MB | {row['megabytes_from_disk']:.1f} MB |"
        )
    print("\n| step of opening Pack | time | memory that it adds |")
    print("|---|---|---|")
    for step, milliseconds, megabytes in json.loads(_in_new_process("profile", path, num_items)):
        print(f"| {step} | {milliseconds:.1f} ms | {megabytes:.1f} MB |" if milliseconds else f"| {step} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=500_000, help="key-frames, about 2 kB each")
    parser.add_argument("--folder", type=Path, default=None, help="where the pack is written; it is removed again")
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=[*ROWS, "profile"], help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.task == "profile":
        print(json.dumps(profile_opening(options.pack)))
    elif options.task:
        row: Row = {}
        ROWS[options.task](options.pack, options.items, row)
        print(json.dumps(row))
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            _print_tables(Path(folder) / "big.nvpack", options.items)


if __name__ == "__main__":
    main()
