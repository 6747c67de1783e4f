"""The dataset as PyTorch users meet it: indexing, batches, workers, pickling, devices, and what its errors say."""

import copy
import operator
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, RandomSampler, SequentialSampler, Subset

import neuralloader
from neuralloader import NeuralVideoDataset, PackError
from neuralloader.container.blobs import BlobReader
from neuralloader.container.reader import PackReader
from neuralloader.loading import dataset as dataset_module
from neuralloader.loading.samplers import AllWindows, ClipSampler, RandomClips, RegularClips, Segments

NAMES = list(tiny.CORPUS)
ITEMS = 1 + 1 + 2 + 2  # windows of 8 in videos of 8, 1, 14 and 9 frames
# Python 3.12 warns about every fork of a process with threads, and PyTorch has some
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def dataset(every_pack: tiny.TinyPack) -> NeuralVideoDataset:
    return NeuralVideoDataset(every_pack.path, device="cpu")


def _first_batch(loader: DataLoader) -> Any:
    """Take one batch and stop the workers; left to the garbage collector, that takes 5 seconds."""
    iterator: Any = iter(loader)
    try:
        return next(iterator)
    finally:
        iterator._shutdown_workers()


def _differ_by(a: Tensor, b: Tensor) -> int:
    return int((a.short() - b.short()).abs().max())


# --- items ----------------------------------------------------------------------------------------------------------


def test_an_item(every_pack: tiny.TinyPack) -> None:
    dataset = NeuralVideoDataset(every_pack.path, device="cpu")
    video, label = dataset[0]
    assert isinstance(video, Tensor)
    assert (video.shape, video.dtype, video.device.type) == ((8, 3, *tiny.SIZE), torch.uint8, "cpu")
    assert label == 0
    assert type(label) is int
    assert dataset.frames_per_clip == 8


def test_classes_and_samples_as_in_torchvision(dataset: NeuralVideoDataset) -> None:
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert dataset.classes == ["left", "right"]
    assert dataset.class_to_idx == {"left": 0, "right": 1}
    assert dataset.targets == [0, 0, 1, 1, 1, 1]
    assert dataset.samples == list(zip([NAMES[i] for i in (0, 1, 2, 2, 3, 3)], dataset.targets, strict=True))
    assert [label for _, label in dataset.__getitems__(range(ITEMS))] == dataset.targets
    assert len(dataset) == ITEMS


def test_indices_of_every_kind(dataset: NeuralVideoDataset) -> None:
    videos = [dataset[i][0] for i in range(ITEMS)]
    for i in range(ITEMS):
        assert torch.equal(dataset[i - ITEMS][0], videos[i])
        for kind in (np.int64, np.uint8, torch.tensor):
            assert torch.equal(dataset[kind(i)][0], videos[i])  # type: ignore[operator]
    assert len({video.numpy().tobytes() for video in videos}) == ITEMS


@pytest.mark.parametrize("index", [ITEMS, -ITEMS - 1, 10**30, np.int64(-99)])
def test_index_error_only_out_of_range(dataset: NeuralVideoDataset, index: Any) -> None:
    with pytest.raises(IndexError, match=f"index {index} is out of range: the dataset has {ITEMS} items"):
        dataset[index]
    with pytest.raises(IndexError, match=f"index {index} is out of range"):
        dataset.__getitems__([0, index])


@pytest.mark.parametrize("index", [1.0, "1", None, slice(0, 2), [0.0, 1.0], [[0, 1]]])
def test_what_is_no_index(dataset: NeuralVideoDataset, index: Any) -> None:
    with pytest.raises(TypeError):
        dataset[index]


def test_iteration_ends(dataset: NeuralVideoDataset) -> None:
    assert sum(1 for _ in dataset) == ITEMS  # type: ignore[call-overload]


def test_getitems_is_the_same_as_single_items(every_pack: tiny.TinyPack) -> None:
    dataset = NeuralVideoDataset(every_pack.path, device="cpu", frames_per_clip=5, step_between_clips=2)
    indices = np.random.default_rng(0).integers(-len(dataset), len(dataset), 12)
    together = dataset.__getitems__(indices)  # type: ignore[arg-type]
    assert len(together) == 12
    for index, (video, label) in zip(indices, together, strict=True):
        alone, own_label = dataset[int(index)]
        assert label == own_label
        assert _differ_by(video, alone) <= 1
    assert dataset.__getitems__([]) == []


