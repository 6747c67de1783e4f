"""Squash, crop and pad: shapes, what is kept, and where it lies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neuralloader.corpus.resize import resize_frame
from neuralloader.corpus.settings import Resize


def _columns(height: int, width: int) -> np.ndarray:
    """Each column a grey of its own, from 20 to 220."""
    grey = np.linspace(20, 220, width).astype(np.uint8)
    return np.broadcast_to(grey[None, :, None], (height, width, 3)).copy()


def test_squash_is_pillows_lanczos() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    expected = Image.fromarray(frame).resize((16, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize_frame(frame, (24, 16), "squash"), np.asarray(expected))


@pytest.mark.parametrize("how", ["squash", "crop", "pad"])
def test_frame_of_that_size_stays(how: Resize) -> None:
    frame = _columns(8, 12)
    assert resize_frame(frame, (8, 12), how) is frame


def test_crop_keeps_the_middle() -> None:
    cropped = resize_frame(_columns(40, 120), (20, 20), "crop")  # columns 40 to 79 are kept
    assert cropped.shape == (20, 20, 3)
    np.testing.assert_allclose(cropped[10, [0, -1], 0], [20 + 200 * 40.5 / 119, 20 + 200 * 78.5 / 119], atol=3)
    tall = resize_frame(np.swapaxes(_columns(40, 120), 0, 1), (20, 20), "crop")
    np.testing.assert_array_equal(tall, np.swapaxes(cropped, 0, 1))


def test_pad_keeps_all_between_black_bars() -> None:
    padded = resize_frame(_columns(40, 120), (20, 30), "pad")
    assert (padded[:5] == 0).all()
    assert (padded[-5:] == 0).all()
    np.testing.assert_array_equal(padded[5:15], resize_frame(_columns(40, 120), (10, 30), "squash"))
    odd = resize_frame(
        np.full((2, 2, 3), 99, np.uint8), (3, 8), "pad"
    )  # 3 x 3 of 3 x 8: the bar behind is the wider one
    assert (odd[:, :2] == 0).all()
    assert (odd[:, 2:5] > 0).all()
    assert (odd[:, 5:] == 0).all()


@given(
    source=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    how=st.sampled_from(["squash", "crop", "pad"]),
)
def test_any_size_comes_out_right(source: tuple[int, int], size: tuple[int, int], how: Resize) -> None:
    resized = resize_frame(np.full((*source, 3), 200, np.uint8), size, how)
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= ({0, 200} if how == "pad" else {200})
    assert resized.max() == 200
