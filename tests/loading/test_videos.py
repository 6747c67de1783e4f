"""Videos one by one: the frames of ``Decoder`` by number and by time, times between frames, and what errors say."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import neuralloader
from neuralloader import NeuralVideoDataset, Pack
from neuralloader.backends import Units
from neuralloader.backends.precision import autocast
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.loading.decode import Decoder
from neuralloader.loading.output import to_uint8
from neuralloader.loading.videos import Frame, FrameBatch, NeuralVideo, Videos, open_videos
from neuralloader.metrics.quality import psnr_db

CPU = torch.device("cpu")
RATE = tiny.SOURCE_RATE
NAMES = list(tiny.CORPUS)
ONE, FOURTEEN = NAMES.index("left/one.avi"), NAMES.index("right/fourteen.avi")
SECOND = {"back/five.avi": 5, "right/three.avi": 3}
ODD_RATE = 187  # of the second corpus: 1 / 187 * 187 is less than 1, 3 / 187 * 187 is more than 3
INTERPOLATING: list[tuple[str, tiny.Config]] = [
    ("dnerv", "fast"),
    ("dnerv", "paper"),
    ("cnerv", "fast"),
    ("hnerv", "fast"),
]


@pytest.fixture
def videos(fast_pack: tiny.TinyPack) -> Videos:
    return open_videos(fast_pack.path, device="cpu")


@pytest.fixture
def video(videos: Videos) -> NeuralVideo:
    """The one of 14 frames: two clips."""
    return videos[FOURTEEN]


@pytest.fixture
def frames(fast_pack: tiny.TinyPack) -> Tensor:
    """Its frames, decoded without ``videos``."""
    return _decoded(fast_pack.path, FOURTEEN)


@pytest.fixture(params=INTERPOLATING, ids="-".join)
def interpolating(request: pytest.FixtureRequest, make_pack: tiny.MakePack) -> tiny.TinyPack:
    """A pack of every kind of network that knows times between frames."""
    return make_pack(*request.param)


@pytest.fixture(scope="module")
def second_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus at another rate, packed by another network."""
    folder = tmp_path_factory.mktemp("second")
    for place, (name, length) in enumerate(SECOND.items()):
        (folder / "videos" / name).parent.mkdir(parents=True)
        write_mjpeg_avi(folder / "videos" / name, tiny.draw_frames(length, 100 * place), ODD_RATE)
    path = folder / "second.nvpack"
    tiny.pack_tiny(folder / "videos", path, "fast", backend="hnerv", epochs=50, faithful=True)
    return path


def _decoded(path: Path, video: int) -> Tensor:
    """(num_frames, 3, H, W): all frames of a video, by ``Decoder``."""
    pack = Pack(path)
    return Decoder(pack, CPU).decode(np.arange(*pack.frames.first_row[video : video + 2]))


def _assert_same(decoded: Tensor, frames: Tensor) -> None:
    """Within a grey level, as the batch that a frame is decoded in makes that much of a difference."""
    assert decoded.shape == frames.shape
    assert decoded.dtype == torch.uint8
    assert not len(frames) or (decoded.short() - frames.short()).abs().max() <= 1


def _check(batch: FrameBatch, frames: Tensor, numbers: list[int]) -> None:
    """These frames, in this order, each shown at its time for a tenth of a second."""
    assert len(batch) == len(numbers)
    _assert_same(batch.data, frames[numbers])
    assert batch.pts_seconds.dtype == batch.duration_seconds.dtype == torch.float64
    assert batch.pts_seconds.tolist() == pytest.approx([number / RATE for number in numbers])
    assert batch.duration_seconds.tolist() == pytest.approx([1 / RATE] * len(numbers))


# --- as a sequence --------------------------------------------------------------------------------------------------


def test_what_a_video_says_about_itself(videos: Videos, video: NeuralVideo) -> None:
    assert repr(video) == "NeuralVideo('right/fourteen.avi', 14 frames at 10 frames/s)"
    assert (video.info.name, video.info.label, video.info.num_frames) == ("right/fourteen.avi", 1, 14)
    assert (video.begin_stream_seconds, video.end_stream_seconds) == (0.0, 1.4)
    assert [len(each) for each in videos] == list(tiny.CORPUS.values())