def test_overlapping_windows_show_the_same_frames(every_pack: tiny.TinyPack) -> None:
    one = NeuralVideoDataset(every_pack.path, device="cpu", frames_per_clip=1)
    frames = torch.cat([video for video, _ in one.__getitems__(range(len(one)))])
    assert len(frames) == 32
    for frames_per_clip, step in [(8, 8), (6, 1), (40, 3)]:
        dataset = NeuralVideoDataset(
            every_pack.path, device="cpu", frames_per_clip=frames_per_clip, step_between_clips=step, return_info=True
        )
        first_row = dataset.pack.frames.first_row
        for index in range(len(dataset)):
            video, _, info = dataset[index]
            frame = np.rint(info["pts_seconds"].numpy() * tiny.SOURCE_RATE).astype(int)
            assert _differ_by(video, frames[first_row[info["video_index"]] + frame]) <= 1


def test_a_window_longer_than_its_video_repeats_the_last_frame(every_pack: tiny.TinyPack) -> None:
    long = NeuralVideoDataset(every_pack.path, device="cpu", frames_per_clip=20, return_info=True)
    assert len(long) == len(tiny.CORPUS)
    video, _, info = long[NAMES.index("right/nine.avi")]
    assert video.shape[0] == 20
    for k in range(9, 20):
        assert torch.equal(video[k], video[8])
    assert info["pts_seconds"].tolist() == [min(k, 8) / 10 for k in range(20)]


def test_info(fast_pack: tiny.TinyPack) -> None:
    dataset = NeuralVideoDataset(fast_pack.path, device="cpu", return_info=True)
    for index, (name, first) in enumerate(zip((0, 1, 2, 2, 3, 3), (0, 0, 0, 8, 0, 8), strict=True)):
        _, _, info = dataset[index]
        assert set(info) == {"video_index", "pts_seconds"}
        assert type(info["video_index"]) is int
        assert info["video_index"] == name
        assert info["pts_seconds"].dtype == torch.float64
        last = list(tiny.CORPUS.values())[name] - 1
        assert info["pts_seconds"].tolist() == [min(first + k, last) / tiny.SOURCE_RATE for k in range(8)]


def test_transform_gets_each_video_and_may_change_it_in_place(fast_pack: tiny.TinyPack) -> None:
    seen: list[Tensor] = []

    def darken(video: Tensor) -> Tensor:
        seen.append(video)
        return video.float().mul_(0.5) if len(seen) % 2 else video.zero_()

    dataset = NeuralVideoDataset(fast_pack.path, device="cpu", transform=darken, return_info=True)
    (first, label, info), (second, _, _) = dataset.__getitems__([0, 2])
    assert [video.shape for video in seen] == [(8, 3, *tiny.SIZE)] * 2
    assert all(video.dtype == torch.uint8 for video in seen)
    assert (first.dtype, second.dtype) == (torch.float32, torch.uint8)
    assert not second.any()
    assert label == 0
    assert info["video_index"] == 0
    plain, _ = NeuralVideoDataset(fast_pack.path, device="cpu")[0]
    assert torch.equal(first, plain.float() * 0.5)


def test_decoding_needs_no_gradients_but_training_on_it_works(dataset: NeuralVideoDataset) -> None:
    video, _ = dataset[0]
    weight = torch.ones(3, requires_grad=True)
    (video.float().mean(dim=(0, 2, 3)) * weight).sum().backward()
    assert weight.grad is not None


# --- what an item is ----------------------------------------------------------------------------------------------


def _times(items: list[tuple[Any, ...]]) -> list[list[float]]:
    return [info["pts_seconds"].flatten().tolist() for *_, info in items]


def _random_clips(pack: tiny.TinyPack, seed: int | None) -> NeuralVideoDataset:
    sampler = RandomClips(num_clips=2, num_frames_per_clip=3)
    return NeuralVideoDataset(pack.path, device="cpu", sampler=sampler, seed=seed, return_info=True)


