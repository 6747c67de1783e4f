"""Several files of frames against one NumPy array of all of them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.corpus.frames import FrameFiles

COUNTS = [3, 0, 1, 5]  # a chunk may have no frame
SIZE = (2, 3)
WHOLE = np.random.default_rng(0).integers(0, 256, (sum(COUNTS), *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameFiles:
    folder = tmp_path_factory.mktemp("frames")
    paths = [folder / f"{number}.frames" for number in range(len(COUNTS))]
    for path, part in zip(paths, np.split(WHOLE, np.cumsum(COUNTS)[:-1]), strict=True):
        path.write_bytes(part.tobytes() + b"behind")
    return FrameFiles(paths, COUNTS, SIZE)


def test_looks_like_an_array(frames: FrameFiles) -> None:
    assert (frames.shape, frames.dtype, frames.ndim) == (WHOLE.shape, WHOLE.dtype, WHOLE.ndim)
    assert (len(frames), frames.nbytes) == (len(WHOLE), WHOLE.nbytes)
    np.testing.assert_array_equal(np.asarray(frames), WHOLE)
    np.testing.assert_array_equal(np.array(frames, dtype=np.float32), WHOLE.astype(np.float32))
    np.testing.assert_array_equal(list(frames), WHOLE)
    with pytest.raises(ValueError, match="lie in several files, so that an array of all of them is a copy"):
        np.array(frames, copy=False)


_INDICES = st.one_of(
    st.integers(-9, 8),
    st.slices(9),
    st.lists(st.integers(-9, 8), max_size=12),
    st.lists(st.integers(-9, 8), max_size=12).map(sorted),
    st.lists(st.booleans(), min_size=9, max_size=9).map(np.array),
)


@given(rows=_INDICES)
def test_indexing_gives_what_numpy_gives(frames: FrameFiles, rows: Any) -> None:
    expected = WHOLE[np.array(rows, np.int64) if isinstance(rows, list) else rows]
    found = frames[rows]
    assert type(found) is np.ndarray
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_numbers_of_any_kind_are_taken(frames: FrameFiles) -> None:
    for row in (4, np.int64(4), np.uint8(4), np.array(4)):
        np.testing.assert_array_equal(frames[row], WHOLE[4])
    np.testing.assert_array_equal(frames[np.array([8, 0], np.uint16)], WHOLE[[8, 0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (9, "there are frames 0 to 8, not 9"),
        (-10, "there are frames 0 to 8, not -10"),
        ([0, 9], "there are frames 0 to 8, not 9"),
        ([0.5], "by whole numbers, not float64"),
        ([[0]], "by one row of numbers, not by 2 axes"),
        ((0, 1), "along their first axis alone"),
        (np.ones(3, bool), "3 booleans cannot pick from 9 frames"),
    ],
)
def test_bad_indices(frames: FrameFiles, rows: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        frames[rows]


def test_frames_cannot_be_written_but_copies_can(frames: FrameFiles) -> None:
    with pytest.raises(ValueError, match="read-only"):
        frames[0][0, 0, 0] = 1
    frames[np.array([0, 1])][0, 0, 0, 0] = 1


def test_a_frame_is_found_in_its_file(frames: FrameFiles) -> None:
    for row in range(len(frames)):
        path, number = frames.locate(row)
        at = number * SIZE[0] * SIZE[1] * 3
        assert path.read_bytes()[at : at + SIZE[0] * SIZE[1] * 3] == WHOLE[row].tobytes()


def test_pickled_as_names(frames: FrameFiles) -> None:
    data = pickle.dumps(frames)
    assert len(data) < 1000
    np.testing.assert_array_equal(np.asarray(pickle.loads(data)), WHOLE)


def test_files_that_hold_less(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(17))
    with pytest.raises(ValueError, match=r"a has 17 bytes, less than 1 frames of \(2, 3\)"):
        FrameFiles([tmp_path / "a"], [1], SIZE)
    with pytest.raises(ValueError, match="there are no frames"):
        FrameFiles([tmp_path / "a"], [0], SIZE)