def test_frames_by_number(video: NeuralVideo, frames: Tensor) -> None:
    for index in range(14):
        assert video[index].shape == (3, *tiny.SIZE)
        _assert_same(video[index], frames[index])
        assert torch.equal(video[index - 14], video[index])
    for kind in (np.int64, np.uint8, torch.tensor):
        assert torch.equal(video[kind(9)], video[9])  # type: ignore[call-overload]
    assert len({frame.numpy().tobytes() for frame in frames}) == 14, "no two frames are the same: a mix-up would show"


@pytest.mark.parametrize(
    "part",
    [
        slice(None),
        slice(3, 9),
        slice(1, 14, 4),
        slice(None, None, -3),
        slice(-4, None),
        slice(10, 99),
        slice(5, 5),
        slice(20, 30),
    ],
    ids=str,
)
def test_slices(video: NeuralVideo, frames: Tensor, part: slice) -> None:
    numbers = list(range(14))[part]
    decoded = video[part]
    assert decoded.shape == (len(numbers), 3, *tiny.SIZE)
    _assert_same(decoded, frames[numbers])


def test_iteration_ends(video: NeuralVideo, frames: Tensor) -> None:
    _assert_same(torch.stack(list(video)), frames)
    _assert_same(torch.stack(list(reversed(video))), frames.flip(0))


@pytest.mark.parametrize("index", [14, -15, 10**30, np.int64(99)])
def test_frames_that_are_not_there(video: NeuralVideo, index: Any) -> None:
    text = f"frame {index} is out of range: right/fourteen.avi has 14 frames"
    for get in (video.__getitem__, video.get_frame_at, lambda number: video.get_frames_at([0, number])):
        with pytest.raises(IndexError, match=re.escape(text)):
            get(index)


@pytest.mark.parametrize("index", [1.0, "1", None, [0, 1]])
def test_what_is_no_frame_number(video: NeuralVideo, index: Any) -> None:
    with pytest.raises(TypeError):
        video[index]


# --- by number ------------------------------------------------------------------------------------------------------


def test_a_frame_with_its_time(video: NeuralVideo, frames: Tensor) -> None:
    for index in (0, 7, 13, -1):
        frame = video.get_frame_at(index)
        assert isinstance(frame, Frame)
        _assert_same(frame.data, frames[index])
        assert frame.pts_seconds == pytest.approx(index % 14 / RATE)
        assert frame.duration_seconds == pytest.approx(1 / RATE)


@pytest.mark.parametrize("indices", [[5, 3, 12, 3], [-1, 13, -14, 0], range(2, 6), np.array([8, 7]), []], ids=str)
def test_frames_in_any_order(video: NeuralVideo, frames: Tensor, indices: Any) -> None:
    _check(video.get_frames_at(indices), frames, [int(index) % 14 for index in indices])


def test_frames_by_number_may_come_from_a_generator(video: NeuralVideo, frames: Tensor) -> None:
    _check(video.get_frames_at(index for index in (4, 1)), frames, [4, 1])


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ((0, 14), range(14)),
        ((3, 6), [3, 4, 5]),
        ((1, 14, 6), [1, 7, 13]),
        ((2, 4, 9), [2]),
        ((14, 14), []),
        ((0, 0), []),
    ],
)
def test_ranges_of_frames(
    video: NeuralVideo, frames: Tensor, arguments: tuple[int, ...], numbers: list[int] | range
) -> None:
    _check(video.get_frames_in_range(*arguments), frames, list(numbers))


def test_ranges_outside_of_the_video(video: NeuralVideo) -> None:
    for start, stop in [(0, 15), (-1, 3), (5, 4)]:
        text = f"frames {start} to {stop} are not within 0 to 14 of right/fourteen.avi"
        with pytest.raises(IndexError, match=re.escape(text)):
            video.get_frames_in_range(start, stop)
    for step in (0, -1):
        with pytest.raises(ValueError, match=f"step={step} must be 1 or more"):
            video.get_frames_in_range(0, 14, step)


# --- by time --------------------------------------------------------------------------------------------------------


def test_a_frame_is_shown_from_its_time_to_the_next(video: NeuralVideo, frames: Tensor) -> None:
    at_once = [number / RATE for number in range(14)]
    _check(video.get_frames_played_at(at_once), frames, list(range(14)))
    _check(video.get_frames_played_at([time + 0.05 for time in at_once]), frames, list(range(14)))
    just_before = [number / RATE - 1e-5 for number in range(1, 15)]
    _check(video.get_frames_played_at(just_before), frames, list(range(14)))


