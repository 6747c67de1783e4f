"""Several packs read as one: the same frames as from each alone, labels by the names of classes."""

import pickle
from pathlib import Path

import counter
import numpy as np
import pytest
import tiny
import torch
from split_pack import with_splits
from torch.utils.data import DataLoader

import neuralloader
from neuralloader import NeuralVideoDataset
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.loading import joined
from neuralloader.loading.decode import DecodeCounts, Decoder, DecodeSettings
from neuralloader.loading.joined import JoinedDecoder, open_decoder
from neuralloader.loading.streams import DecodeStream
from neuralloader.packfile import JoinedPack, Pack, open_pack

CPU = torch.device("cpu")
FIRST_NUMBER = 600  # of the second corpus, so that a frame tells which of the two it comes from
SECOND = {"back/ten.avi": 9, "right/eleven.avi": 3}  # sorts before the first corpus's classes, and shares one
# Python 3.12 warns about every fork of a process with threads, and PyTorch has some
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def _write(folder: Path, videos: dict[str, int], size: tuple[int, int] = tiny.SIZE) -> Path:
    for place, (name, length) in enumerate(videos.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frames = tiny.draw_frames(length, FIRST_NUMBER + 100 * place, size)
        write_mjpeg_avi(folder / name, frames, tiny.SOURCE_RATE)
    return folder


@pytest.fixture(scope="module")
def second_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus, packed by the paper's network."""
    folder = tmp_path_factory.mktemp("second")
    path = folder / "second.nvpack"
    tiny.pack_tiny(_write(folder / "videos", SECOND), path, "paper", epochs=48, faithful=True)
    return path


@pytest.fixture
def paths(fast_pack: tiny.TinyPack, second_path: Path) -> list[Path]:
    return [fast_pack.path, second_path]


@pytest.fixture
def numbers(fast_pack: tiny.TinyPack) -> np.ndarray:
    """The counter of each frame of the two."""
    lengths = SECOND.values()
    second = [FIRST_NUMBER + 100 * place + np.arange(length) for place, length in enumerate(lengths)]
    return np.concatenate([fast_pack.numbers, *second])


def _alone(paths: list[Path]) -> torch.Tensor:
    """All frames, of each pack by itself."""
    packs = [Pack(path) for path in paths]
    return torch.cat([Decoder(pack, CPU).decode(np.arange(len(pack.frames))) for pack in packs])


# --- the index ------------------------------------------------------------------------------------------------------


def test_classes_are_merged_by_name(paths: list[Path]) -> None:
    for order in (paths, paths[::-1]):
        joined = open_pack(order)
        assert isinstance(joined, JoinedPack)
        assert joined.classes == ("back", "left", "right")
        for video in joined.index.videos:
            assert joined.classes[video.label] == video.name.split("/")[0]
        assert {video.label for video in joined.index.videos} == {0, 1, 2}


def test_videos_come_in_the_order_of_the_packs(paths: list[Path]) -> None:
    assert [video.name for video in open_pack(paths).index.videos] == [*tiny.CORPUS, *SECOND]
    assert [video.name for video in open_pack(paths[::-1]).index.videos] == [*SECOND, *tiny.CORPUS]


def test_tables_count_rows_of_the_whole(paths: list[Path]) -> None:
    joined, packs = open_pack(paths), [Pack(path) for path in paths]
    assert isinstance(joined, JoinedPack)
    assert joined.frame_size == tiny.SIZE
    assert joined.size_bytes == sum(path.stat().st_size for path in paths)
    assert joined.first_row.tolist() == [0, 32, 44]
    assert len(joined.frames) == 44
    first, second = (pack.frames.all for pack in packs)
    np.testing.assert_array_equal(joined.frames.all.video, np.concatenate([first.video, 4 + second.video]))
    np.testing.assert_array_equal(joined.frames.all.clip, np.concatenate([first.clip, 6 + second.clip]))
    np.testing.assert_array_equal(joined.frames.all.keys, np.concatenate([first.keys, 8 + second.keys]))
    for column in ("frame", "phase", "time", "is_key"):
        expected = np.concatenate([getattr(first, column), getattr(second, column)])
        np.testing.assert_array_equal(getattr(joined.frames.all, column), expected)


def test_a_path_alone_is_no_list(fast_pack: tiny.TinyPack) -> None:
    assert isinstance(open_pack(fast_pack.path), Pack)
    assert isinstance(open_pack(str(fast_pack.path)), Pack)
    one = open_pack([fast_pack.path])
    assert isinstance(one, JoinedPack)
    assert one.classes == ("left", "right")


def test_a_pack_without_classes_stays_without(paths: list[Path], tmp_path: Path) -> None:
    loose = _write(tmp_path, {"loose.avi": 2})
    path = tmp_path / "loose.nvpack"
    tiny.pack_tiny(loose / "loose.avi", path, "fast")
    joined = open_pack([paths[0], path])
    assert joined.classes == ("left", "right")
    assert [video.label for video in joined.index.videos] == [0, 0, 1, 1, -1]


def test_splits_are_merged_by_name(paths: list[Path], tmp_path: Path) -> None:
    first = with_splits(
        paths[0],
        tmp_path / "first.nvpack",
        {"train": ["left/eight.avi", "right/nine.avi"], "test": ["left/one.avi", "right/nine.avi"]},
        problems={"left/one.avi": "it is cut"},
    )
    second = with_splits(paths[1], tmp_path / "second.nvpack", {"test": ["back/ten.avi"], "val": ["right/eleven.avi"]})
    joined = open_pack([first, second])
    assert joined.splits == ("train", "test", "val")
    videos = {video.name: video for video in joined.index.videos}
    assert {name: video.splits for name, video in videos.items()} == {
        "left/eight.avi": 0b001,
        "left/one.avi": 0b010,
        "right/fourteen.avi": 0,
        "right/nine.avi": 0b011,
        "back/ten.avi": 0b010,
        "right/eleven.avi": 0b100,
    }
    assert [name for name, video in videos.items() if video.problem] == ["left/one.avi"]
    half = open_pack([paths[0], second])  # one that has none
    assert half.splits == ("test", "val")
    assert [video.splits for video in half.index.videos] == [0, 0, 0, 0, 0b01, 0b10]
    assert open_pack(paths).splits == ()

    dataset = NeuralVideoDataset([first, second], split="test", device="cpu")
    assert dataset.samples == [
        ("left/one.avi", 1),
        *[("right/nine.avi", 2)] * 2,
        *[("back/ten.avi", 0)] * 2,
    ]
    whole = {name: index for index, (name, _) in reversed([*enumerate(NeuralVideoDataset([first, second]).samples)])}
    for index in (0, 1, 3):
        expected = NeuralVideoDataset([first, second], device="cpu")[whole[dataset.samples[index][0]]]
        video, label = dataset[index]
        assert label == expected[1]
        assert (video.short() - expected[0].short()).abs().max() <= 1


def test_too_many_splits(paths: list[Path], tmp_path: Path) -> None:
    first = with_splits(paths[0], tmp_path / "first.nvpack", {f"list {i}": [] for i in range(63)})
    second = with_splits(paths[1], tmp_path / "second.nvpack", {"test": ["back/ten.avi"]})
    with pytest.raises(ValueError, match="the packs have 64 splits together, 'list 0' to 'test'; 63 are allowed"):
        open_pack([first, second])


# --- frames ---------------------------------------------------------------------------------------------------------


def test_frames_are_those_of_each_pack_in_any_order(paths: list[Path], numbers: np.ndarray) -> None:
    alone = _alone(paths)
    decoder = open_decoder(open_pack(paths), CPU)
    rows = np.random.default_rng(0).permutation(np.append(np.arange(44), [5, 5, 40]))
    frames = decoder.decode(rows)
    assert (frames.short() - alone[rows].short()).abs().max() <= 1
    assert [counter.read(frame.permute(1, 2, 0).numpy()) for frame in frames] == numbers[rows].tolist()
    reverse = open_decoder(open_pack(paths[::-1]), CPU).decode(np.arange(44))
    assert (torch.cat([reverse[12:], reverse[:12]]).short() - alone.short()).abs().max() <= 1


def test_a_pack_is_loaded_when_a_frame_of_it_is_asked_for(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Path | str, int | None, bool]] = []
    original = joined.Decoder

    def count(pack: Pack, device: torch.device, settings: DecodeSettings, stream: DecodeStream) -> Decoder:
        made.append((pack.path, settings.cache_bytes, stream is decoder.stream))
        return original(pack, device, settings, stream)

    monkeypatch.setattr(joined, "Decoder", count)
    pack = open_pack(paths)
    assert isinstance(pack, JoinedPack)
    decoder = JoinedDecoder(pack, CPU, DecodeSettings(cache_bytes=1000))
    assert decoder.decode(np.zeros(0, np.int64)).shape == (0, 3, *tiny.SIZE)
    assert made == []
    decoder.decode(np.array([32, 43]))
    decoder.decode(np.array([33]))
    assert made == [(paths[1], 500, True)], "the cache's bound is parted, and all work on one stream"
    decoder.decode(np.array([31, 32]))
    assert made == [(paths[1], 500, True), (paths[0], 500, True)]


