"""The index survives its tensors, stays small, and no forged row gets past it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.clips import ClipTable, KeyframeTable, SkippedSource, VideoInfo, index_corpus
from neuralloader.container.index import PackIndex, index_from_tensors, index_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError


def _make_index(num_frames, *, frames_per_clip=4, key_interval=8, skipped=(), name="Kick/vídeo {}.avi"):
    videos = tuple(
        VideoInfo(
            name=name.format(i),
            label=i % 3 - 1,
            num_frames=n,
            num_source_frames=7 * n,
            source_frame_rate=29.97,
            frame_rate=29.97 / 7,
            source_size=(240, 320),
        )
        for i, n in enumerate(num_frames)
    )
    clips, keys = index_corpus(np.array(num_frames), frames_per_clip=frames_per_clip, key_interval=key_interval)
    return PackIndex(videos, tuple(skipped), clips, keys)


def _with_extras(index: PackIndex, **columns) -> PackIndex:
    """The index with more told about each video: columns of values, by name."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    videos = tuple(dataclasses.replace(video, **row) for video, row in zip(index.videos, rows, strict=True))
    return dataclasses.replace(index, videos=videos)


def _assert_same(a: PackIndex, b: PackIndex):
    assert a.videos == b.videos
    assert a.skipped == b.skipped
    for table in ("clips", "keys"):
        for field in dataclasses.fields(getattr(a, table)):
            ours, theirs = (getattr(getattr(index, table), field.name) for index in (a, b))
            assert theirs.dtype in (np.int32, np.int64)
            assert np.array_equal(ours, theirs)


def _read(tensors, **options):
    options = {"num_classes": 2, "num_splits": 2, "frames_per_clip": 4, **options}
    return index_from_tensors(tensors.__getitem__, tensors.keys(), **options)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 70), max_size=8),
    st.sampled_from([(1, 1), (4, 4), (4, 8), (8, 16)]),
    st.lists(
        st.tuples(st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.just("no frames")), max_size=3
    ),
)
def test_round_trip(num_frames, lengths, skipped):
    frames_per_clip, key_interval = lengths
    index = _make_index(
        num_frames,
        frames_per_clip=frames_per_clip,
        key_interval=key_interval,
        skipped=[SkippedSource(*source) for source in skipped],
    )
    _assert_same(_read(index_to_tensors(index), frames_per_clip=frames_per_clip), index)


def test_round_trip_through_a_file(tmp_path):
    index = _make_index([5, 300, 1], skipped=[SkippedSource("a.avi", "it is empty")])
    write_pack(tmp_path / "a.nvpack", {}, index_to_tensors(index))
    with PackReader(tmp_path / "a.nvpack") as reader:
        _assert_same(
            index_from_tensors(reader.tensor, reader.tensor_names, num_classes=2, num_splits=0, frames_per_clip=4),
            index,
        )


OPTIONAL = {"videos.num_nominal_frames", "videos.splits", "videos.problems"}


@pytest.mark.parametrize(
    ("columns", "written"),
    [
        ({"splits": [0, 0], "problem": ["", ""], "num_nominal_frames": [0, 0]}, set()),
        ({"splits": [0, 2]}, {"videos.splits"}),
        ({"problem": ["", "es endet zu früh"]}, {"videos.problems"}),
        ({"num_nominal_frames": [70000, 0]}, {"videos.num_nominal_frames"}),
        ({"splits": [3, 1], "problem": ["a\nb", "c"], "num_nominal_frames": [9, 2**40]}, OPTIONAL),
    ],
)
def test_what_few_packs_tell_is_written_where_it_is_told(columns, written):
    index = _with_extras(_make_index([9, 4]), **columns)
    tensors = index_to_tensors(index)
    assert OPTIONAL & tensors.keys() == written
    _assert_same(_read(tensors), index)


