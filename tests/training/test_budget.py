"""Budgets: every text that is one, what it comes to in bytes, and how others are refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.training.budget import MAX_BITS_PER_PIXEL, MAX_BYTES, Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.08bpp", Budget(bits_per_pixel=0.08)),
        (" .5 bpp ", Budget(bits_per_pixel=0.5)),
        ("8e-2bpp", Budget(bits_per_pixel=0.08)),
        ("24bpp", Budget(bits_per_pixel=24.0)),
        ("20MB", Budget(size_bytes=20_000_000)),
        ("20MiB", Budget(size_bytes=20 << 20)),
        ("1.5 GiB", Budget(size_bytes=3 << 29)),
        ("500kB", Budget(size_bytes=500_000)),
        ("500KB", Budget(size_bytes=500_000)),
        ("2KiB", Budget(size_bytes=2048)),
        ("1GB", Budget(size_bytes=10**9)),
        ("1234567B", Budget(size_bytes=1_234_567)),
        ("1_234_567B", Budget(size_bytes=1_234_567)),
        ("0.0015kB", Budget(size_bytes=1)),
    ],
)
def test_texts(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@given(
    st.one_of(
        st.builds(Budget, bits_per_pixel=st.floats(0, MAX_BITS_PER_PIXEL, exclude_min=True)),
        st.builds(Budget, size_bytes=st.integers(1, MAX_BYTES)),
    )
)
def test_a_budget_is_read_as_it_is_written(budget: Budget) -> None:
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is no number with a unit"),
        ("bpp", "it is no number with a unit"),
        ("many MB", "it is no number with a unit"),
        ("1.2.3MB", "it is no number with a unit"),
        ("_MB", "it is no number with a unit"),
        ("nanbpp", "it is no number with a unit"),
        ("20MB, please", "it is no number with a unit"),
        ("20", "it has no unit"),
        ("20Mb", "the unit 'Mb' is unknown"),
        ("20mb", "the unit 'mb' is unknown"),
        ("0.08BPP", "the unit 'BPP' is unknown"),
        ("0bpp", r"bits_per_pixel=0\.0 must be above 0, and at most the 24 of raw frames"),
        ("-1bpp", r"bits_per_pixel=-1\.0 must be above 0"),
        ("24.1bpp", r"bits_per_pixel=24\.1 must be above 0, and at most the 24"),
        ("0.4B", r"size_bytes=0 must be 1 to"),
        ("-3MB", r"size_bytes=-3000000 must be 1 to"),
        ("1e30GB", r"size_bytes=\d+ must be 1 to"),
        ("1e999GB", "infinity"),
    ],
)
def test_other_texts(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        parse_budget(text)
    assert str(raised.value).startswith(f"budget={text!r}: ")
    assert "give bits per pixel, as in 0.08bpp, or the file's size, as in 20MB (B, kB, MB," in str(raised.value)


@pytest.mark.parametrize("given", [{}, {"bits_per_pixel": 0.1, "size_bytes": 5}])
def test_one_of_the_two(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give bits_per_pixel or size_bytes, not both"):
        Budget(**given)  # pyright: ignore[reportArgumentType]


def test_bytes() -> None:
    assert Budget(size_bytes=123).num_bytes(982, (128, 160)) == 123
    assert Budget(bits_per_pixel=0.2).num_bytes(982, (128, 160)) == math.floor(0.2 * 982 * 128 * 160 / 8) == 502_784
    assert Budget(bits_per_pixel=24).num_bytes(1, (2, 3)) == 18, "raw"
