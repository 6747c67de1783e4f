"""The key-frames of a corpus, encoded and decoded back into files: a large corpus has more than fit in memory.

    block-0, ...    image files of so many key-frames each: their sizes (uint64, little-endian), then their bytes
    pixels          of all key-frames as decoded back, (num_keys, H, W, 3) uint8
    made-of.json    what they were made with: blocks of anything else are made anew

A block is there once it and its pixels are whole, so that a run that was interrupted goes on with the next one, and
several processes can make them together.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes, encode_keyframes
from neuralloader.container.replace import replacing
from neuralloader.corpus.frames import FrameFiles
from neuralloader.training.group import ALONE, Group

KEYFRAMES_PER_BATCH = 64  # encoded at a time, by one thread for each processor
KEYFRAMES_PER_BLOCK = 1024


class EncodedKeyframes(Sequence[bytes]):
    """Image files in the blocks of a folder.

    Args:
        folder: it holds all blocks.
        num_keys: image files in all.
    """

    def __init__(self, folder: Path, num_keys: int):
        self._folder = folder
        starts = range(0, num_keys, KEYFRAMES_PER_BLOCK)
        counts = [min(KEYFRAMES_PER_BLOCK, num_keys - start) for start in starts]
        self._bounds = [_bounds_of(folder / f"block-{block}", count) for block, count in enumerate(counts)]
        self._num_keys = num_keys

    def __len__(self) -> int:
        return self._num_keys

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"there are key-frames 0 to {len(self) - 1}, not {index}")
        block, row = divmod(index, KEYFRAMES_PER_BLOCK)
        start, end = self._bounds[block][row : row + 2].tolist()
        with open(self._folder / f"block-{block}", "rb") as file:
            file.seek(start)
            return file.read(end - start)


def encode_to_files(
    frames: np.ndarray | FrameFiles,
    rows: np.ndarray,
    codec: KeyframeCodec,
    quality: int,
    folder: Path,
    on_progress: Callable[[int], None],
    group: Group = ALONE,
    source_id: str = "",
) -> tuple[Sequence[bytes], np.ndarray]:
    """Encode some frames, and decode them back: what the network will see.

    Args:
        frames: (num_frames, H, W, 3) uint8; may be memory-mapped.
        rows: (num_keys,) rows of the key-frames.
        codec, quality: as ``encode_keyframes`` has them.
        folder: where the files are put; it must outlive what is returned. What it has of them is not made again.
        on_progress: called with the number of key-frames done.
        group: processes that share the work, and the folder.
        source_id: tells these frames from others of the same number and size; what was made of others is made anew.

    Returns:
        The image files, and their pixels, (num_keys, H, W, 3) uint8, memory-mapped.

    Raises:
        OSError: the disk is full.
    """
    height, width = frames.shape[1:3]
    shape = (len(rows), height, width, 3)
    if not len(rows):
        return [], np.empty(shape, np.uint8)
    if group.is_first:
        made_of = {"source": source_id, "rows": _digest(rows), "codec": codec, "quality": quality, "shape": list(shape)}
        _prepare(folder, made_of)
    group.wait()
    decoded = np.memmap(folder / "pixels", np.uint8, "r+", shape=shape)
    blocks = range(0, len(rows), KEYFRAMES_PER_BLOCK)
    for block, start in list(enumerate(blocks))[group.rank :: group.size]:
        own = rows[start : start + KEYFRAMES_PER_BLOCK]
        path = folder / f"block-{block}"
        if _read_bounds(path, len(own)) is None:
            files: list[bytes] = []
            for first in range(0, len(own), KEYFRAMES_PER_BATCH):
                some = encode_keyframes(list(frames[own[first : first + KEYFRAMES_PER_BATCH]]), codec, quality)
                at = start + first
                decoded[at : at + len(some)] = decode_keyframes(some, codec, (height, width))
                files += some
                on_progress(start + len(files))
            decoded.flush()
            _write_block(path, files)
        else:
            on_progress(start + len(own))
    group.wait()
    on_progress(len(rows))
    return EncodedKeyframes(folder, len(rows)), decoded


def _prepare(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Make the folder and the file of pixels, unless they are there for just these key-frames."""
    told = folder / "made-of.json"
    text = json.dumps(made_of, sort_keys=True)
    num_bytes = int(np.prod(made_of["shape"]))
    pixels = folder / "pixels"
    if told.exists() and told.read_bytes() == text.encode() and pixels.exists() and pixels.stat().st_size == num_bytes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in (told, pixels, *folder.glob("block-*")):  # nothing else, which may be another's
        path.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            f"the key-frames in {folder} need {num_bytes / 1e6:.4g} MB, {free / 1e6:.4g} MB are free; make room"
        )
    with open(pixels, "wb") as file:
        os.truncate(file.fileno(), num_bytes)
    told.write_text(text, "utf-8")


def _write_block(path: Path, files: Sequence[bytes]) -> None:
    sizes = np.array([len(file) for file in files], "<u8")
    with replacing(path, num_bytes=int(sizes.nbytes + sizes.sum()), overwrite=True) as file:
        file.write(sizes.tobytes())
        file.writelines(files)


def _read_bounds(path: Path, count: int) -> np.ndarray | None:
    """(count + 1,) where each image file of a block starts, and the last one ends; None if the block is not whole."""
    try:
        sizes = np.fromfile(path, "<u8", count)
        num_bytes = path.stat().st_size
    except OSError:
        return None
    if len(sizes) < count or (sizes > num_bytes).any():  # whose sum may be too large a number
        return None
    bounds = sizes.nbytes + np.concatenate([[0], np.cumsum(sizes.astype(np.int64))])
    return bounds if bounds[-1] == num_bytes else None


def _bounds_of(path: Path, count: int) -> np.ndarray:
    bounds = _read_bounds(path, count)
    if bounds is None:
        raise OSError(f"{path} is not whole: something else writes to that folder")
    return bounds


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