def test_as_many_splits_as_there_may_be():
    index = _with_extras(_make_index([9, 4, 1]), splits=[2**63 - 1, 1 << 62, 0])
    tensors = index_to_tensors(index)
    assert tensors["videos.splits"].tolist() == [2**63 - 1, 1 << 62, 0]
    _assert_same(_read(tensors, num_splits=63), index)
    with pytest.raises(PackError, match=rf"videos.splits\[0\] = {2**63 - 1} must be 0 to {2**62 - 1}"):
        _read(tensors, num_splits=62)


def test_columns_take_the_smallest_type_that_holds_them():
    tensors = index_to_tensors(_make_index([300] * 300))
    types = {name: tensor.dtype.name for name, tensor in tensors.items()}
    assert types["videos.num_frames"] == "uint16"
    assert types["videos.label"] == "int8"
    assert types["clips.num_valid"] == "uint8"
    assert types["clips.video"] == "uint16"
    assert types["videos.frame_rate"] == "float64"
    assert index_to_tensors(_make_index([5]))["clips.video"].dtype == np.uint8


def test_sixty_videos_take_less_than_six_kilobytes():
    rng = np.random.default_rng(0)
    num_frames = rng.integers(8, 26, 60)
    index = _make_index(num_frames.tolist(), frames_per_clip=8, name="ShakeHands/seq_{:02d}_sample.avi")
    assert sum(tensor.nbytes for tensor in index_to_tensors(index).values()) < 6000


# Two videos: 9 frames (clips 0-3, 4-7, 8; keys 0, 8) and 4 frames (clip 0-3; keys 0, 3).
@pytest.fixture
def tensors():
    tensors = index_to_tensors(_make_index([9, 4]))
    assert tensors["clips.video"].tolist() == [0, 0, 0, 1]
    assert tensors["clips.start_key"].tolist() == [0, 0, 1, 2]
    assert tensors["clips.end_key"].tolist() == [1, 1, 1, 3]
    assert tensors["keys.frame"].tolist() == [0, 8, 0, 3]
    return {name: tensor.copy() for name, tensor in tensors.items()}


@pytest.fixture
def told():
    """The same two videos, with all that can be told about them."""
    index = _with_extras(_make_index([9, 4]), splits=[1, 2], problem=["", "cut"], num_nominal_frames=[0, 30])
    return {name: tensor.copy() for name, tensor in index_to_tensors(index).items()}


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("videos.splits", np.array([1, 4]), r"videos.splits\[1\] = 4 must be 0 to 3"),
        ("videos.splits", np.array([-1, 0]), r"videos.splits\[0\] = -1 must be 0 to 3"),
        ("videos.splits", np.array([0, 2**63], np.uint64), rf"videos.splits\[1\] = {2**63} must be 0 to 3"),
        ("videos.splits", np.array([1.0, 2.0]), "videos.splits must hold integers, not float64"),
        ("videos.splits", np.array([1, 2, 3]), r"videos.splits has shape \(3,\), not \(2,\)"),
        ("videos.num_nominal_frames", np.array([-1, 5]), r"videos.num_nominal_frames\[0\] = -1 must be 0 to"),
        ("videos.num_nominal_frames", np.array([[1, 5]]), r"videos.num_nominal_frames has shape \(1, 2\), not \(2,\)"),
        ("videos.problems", np.frombuffer(b"\0", np.uint8), "videos.problems holds 1 texts for 2 videos"),
        ("videos.problems", np.frombuffer(b"\0\0cut\0", np.uint8), "videos.problems holds 3 texts for 2 videos"),
        ("videos.problems", np.frombuffer(b"\0cut", np.uint8), "videos.problems does not end in a zero byte"),
        ("videos.problems", np.frombuffer(b"\0\xff\0", np.uint8), r"videos.problems\[1\] = b'\\xff' is no valid UTF-8"),
        ("videos.problems", np.zeros(2, np.int8), "videos.problems must be one row of uint8, not int8"),
    ],
)
def test_forged_splits_and_problems_are_refused(told, name, tensor, message):
    _read(told)
    told[name] = tensor
    with pytest.raises(PackError, match=message):
        _read(told)


