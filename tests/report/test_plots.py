"""The chart is a picture with bars in it; what could not be drawn is refused before anything is measured."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuralloader.report.bench_result import BenchResult
from neuralloader.report.plots import check_can_draw, draw_bench

PACK_COLOUR, RIVAL_COLOUR = (192, 57, 43), (127, 140, 141)


def _count(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels of a colour."""
    return int((np.asarray(Image.open(path).convert("RGB")) == colour).all(axis=-1).sum())


def test_the_chart(bench_result: BenchResult, out: Path) -> None:
    draw_bench(bench_result, out / "a.png")
    assert _count(out / "a.png", PACK_COLOUR) > 1000
    assert _count(out / "a.png", RIVAL_COLOUR) > _count(out / "a.png", PACK_COLOUR) / 4
    with Image.open(out / "a.png") as whole:
        assert whole.format == "PNG"
        height = whole.height
    draw_bench(dataclasses.replace(bench_result, waiting=()), out / "a.png")
    with Image.open(out / "a.png") as part:
        assert part.height < height, "without the loaders it is smaller"
    assert "matplotlib.pyplot" not in sys.modules, "which would keep every figure"


def test_what_cannot_be_drawn(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the chart .*a\.jpg must be a \.png file"):
        check_can_draw(out / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere for the chart"):
        check_can_draw(out / "nowhere" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"`pip install 'neuralloader\[report\]'` provides it"):
        check_can_draw(out / "a.png")