def test_times_that_do_not_come_out_even(second_path: Path) -> None:
    """Times of frames are quotients, and times the rate they are a little less or more than whole numbers."""
    video = open_videos(second_path, device="cpu")[0]
    every = video.get_frames_in_range(0, 5)
    times = every.pts_seconds.numpy()
    assert (times * ODD_RATE < range(5)).any(), "or these times would tell nothing"
    assert (times * ODD_RATE > range(5)).any(), "nor would these"
    for batch in (video.get_frames_played_at(times), video.get_frames_interpolated_at(times)):
        _assert_same(batch.data, every.data)
        assert batch.pts_seconds.tolist() == times.tolist()
    for start in range(5):
        for stop in range(start, 5):
            batch = video.get_frames_played_in_range(times[start], times[stop])
            assert batch.pts_seconds.tolist() == times[start:stop].tolist()


def test_frames_by_time_in_any_order(video: NeuralVideo, frames: Tensor) -> None:
    _check(video.get_frames_played_at([0.99, 0.0, 0.5, 0.0]), frames, [9, 0, 5, 0])
    _check(video.get_frames_played_at([]), frames, [])
    frame = video.get_frame_played_at(1.399)
    _assert_same(frame.data, frames[13])
    assert (frame.pts_seconds, frame.duration_seconds) == pytest.approx((1.3, 0.1))
    _assert_same(video.get_frame_played_at(1.4 - 1e-12).data, frames[13])


@pytest.mark.parametrize("seconds", [1.4, -0.001, 99.0, float("nan"), float("inf")])
def test_times_outside_of_the_video(video: NeuralVideo, seconds: float) -> None:
    text = f"{seconds} seconds are out of range: right/fourteen.avi has 0 to before 1.4"
    with pytest.raises(IndexError, match=re.escape(text)):
        video.get_frame_played_at(seconds)
    with pytest.raises(IndexError, match=re.escape(text)):
        video.get_frames_played_at([0.2, seconds, 0.3])


@pytest.mark.parametrize(
    ("start", "stop", "numbers"),
    [
        (0.0, 1.4, range(14)),
        (0.3, 0.7, [3, 4, 5, 6]),
        (0.35, 0.7, [3, 4, 5, 6]),
        (0.3, 0.701, [3, 4, 5, 6, 7]),
        (0.31, 0.32, [3]),
        (1.3, 1.4, [13]),
        (0.5, 0.5, []),
        (0.55, 0.55, []),
        (0.0, 0.0, []),
        (1.4, 1.4, []),
    ],
)
def test_ranges_of_time_are_half_open(
    video: NeuralVideo, frames: Tensor, start: float, stop: float, numbers: list[int] | range
) -> None:
    _check(video.get_frames_played_in_range(start, stop), frames, list(numbers))


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 1.0), (0.0, 1.5), (0.8, 0.7), (0.0, float("nan"))])
def test_ranges_of_time_outside_of_the_video(video: NeuralVideo, start: float, stop: float) -> None:
    text = f"{start} to {stop} seconds are not within 0.0 to 1.4 of right/fourteen.avi"
    with pytest.raises(ValueError, match=re.escape(text)):
        video.get_frames_played_in_range(start, stop)


# --- between frames -------------------------------------------------------------------------------------------------


def _between(video: NeuralVideo, offset: float) -> Tensor:
    """(13, 3, H, W): as far behind each frame of the video of 14 but the last."""
    return video.get_frames_interpolated_at((np.arange(13) + offset) / RATE).data


def test_times_of_frames_give_these_frames(interpolating: tiny.TinyPack) -> None:
    video, frames = open_videos(interpolating.path, device="cpu")[FOURTEEN], _decoded(interpolating.path, FOURTEEN)
    times = np.arange(14) / RATE
    batch = video.get_frames_interpolated_at(times)
    _assert_same(batch.data, frames)
    np.testing.assert_allclose(batch.pts_seconds, times)
    assert batch.duration_seconds.tolist() == [0.0] * 14
    nearly = video.get_frames_interpolated_at((times + 1e-9)[:13])
    assert torch.equal(nearly.data, batch.data[:13]), "closer than can be told from rounding"


