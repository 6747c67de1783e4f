"""Settings out of range are refused where they are made."""

from typing import Any

import pytest

from neuralloader.corpus.settings import ReadSettings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_rate": 0.0}, "frame_rate=0.0 must be above 0"),
        ({"size": (0, 8)}, r"size=\(0, 8\) must be \(height, width\) in pixels, each 1 to 16384"),
        ({"size": (8, 1 << 20)}, "each 1 to 16384"),
        ({"size": (8, 8, 3)}, r"size=\(8, 8, 3\) must be \(height, width\)"),
        ({"resize": "stretch"}, "resize='stretch' must be one of squash, crop, pad"),
        ({"image_frame_rate": 0}, "image_frame_rate=0 must be above 0 and at most 1000 frames per second"),
        ({"image_frame_rate": float("nan")}, "image_frame_rate=nan must be above 0"),
    ],
)
def test_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadSettings(**{"frame_rate": 2.0, "size": (8, 8), **change})


def test_bytes_per_frame() -> None:
    assert ReadSettings(None, (4, 6)).bytes_per_frame == 72