def test_a_sampler_makes_the_items(fast_pack: tiny.TinyPack) -> None:
    """An item a video; clips have an axis of their own, and say the times of their frames."""
    sampler = RegularClips(num_clips=3, num_frames_per_clip=2)
    dataset = NeuralVideoDataset(fast_pack.path, device="cpu", sampler=sampler, return_info=True)
    assert len(dataset) == len(tiny.CORPUS)
    assert dataset.frames_per_clip == 2
    assert dataset.targets == [0, 0, 1, 1]
    assert [name for name, _ in dataset.samples] == NAMES
    single = NeuralVideoDataset(fast_pack.path, device="cpu", frames_per_clip=1)
    frames = torch.cat([video for video, _ in single.__getitems__(range(len(single)))])
    for video, _, info in dataset.__getitems__(range(4)):
        assert video.shape == (3, 2, 3, *tiny.SIZE)
        assert info["pts_seconds"].shape == (3, 2)
        number = np.rint(info["pts_seconds"].numpy() * tiny.SOURCE_RATE).astype(int)
        rows = dataset.pack.frames.first_row[info["video_index"]] + number
        assert _differ_by(video, frames[rows]) <= 1


def test_an_items_clips_are_a_function_of_seed_epoch_and_item(fast_pack: tiny.TinyPack) -> None:
    dataset, twin = _random_clips(fast_pack, 5), _random_clips(fast_pack, 5)
    first = _times(dataset.__getitems__(range(4)))
    torch.manual_seed(1)  # has no say
    np.random.seed(1)
    assert _times(twin.__getitems__(range(4))) == first
    assert _times([dataset[item] for item in (3, 1, 0, 2)]) == [first[item] for item in (3, 1, 0, 2)]
    assert _times(dataset.__getitems__([2, 2, -4])) == [first[2], first[2], first[0]]
    epochs = [first]
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        epochs.append(_times(dataset.__getitems__(range(4))))
    assert len({str(epoch) for epoch in epochs}) == 3
    dataset.set_epoch(0)
    assert _times(dataset.__getitems__(range(4))) == first
    assert _times(_random_clips(fast_pack, 6).__getitems__(range(4))) != first


@pytest.mark.parametrize("seed", [0, -1, 2**64 + 3, np.int64(7)])
def test_seeds_of_any_size(fast_pack: tiny.TinyPack, seed: int) -> None:
    assert _times([_random_clips(fast_pack, seed)[0]]) == _times([_random_clips(fast_pack, seed)[0]])


def test_without_a_seed_torchs_generator_is_asked(fast_pack: tiny.TinyPack) -> None:
    dataset = _random_clips(fast_pack, None)
    torch.manual_seed(0)
    first, second = (_times(dataset.__getitems__(range(4))) for _ in range(2))
    assert first != second  # though nobody said set_epoch
    dataset.set_epoch(3)
    torch.manual_seed(0)
    assert _times(dataset.__getitems__(range(4))) == first


def test_samplers_without_chance_draw_nothing(fast_pack: tiny.TinyPack) -> None:
    for sampler in (AllWindows(), RegularClips(num_clips=2), Segments(frame="centre")):
        dataset = NeuralVideoDataset(fast_pack.path, device="cpu", sampler=sampler)
        before = torch.get_rng_state()
        dataset.__getitems__([0, 1])
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("frame_rate", "lengths", "shown"),
    [
        (10.0, (8, 1, 14, 9), [0, 1, 2, 3, 4]),
        (5.0, (4, 1, 7, 5), [0, 2, 4, 6, 8]),
        (4.0, (3, 1, 5, 3), [0, 2, 5, 7, 10]),
        (20.0, (16, 2, 28, 18), [0, 0, 1, 1, 2]),
        (25.0, (20, 2, 35, 22), [0, 0, 0, 1, 1]),
        (0.1, (1, 1, 1, 1), [0, 0, 0, 0, 0]),
    ],
)
def test_another_frame_rate(
    fast_pack: tiny.TinyPack, frame_rate: float, lengths: tuple[int, ...], shown: list[int]
) -> None:
    """Frames of the right video (of 14 frames) are left out, or repeated."""
    one = NeuralVideoDataset(fast_pack.path, device="cpu", frames_per_clip=1, frame_rate=frame_rate)
    assert [sum(name == own for own, _ in one.samples) for name in NAMES] == list(lengths)
    dataset = NeuralVideoDataset(
        fast_pack.path, device="cpu", frames_per_clip=5, frame_rate=frame_rate, return_info=True
    )
    index = [name for name, _ in dataset.samples].index("right/fourteen.avi")
    video, _, info = dataset[index]
    assert info["pts_seconds"].tolist() == [frame / tiny.SOURCE_RATE for frame in shown]
    stored, _ = NeuralVideoDataset(fast_pack.path, device="cpu", frames_per_clip=14)[NAMES.index("right/fourteen.avi")]
    assert _differ_by(video, stored[shown]) <= 1


