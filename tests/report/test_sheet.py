"""The contact sheet: every picture in its place, differences around mid-grey."""

import numpy as np
import pytest

from neuralloader.report.sheet import DIFFERENCE_GAIN, GAP, LABEL_WIDTH, TITLE_HEIGHT, contact_sheet


def test_rows_and_columns() -> None:
    height, width, columns = 24, 40, 3
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (columns, height, width, 3), dtype=np.uint8)
    decoded = rng.integers(0, 256, originals.shape, dtype=np.uint8)
    decoded[1] = originals[1]
    sheet = contact_sheet(originals, decoded, ["a", "b", "c"])
    assert sheet.mode == "RGB"
    assert sheet.size == (LABEL_WIDTH + columns * (width + GAP), TITLE_HEIGHT + 3 * (height + GAP))
    pixels = np.asarray(sheet)

    def picture(row: int, column: int) -> np.ndarray:
        top, left = TITLE_HEIGHT + row * (height + GAP), LABEL_WIDTH + column * (width + GAP)
        return pixels[top : top + height, left : left + width]

    for column in range(columns):
        np.testing.assert_array_equal(picture(0, column), originals[column])
        np.testing.assert_array_equal(picture(1, column), decoded[column])
        difference = 128 + DIFFERENCE_GAIN * (decoded[column].astype(int) - originals[column])
        np.testing.assert_array_equal(picture(2, column), np.clip(difference, 0, 255))
    assert (picture(2, 1) == 128).all()
    assert pixels[:, :LABEL_WIDTH].min() < 100, "the rows have their names"
    assert pixels[:TITLE_HEIGHT, LABEL_WIDTH:].min() < 100, "the columns have their titles"


@pytest.mark.parametrize("size", [(16, 16), (256, 320)])
def test_sizes(size: tuple[int, int]) -> None:
    frames = np.zeros((1, *size, 3), np.uint8)
    assert contact_sheet(frames, frames, ["only"]).size[0] == LABEL_WIDTH + size[1] + GAP