def test_a_pack_without_split_names_has_no_video_in_any(told):
    with pytest.raises(PackError, match=r"videos.splits\[0\] = 1 must be 0 to 0"):
        _read(told, num_splits=0)
    told["videos.splits"] = np.zeros(2, np.uint8)  # needless, but true
    assert [video.splits for video in _read(told, num_splits=0).videos] == [0, 0]


@pytest.mark.parametrize("problem", ["a\0b", "\udcff"])
def test_problems_that_cannot_be_stored_are_refused_when_packing(problem):
    with pytest.raises(ValueError, match=r"zero character|no valid Unicode"):
        index_to_tensors(_with_extras(_make_index([3]), problem=[problem]))


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("videos.num_frames", 1, 0, r"videos.num_frames\[1\] = 0 must be 1 to"),
        ("videos.num_frames", 1, 5, r"clips.num_valid\[3\] = 4 does not end its video's last clip at the last frame"),
        ("videos.num_source_frames", 0, 0, r"videos.num_source_frames\[0\] = 0 must be 1 to"),
        ("videos.label", 1, 2, r"videos.label\[1\] = 2 must be -1 to 1"),
        ("videos.label", 0, -2, r"videos.label\[0\] = -2 must be -1 to 1"),
        ("videos.frame_rate", 1, np.nan, r"videos.frame_rate\[1\] = nan must be a finite number above 0"),
        ("videos.source_frame_rate", 0, 0, r"videos.source_frame_rate\[0\] = 0.0 must be a finite number"),
        ("videos.source_size", (1, 0), 0, r"videos.source_size\[2\] = 0 must be 1 to"),
        ("videos.names", -1, 65, "videos.names does not end in a zero byte"),
        ("videos.names", 3, 0, "videos.names holds 3 names for 2 videos"),
        ("videos.names", 3, 255, r"videos.names\[0\] = b'.*' is no valid UTF-8"),
        ("videos.names", 0, ord("/"), r"videos.names\[0\] = '/.*' must be a path below the packed folder"),
        ("clips.video", 1, 1, r"clips.video\[2\] = 0 leaves out a video, or comes back to one"),
        ("clips.video", 3, 2, r"clips.video\[3\] = 2 must be 0 to 1"),
        ("clips.video", 0, 1, r"clips.video\[0\] = 1 leaves out a video"),
        ("clips.first_frame", 1, 5, r"clips.first_frame\[1\] = 5 does not follow the clip before"),
        ("clips.first_frame", 3, 1, r"clips.first_frame\[3\] = 1 does not follow the clip before"),
        ("clips.num_valid", 0, 0, r"clips.num_valid\[0\] = 0 must be 1 to 4"),
        ("clips.num_valid", 2, 5, r"clips.num_valid\[2\] = 5 must be 1 to 4"),
        ("clips.num_valid", 2, 2, r"clips.num_valid\[2\] = 2 does not end its video's last clip"),
        ("clips.start_key", 0, 4, r"clips.start_key\[0\] = 4 must be 0 to 3"),
        ("clips.start_key", 3, 0, r"clips.start_key\[3\] = 0 is a key-frame of another video"),
        ("clips.start_key", 1, 1, r"clips.start_key\[1\] = 1 lies after the clip's start"),
        ("clips.end_key", 0, 2, r"clips.end_key\[0\] = 2 is a key-frame of another video"),
        ("clips.end_key", 2, 0, r"clips.end_key\[2\] = 0 lies before the clip's start"),
        ("keys.video", 1, 2, r"keys.video\[1\] = 2 must be 0 to 1"),
        ("keys.frame", 1, 9, r"keys.frame\[1\] = 9 lies past its video's last frame"),
        ("keys.frame", 1, 0, r"keys.frame\[1\] = 0 does not come after the row before"),
        ("keys.video", 0, 1, r"keys.video\[1\] = 0 comes after a later video"),
    ],
)
def test_forged_rows_are_refused(tensors, name, row, value, message):
    tensors[name][row] = value
    with pytest.raises(PackError, match=message):
        _read(tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("videos.num_frames", np.array([9.0, 4.0]), "videos.num_frames must hold integers, not float64"),
        ("videos.num_frames", np.array([[9, 4]]), r"videos.num_frames has shape \(1, 2\), not \(n,\)"),
        (
            "videos.num_frames",
            np.array([9, 2**64 - 1], np.uint64),
            r"videos.num_frames\[1\] = 18446744073709551615 must",
        ),
        ("videos.label", np.array([0]), r"videos.label has shape \(1,\), not \(2,\)"),
        ("videos.frame_rate", np.array([1, 1], np.float32), r"videos.frame_rate is float32 \(2,\), not float64 \(2,\)"),
        ("videos.source_size", np.array([1, 1]), r"videos.source_size has shape \(2,\), not \(2, 2\)"),
        ("videos.names", np.zeros(1, np.int8), r"videos.names must be one row of uint8, not int8"),
        ("videos.names", np.frombuffer(b"a\0a\0", np.uint8), r"videos.names\[1\] = 'a' comes twice"),
        ("videos.names", np.frombuffer(b"a/../../b\0c\0", np.uint8), r"videos.names\[0\] = .* must be a path below"),
        ("skipped.text", np.frombuffer(b"a\0", np.uint8), "skipped.text holds 1 texts, where pairs"),
        ("clips.end_key", np.array([1, 1, 1]), r"clips.end_key has shape \(3,\), not \(4,\)"),
        ("keys.frame", np.zeros(3, np.uint8), r"keys.frame has shape \(3,\), not \(4,\)"),
    ],
)
def test_forged_tables_are_refused(tensors, name, tensor, message):
    tensors[name] = tensor
    with pytest.raises(PackError, match=message):
        _read(tensors)


