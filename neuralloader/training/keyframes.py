"""The key-frames of a corpus, encoded and decoded back into files: a large corpus has more than fit in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes, encode_keyframes

KEYFRAMES_PER_BATCH = 64


class EncodedKeyframes(Sequence[bytes]):
    """Image files behind one another in one file.

    Args:
        path: the file, which holds them already.
        sizes: bytes of each.
    """

    def __init__(self, path: Path, sizes: Sequence[int]):
        self._path = path
        self._bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"there are key-frames 0 to {len(self) - 1}, not {index}")
        with open(self._path, "rb") as file:
            file.seek(self._bounds[index])
            return file.read(int(self._bounds[index + 1] - self._bounds[index]))


def encode_to_files(
    frames: np.ndarray,
    rows: np.ndarray,
    codec: KeyframeCodec,
    quality: int,
    folder: Path,
    on_progress: Callable[[int], None],
) -> tuple[Sequence[bytes], np.ndarray]:
    """Encode some frames, and decode them back: what the network will see.

    Args:
        frames: (num_frames, H, W, 3) uint8; may be memory-mapped.
        rows: (num_keys,) rows of the key-frames.
        codec, quality: as ``encode_keyframes`` has them.
        folder: where the files are put; it must outlive what is returned.
        on_progress: called with the number of key-frames done.

    Returns:
        The image files, and their pixels, (num_keys, H, W, 3) uint8, memory-mapped.
    """
    shape = (len(rows), *frames.shape[1:])
    if not len(rows):
        return [], np.empty(shape, np.uint8)
    decoded = np.memmap(folder / "keyframes.pixels", np.uint8, "w+", shape=shape)
    sizes: list[int] = []
    with open(folder / "keyframes.files", "wb") as file:
        for start in range(0, len(rows), KEYFRAMES_PER_BATCH):
            batch = encode_keyframes(list(frames[rows[start : start + KEYFRAMES_PER_BATCH]]), codec, quality)
            decoded[start : start + len(batch)] = decode_keyframes(batch, codec, frames.shape[1:3])
            file.writelines(batch)
            sizes += map(len, batch)
            on_progress(len(sizes))
    return EncodedKeyframes(folder / "keyframes.files", sizes), decoded
