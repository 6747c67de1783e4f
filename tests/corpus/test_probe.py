"""Counting before decoding: the same numbers that decoding gives, and what cannot be opened."""

from pathlib import Path

import numpy as np
import pytest

from neuralloader.clips import SkippedSource
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.probe import probe_sources
from neuralloader.corpus.settings import ReadSettings


@pytest.mark.parametrize("frame_rate", [None, 4.0])
def test_probe_tells_what_reading_will_give(tmp_path: Path, frame_rate: float | None) -> None:
    for name, num_frames, size in (("a.avi", 7, (16, 24)), ("c.avi", 1, (1, 1)), ("d.avi", 12, (9, 33))):
        write_mjpeg_avi(tmp_path / name, np.zeros((num_frames, *size, 3), np.uint8), 10)
    (tmp_path / "b.mp4").write_text("no video")
    sources = find_videos(tmp_path).sources
    steps: list[tuple[int, int]] = []
    table = probe_sources(
        sources, ReadSettings(frame_rate, (8, 8)), progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(number, 4) for number in range(5)]
    assert len(table) == 4
    assert table.source_size.tolist() == [[16, 24], [0, 0], [1, 1], [9, 33]]
    assert table.num_nominal_frames.tolist() == [7, 0, 1, 12]
    assert table.skipped == (SkippedSource("b.mp4", "not a video, or damaged: no video stream can be opened"),)
    with ingest(sources, frame_rate=frame_rate, size=(8, 8), on_error="skip") as ingested:
        assert table.num_frames[table.num_frames > 0].tolist() == [video.num_frames for video in ingested.videos]
