"""The generated corpus: deterministic, well-formed, and labelled by motion alone."""

from pathlib import Path

import numpy as np
import pytest

from neuralloader.corpus.find import find_videos
from neuralloader.corpus.read import read_video
from neuralloader.corpus.synthetic import MOTIONS, render_video, write_synthetic_corpus


def _render(motion: str, number: int, num_frames: int = 9, *, seed: int = 0, rate: float = 8.0) -> np.ndarray:
    frames = render_video(motion, seed=seed, number=number, num_frames=num_frames, size=(48, 64), frame_rate=rate)
    return np.stack(list(frames))


def test_corpus_has_its_videos_at_their_size_and_rate(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_synthetic_corpus(
        tmp_path,
        num_videos_per_class=2,
        num_frames=5,
        size=(48, 64),
        frame_rate=6.0,
        progress=lambda done, total: steps.append((done, total)),
    )
    found = find_videos(tmp_path)
    assert found.classes == MOTIONS
    assert [source.label for source in found.sources] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert steps == [(number, 8) for number in range(1, 9)]
    for source in found.sources:
        video = read_video(source.path, frame_rate=None, size=(48, 64))
        assert video.frames.shape == (5, 48, 64, 3)
        assert (video.facts.source_size, video.facts.source_frame_rate) == ((48, 64), 6.0)


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for run, seed in enumerate([3, 3, 4]):
        folder = tmp_path / str(run)
        write_synthetic_corpus(folder, num_videos_per_class=1, num_frames=3, size=(32, 32), frame_rate=8, seed=seed)
        contents.append([path.read_bytes() for path in sorted(folder.rglob("*.avi"))])
    assert contents[0] == contents[1]
    assert all(one != other for one, other in zip(contents[0], contents[2], strict=True))


def test_first_frame_does_not_depend_on_the_class() -> None:
    for number in range(6):
        first, *others = [_render(motion, number, 1) for motion in MOTIONS]
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_videos_look_different_from_one_another() -> None:
    frames = [_render("move", number, 1)[0].astype(float) for number in range(8)]
    for number, frame in enumerate(frames):
        assert frame.std() > 12
        for other in frames[:number]:
            assert np.abs(frame - other).mean() > 8


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_moves(motion: str) -> None:
    for number in range(8):
        frames = _render(motion, number).astype(float)
        steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
        assert steps.max() > 1.0, (motion, number)
        assert steps.max() < 45, (motion, number)  # it does not jump about


def test_motions_differ_in_what_follows() -> None:
    for number in range(4):
        later = [_render(motion, number)[3].astype(float) for motion in MOTIONS]
        for index, frame in enumerate(later):
            assert all(np.abs(frame - other).mean() > 0.5 for other in later[:index])


def test_motion_is_in_seconds() -> None:
    np.testing.assert_array_equal(_render("bounce", 1, 9, rate=16.0)[::2], _render("bounce", 1, 5, rate=8.0))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="motion='jump' must be one of bounce, move, turn, zoom"):
        render_video("jump", seed=0, number=0, num_frames=1, size=(48, 64), frame_rate=8)
    with pytest.raises(ValueError, match=r"size=\(8, 64\) must be \(height, width\) of 16 pixels or more"):
        render_video("move", seed=0, number=0, num_frames=1, size=(8, 64), frame_rate=8)
    with pytest.raises(ValueError, match="num_videos_per_class=0 and num_frames=4 must be 1 or more"):
        write_synthetic_corpus(tmp_path, num_videos_per_class=0, num_frames=4)
