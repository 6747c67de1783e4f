"""The burnt-in counter survives what the videos of the tests go through."""

import io

import counter
import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (96, 128), (48, 60)])
def test_every_number_survives_jpeg_blur_and_resizing(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for number in [*range(0, counter.MAX_NUMBER, 37), counter.MAX_NUMBER]:
        frame = counter.burn(rng.integers(0, 256, (*size, 3), dtype=np.uint8), number)
        assert counter.read(frame) == number
        small = Image.fromarray(frame).resize((64, 64), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        small.save(jpeg, "JPEG", quality=30)
        decoded = np.asarray(Image.open(jpeg)).astype(np.float64) * 0.6 + 51  # and with little contrast
        assert counter.read(decoded.astype(np.uint8)) == number


def test_burning_leaves_the_original_and_the_lower_part_alone() -> None:
    frame = np.full((60, 60, 3), 7, np.uint8)
    burnt = counter.burn(frame, 1023)
    assert (frame == 7).all()
    assert (burnt[20:] == 7).all()
    assert (burnt[:20] == 255).all()


@pytest.mark.parametrize("number", [-1, 1024])
def test_numbers_that_do_not_fit(number: int) -> None:
    with pytest.raises(ValueError, match=f"number={number} must be between 0 and 1023"):
        counter.burn(np.zeros((64, 64, 3), np.uint8), number)
