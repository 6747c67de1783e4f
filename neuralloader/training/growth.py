"""Spends what a budget has left after training on better key-frames: the network takes them as they come.

    key-frames --encoded again at a higher quality--> bytes and dB each would add --the best buys--> a mixture of both

The network was trained with worse ones, and makes better frames of better ones all the same (docs/experiments.md, "One
dial"). Readers do not care that the qualities of a pack's key-frames differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes
from neuralloader.corpus.frames import FrameFiles
from neuralloader.metrics.quality import psnr_db
from neuralloader.training.keyframe_probe import HIGHEST_QUALITY, KeyframeProbe, stored_bytes
from neuralloader.training.keyframes import KEYFRAMES_PER_BATCH, encode_to_files

MARGIN = 1.1  # on what is to be added: the probe may be off, and a choice wants something to choose from
MAX_ROUNDS = 3  # of encoding all of them again
CLOSE_ENOUGH = 0.998  # of the bytes that key-frames may take


@dataclass(frozen=True)
class Grown:
    """Key-frames of several qualities.

    Attributes:
        files: complete image files, in order.
        quality: of the best of them.
        added_bytes: what they take more than before, as a pack stores them.
    """

    files: Sequence[bytes]
    quality: int
    added_bytes: int


def grow_keyframes(
    frames: np.ndarray | FrameFiles,
    rows: np.ndarray,
    files: Sequence[bytes],
    codec: KeyframeCodec,
    quality: int,
    probe: KeyframeProbe,
    *,
    more_bytes: int,
    folder: Path,
    on_progress: Callable[[int], None],
) -> Grown:
    """Make key-frames better until they take nearly so many bytes more, and no more.

    Args:
        frames: (num_frames, H, W, 3) uint8, the originals; may be memory-mapped.
        rows: (num_keys,) rows of the key-frames.
        files: the key-frames as they are: complete image files, which need not all be in memory.
        codec, quality: that they were encoded with.
        probe: tells what a higher quality takes.
        more_bytes: that may be added.
        folder: where better ones are put; it must outlive what is returned.
        on_progress: called with the number of key-frames encoded.

    Returns:
        The same key-frames where nothing can be added.
    """
    before = now = stored_bytes(files, codec)
    limit = before + more_bytes
    best_quality = quality
    for number in range(MAX_ROUNDS if len(rows) else 0):
        next_quality = _next_quality(probe, quality, now, limit)
        if next_quality is None or now >= CLOSE_ENOUGH * limit:
            break
        better, _ = encode_to_files(frames, rows, codec, next_quality, folder / f"grown-{number}", on_progress)
        more, gain_db = _compare(frames, rows, files, better, codec)
        spare = limit - now
        mixture = _Mixture(files, better, best_buys(more, gain_db, spare))
        # files may share less than before, and then take more than the sum of what each does
        while (excess := stored_bytes(mixture, codec) - limit) > 0:
            spare -= excess
            mixture = _Mixture(files, better, best_buys(more, gain_db, spare))
        quality = next_quality
        if mixture.bought.any():
            files, best_quality, now = mixture, quality, limit + excess
    return Grown(files, best_quality, now - before)


def best_buys(more_bytes: np.ndarray, gain_db: np.ndarray, spare_bytes: int) -> np.ndarray:
    """Which replacements to make: those that give most for their bytes, as long as they fit.

    Args:
        more_bytes: (n,) int, that each would take more; may be negative.
        gain_db: (n,) float, that each would give; those that give nothing are left out.
        spare_bytes: that all of them may take.

    Returns:
        (n,) bool.
    """
    bought = np.zeros(len(more_bytes), bool)
    order = np.lexsort((-gain_db / np.maximum(more_bytes, 1), more_bytes > 0))  # first those that make room
    for place in order.tolist():
        if gain_db[place] > 0 and more_bytes[place] <= spare_bytes:
            bought[place] = True
            spare_bytes -= int(more_bytes[place])
    return bought


class _Mixture(Sequence[bytes]):
    """Of two equally long sequences of files, the second where it was bought, else the first."""

    def __init__(self, files: Sequence[bytes], better: Sequence[bytes], bought: np.ndarray):
        self.bought = bought
        self._files, self._better = files, better

    def __len__(self) -> int:
        return len(self.bought)

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (self._better if self.bought[index] else self._files)[index]


def _next_quality(probe: KeyframeProbe, quality: int, now: int, wanted: int) -> int | None:
    """The lowest quality above one that brings all key-frames to the bytes wanted; the highest, if none does."""
    higher = np.arange(quality + 1, HIGHEST_QUALITY + 1)
    if wanted <= now or not len(higher):
        return None
    factor = probe.bytes_at(higher) / probe.bytes_at(quality)
    enough = higher[now * factor >= now + MARGIN * (wanted - now)]
    return int(enough[0]) if len(enough) else int(higher[-1])


def _compare(
    frames: np.ndarray | FrameFiles,
    rows: np.ndarray,
    files: Sequence[bytes],
    better: Sequence[bytes],
    codec: KeyframeCodec,
) -> tuple[np.ndarray, np.ndarray]:
    """(num_keys,) bytes that each better key-frame takes more, and dB that it gives."""
    more, gain_db = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    for start in range(0, len(rows), KEYFRAMES_PER_BATCH):
        part = slice(start, min(start + KEYFRAMES_PER_BATCH, len(rows)))
        originals = np.array(frames[rows[part]])
        places = range(part.start, part.stop)
        size, psnr = _measure([files[i] for i in places], originals, codec)
        better_size, better_psnr = _measure([better[i] for i in places], originals, codec)
        more[part], gain_db[part] = better_size - size, better_psnr - psnr
    return more, gain_db


def _measure(files: Sequence[bytes], originals: np.ndarray, codec: KeyframeCodec) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bytes and dB of some key-frames."""
    decoded = decode_keyframes(files, codec, originals.shape[1:3])
    pair = (torch.from_numpy(images).permute(0, 3, 1, 2) for images in (decoded, originals))
    return np.array([len(file) for file in files]), psnr_db(*pair).numpy()