def test_a_short_clip_within_a_video_is_refused():
    clips = ClipTable(*(np.array(column) for column in ([0, 0], [0, 3], [3, 4], [0, 0], [1, 1])))
    index = dataclasses.replace(_make_index([7]), clips=clips, keys=KeyframeTable(np.array([0, 0]), np.array([0, 6])))
    with pytest.raises(PackError, match=r"clips.num_valid\[0\] = 3 is short within its video"):
        _read(index_to_tensors(index))


def test_a_video_without_clips_is_refused(tensors):
    for name in tensors:
        if name.startswith("clips."):
            tensors[name] = tensors[name][:3]
    with pytest.raises(PackError, match=r"clips.video names 1 of 2 videos"):
        _read(tensors)


@pytest.mark.parametrize("name", ["a\0b", "\udcff.avi", "../a.avi", "/a.avi", "", "a/./b.avi", "a//b.avi", "a/"])
def test_names_that_cannot_be_stored_are_refused_when_packing(name):
    with pytest.raises(ValueError, match=r"zero character|no valid Unicode; rename the file|below the packed folder"):
        index_to_tensors(_make_index([3], name=name))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_random_damage_is_refused_or_harmless(data):
    index = _with_extras(_make_index([9, 4]), splits=[1, 2], problem=["", "cut"], num_nominal_frames=[0, 30])
    tensors = {name: tensor.copy() for name, tensor in index_to_tensors(index).items()}
    name = data.draw(st.sampled_from(sorted(name for name, tensor in tensors.items() if tensor.size)))
    raw = tensors[name].reshape(-1).view(np.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        index = _read(tensors)
    except PackError:
        return
    assert all(info.num_frames == n for info, n in zip(index.videos, (9, 4), strict=True))
    assert (index.keys.video[index.clips.end_key] == index.clips.video).all()
