"""The items of a dataset: rows of the frame table at another frame rate, and the videos that a list names."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuralloader.clips import FrameTable, index_corpus, index_frames
from neuralloader.loading.items import ItemTable, find_videos
from neuralloader.loading.samplers import AllWindows, ClipSampler, RandomClips, RegularClips


def _table(lengths: list[int]) -> FrameTable:
    return index_frames(*index_corpus(np.array(lengths), frames_per_clip=8, key_interval=8))


def _items(
    lengths: list[int],
    sampler: ClipSampler,
    *,
    videos: list[int] | None = None,
    stored_rate: float | list[float] = 10.0,
    frame_rate: float | None = None,
) -> ItemTable:
    rates = np.full(len(lengths), stored_rate) if isinstance(stored_rate, float) else np.array(stored_rate)
    rows = np.arange(len(lengths)) if videos is None else np.array(videos, np.int64)
    return ItemTable(_table(lengths), rows, rates, sampler, frame_rate)


def _rows(items: ItemTable) -> list[list[list[int]]]:
    return items.rows(np.arange(len(items)), np.zeros((len(items), 0))).tolist()


def _shown(num_frames: int, stored_rate: float, frame_rate: float) -> list[int]:
    """The frames of a whole video at another rate: one window that is as long as it."""
    num_shown = ItemTable(
        _table([num_frames]),
        np.array([0]),
        np.array([stored_rate]),
        AllWindows(num_frames_per_clip=1),
        frame_rate,
    )
    sampler = AllWindows(num_frames_per_clip=len(num_shown), policy="error")
    ((rows,),) = _rows(_items([num_frames], sampler, stored_rate=stored_rate, frame_rate=frame_rate))
    return rows


# --- the table ------------------------------------------------------------------------------------------------------


def test_items_come_in_the_order_of_the_videos_that_are_used() -> None:
    items = _items([9, 3, 5], AllWindows(num_frames_per_clip=4), videos=[2, 0])
    assert len(items) == 5
    assert items.video.tolist() == [2, 2, 0, 0, 0]
    assert items.number.tolist() == [0, 1, 0, 1, 2]
    assert _rows(items) == [
        [[12, 13, 14, 15]],
        [[16, 16, 16, 16]],
        [[0, 1, 2, 3]],
        [[4, 5, 6, 7]],
        [[8, 8, 8, 8]],
    ]


def test_some_items_in_any_order() -> None:
    items = _items([9, 3, 5], RegularClips(num_clips=2, num_frames_per_clip=2))
    rows = items.rows(np.array([2, 0, 2]), np.zeros((3, 0)))
    assert rows.dtype == np.int64
    assert rows.tolist() == [[[12, 13], [15, 16]], [[0, 1], [7, 8]], [[12, 13], [15, 16]]]


def test_draws_belong_to_their_items() -> None:
    items = _items([9, 9], RandomClips(num_frames_per_clip=3))
    assert items.rows(np.array([1, 0]), np.array([[0.0], [0.999]])).tolist() == [[[9, 10, 11]], [[6, 7, 8]]]


def test_what_a_sampler_refuses_is_refused() -> None:
    items = _items([9, 3], RandomClips(num_frames_per_clip=4, policy="error"))
    assert items.rows(np.array([0]), np.zeros((1, 1))).tolist() == [[[0, 1, 2, 3]]]
    with pytest.raises(ValueError, match="past the end of a video of 3 frames"):
        items.rows(np.array([0, 1]), np.zeros((2, 1)))


# --- another frame rate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "frame_rate", "shown"),
    [
        (5, 10, [0, 1, 2, 3, 4]),
        (6, 5, [0, 2, 4]),  # a whole step takes every second, as far as there are frames
        (7, 5, [0, 2, 4, 6]),
        (10, 2.5, [0, 4, 8]),
        (10, 4, [0, 2, 5, 7]),  # else a frame is shown where its whole time is in the video: 1.0 s is 4 at 4 a second
        (9, 4, [0, 2, 5]),
        (3, 20, [0, 0, 1, 1, 2, 2]),
        (3, 15, [0, 0, 1, 2]),
        (4, 7.5, [0, 1, 2]),
        (1, 4, [0]),  # every video has a frame
        (1, 30, [0, 0, 0]),
        (30, 3, [0, 3, 6, 10, 13, 16, 20, 23, 26]),
    ],
)
def test_frames_at_another_rate(num_frames: int, frame_rate: float, shown: list[int]) -> None:
    assert _shown(num_frames, 10.0, frame_rate) == shown


@given(
    num_frames=st.integers(1, 300),
    rates=st.tuples(*[st.sampled_from(["5", "7.5", "10", "12", "15", "24", "25", "29.97", "30", "50", "60"])] * 2),
)
@example(num_frames=300, rates=("29.97", "10"))
@example(num_frames=300, rates=("10", "30"))
@example(num_frames=3010, rates=("59.94", "12.5"))  # 625 * 4.7952 is 2997, and less in floating point
@example(num_frames=125, rates=("12.5", "12"))  # as is 125 / (12.5 / 12)
def test_rates_as_torchvision_has_them(num_frames: int, rates: tuple[str, str]) -> None:
    """``VideoClips``, by hand and in whole numbers: every n-th frame, or frame i * step for the time there is."""
    stored_rate, frame_rate = rates
    step = Fraction(stored_rate) / Fraction(frame_rate)
    if step.denominator == 1:
        expected = list(range(num_frames))[:: int(step)]
    else:
        expected = [int(i * step) for i in range(int(num_frames / step))] or [0]
    assert _shown(num_frames, float(stored_rate), float(frame_rate)) == expected


def test_every_video_has_a_rate_of_its_own() -> None:
    """A window covers the same time in each."""
    items = _items([20, 10], AllWindows(num_frames_per_clip=5), stored_rate=[20.0, 10.0], frame_rate=10)
    assert _rows(items) == [[[0, 2, 4, 6, 8]], [[10, 12, 14, 16, 18]], [[20, 21, 22, 23, 24]], [[25, 26, 27, 28, 29]]]


def test_a_window_past_the_end_repeats_the_last_frame_that_is_shown() -> None:
    items = _items([7, 4], AllWindows(num_frames_per_clip=3), frame_rate=5)
    assert _rows(items) == [[[0, 2, 4]], [[6, 6, 6]], [[7, 9, 9]]]


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = ["Archery/v_Archery_g01_c01.avi", "Archery/my own.avi", "my video 7.avi", "z.avi", "my"]


def _list_file(folder: Path, text: str) -> Path:
    path = folder / "testlist01.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_videos_come_in_the_order_wanted() -> None:
    rows = find_videos(NAMES, ["z.avi", "Archery/my own.avi"])
    assert rows.dtype == np.int64
    assert rows.tolist() == [3, 1]
    assert find_videos(NAMES, tuple(NAMES[::-1])).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("Archery/v_Archery_g01_c01.avi 3\nz.avi 12\n", [0, 3]),  # as UCF101's training lists
        ("z.avi\r\nArchery/v_Archery_g01_c01.avi\r\n", [3, 0]),  # as its test lists, from Windows
        ("\n  z.avi  \n\n", [3]),
        ("Archery/my own.avi 2\nmy video 7.avi", [1, 2]),  # the 7 is no label: the line is a name
        ("my video 7.avi 1\nmy 1\n", [2, 4]),
        ("z.avi\t5\n", [3]),
    ],
)
def test_a_list_in_a_file(text: str, rows: list[int], tmp_path: Path) -> None:
    path = _list_file(tmp_path, text)
    assert find_videos(NAMES, path).tolist() == rows
    assert find_videos(NAMES, str(path)).tolist() == rows


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    text = (
        r"2 of 3 videos are not in the pack: 'a\.avi' is not, 'Archery/v_Archery_g01_c01\.avi' is; names are paths "
        "below the packed folder"
    )
    with pytest.raises(ValueError, match=text):
        find_videos(NAMES, ["z.avi", "a.avi", "b.avi"])
    with pytest.raises(ValueError, match=text):
        find_videos(NAMES, _list_file(tmp_path, "z.avi 1\na.avi 1\nb.avi 2\n"))


def test_no_name_at_all(tmp_path: Path) -> None:
    for wanted in ([], _list_file(tmp_path, "\n \n")):
        with pytest.raises(ValueError, match="videos names no video; None is all of them"):
            find_videos(NAMES, wanted)


def test_a_name_that_comes_twice(tmp_path: Path) -> None:
    for wanted in (["my", "z.avi", "my", "z.avi"], _list_file(tmp_path, "my\nz.avi 1\nmy 2\n")):
        with pytest.raises(ValueError, match="videos names 'my' 2 times"):
            find_videos(NAMES, wanted)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        find_videos(NAMES, tmp_path / "none.txt")