def test_halfway_lies_between_the_two_frames(interpolating: tiny.TinyPack) -> None:
    video, frames = open_videos(interpolating.path, device="cpu")[FOURTEEN], _decoded(interpolating.path, FOURTEEN)
    halfway = _between(video, 0.5)
    for neighbours in (frames[:-1], frames[1:]):
        assert psnr_db(halfway, neighbours).max() < 50, "it is none of the two"
    mean = ((frames[:-1].float() + frames[1:].float()) / 2).to(torch.uint8)
    far = frames[(np.arange(13) + 7) % 14]
    assert psnr_db(halfway, mean).mean() > psnr_db(halfway, far).mean() + 4


def test_just_behind_a_frame_lies_nearly_that_frame(interpolating: tiny.TinyPack) -> None:
    """A hundred times what counts as the frame itself, so that it is decoded as a time between."""
    video, frames = open_videos(interpolating.path, device="cpu")[FOURTEEN], _decoded(interpolating.path, FOURTEEN)
    assert psnr_db(_between(video, 1e-4), frames[:-1]).min() > 45


@pytest.mark.parametrize("backend", ["dnerv", "cnerv", "hnerv"])
def test_times_between_go_from_one_frame_to_the_next(make_pack: tiny.MakePack, backend: str) -> None:
    """All the way. The paper's D-NeRV stays behind: in its clips a frame's place tells more than its time."""
    path = make_pack(backend, "fast").path
    video, frames = open_videos(path, device="cpu")[FOURTEEN], _decoded(path, FOURTEEN)
    to_first, to_next = (
        [float(psnr_db(_between(video, offset), neighbours).median()) for offset in (0.25, 0.5, 0.75, 1 - 1e-4)]
        for neighbours in (frames[:-1], frames[1:])
    )
    assert to_first == sorted(to_first, reverse=True)
    assert to_next == sorted(to_next)
    assert to_first[0] > to_next[0] + 5
    assert to_next[2] > to_first[2] + 5
    assert to_next[3] > 45


def test_times_between_in_any_order(interpolating: tiny.TinyPack) -> None:
    video = open_videos(interpolating.path, device="cpu")[FOURTEEN]
    times = [0.75, 0.2, 1.3, 0.75, 0.01, 1.29, 0.71]
    together = video.get_frames_interpolated_at(times)
    np.testing.assert_allclose(together.pts_seconds, times)
    for time, frame in zip(times, together.data, strict=True):
        _assert_same(video.get_frames_interpolated_at([time]).data[0], frame)
    assert (together.data[0].short() - together.data[6].short()).abs().max() > 1, "both lie behind frame 7"
    assert video.get_frames_interpolated_at([]).data.shape == (0, 3, *tiny.SIZE)


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_hnerv_decodes_latents_between_those_of_the_frames(make_pack: tiny.MakePack, config: tiny.Config) -> None:
    """By hand: the latents of two neighbours, averaged, through the network."""
    path = make_pack("hnerv", config).path
    pack = Pack(path)
    first = int(pack.frames.first_row[FOURTEEN])
    latents = pack.latents()
    values = latents.symbols[first : first + 14].astype(np.float32)
    if latents.grid is not None:
        minimum, scale = (part.astype(np.float32)[:, None, None] for part in (latents.grid.minimum, latents.grid.scale))
        values = minimum + scale * (values + 128)
    assert (latents.grid is not None) == (config == "paper")
    middle = torch.from_numpy((values[:-1] + values[1:]) / 2)
    nothing = torch.zeros(13, 1)  # HNeRV is not told which frame it decodes
    units = Units(torch.full((13, 2), -1), nothing, nothing, nothing.double())
    with autocast(CPU):
        by_hand = to_uint8(pack.load_backend().decode((), units, middle))[:, 0]
    _assert_same(_between(open_videos(path, device="cpu")[FOURTEEN], 0.5), by_hand)


def test_nerv_knows_no_times_between(make_pack: tiny.MakePack) -> None:
    path = make_pack("nerv", "fast").path
    text = r"fast\.nvpack: NeRV is a list of frames by number: what it gives for a time between two of them means"
    with pytest.raises(ValueError, match=text):
        open_videos(path, device="cpu")[FOURTEEN].get_frames_interpolated_at([0.25])


@pytest.mark.parametrize("seconds", [1.301, 1.35, -0.001, float("nan")])
def test_times_before_the_first_frame_or_after_the_last(video: NeuralVideo, seconds: float) -> None:
    """Behind the last frame there is nothing to go to, though it is shown for a while."""
    text = f"{seconds} seconds are out of range: right/fourteen.avi has 0 to 1.3"
    with pytest.raises(IndexError, match=re.escape(text)):
        video.get_frames_interpolated_at([0.5, seconds])


