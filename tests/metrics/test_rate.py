"""Bits per pixel, entropy, and the ledger as people read it."""

import numpy as np
import pytest

from neuralloader.metrics.rate import bits_per_pixel, entropy_bits, ledger_lines


def test_bits_per_pixel_are_all_bits_over_all_pixels() -> None:
    assert bits_per_pixel(1000, 10, (20, 40)) == pytest.approx(1.0)
    assert bits_per_pixel(1, 1, (1, 1)) == 8


def test_the_ledger_is_sorted_and_ends_in_the_sum() -> None:
    lines = ledger_lines({"header": 250, "weights": 1_000_000, "latents": 0, "keyframes": 999_750})
    assert [line.split()[0] for line in lines] == ["weights", "keyframes", "header", "latents", "total"]
    assert "1,000,000 bytes" in lines[0]
    assert lines[0].split()[-1] == "50.0%"
    assert "2,000,000 bytes" in lines[-1]
    assert lines[-1].split()[-1] == "100.0%"
    assert len({len(line) for line in lines}) == 1, "aligned"


@pytest.mark.parametrize(
    ("symbols", "bits"),
    [
        ([0, 0, 0, 0], 0),
        ([7, 3], 1),
        ([0, 1, 2, 3], 2),
        ([5, 5, 5, 200], 0.8112781),  # -(3/4 log2 3/4 + 1/4 log2 1/4)
        ([0, 0, 0, 0, 1, 1, 256, 2], 1.75),  # 4/8 * 1 + 2/8 * 2 + 2 * 1/8 * 3
        ([], 0),
    ],
)
def test_entropy_by_hand(symbols: list[int], bits: float) -> None:
    values = np.array(symbols, np.uint16)
    assert entropy_bits(values) == pytest.approx(bits)
    assert entropy_bits(np.stack([values, values])) == pytest.approx(bits), "of any shape"


def test_entropy_of_bytes() -> None:
    assert entropy_bits(np.arange(256, dtype=np.uint8)) == 8
