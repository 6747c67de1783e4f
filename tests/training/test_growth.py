"""Better key-frames for what is left: never more bytes than that, nearly as many, and better frames."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes, encode_keyframes
from neuralloader.training.growth import Grown, best_buys, grow_keyframes
from neuralloader.training.keyframe_probe import HIGHEST_QUALITY, KeyframeProbe, probe_keyframes, stored_bytes

SIZE = (32, 48)
ROWS = np.arange(0, 40, 2)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=12, size=(40, *SIZE, 3))
    return (tiny.draw_frames(40, 0, SIZE) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def probe(frames: np.ndarray) -> KeyframeProbe:
    return probe_keyframes([frames], "avif")


def _grow(
    frames: np.ndarray, files: Sequence[bytes], probe: KeyframeProbe, folder: Path, more_bytes: int, quality: int = 30
) -> Grown:
    return grow_keyframes(
        frames,
        ROWS,
        files,
        "avif",
        quality,
        probe,
        more_bytes=more_bytes,
        folder=folder,
        on_progress=lambda done: None,
    )


def _mse(files: Sequence[bytes], frames: np.ndarray, codec: KeyframeCodec = "avif") -> np.ndarray:
    decoded = decode_keyframes(files, codec, SIZE)
    return np.square(decoded.astype(float) - frames[ROWS]).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("share", [0.03, 0.2, 1.0])
def test_they_fill_what_is_left(frames: np.ndarray, probe: KeyframeProbe, share: float, tmp_path: Path) -> None:
    files = encode_keyframes(frames[ROWS], "avif", 30)
    before = stored_bytes(files, "avif")
    more_bytes = round(share * before)
    grown = _grow(frames, files, probe, tmp_path, more_bytes)
    assert grown.added_bytes == stored_bytes(grown.files, "avif") - before
    step = max(len(file) for file in grown.files)
    assert more_bytes - step < grown.added_bytes <= more_bytes, "but for less than one key-frame"
    assert grown.added_bytes > 0.5 * more_bytes
    assert grown.quality > 30
    better = _mse(grown.files, frames) < _mse(files, frames)
    kept = np.array([a == b for a, b in zip(grown.files, files, strict=True)])
    assert (better | kept).all()
    assert better.any()
    assert len(grown.files) == len(files)


def test_what_cannot_be_spent_is_left(frames: np.ndarray, probe: KeyframeProbe, tmp_path: Path) -> None:
    files = encode_keyframes(frames[ROWS], "avif", 30)
    grown = _grow(frames, files, probe, tmp_path, 10**9)
    assert grown.quality == HIGHEST_QUALITY
    assert list(grown.files) == encode_keyframes(frames[ROWS], "avif", HIGHEST_QUALITY)


def test_a_probe_that_promises_too_little_takes_another_round(
    frames: np.ndarray, probe: KeyframeProbe, tmp_path: Path
) -> None:
    """Where all key-frames became better and some bytes are left, still better ones are tried."""
    steep = KeyframeProbe((10, 90), (1.0, 1e6), (20.0, 40.0), {})
    files = encode_keyframes(frames[ROWS], "avif", 30)
    more_bytes = stored_bytes(files, "avif") // 2
    grown = _grow(frames, files, steep, tmp_path, more_bytes)
    assert len(list(tmp_path.iterdir())) == 3
    assert 0 < grown.added_bytes <= more_bytes


@pytest.mark.parametrize(("more_bytes", "quality"), [(0, 30), (-100, 30), (1000, HIGHEST_QUALITY)])
def test_nothing_to_do(frames: np.ndarray, probe: KeyframeProbe, more_bytes: int, quality: int, tmp_path: Path) -> None:
    files = encode_keyframes(frames[ROWS], "avif", quality)
    assert _grow(frames, files, probe, tmp_path, more_bytes, quality) == Grown(files, quality, 0)
    assert not list(tmp_path.iterdir())


def test_no_key_frames(frames: np.ndarray, probe: KeyframeProbe, tmp_path: Path) -> None:
    grown = grow_keyframes(
        frames, ROWS[:0], [], "avif", 30, probe, more_bytes=100, folder=tmp_path, on_progress=lambda done: None
    )
    assert grown == Grown([], 30, 0)


@given(data=st.data(), count=st.integers(0, 12), spare=st.integers(0, 60))
def test_best_buys_fit_and_leave_nothing_that_would(data: st.DataObject, count: int, spare: int) -> None:
    more = data.draw(hnp.arrays(np.int64, count, elements=st.integers(-5, 30)))
    gain = data.draw(hnp.arrays(np.float64, count, elements=st.floats(-1, 5)))
    bought = best_buys(more, gain, spare)
    assert bought.shape == (count,)
    left = spare - more[bought].sum()
    assert left >= 0
    assert (gain[bought] > 0).all()
    assert not ((gain > 0) & ~bought & (more <= left)).any()


def test_the_best_buys_come_first() -> None:
    bought = best_buys(np.array([10, 10, 5, -3, 8]), np.array([1.0, 2.0, 1.5, 0.1, -1.0]), 12)
    assert bought.tolist() == [False, True, True, True, False], "what makes room comes before what needs it"