def test_a_video_of_one_frame_has_one_time(videos: Videos, fast_pack: tiny.TinyPack) -> None:
    video = videos[ONE]
    assert len(video) == 1
    batch = video.get_frames_interpolated_at([0.0, 0.0])
    _assert_same(batch.data, _decoded(fast_pack.path, ONE)[[0, 0]])
    with pytest.raises(IndexError, match=r"0\.05 seconds are out of range: left/one\.avi has 0 to 0$"):
        video.get_frames_interpolated_at([0.05])


# --- many videos ----------------------------------------------------------------------------------------------------


def test_videos_by_number(videos: Videos, fast_pack: tiny.TinyPack) -> None:
    assert len(videos) == 4
    for number, name in enumerate(NAMES):
        for video in (videos[number], videos[number - 4], videos[np.int64(number)]):  # type: ignore[call-overload]
            assert video.info.name == name
            _assert_same(video[:], _decoded(fast_pack.path, number))
    assert [video.info.name for video in videos] == NAMES
    assert [video.info.name for video in videos[::-2]] == NAMES[::-2]
    assert videos[4:] == []


@pytest.mark.parametrize("index", [4, -5, 10**30])
def test_videos_that_are_not_there(videos: Videos, index: int) -> None:
    with pytest.raises(IndexError, match=f"video {index} is out of range: the pack has 4"):
        videos[index]


def test_the_videos_of_a_dataset(fast_pack: tiny.TinyPack) -> None:
    dataset = NeuralVideoDataset(fast_pack.path, frames_per_clip=14, device="cpu")
    item = next(index for index, (name, _) in enumerate(dataset.samples) if name == NAMES[FOURTEEN])
    assert isinstance(dataset.videos, Videos)
    _assert_same(dataset.videos[FOURTEEN][:], dataset[item][0])
    assert len(dataset.videos) == 4


def test_several_packs_as_one(fast_pack: tiny.TinyPack, second_path: Path) -> None:
    """Each video comes from its own pack, with its own network; labels count the classes of both."""
    videos = open_videos([fast_pack.path, second_path], device="cpu")
    assert [video.info.name for video in videos] == [*NAMES, *SECOND]
    assert [video.info.label for video in videos] == [1, 1, 2, 2, 0, 2]
    _assert_same(videos[FOURTEEN][:], _decoded(fast_pack.path, FOURTEEN))
    _assert_same(videos[-1][:], _decoded(second_path, 1))
    for joined, path, number in [(videos[FOURTEEN], fast_pack.path, FOURTEEN), (videos[4], second_path, 0)]:
        alone = open_videos(path, device="cpu")[number]
        times = np.array([2.5, 1.0, 3.9, 0.1]) / alone.info.frame_rate
        decoded = joined.get_frames_interpolated_at(times).data
        _assert_same(decoded, alone.get_frames_interpolated_at(times).data)


def test_packs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*none\.nvpack"):
        open_videos(tmp_path / "none.nvpack")


def test_the_public_name() -> None:
    assert neuralloader.open_videos is open_videos


def test_nerv_gives_frames_at_their_own_times(make_pack: tiny.MakePack) -> None:
    path = make_pack("nerv", "fast").path
    for videos in (open_videos(path, device="cpu"), open_videos([path], device="cpu")):
        video = videos[2]
        batch = video.get_frames_interpolated_at([0.2, 0.0])
        assert torch.equal(batch.data, video.get_frames_at([2, 0]).data)
        assert len(video.get_frames_interpolated_at([])) == 0


def test_a_very_short_range_holds_the_frame_it_lies_in(fast_pack: tiny.TinyPack) -> None:
    video = open_videos(fast_pack.path, device="cpu")[2]
    batch = video.get_frames_played_in_range(0.1, 0.1 + 1e-9)
    assert batch.pts_seconds.tolist() == [0.1]


def test_devices_and_numbers_that_are_none(fast_pack: tiny.TinyPack) -> None:
    with pytest.raises(ValueError, match="device='gpu' is no torch device"):
        open_videos(fast_pack.path, device="gpu")
    video = open_videos(fast_pack.path, device="cpu")[2]
    with pytest.raises(TypeError):
        video.get_frames_in_range(0.5, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        video.get_frames_in_range(0, 3, 1.5)  # type: ignore[arg-type]