def test_key_frames_of_several_packs(paths: list[Path], tmp_path: Path) -> None:
    """Between them stands a pack that has none."""
    none = tmp_path / "none.nvpack"
    tiny.pack_tiny(_write(tmp_path, {"a/x.avi": 2}), none, "fast", backend="nerv")
    joined, packs = open_pack([paths[0], none, paths[1]]), [Pack(path) for path in paths]
    assert isinstance(joined, JoinedPack)
    alone = [pack.keyframes(np.arange(len(pack.index.keys))) for pack in packs]
    first = len(alone[0])
    assert joined.first_key.tolist() == [0, first, first, first + len(alone[1])]
    assert joined.first_key.dtype == np.int64
    rows = np.append(np.random.default_rng(0).permutation(len(joined.index.keys)), [first, first - 1, first])
    images = joined.keyframes(rows, num_threads=1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.concatenate(alone)[rows])
    assert joined.keyframes(rows[:0]).shape == (0, *tiny.SIZE, 3)


def test_key_frames_that_are_read_elsewhere(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a loader's workers do: those that a plan misses, each for the decoder of its pack."""
    joined = open_pack(paths)
    rows = np.array([31, 40, 3, 33])
    expected = open_decoder(joined, CPU).decode(rows)
    decoder = open_decoder(joined, CPU)
    plan = decoder.plan(rows)
    missing = decoder.missing_keyframes(plan)
    assert missing.tolist() == sorted({*joined.frames.all.keys[rows].ravel().tolist()})
    images = joined.keyframes(missing)
    monkeypatch.setattr(Pack, "keyframes", None)
    decoder.add_keyframes(missing, images)
    assert decoder.missing_keyframes(plan).tolist() == []
    assert torch.equal(decoder.run(plan), expected)
    # the paper's network decodes the clips around its two frames, the last of which shares its key-frame with the first
    assert decoder.counts == DecodeCounts(num_frames_used=4, num_frames_decoded=2 + 8 + 8, num_keyframes_read=5)


def test_a_data_set_of_both(paths: list[Path], numbers: np.ndarray) -> None:
    dataset = NeuralVideoDataset(paths, frames_per_clip=4, device="cpu", return_info=True)
    assert dataset.classes == ["back", "left", "right"]
    shown: list[int] = []
    for index, (name, label) in enumerate(dataset.samples):
        video, own_label, info = dataset[index]
        assert own_label == label == dataset.class_to_idx[name.split("/")[0]]
        row = dataset.pack.frames.first_row[info["video_index"]] + np.rint(info["pts_seconds"].numpy() * 10).astype(int)
        assert [counter.read(frame.permute(1, 2, 0).numpy()) for frame in video] == numbers[row].tolist()
        shown += row.tolist()
    assert set(shown) == set(range(44))


@pytest.mark.parametrize("used", [False, True])
def test_pickling(paths: list[Path], used: bool) -> None:
    dataset = NeuralVideoDataset(paths, device="cpu")
    expected = dataset[8] if used else None
    twin = pickle.loads(pickle.dumps(dataset))
    assert twin.samples == dataset.samples
    video, label = twin[8]
    expected = expected or dataset[8]
    assert torch.equal(video, expected[0])
    assert label == expected[1]


@forks
def test_a_loader_with_workers(paths: list[Path]) -> None:
    dataset = NeuralVideoDataset(paths, device="cpu")
    expected = dataset.__getitems__(range(len(dataset)))
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
    videos, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert labels.tolist() == dataset.targets == [1, 1, 2, 2, 2, 2, 0, 0, 2]
    for video, (own, _) in zip(videos, expected, strict=True):
        assert (video.short() - own.short()).abs().max() <= 1


# --- what does not go together --------------------------------------------------------------------------------------


def test_no_pack_at_all() -> None:
    with pytest.raises(ValueError, match="there is no pack to open: the list of paths is empty"):
        open_pack([])
    with pytest.raises(ValueError, match="there is no pack to open"):
        NeuralVideoDataset([])


def test_a_missing_pack_is_named(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*none\.nvpack"):
        open_pack([*paths, tmp_path / "none.nvpack"])


def test_another_frame_size(paths: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "small.nvpack"
    tiny.pack_tiny(_write(tmp_path, {"a/x.avi": 2}) / "a" / "x.avi", path, "fast", size=(32, 48))
    text = (
        r"the same frame_size: .*fast\.nvpack has \(48, 64\), .*small\.nvpack has \(32, 48\); pack them with the same"
    )
    with pytest.raises(ValueError, match=text):
        open_pack([*paths, path])


def test_another_frame_rate(paths: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "slow.nvpack"
    tiny.pack_tiny(_write(tmp_path, {"a/x.avi": 2}) / "a" / "x.avi", path, "fast", frame_rate=5.0)
    text = r"packs read as one need the same frame_rate: .*fast\.nvpack has None, .*slow\.nvpack has 5\.0"
    with pytest.raises(ValueError, match=text):
        open_pack([*paths, path])


def test_a_video_in_two_packs(paths: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "other.nvpack"
    tiny.pack_tiny(_write(tmp_path / "videos", {"left/eight.avi": 2, "right/x.avi": 1}), path, "fast")
    text = r"the video left/eight\.avi is in .*fast\.nvpack and in .*other\.nvpack"
    with pytest.raises(ValueError, match=text):
        open_pack([*paths, path])
    with pytest.raises(ValueError, match=r"is in .*fast\.nvpack and in .*fast\.nvpack"):
        open_pack([paths[0], paths[0]])


def test_the_public_name() -> None:
    assert neuralloader.open_pack is open_pack