def test_some_videos(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    wanted = ["right/nine.avi", "left/eight.avi"]
    listed = tmp_path / "testlist01.txt"
    listed.write_text("right/nine.avi 2\n\nleft/eight.avi 1\r\n")  # a label, as in trainlist01.txt, is passed over
    bare = tmp_path / "bare.txt"
    bare.write_text("\n".join(wanted))
    whole = NeuralVideoDataset(fast_pack.path, device="cpu")
    for videos in (wanted, tuple(wanted), listed, str(listed), bare):
        dataset = NeuralVideoDataset(fast_pack.path, device="cpu", videos=videos, return_info=True)
        assert dataset.samples == [("right/nine.avi", 1), ("right/nine.avi", 1), ("left/eight.avi", 0)]
        assert dataset.classes == whole.classes
        video, label, info = dataset[2]
        assert (label, info["video_index"]) == (0, 0)
        assert _differ_by(video, whole[0][0]) <= 1


def test_several_packs_as_one(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    source = tiny.write_corpus(tmp_path / "more", {"below/more.avi": 3, "right/more.avi": 9})
    tiny.pack_tiny(source, tmp_path / "more.nvpack", "paper")
    paths = [fast_pack.path, tmp_path / "more.nvpack"]
    joined = NeuralVideoDataset(paths, device="cpu", return_info=True)
    first, second = (NeuralVideoDataset(path, device="cpu") for path in paths)
    assert joined.classes == ["below", "left", "right"]
    assert joined.targets == [1, 1, 2, 2, 2, 2, 0, 2, 2]
    videos, labels, info = joined[[7, 0, 6, 2]]
    assert labels.tolist() == [2, 1, 0, 2]
    assert info["video_index"].tolist() == [5, 0, 4, 2]
    expected = torch.stack([second[1][0], first[0][0], second[0][0], first[2][0]])
    assert _differ_by(videos, expected) <= 1


@pytest.mark.parametrize("output_format", ["TCHW", "THWC", "CTHW"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_formats(
    fast_pack: tiny.TinyPack, output_format: Literal["TCHW", "THWC", "CTHW"], dtype: torch.dtype
) -> None:
    plain, _ = NeuralVideoDataset(fast_pack.path, device="cpu")[2]
    video, _ = NeuralVideoDataset(fast_pack.path, device="cpu", dtype=dtype, output_format=output_format)[2]
    axes = {"TCHW": (0, 1, 2, 3), "THWC": (0, 2, 3, 1), "CTHW": (1, 0, 2, 3)}[output_format]
    assert video.dtype == dtype
    assert video.shape == plain.permute(axes).shape
    levels = video.double() * (1 if dtype == torch.uint8 else 255)
    assert (levels - plain.permute(axes).double()).abs().max() <= (2 if dtype == torch.bfloat16 else 1)


def test_another_size(fast_pack: tiny.TinyPack) -> None:
    plain, _ = NeuralVideoDataset(fast_pack.path, device="cpu", dtype=torch.float32)[2]
    video, _ = NeuralVideoDataset(fast_pack.path, device="cpu", dtype=torch.float32, size=(24, 16))[2]
    assert video.shape == (8, 3, 24, 16)
    resized = torch.nn.functional.interpolate(plain, (24, 16), mode="bilinear", antialias=True)
    assert (video - resized).abs().mean() < 0.02


def test_transforms_of_all_three_kinds(fast_pack: tiny.TinyPack) -> None:
    plain = NeuralVideoDataset(fast_pack.path, device="cpu")
    apart = NeuralVideoDataset(
        fast_pack.path, device="cpu", transform=lambda video: video[0], target_transform=lambda label: -label
    )
    together = NeuralVideoDataset(
        fast_pack.path, device="cpu", transforms=lambda video, label: (video[0], -label), return_info=True
    )
    for index in (0, 3):
        video, label = plain[index]
        for own, target, *_ in (apart[index], together[index]):
            assert torch.equal(own, video[0])
            assert target == -label


# --- loaders --------------------------------------------------------------------------------------------------------


def test_a_plain_loader_decodes_a_batch_in_one_go(every_pack: tiny.TinyPack, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = NeuralVideoDataset(every_pack.path, device="cpu")
    calls: list[list[int]] = []
    original = NeuralVideoDataset.__getitems__
    monkeypatch.setattr(
        NeuralVideoDataset, "__getitems__", lambda self, indices: calls.append(list(indices)) or original(self, indices)
    )
    batches = list(DataLoader(dataset, batch_size=4))
    assert calls == [[0, 1, 2, 3], [4, 5]]
    assert [batch.shape for batch, _ in batches] == [(4, 8, 3, *tiny.SIZE), (2, 8, 3, *tiny.SIZE)]
    assert batches[0][0].dtype == torch.uint8
    assert torch.cat([labels for _, labels in batches]).tolist() == dataset.targets
    assert batches[0][1].dtype == torch.int64


@forks
@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork")])
def test_loaders_with_and_without_workers(
    every_pack: tiny.TinyPack, num_workers: int, context: Literal["fork"] | None
) -> None:
    _check_loader(every_pack.path, num_workers, context)


def test_a_loader_with_spawned_workers(make_pack: Callable[..., tiny.TinyPack]) -> None:
    """Without key-frames; test_compatibility.py has all kinds of workers, with key-frames."""
    _check_loader(make_pack("hnerv", "fast").path, 2, "spawn")


def _check_loader(path: Path, num_workers: int, context: str | None) -> None:
    dataset = NeuralVideoDataset(path, return_info=True, transform=operator.methodcaller("float"))
    dataset.device = torch.device("cpu") if num_workers == 0 else None  # by itself a worker decodes on the CPU
    expected = NeuralVideoDataset(path, device="cpu").__getitems__(range(ITEMS))
    if context == "fork":
        dataset[0]  # what the parent has decoded with is inherited
    loader = DataLoader(dataset, batch_size=4, num_workers=num_workers, multiprocessing_context=context)
    videos, labels, infos = zip(*loader, strict=True)
    for video, (own, _) in zip(torch.cat(videos), expected, strict=True):
        assert video.dtype == torch.float32
        assert (video - own).abs().max() <= 1
    assert torch.cat(labels).tolist() == dataset.targets
    assert torch.cat([info["video_index"] for info in infos]).tolist() == [0, 1, 2, 2, 3, 3]
    assert infos[0]["pts_seconds"].shape == (4, 8)


def test_shuffling_shows_every_item_once_and_repeats_with_a_seed(dataset: NeuralVideoDataset) -> None:
    def order(seed: int) -> list[bytes]:
        loader = DataLoader(dataset, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(seed))
        return [video.numpy().tobytes() for batch, _ in loader for video in batch]

    assert order(0) == order(0)
    assert {tuple(order(seed)) for seed in range(4)} != {tuple(order(0))}
    assert len(set(order(1))) == ITEMS


def test_the_usual_wrappers(dataset: NeuralVideoDataset) -> None:
    subset = Subset(dataset, [5, 0])
    videos, labels = next(iter(DataLoader(subset, batch_size=2)))
    assert labels.tolist() == [1, 0]
    assert _differ_by(videos[0], dataset[5][0]) <= 1
    whole: ConcatDataset[Any] = ConcatDataset([dataset, dataset])
    assert len(whole) == 2 * ITEMS
    assert torch.equal(whole[ITEMS + 2][0], dataset[2][0])
    batches = BatchSampler(SequentialSampler(dataset), 3, drop_last=False)
    assert [batch.shape[0] for batch, _ in DataLoader(dataset, batch_sampler=batches)] == [3, 3]
    sampled = DataLoader(dataset, batch_size=4, sampler=RandomSampler(dataset, replacement=True, num_samples=9))
    assert sum(len(labels) for _, labels in sampled) == 9
    first, second = torch.utils.data.random_split(dataset, [4, 2])
    assert len(first) + len(second) == ITEMS


@pytest.mark.parametrize("copy_it", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
@pytest.mark.parametrize("used", [False, True])
def test_pickling(every_pack: tiny.TinyPack, used: bool, copy_it: Callable[[Any], Any]) -> None:
    dataset = NeuralVideoDataset(
        every_pack.path, device="cpu", frames_per_clip=3, step_between_clips=2, return_info=True
    )
    expected = dataset[4] if used else None
    twin = copy_it(dataset)
    assert len(twin) == len(dataset)
    assert twin.samples == dataset.samples
    video, label, info = twin[4]
    expected = expected or dataset[4]
    assert torch.equal(video, expected[0])
    assert label == expected[1]
    assert torch.equal(info["pts_seconds"], expected[2]["pts_seconds"])


def test_a_pickle_holds_no_weights(fast_pack: tiny.TinyPack) -> None:
    dataset = NeuralVideoDataset(fast_pack.path, device="cpu")
    before = len(pickle.dumps(dataset))
    dataset[0]
    assert len(pickle.dumps(dataset)) < before + 500 < 50_000


# --- devices --------------------------------------------------------------------------------------------------------


def test_no_cuda_device(fast_pack: tiny.TinyPack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(ValueError, match=rf"device={re.escape(repr(device))}: there is no CUDA device here; use"):
            NeuralVideoDataset(fast_pack.path, device=device)
    dataset = NeuralVideoDataset(fast_pack.path)
    assert dataset[0][0].device.type == "cpu"


def test_a_device_that_does_not_exist(fast_pack: tiny.TinyPack) -> None:
    with pytest.raises(ValueError, match="device='gpu' is no torch device; use 'cpu', 'cuda' or 'cuda:0'"):
        NeuralVideoDataset(fast_pack.path, device="gpu")


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_cuda_inside_a_worker(fast_pack: tiny.TinyPack, monkeypatch: pytest.MonkeyPatch, fake_cuda: None) -> None:
    dataset = NeuralVideoDataset(fast_pack.path, device="cuda")
    assert dataset.device == torch.device("cuda", 0)
    monkeypatch.setattr(dataset_module, "get_worker_info", lambda: object())
    with pytest.raises(
        RuntimeError,
        match=r"device='cuda:0' cannot decode inside a DataLoader worker: use num_workers=0, .*, or device='cpu'",
    ):
        dataset[0]


@forks
def test_cuda_inside_a_real_worker(fast_pack: tiny.TinyPack, fake_cuda: None) -> None:
    loader = DataLoader(
        NeuralVideoDataset(fast_pack.path, device="cuda"), num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(RuntimeError, match="cannot decode inside a DataLoader worker: use num_workers=0"):
        _first_batch(loader)


def test_the_default_device(fast_pack: tiny.TinyPack, monkeypatch: pytest.MonkeyPatch, fake_cuda: None) -> None:
    """CUDA where it is there and this is the main process, the CPU in a worker."""
    dataset = NeuralVideoDataset(fast_pack.path)
    assert dataset._device_here() == torch.device("cuda", 0)
    monkeypatch.setattr(dataset_module, "get_worker_info", lambda: object())
    assert dataset._device_here() == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_decodes_what_the_cpu_decodes(every_pack: tiny.TinyPack) -> None:
    on_gpu, on_cpu = (NeuralVideoDataset(every_pack.path, device=device) for device in ("cuda", "cpu"))
    for (a, _), (b, _) in zip(on_gpu.__getitems__(range(ITEMS)), on_cpu.__getitems__(range(ITEMS)), strict=True):
        assert a.device.type == "cuda"
        assert (a.cpu().float() - b.float()).abs().mean() < 1


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frames_per_clip", "step_between_clips"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_out_of_range(fast_pack: tiny.TinyPack, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must be 1 or more"):
        NeuralVideoDataset(fast_pack.path, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["frames_per_clip", "step_between_clips"])
@pytest.mark.parametrize("value", [2.0, "8"])
def test_counts_that_are_no_whole_numbers(fast_pack: tiny.TinyPack, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}={value!r} must be a whole number"):
        NeuralVideoDataset(fast_pack.path, **{name: value})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frame_rate": 0}, ValueError, "frame_rate=0 must be above 0"),
        ({"frame_rate": float("nan")}, ValueError, "frame_rate=nan must be above 0"),
        ({"frame_rate": float("inf")}, ValueError, "frame_rate=inf must be above 0"),
        ({"seed": 1.5}, TypeError, "'float' object cannot be interpreted as an integer"),
        ({"size": 24}, TypeError, "size=24 must be two whole numbers, height and width"),
        ({"size": (24, 16, 3)}, TypeError, "size=(24, 16, 3) must be two whole numbers, height and width"),
        ({"size": (24, 0)}, ValueError, "size=(24, 0) must be 1 or more each"),
        ({"dtype": torch.int8}, ValueError, "dtype=torch.int8 must be one of torch.uint8, torch.float32, torch."),
        ({"output_format": "HWC"}, ValueError, "output_format='HWC' must be one of TCHW, THWC, CTHW"),
        ({"videos": []}, ValueError, "videos names no video; None is all of them"),
        ({"videos": ["left/eight.avi"] * 2}, ValueError, "videos names 'left/eight.avi' 2 times"),
        (
            {"videos": ["left/eight.avi", "eight.avi"]},
            ValueError,
            "1 of 2 videos are not in the pack: 'eight.avi' is not, 'left/eight.avi' is; names are paths below the",
        ),
        ({"videos": "none.txt"}, FileNotFoundError, "none.txt"),
        (
            {"transforms": lambda video, label: (video, label), "transform": torch.nn.Identity()},
            ValueError,
            "transforms excludes transform and target_transform: give one or the other",
        ),
        (
            {"sampler": AllWindows(), "frames_per_clip": 4},
            ValueError,
            "frames_per_clip and step_between_clips belong to a dataset without a sampler: give them to it",
        ),
        (
            {"sampler": SequentialSampler([0])},
            TypeError,
            "must be a clip sampler, from neuralloader.loading.samplers; the order of items is for the loader to",
        ),
        ({"sampler": RandomClips}, TypeError, "must be a clip sampler, from neuralloader.loading.samplers"),
    ],
    ids=str,
)
def test_options_that_cannot_be(
    fast_pack: tiny.TinyPack, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        NeuralVideoDataset(fast_pack.path, device="cpu", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "disk"}, "cache='disk' must be one of auto, device, host, none"),
        ({"cache_bytes": -1}, "cache_bytes=-1 must be 0 or more"),
        ({"precision": torch.int8}, "precision=torch.int8 must be one of torch.float32, torch.bfloat16, torch.float16"),
        ({"cuda_graphs": True}, "cuda_graphs=True needs a CUDA device, not cpu"),
    ],
    ids=str,
)
def test_options_that_the_decoder_refuses(fast_pack: tiny.TinyPack, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NeuralVideoDataset(fast_pack.path, device="cpu", **options)[0]


def test_a_clip_past_the_end_with_the_policy_error(fast_pack: tiny.TinyPack) -> None:
    sampler: ClipSampler = AllWindows(num_frames_per_clip=5, policy="error")
    dataset = NeuralVideoDataset(fast_pack.path, device="cpu", sampler=sampler)
    assert dataset[0][0].shape[0] == 5
    with pytest.raises(ValueError, match=r"a clip of 5 frames, 1 apart, reaches past the end of a video of 8 frames"):
        dataset[1]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*none\.nvpack"):
        NeuralVideoDataset(tmp_path / "none.nvpack")


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_damaged_file(fast_pack: tiny.TinyPack, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "half.nvpack"
    path.write_bytes(fast_pack.path.read_bytes()[:cut])
    with pytest.raises(PackError, match=r"half\.nvpack: "):
        NeuralVideoDataset(path)


@forks
def test_damage_found_in_a_worker_keeps_its_type(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    path = tmp_path / "damaged.nvpack"
    data = bytearray(fast_pack.path.read_bytes())
    keyframe = BlobReader(PackReader(fast_pack.path), "keyframes")[0]
    data[data.index(keyframe) + len(keyframe) // 2] ^= 0xFF
    path.write_bytes(data)
    loader = DataLoader(
        NeuralVideoDataset(path, device="cpu"), batch_size=ITEMS, num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(PackError, match=r"damaged\.nvpack.*keyframes is damaged"):
        _first_batch(loader)


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    source = tiny.write_corpus(tmp_path / "flat", {"a.avi": 2, "b.avi": 1})
    tiny.pack_tiny(source, tmp_path / "flat.nvpack", "fast")
    dataset = neuralloader.NeuralVideoDataset(tmp_path / "flat.nvpack", device="cpu")
    assert dataset.classes == []
    assert dataset.targets == [-1, -1]
    assert dataset[0][1] == -1
