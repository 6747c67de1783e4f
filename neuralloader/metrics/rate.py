"""What a pack costs: bytes by section, and bits per pixel."""

from collections.abc import Mapping

import numpy as np


def bits_per_pixel(size_bytes: int, num_frames: int, frame_size: tuple[int, int]) -> float:
    """All bits of a file over the pixels of all stored frames; padding is not counted as pixels."""
    return size_bytes * 8 / (num_frames * frame_size[0] * frame_size[1])


def entropy_bits(symbols: np.ndarray) -> float:
    """Order-0 entropy of non-negative integers in bits a symbol: what an ideal coder without context would take."""
    counts = np.bincount(symbols.ravel())
    share = counts[counts > 0] / max(1, symbols.size)
    return float(-(share * np.log2(share)).sum())


def ledger_lines(ledger: Mapping[str, int]) -> list[str]:
    """The ledger as aligned lines: section, bytes, share; largest first, the sum last."""
    total = sum(ledger.values())
    rows = sorted(ledger.items(), key=lambda row: -row[1])
    return [f"{name:<10} {size:>13,} bytes  {size / total:>6.1%}" for name, size in [*rows, ("total", total)]]
