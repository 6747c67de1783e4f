"""What key-frames of a corpus cost and give: a few of them, encoded at a few qualities, and what lies between them.

runs of frames --first, middle, last--> encoded at each quality --> bytes, PSNR
               --frames halfway between two--> the mean of both --> how much is lost as key-frames are further apart
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes, encode_keyframes, pack_keyframes
from neuralloader.metrics.quality import psnr_db

QUALITIES = (10, 30, 50, 70, 90)  # that are tried
LOWEST_QUALITY, HIGHEST_QUALITY = 5, 95  # that are ever chosen: beyond, bytes say little about what is seen
INTERVALS = (8, 16, 32)  # frames between key-frames
NUM_RUNS = 12
FRAMES_PER_RUN = max(INTERVALS) + 1
NUM_KEYFRAMES = 24


@dataclass(frozen=True)
class Run:
    """Frames of one video, behind one another: rows first to first + num_frames - 1 of it."""

    video: int
    first: int
    num_frames: int


@dataclass(frozen=True)
class KeyframeProbe:
    """What was found.

    Attributes:
        qualities: ascending, two or more.
        bytes_per_keyframe: at each quality, as a pack stores it, rising.
        psnr_db: at each quality, rising.
        between_psnr_db: interval to PSNR of a frame halfway between two originals so far apart, guessed as their mean.
            Where no run has a frame between, it is that of a key-frame.
    """

    qualities: tuple[int, ...]
    bytes_per_keyframe: tuple[float, ...]
    psnr_db: tuple[float, ...]
    between_psnr_db: Mapping[int, float]

    def bytes_at(self, quality: np.ndarray | int) -> np.ndarray:
        """Bytes of a key-frame, float64: their logarithm is close to linear in the quality."""
        return np.exp(_interpolate(quality, self.qualities, np.log(self.bytes_per_keyframe)))

    def psnr_at(self, quality: np.ndarray | int) -> np.ndarray:
        """PSNR of a key-frame in dB, float64."""
        return _interpolate(quality, self.qualities, np.array(self.psnr_db))

    def scaled_to(self, quality: int, bytes_per_keyframe: float) -> "KeyframeProbe":
        """The same curve through what all key-frames took at a quality: a sample may be off by a tenth."""
        factor = bytes_per_keyframe / float(self.bytes_at(quality))
        return replace(self, bytes_per_keyframe=tuple(factor * size for size in self.bytes_per_keyframe))


def choose_runs(num_frames: np.ndarray) -> list[Run]:
    """Runs spread over a corpus, each from the middle of its video.

    Args:
        num_frames: (num_videos,) frames of each video, 1 or more.
    """
    runs = []
    for video in np.unique(np.linspace(0, len(num_frames) - 1, NUM_RUNS).round().astype(int)).tolist():
        length = min(FRAMES_PER_RUN, int(num_frames[video]))
        runs.append(Run(video, (int(num_frames[video]) - length) // 2, length))
    return runs


def probe_keyframes(runs: Sequence[np.ndarray], codec: KeyframeCodec) -> KeyframeProbe:
    """Encode a sample.

    Args:
        runs: (T, H, W, 3) uint8 each: the frames of ``choose_runs``. May be memory-mapped; few of them are read.
        codec: of the key-frames.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("there are no frames to probe: the corpus has no videos")
    images = _sample_keyframes(runs)
    sizes, psnr = [], []
    qualities = QUALITIES if codec != "png" else (LOWEST_QUALITY, HIGHEST_QUALITY)  # PNG has one quality
    for quality in qualities:
        files = encode_keyframes(images, codec, quality)
        sizes.append(stored_bytes(files, codec) / len(files))
        decoded = decode_keyframes(files, codec, images.shape[1:3])
        psnr.append(_psnr_db(decoded, images))
    return KeyframeProbe(
        qualities=qualities,
        bytes_per_keyframe=tuple(np.maximum.accumulate(np.maximum(sizes, 1.0)).tolist()),
        psnr_db=tuple(np.maximum.accumulate(psnr).tolist()),
        between_psnr_db={interval: _between_psnr_db(runs, interval, fallback=max(psnr)) for interval in INTERVALS},
    )


def stored_bytes(files: Sequence[bytes], codec: KeyframeCodec) -> int:
    """What key-frames take in a pack, besides what they share and a few bytes of tables for each.

    Args:
        files: complete image files, which need not all be in memory.
        codec: what they are.
    """
    _, payloads = pack_keyframes(files, codec)
    return sum(map(len, payloads))


def _sample_keyframes(runs: Sequence[np.ndarray]) -> np.ndarray:
    """(N, H, W, 3) uint8: first, middle and last frames of the runs, evenly thinned."""
    places = [(run, row) for run in runs for row in sorted({0, len(run) // 2, len(run) - 1})]
    chosen = np.unique(np.linspace(0, len(places) - 1, NUM_KEYFRAMES).round().astype(int))
    return np.stack([places[i][0][places[i][1]] for i in chosen])


def _between_psnr_db(runs: Sequence[np.ndarray], interval: int, fallback: float) -> float:
    """As ``KeyframeProbe.between_psnr_db``; a run that is shorter than the interval ends in a key-frame."""
    blended, middles = [], []
    for run in runs:
        end = min(interval, len(run) - 1)
        if end >= 2:
            middle = end // 2
            share = middle / end
            blended.append(np.rint((1 - share) * run[0] + share * run[end]).astype(np.uint8))
            middles.append(run[middle])
    return _psnr_db(np.stack(blended), np.stack(middles)) if blended else fallback


def _psnr_db(images: np.ndarray, originals: np.ndarray) -> float:
    """Mean over (N, H, W, 3) uint8 images."""
    pair = (torch.from_numpy(part).permute(0, 3, 1, 2) for part in (images, originals))
    return float(psnr_db(*pair).mean())


def _interpolate(at: np.ndarray | int, x: Sequence[int], y: np.ndarray) -> np.ndarray:
    """Straight lines through points, the first and the last one drawn on."""
    at, knots = np.asarray(at, np.float64), np.array(x, np.float64)
    left = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    slope = (y[left + 1] - y[left]) / (knots[left + 1] - knots[left])
    return y[left] + slope * (at - knots[left])
