"""Files damaged in any way: all of them named, or the rest packed, or the beginnings kept; never a crash or a hang."""

from pathlib import Path

import counter
import numpy as np
import pytest

from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.errors import SourceError

NUM_FRAMES = 12
GOOD = ["good.avi", "one_frame.avi", "one_pixel.avi"]
BAD = ["cut_at_half.avi", "cut_in_header.avi", "no_bytes.avi", "text.mp4", "zeros.avi"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good videos, those that are surely bad, and 20 with random bytes changed, of which either may come."""
    folder = tmp_path_factory.mktemp("fuzz")
    frames = np.stack([counter.burn(np.full((48, 64, 3), 90, np.uint8), number) for number in range(NUM_FRAMES)])
    write_mjpeg_avi(folder / "good.avi", frames, 10)
    write_mjpeg_avi(folder / "one_frame.avi", frames[:1], 10)
    write_mjpeg_avi(folder / "one_pixel.avi", frames[:, :1, :1], 10)
    data = (folder / "good.avi").read_bytes()
    (folder / "cut_at_half.avi").write_bytes(data[: len(data) // 2])
    (folder / "cut_in_header.avi").write_bytes(data[:100])
    (folder / "no_bytes.avi").touch()
    (folder / "text.mp4").write_text("text that was renamed\n" * 100)
    (folder / "zeros.avi").write_bytes(bytes(len(data)))
    rng = np.random.default_rng(0)
    for number in range(20):
        changed = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0 if number % 2 else 300, len(data), rng.integers(1, 60))
        changed[where] ^= rng.integers(1, 256, len(where), dtype=np.uint8)
        (folder / f"flipped_{number:02d}.avi").write_bytes(changed.tobytes())
    return folder


def test_raise_names_all_skip_packs_the_rest_and_keep_partial_the_beginnings(folder: Path) -> None:
    sources = find_videos(folder).sources
    with pytest.raises(SourceError) as caught:
        ingest(sources, frame_rate=None, size=(48, 64), timeout_seconds=30)
    with ingest(sources, frame_rate=None, size=(48, 64), on_error="skip", timeout_seconds=30) as ingested:
        skipped = {each.name: each.reason for each in ingested.skipped}
        whole = {video.name: video for video in ingested.videos}
        assert set(BAD) <= set(skipped)
        assert set(GOOD) <= set(whole)
        assert len(skipped) + len(whole) == len(sources)
        assert all(video.problem == "" for video in whole.values())
        assert [counter.read(frame) for frame in ingested.frames[_rows(ingested.videos, "good.avi")]] == [*range(12)]
    for name in list(skipped)[:20]:
        assert f"{name!r}: {skipped[name]}" in str(caught.value)
    assert str(caught.value).startswith(f"{len(skipped)} of {len(sources)} videos cannot be decoded:")

    with ingest(sources, frame_rate=None, size=(48, 64), on_error="keep-partial", timeout_seconds=30) as ingested:
        kept = {video.name: video for video in ingested.videos}
        partial = {name: video for name, video in kept.items() if video.problem}
        assert {name: video for name, video in kept.items() if not video.problem} == whole
        assert "cut_at_half.avi" in partial
        assert {name: video.problem for name, video in partial.items()} == {name: skipped[name] for name in partial}
        assert set(partial) | {each.name for each in ingested.skipped} == set(skipped)
        assert all(1 <= video.num_frames <= NUM_FRAMES for video in partial.values())
        cut = ingested.frames[_rows(ingested.videos, "cut_at_half.avi")]
        assert [counter.read(frame) for frame in cut] == [*range(len(cut))]
        assert 3 <= len(cut) <= 8


def _rows(videos: list, name: str) -> np.ndarray:
    """Where a video's frames are."""
    ends = np.cumsum([video.num_frames for video in videos])
    place = [video.name for video in videos].index(name)
    return np.arange(ends[place] - videos[place].num_frames, ends[place])
