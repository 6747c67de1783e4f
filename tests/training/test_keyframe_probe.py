"""The probe of key-frames: which frames it takes, what it makes of them, and what it says between what it tried."""

from itertools import pairwise

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes, encode_keyframes, pack_keyframes
from neuralloader.training import keyframe_probe
from neuralloader.training.keyframe_probe import (
    FRAMES_PER_RUN,
    HIGHEST_QUALITY,
    INTERVALS,
    LOWEST_QUALITY,
    NUM_RUNS,
    QUALITIES,
    KeyframeProbe,
    Run,
    choose_runs,
    probe_keyframes,
    stored_bytes,
)

SIZE = (32, 48)


@pytest.fixture(scope="module")
def runs() -> list[np.ndarray]:
    return [tiny.draw_frames(length, 0, SIZE) for length in (33, 9, 2, 1)]


@pytest.fixture(scope="module")
def probe(runs: list[np.ndarray]) -> KeyframeProbe:
    return probe_keyframes(runs, "avif")


# --- which frames ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_runs_lie_in_their_videos(num_frames: list[int]) -> None:
    runs = choose_runs(np.array(num_frames))
    assert 1 <= len(runs) <= NUM_RUNS
    assert len({run.video for run in runs}) == len(runs)
    for run in runs:
        assert run.num_frames == min(FRAMES_PER_RUN, num_frames[run.video])
        assert 0 <= run.first <= run.first + run.num_frames <= num_frames[run.video]
    assert {runs[0].video, runs[-1].video} == {0, len(num_frames) - 1}, "spread over all of the corpus"


def test_a_run_is_from_the_middle_of_its_video() -> None:
    assert choose_runs(np.array([100, 5])) == [Run(0, 33, 33), Run(1, 0, 5)]


def test_few_frames_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(images: np.ndarray, codec: KeyframeCodec, quality: int) -> list[bytes]:
        seen.append(len(images))
        return encode_keyframes(images, codec, quality)

    monkeypatch.setattr(keyframe_probe, "encode_keyframes", count)
    probe_keyframes([np.zeros((33, 16, 16, 3), np.uint8)] * 12, "jpeg")
    assert seen == [24] * len(QUALITIES)


# --- what they give -------------------------------------------------------------------------------------------------


def test_what_was_tried_comes_back(runs: list[np.ndarray], probe: KeyframeProbe) -> None:
    assert probe.qualities == QUALITIES
    images = [run[row] for run in runs for row in sorted({0, len(run) // 2, len(run) - 1})]
    for quality in QUALITIES:
        files = encode_keyframes(images, "avif", quality)
        _, payloads = pack_keyframes(files, "avif")
        assert probe.bytes_at(quality) == pytest.approx(np.mean([len(payload) for payload in payloads]))
        assert stored_bytes(files, "avif") == sum(map(len, payloads))
        mse = np.square(decode_keyframes(files, "avif", SIZE) - np.stack(images).astype(float)).mean(axis=(1, 2, 3))
        assert probe.psnr_at(quality) == pytest.approx(np.mean(10 * np.log10(255**2 / mse)), abs=1e-4)


def test_curves_rise_between(probe: KeyframeProbe) -> None:
    qualities = np.arange(LOWEST_QUALITY, HIGHEST_QUALITY + 1)
    for curve in (probe.bytes_at(qualities), probe.psnr_at(qualities)):
        assert np.isfinite(curve).all()
        assert (np.diff(curve) >= 0).all()
    assert probe.bytes_at(20) == pytest.approx(np.sqrt(probe.bytes_at(10) * probe.bytes_at(30))), "by the logarithm"
    assert probe.psnr_at(20) == pytest.approx((probe.psnr_at(10) + probe.psnr_at(30)) / 2)


def test_between_qualities_it_is_about_right(runs: list[np.ndarray], probe: KeyframeProbe) -> None:
    images = [run[row] for run in runs for row in sorted({0, len(run) // 2, len(run) - 1})]
    for quality in (20, 40, 60, 80):
        real = stored_bytes(encode_keyframes(images, "avif", quality), "avif") / len(images)
        assert probe.bytes_at(quality) == pytest.approx(real, rel=0.1)


def test_frames_between_are_harder_to_guess_the_further_key_frames_are_apart() -> None:
    y, x = np.mgrid[:32, :48] / 8
    frames = [np.uint8(128 + 100 * np.sin(x + 0.05 * k) * np.cos(y)) for k in range(33)]
    moving = np.stack([np.stack([frame] * 3, axis=-1) for frame in frames])
    found = probe_keyframes([moving], "jpeg").between_psnr_db
    assert list(found) == list(INTERVALS)
    assert all(near > far + 3 for near, far in pairwise(found.values()))
    middle = np.rint((moving[0].astype(float) + moving[8]) / 2)
    assert found[8] == pytest.approx(10 * np.log10(255**2 / np.square(middle - moving[4]).mean()), abs=1e-3)
    still = probe_keyframes([np.repeat(moving[:1], 33, axis=0)], "jpeg").between_psnr_db
    assert set(still.values()) == {100.0}


def test_short_videos_end_in_a_key_frame() -> None:
    """Beyond their last frame, an interval makes no difference."""
    found = probe_keyframes([tiny.draw_frames(10, 0, SIZE)], "jpeg").between_psnr_db
    assert found[16] == found[32] < found[8]
    alone = probe_keyframes([tiny.draw_frames(2, 0, SIZE)], "jpeg")
    assert set(alone.between_psnr_db.values()) == {alone.psnr_db[-1]}, "no frame lies between two"


def test_a_lossless_codec(runs: list[np.ndarray]) -> None:
    probe = probe_keyframes(runs, "png")
    assert probe.psnr_db == (100.0, 100.0)
    assert float(probe.bytes_at(5)) == pytest.approx(float(probe.bytes_at(95)))


def test_scaled() -> None:
    probe = KeyframeProbe((10, 50, 90), (100.0, 400.0, 900.0), (30.0, 35.0, 40.0), {8: 30.0})
    scaled = probe.scaled_to(50, 440.0)
    assert scaled.bytes_per_keyframe == pytest.approx((110.0, 440.0, 990.0))
    assert (scaled.psnr_db, scaled.qualities, scaled.between_psnr_db) == (probe.psnr_db, probe.qualities, {8: 30.0})


def test_no_videos() -> None:
    with pytest.raises(ValueError, match="there are no frames to probe: the corpus has no videos"):
        probe_keyframes([], "avif")
