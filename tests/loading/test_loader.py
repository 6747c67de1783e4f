"""The loader: DataLoader's words, order and resumption, decoding ahead, errors that reach the consumer, a clean end."""

import copy
import gc
import inspect
import io
import itertools
import json
import multiprocessing
import operator
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, StackDataset, Subset

from neuralloader import NeuralVideoDataset, NeuralVideoLoader, PackError
from neuralloader.container.blobs import BlobReader
from neuralloader.container.reader import PackReader
from neuralloader.loading import decode as decode_module
from neuralloader.loading.samplers import RandomClips, Segments

# Python 3.12 warns about every fork of a process with threads, and PyTorch has some
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
FORK = {"num_workers": 2, "multiprocessing_context": "fork"}
# with and without workers, with and without a thread that decodes ahead
WAYS = [{}, {"prefetch": 2}, FORK, {**FORK, "prefetch": 2}]
WAY_NAMES = ["here", "ahead", "workers", "workers-ahead"]
ways = pytest.mark.parametrize("way", WAYS, ids=WAY_NAMES)

_Clip = tuple[float, ...]


@pytest.fixture
def dataset(fast_pack: tiny.TinyPack) -> NeuralVideoDataset:
    """11 items: windows of 8 frames at every frame."""
    return NeuralVideoDataset(fast_pack.path, device="cpu", step_between_clips=1, return_info=True)


@pytest.fixture
def random_clips(fast_pack: tiny.TinyPack) -> NeuralVideoDataset:
    """Two clips of 3 frames of each of the 4 videos, at random places."""
    sampler = RandomClips(num_clips=2, num_frames_per_clip=3)
    return NeuralVideoDataset(fast_pack.path, device="cpu", sampler=sampler, return_info=True)


@pytest.fixture
def fresh(fast_pack: tiny.TinyPack) -> Callable[..., NeuralVideoDataset]:
    """Makes datasets that have decoded nothing."""
    return lambda **options: NeuralVideoDataset(fast_pack.path, device="cpu", **options)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode few frames at a time, as of larger frames: without a cache, few key-frames are then at hand."""
    monkeypatch.setitem(decode_module.VALUES_PER_STEP, "cpu", 1)
    monkeypatch.setattr(decode_module, "VALUES_PER_THREAD", 1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def _clips(batches: Iterable[Any]) -> list[list[_Clip]]:
    """Which clips are in each batch: video, label, times of frames."""
    return [
        [
            (float(video), float(label), *times.flatten().tolist())
            for video, label, times in zip(info["video_index"], labels, info["pts_seconds"], strict=True)
        ]
        for _, labels, info in batches
    ]


def _same_videos(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and float((a.double() - b.double()).abs().max()) <= 1


# --- batches, as DataLoader gives them --------------------------------------------------------------------------------


def test_the_words_and_defaults_of_a_dataloader() -> None:
    own = inspect.signature(NeuralVideoLoader.__init__).parameters
    for name, theirs in inspect.signature(DataLoader.__init__).parameters.items():
        if name not in ("pin_memory_device", "in_order"):  # deprecated; order is always kept
            assert own[name].default == theirs.default, name
            if theirs.kind is not inspect.Parameter.KEYWORD_ONLY:
                assert list(own).index(name) == list(inspect.signature(DataLoader.__init__).parameters).index(name)


def test_a_batch(dataset: NeuralVideoDataset) -> None:
    videos, labels, info = next(iter(NeuralVideoLoader(dataset, batch_size=4)))
    assert (videos.shape, videos.dtype, videos.device.type) == ((4, 8, 3, *tiny.SIZE), torch.uint8, "cpu")
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 0, 1, 1])
    assert info["video_index"].tolist() == [0, 1, 2, 2]
    assert (info["pts_seconds"].shape, info["pts_seconds"].dtype) == ((4, 8), torch.float64)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"batch_size": 4},
    {"batch_size": 4, "drop_last": True},
    {"batch_size": 20},
    {"batch_size": 20, "drop_last": True},
    {"batch_size": 3, "sampler": [5, -1, 0, 0, 2]},
    {"batch_size": 3, "sampler": [5, -1, 0, 0, 2], "drop_last": True},
    {"batch_size": 2, "sampler": [torch.tensor(3), np.int64(1), 7]},
    {"batch_sampler": [[0, 1], [10], [2, 2, 2]]},
    {"batch_size": None, "sampler": BatchSampler(range(11), 4, drop_last=False)},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_the_same_batches_as_a_dataloader(
    dataset: NeuralVideoDataset, arguments: dict[str, Any], prefetch: int
) -> None:
    own, theirs = NeuralVideoLoader(dataset, **arguments, prefetch=prefetch), DataLoader(dataset, **arguments)
    assert len(own) == len(theirs)
    batches, expected = list(own), list(theirs)
    assert len(batches) == len(own)
    assert _clips(batches) == _clips(expected)
    for (videos, labels, info), (their_videos, their_labels, their_info) in zip(batches, expected, strict=True):
        assert _same_videos(videos, their_videos)
        assert (labels.dtype, info["video_index"].dtype) == (their_labels.dtype, their_info["video_index"].dtype)


def test_without_info_a_batch_is_two_things(fresh: Callable[..., NeuralVideoDataset]) -> None:
    own, theirs = next(iter(NeuralVideoLoader(fresh(), 3))), next(iter(DataLoader(fresh(), 3)))
    assert type(own) is type(theirs)
    assert len(own) == len(theirs) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float16},
        {"output_format": "CTHW"},
        {"output_format": "THWC", "dtype": torch.float32, "size": (24, 20)},
        {"sampler": RandomClips(num_clips=3, num_frames_per_clip=2), "seed": 5},
        {"sampler": Segments(num_segments=4, frame="twice"), "output_format": "CTHW"},
        {"frame_rate": 5.0, "frames_per_clip": 3},
        {"frame_rate": 25.0},
        {"videos": ["right/nine.avi", "left/eight.avi"]},
        {"transform": operator.methodcaller("float")},
        {"target_transform": lambda label: label + 10},
        {"transforms": lambda video, label: (video[:, 0], -label)},
    ],
    ids=str,
)
def test_what_the_dataset_asks_for(fresh: Callable[..., NeuralVideoDataset], options: dict[str, Any]) -> None:
    dataset = fresh(**options, return_info=True)
    batches, expected = list(NeuralVideoLoader(dataset, 3)), list(DataLoader(dataset, 3))
    assert _clips(batches) == _clips(expected)
    for (videos, labels, _), (their_videos, their_labels, _) in zip(batches, expected, strict=True):
        assert _same_videos(videos, their_videos)
        assert labels.dtype == their_labels.dtype


def test_clips_of_an_item_have_an_axis_of_their_own(random_clips: NeuralVideoDataset) -> None:
    videos, _, info = next(iter(NeuralVideoLoader(random_clips, 4)))
    assert videos.shape == (4, 2, 3, 3, *tiny.SIZE)
    assert info["pts_seconds"].shape == (4, 2, 3)


def test_collate_fn_gets_items(dataset: NeuralVideoDataset) -> None:
    batches = list(NeuralVideoLoader(dataset, 4, collate_fn=lambda items: {"items": items}))
    assert [len(batch["items"]) for batch in batches] == [4, 4, 3]
    video, label, info = batches[1]["items"][2]
    assert (video.shape, label, info["video_index"]) == ((8, 3, *tiny.SIZE), 1, 2)


def test_batch_transform_gets_the_videos_of_a_batch(dataset: NeuralVideoDataset) -> None:
    seen: list[torch.Size] = []
    plain = list(NeuralVideoLoader(dataset, 4))

    def darken(videos: Tensor) -> Tensor:
        seen.append(videos.shape)
        return videos // 2

    batches = list(NeuralVideoLoader(dataset, 4, batch_transform=darken))
    assert seen == [(b, 8, 3, *tiny.SIZE) for b in (4, 4, 3)]
    for (videos, labels, _), (own, own_labels, _) in zip(batches, plain, strict=True):
        assert torch.equal(videos, own // 2)
        assert torch.equal(labels, own_labels)


def test_subsets_and_concatenations(dataset: NeuralVideoDataset, fresh: Callable[..., NeuralVideoDataset]) -> None:
    first = fresh(step_between_clips=4, return_info=True)
    whole: ConcatDataset = ConcatDataset([Subset(dataset, [10, 3]), ConcatDataset([first, Subset(first, [2, 0, 2])])])
    nested = Subset(Subset(whole, list(range(len(whole)))[::-1]), [-1, 0, 4, 4, 1])
    own, theirs = NeuralVideoLoader(nested, 3), DataLoader(nested, 3)
    assert _clips(own) == _clips(theirs)
    for (videos, labels, _), (their_videos, their_labels, _) in zip(own, theirs, strict=True):
        assert _same_videos(videos, their_videos)
        assert labels.tolist() == their_labels.tolist()
    train, val = torch.utils.data.random_split(dataset, [0.7, 0.3])
    assert len(NeuralVideoLoader(train, 4)) == 2
    both = [*_clips(NeuralVideoLoader(train, 4)), *_clips(NeuralVideoLoader(val, 4))]
    assert sorted(itertools.chain(*both)) == sorted(itertools.chain(*_clips(NeuralVideoLoader(dataset, 4))))
    assert list(NeuralVideoLoader(Subset(dataset, []), 4)) == []


def test_packs_side_by_side(fast_pack: tiny.TinyPack, paper_pack: tiny.TinyPack) -> None:
    packs = [NeuralVideoDataset(path, device="cpu", return_info=True) for path in (fast_pack.path, paper_pack.path)]
    whole: ConcatDataset[Any] = ConcatDataset(packs)
    own = NeuralVideoLoader(whole, 5, sampler=[6, 0, 11, 5, 7])
    videos, _, _ = next(iter(own))
    assert _same_videos(videos, torch.stack([whole[item][0] for item in (6, 0, 11, 5, 7)]))


def test_the_loaders_device(fresh: Callable[..., NeuralVideoDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = fresh()
    assert next(iter(NeuralVideoLoader(dataset, 2, device="cpu")))[0].device.type == "cpu"
    with pytest.raises(ValueError, match="device='gpu' is no torch device"):
        NeuralVideoLoader(dataset, 2, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': there is no CUDA device here"):
        NeuralVideoLoader(dataset, 2, device="cuda")


def test_pin_memory_without_an_accelerator(
    fresh: Callable[..., NeuralVideoDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="pin_memory=True has no effect: no accelerator is found"):
        loader = NeuralVideoLoader(fresh(), 4, pin_memory=True)
    assert [len(labels) for _, labels in loader] == [4, 2]


# --- order: seeds, epochs, ranks ------------------------------------------------------------------------------------


def test_shuffling_shows_every_item_once_in_an_order_for_each_epoch_and_seed(dataset: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(dataset, 4, shuffle=True, seed=3)
    epochs = [list(itertools.chain(*_clips(loader))) for _ in range(3)]
    everything = sorted(itertools.chain(*_clips(NeuralVideoLoader(dataset, 4))))
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = NeuralVideoLoader(dataset, 4, shuffle=True, seed=4)
    assert list(itertools.chain(*_clips(other))) != epochs[0]
    loader.set_epoch(1)
    assert list(itertools.chain(*_clips(loader))) == epochs[1]


@forks
@ways
def test_a_seed_gives_the_same_clips_however_they_are_loaded(
    random_clips: NeuralVideoDataset, fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]
) -> None:
    expected = NeuralVideoLoader(random_clips, 3, shuffle=True, seed=9)
    loader = NeuralVideoLoader(
        fresh(sampler=random_clips.sampler, return_info=True), 3, shuffle=True, seed=9, **way, persistent_workers=False
    )
    for _ in range(2):
        for own, theirs in zip(loader, expected, strict=True):
            assert _clips([own]) == _clips([theirs])
            assert _same_videos(own[0], theirs[0])


@pytest.mark.usefixtures("small_steps")
def test_persistent_spawned_workers_give_the_same_clips(
    random_clips: NeuralVideoDataset, fresh: Callable[..., NeuralVideoDataset]
) -> None:
    expected = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=9)
    dataset = fresh(sampler=random_clips.sampler, return_info=True, cache="none")  # so that workers have work
    options = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True, "prefetch_factor": 4}
    loader = NeuralVideoLoader(dataset, 1, shuffle=True, seed=9, prefetch=1, **options)
    try:
        for _ in range(3):
            before = dataset.counts.num_keyframes_read
            assert _clips(loader) == _clips(expected)
            assert dataset.counts.num_keyframes_read > before
            assert len(multiprocessing.active_children()) == 1
        (only,) = multiprocessing.active_children()
        for _ in loader:  # left early, its worker goes on with the next epoch
            break
        expected.set_epoch(4)
        assert _clips(loader) == _clips(expected)
        assert multiprocessing.active_children() == [only]
    finally:
        del loader
    gc.collect()
    assert multiprocessing.active_children() == []


def test_a_plain_loader_with_the_datasets_seed_gives_the_same_clips(fresh: Callable[..., NeuralVideoDataset]) -> None:
    dataset = fresh(sampler=RandomClips(num_frames_per_clip=3), seed=7, return_info=True)
    loader = NeuralVideoLoader(dataset, 3)
    epochs = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        epochs.append(_clips(loader))
        assert epochs[-1] == _clips(DataLoader(dataset, 3))
    assert epochs[0] != epochs[1] != epochs[2]


@forks
@pytest.mark.parametrize("way", [{"prefetch": 2}, FORK], ids=["ahead", "workers"])
def test_without_a_seed_torchs_generator_decides(random_clips: NeuralVideoDataset, way: dict[str, Any]) -> None:
    def two_epochs(seed: int, **options: Any) -> list[Any]:
        torch.manual_seed(seed)
        loader = NeuralVideoLoader(random_clips, 2, shuffle=True, **options)
        return [_clips(loader) for _ in range(2)]

    assert two_epochs(0) == two_epochs(0, **way)
    assert two_epochs(0) != two_epochs(1)
    first, second = two_epochs(0)
    assert first != second


def test_the_loaders_generator(random_clips: NeuralVideoDataset) -> None:
    def epoch(seed: int) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        return _clips(NeuralVideoLoader(random_clips, 2, shuffle=True, generator=generator))

    before = torch.get_rng_state()
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_begins_with_its_first_batch(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=2)
    iter(loader)
    iter(loader)
    assert loader.state_dict()["epoch"] == 0
    assert _clips(loader) == _clips(NeuralVideoLoader(random_clips, 1, shuffle=True, seed=2))
    assert loader.state_dict() == {"epoch": 1, "batches_done": 0, "seed": None}


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"pad": False}], ids=str)
def test_ranks_get_equally_many_batches(dataset: NeuralVideoDataset, num_ranks: int, options: dict[str, Any]) -> None:
    loaders = [
        NeuralVideoLoader(dataset, 2, shuffle=True, seed=1, rank=rank, num_replicas=num_ranks, **options)
        for rank in range(num_ranks)
    ]
    shares = [_clips(loader) for loader in loaders]
    assert [len(share) for share in shares] == [len(loader) for loader in loaders]
    assert len({len(loader) for loader in loaders}) == 1
    seen = sorted(clip for share in shares for batch in share for clip in batch)
    everything = sorted(itertools.chain(*_clips(NeuralVideoLoader(dataset, 4))))
    if options.get("drop_last"):
        assert len(seen) == len(set(seen)) == 11 // num_ranks // 2 * 2 * num_ranks
    elif options.get("pad") is False:
        assert seen == everything
    else:
        assert set(seen) == set(everything)
        assert len(seen) == -(-11 // num_ranks) * num_ranks


def test_clips_that_cannot_be_dealt_out_exactly_once(dataset: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(dataset, 1, rank=1, num_replicas=3, pad=False)
    message = (
        "11 items cannot go to 3 ranks exactly once, in equally many batches of 1; use another batch_size, or pad=True,"
    )
    with pytest.raises(ValueError, match=message):
        len(loader)
    with pytest.raises(ValueError, match=message):
        next(iter(loader))


def _run_script(folder: Path, text: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(text)
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


RANK = """
import json, sys
import torch
from neuralloader import NeuralVideoDataset, NeuralVideoLoader

path, rank, meeting = sys.argv[1:]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
dataset = NeuralVideoDataset(path, device="cpu", step_between_clips=1, return_info=True)
loader = NeuralVideoLoader(dataset, 2, shuffle=True, pad=False)
epochs = []
for _ in range(2):
    clips = [(i["video_index"].tolist(), i["pts_seconds"][:, 0].tolist()) for _, _, i in loader]
    epochs.append(clips)
    torch.distributed.barrier()
print(json.dumps(epochs))
torch.distributed.destroy_process_group()
"""


def test_ranks_of_a_real_process_group(fast_pack: tiny.TinyPack, dataset: NeuralVideoDataset, tmp_path: Path) -> None:
    processes = [_run_script(tmp_path, RANK, fast_pack.path, rank, tmp_path / "meeting") for rank in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    everything = sorted((clip[0], clip[2]) for batch in _clips(NeuralVideoLoader(dataset, 4)) for clip in batch)
    for own, other in zip(first, second, strict=True):
        assert len(own) == len(other) == 3
        assert (
            sorted((v, t) for videos, times in [*own, *other] for v, t in zip(videos, times, strict=True)) == everything
        )
    assert first[0] != first[1]


# --- interruption and resumption ------------------------------------------------------------------------------------


def _through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def _through_torch(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@forks
@ways
@pytest.mark.parametrize("save", [_through_json, _through_torch])
def test_resuming_in_mid_epoch(random_clips: NeuralVideoDataset, way: dict[str, Any], save: Callable) -> None:
    def loader() -> NeuralVideoLoader:
        return NeuralVideoLoader(random_clips, 1, shuffle=True, **way)

    for batches_done in (1, 3) if way else range(1, 5):  # 4 is all of them
        interrupted = loader()
        list(interrupted)  # an epoch before
        batches = iter(interrupted)
        for _ in range(batches_done):
            next(batches)
        state = save(interrupted.state_dict())
        assert (state["epoch"], state["batches_done"]) == (1, batches_done)
        rest = _clips(batches)
        assert len(rest) == 4 - batches_done
        resumed = loader()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert _clips(resumed) == rest
        assert resumed.state_dict() == {"epoch": 2, "batches_done": 0, "seed": None}
        assert len(list(resumed)) == 4


def test_a_state_counts_what_was_handed_out_not_what_is_decoded(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1, seed=1, prefetch=3)
    for number, _ in enumerate(loader, start=1):
        time.sleep(0.02)  # others are decoded meanwhile
        assert loader.state_dict() == {"epoch": 0, "batches_done": number, "seed": 1}


def test_with_a_seed_a_resumed_run_is_the_uninterrupted_one(random_clips: NeuralVideoDataset) -> None:
    def loader() -> NeuralVideoLoader:
        return NeuralVideoLoader(random_clips, 1, shuffle=True, seed=6)

    whole = loader()
    expected = [_clips(whole) for _ in range(3)]
    interrupted, seen = loader(), []
    for batch in itertools.islice(itertools.chain(interrupted, interrupted), 6):
        seen += _clips([batch])
    resumed = loader()
    resumed.load_state_dict(interrupted.state_dict())
    for epoch in range(1, 3):
        resumed.set_epoch(epoch)  # as a training loop says at the head of each
        seen += _clips(resumed)
    assert seen == list(itertools.chain(*expected))


def test_set_epoch_begins_another_epoch_from_its_start(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=6)
    first, second = _clips(loader), _clips(loader)
    loader.load_state_dict({"epoch": 0, "batches_done": 2, "seed": 6})
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "batches_done": 0, "seed": None}
    assert _clips(loader) == second
    loader.set_epoch(0)
    for _ in loader:
        break
    loader.set_epoch(0)  # the epoch that was left early, again
    assert _clips(loader) == first


def test_no_state(random_clips: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(random_clips, 1)
    with pytest.raises(ValueError, match="a loader's state has epoch, batches_done and seed, not epoch, step"):
        loader.load_state_dict({"epoch": 1, "step": 2})


def test_a_sampler_of_ones_own_is_asked_again(dataset: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(dataset, 2, sampler=[9, 1, 4, 4, 0])
    whole = _clips(loader)
    loader.load_state_dict({"epoch": 0, "batches_done": 1, "seed": 0})
    assert _clips(loader) == whole[1:]


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 must be 1 or more"),
        ({"batch_size": -3}, ValueError, "batch_size=-3 must be 1 or more"),
        ({"batch_size": None}, ValueError, "batch_size=None needs a sampler that gives lists of items; for single"),
        ({"batch_size": None, "drop_last": True, "sampler": [[0]]}, ValueError, "batch_size=None excludes drop_last"),
        ({"shuffle": True, "sampler": [0]}, ValueError, "sampler excludes shuffle"),
        *(
            (
                {"batch_sampler": [[0]], **more},
                ValueError,
                "batch_sampler excludes batch_size, shuffle, sampler and drop_last",
            )
            for more in ({"batch_size": 2}, {"shuffle": True}, {"sampler": [0]}, {"drop_last": True})
        ),
        ({"prefetch": -1}, ValueError, "prefetch=-1 must be 0 or more"),
        ({"rank": 0}, ValueError, "rank and num_replicas belong together: give both or neither"),
        ({"num_replicas": 2}, ValueError, "rank and num_replicas belong together: give both or neither"),
        ({"rank": 2, "num_replicas": 2}, ValueError, "rank=2 must be 0 to num_replicas - 1 = 1"),
        ({"rank": -1, "num_replicas": 2}, ValueError, "rank=-1 must be 0 to num_replicas - 1 = 1"),
        ({"num_workers": -1}, ValueError, "num_workers option should be non-negative"),
        ({"prefetch_factor": 2}, ValueError, "prefetch_factor option could only be specified in multiprocessing"),
        ({"persistent_workers": True}, ValueError, "persistent_workers option needs num_workers > 0"),
        ({"timeout": -1}, ValueError, "timeout option should be non-negative"),
        ({"seed": 1.5}, TypeError, "'float' object cannot be interpreted as an integer"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(
    dataset: NeuralVideoDataset, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        NeuralVideoLoader(dataset, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sampler": [0, 11]}, IndexError, "index 11 is out of range: the dataset has 11 items"),
        ({"batch_sampler": [[0], [-12]]}, IndexError, "index -12 is out of range: the dataset has 11 items"),
        ({"batch_sampler": [[0], []]}, ValueError, "a batch is empty: the sampler gave no item for it"),
        ({"batch_sampler": [[0, 1.5]]}, TypeError, "a sampler gives lists of whole numbers, not [0.0, 1.5]"),
        ({"batch_size": None, "sampler": [3]}, TypeError, "batch_size=None, a sampler gives lists of items, not 3"),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_samplers_must_not_give(
    dataset: NeuralVideoDataset, arguments: dict[str, Any], error: type[Exception], message: str, prefetch: int
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        list(NeuralVideoLoader(dataset, **arguments, prefetch=prefetch))


def test_datasets_of_other_kinds(dataset: NeuralVideoDataset) -> None:
    for other, name in [(StackDataset(dataset, dataset), "StackDataset"), ([1, 2], "list")]:
        with pytest.raises(
            TypeError,
            match=f"NeuralVideoLoader loads NeuralVideoDatasets, their subsets and concatenations, not {name}; use",
        ):
            NeuralVideoLoader(other)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="index 11 is out of range: the dataset has 11 items"):
        NeuralVideoLoader(Subset(dataset, [0, 11]))


def test_datasets_of_different_seeds(fresh: Callable[..., NeuralVideoDataset]) -> None:
    whole: ConcatDataset = ConcatDataset([fresh(seed=1), fresh(seed=2)])
    with pytest.raises(ValueError, match="the datasets have different seeds, 1, 2: give the loader one"):
        NeuralVideoLoader(whole)
    assert len(list(NeuralVideoLoader(whole, 6, seed=0))) == 2


def test_samplers_without_a_length(dataset: NeuralVideoDataset) -> None:
    for name in ("sampler", "batch_sampler"):
        with pytest.raises(TypeError, match=f"the {name} has no length, so the loader has none"):
            len(NeuralVideoLoader(dataset, **{name: iter([[0]])}))  # type: ignore[arg-type]


@pytest.fixture
def damaged_path(fast_pack: tiny.TinyPack, tmp_path: Path) -> Path:
    """The pack with a bit flipped in the first video's last key-frame."""
    path = tmp_path / "damaged.nvpack"
    data = bytearray(fast_pack.path.read_bytes())
    keyframe = BlobReader(PackReader(fast_pack.path), "keyframes")[1]
    data[data.index(keyframe) + len(keyframe) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


@forks
@ways
def test_a_damaged_key_frame(damaged_path: Path, way: dict[str, Any]) -> None:
    dataset = NeuralVideoDataset(damaged_path, device="cpu")
    assert dataset.pack.index.videos[int(dataset.pack.index.keys.video[1])].name == "left/eight.avi"
    loader = NeuralVideoLoader(dataset, 1, sampler=[2, 0, 3], **way)
    batches = iter(loader)
    next(batches)  # what comes before it is handed out
    with pytest.raises(PackError, match=r"damaged\.nvpack.*the key-frame at frame 7 of left/eight\.avi"):
        next(batches)
    assert list(batches) == []
    loader = NeuralVideoLoader(dataset, 1, sampler=[2, 3], **way)
    assert len(list(loader)) == 2


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", ["transform", "target_transform", "batch_transform", "collate_fn"])
def test_a_function_that_raises(fresh: Callable[..., NeuralVideoDataset], prefetch: int, kind: str) -> None:
    def fail(_: Any) -> None:
        raise LookupError("no such thing")

    of_dataset: dict[str, Any] = {kind: fail} if kind in ("transform", "target_transform") else {}
    of_loader: dict[str, Any] = {} if of_dataset else {kind: fail}
    loader = NeuralVideoLoader(fresh(**of_dataset), 2, prefetch=prefetch, **of_loader)
    for _ in range(2):  # it fails again, and does not hang
        with pytest.raises(LookupError, match="no such thing") as caught:
            next(iter(loader))
        assert any(entry.name == "fail" for entry in caught.traceback)


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@forks
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_killed_worker(fresh: Callable[..., NeuralVideoDataset], prefetch: int) -> None:
    loader = NeuralVideoLoader(fresh(), 2, **FORK, worker_init_fn=_die, prefetch=prefetch)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(is killed by signal|exited unexpectedly)"):
        list(loader)
    assert time.monotonic() - began < 30


@forks
def test_a_worker_that_takes_too_long(fresh: Callable[..., NeuralVideoDataset]) -> None:
    options = {"num_workers": 1, "multiprocessing_context": "fork", "timeout": 0.2}
    loader = NeuralVideoLoader(fresh(), 2, worker_init_fn=lambda _: time.sleep(1), **options)
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.2 seconds"):
        list(loader)


# --- how it ends ----------------------------------------------------------------------------------------------------


def _what_is_left() -> tuple[list[str], list[Any], int]:
    """Our threads, child processes, number of open files."""
    threads = [thread.name for thread in threading.enumerate() if "neuralloader" in thread.name]
    return threads, multiprocessing.active_children(), len(os.listdir("/proc/self/fd"))


def _finish(loader: NeuralVideoLoader) -> None:
    assert len(list(loader)) == 6


def _break(loader: NeuralVideoLoader) -> None:
    for _ in loader:
        break


def _raise(loader: NeuralVideoLoader) -> None:
    def train() -> None:
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()


def _interrupt(loader: NeuralVideoLoader) -> None:
    def train() -> None:
        for _ in loader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()


def _drop_iterator(loader: NeuralVideoLoader) -> None:
    iterator = iter(loader)
    next(iterator)
    del iterator


def _keep_in_a_cycle(loader: NeuralVideoLoader) -> None:
    cycle: list[Any] = [iter(loader)]
    next(cycle[0])
    cycle.append(cycle)


ENDS = [_finish, _break, _raise, _interrupt, _drop_iterator, _keep_in_a_cycle]


@forks
@pytest.mark.usefixtures("small_steps", "two_threads")
@ways
def test_nothing_is_left(fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]) -> None:
    dataset = fresh(cache="none")
    names = set()
    for batch in NeuralVideoLoader(dataset, 1, **way):  # and what is opened once for all is open
        names |= set(_what_is_left()[0])
        assert len(batch) == 2
    assert {name.rsplit("_", 1)[0] for name in names} == {
        "neuralloader-decode",
        *(["neuralloader-prefetch"] if "prefetch" in way else []),
    }
    gc.collect()
    _settle(([], [], _what_is_left()[2]))
    before = _what_is_left()
    assert before[:2] == ([], [])
    for end in ENDS:
        began = time.monotonic()
        loader = NeuralVideoLoader(dataset, 1, **way)
        end(loader)
        if end is _keep_in_a_cycle:
            gc.collect()
        _settle(before)
        assert _what_is_left() == before, end.__name__
        assert len(list(loader)) == 6  # it is still good
        del loader
        _settle(before)
        assert _what_is_left() == before, end.__name__
        assert time.monotonic() - began < 30
        if end is _drop_iterator and way is FORK:
            return  # for workers in a cycle, DataLoader waits 5 seconds each


@forks
@ways
def test_nothing_is_prepared_for_a_consumer_that_left(
    fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]
) -> None:
    asked: list[int] = []

    def sampler() -> Iterator[int]:
        for number in range(2000):
            asked.append(number)
            yield number % 6

    for _ in NeuralVideoLoader(fresh(cache="none"), 1, sampler=sampler(), **way):
        break
    assert 1 <= len(asked) < 20


def _settle(before: tuple[list[str], list[Any], int]) -> None:
    """Threads that were told to end may take a moment."""
    for _ in range(200):
        if _what_is_left() == before:
            return
        time.sleep(0.01)


@forks
def test_a_loader_with_persistent_workers_ends_with_its_last_reference(
    fresh: Callable[..., NeuralVideoDataset],
) -> None:
    dataset = fresh(cache="none")
    gc.collect()
    before = _what_is_left()
    for end in (_finish, _break, _interrupt):
        loader = NeuralVideoLoader(dataset, 1, **FORK, persistent_workers=True, prefetch=1)
        end(loader)
        assert len(multiprocessing.active_children()) == 2
        del loader
        gc.collect()
        _settle(before)
        assert _what_is_left() == before


INTERRUPTED = """
import signal, sys, time
import torch
from neuralloader import NeuralVideoDataset, NeuralVideoLoader

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what runs in the background without it
    torch.set_num_threads(1)
    dataset = NeuralVideoDataset(sys.argv[1], device="cpu", cache="none")
    loader = NeuralVideoLoader(
        dataset, 1, num_workers=2, multiprocessing_context="spawn", prefetch=2, persistent_workers=True
    )
    while True:
        for _ in loader:
            print("batch", flush=True)
            time.sleep(0.05)
"""


def test_control_c(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    process = _run_script(tmp_path, INTERRUPTED, fast_pack.path, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells all processes
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT, 1)
    assert "KeyboardInterrupt" in errors
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("its workers live on")


# --- several at once, copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_are_the_consumers_own(dataset: NeuralVideoDataset, prefetch: int) -> None:
    one_by_one, sums = [], []
    for videos, _, _ in NeuralVideoLoader(dataset, 3, prefetch=prefetch):
        one_by_one.append(videos)
        sums.append(videos.long().sum())
    assert [videos.long().sum() for videos in one_by_one] == sums
    for videos, _, _ in NeuralVideoLoader(dataset, 3, prefetch=prefetch):
        videos.zero_()  # nor does what they do to it come back
    for (videos, _, _), own in zip(NeuralVideoLoader(dataset, 3), one_by_one, strict=True):
        assert torch.equal(videos, own)


@forks
@ways
def test_two_iterators_at_once(dataset: NeuralVideoDataset, way: dict[str, Any]) -> None:
    """Each is an epoch of its own."""
    expected = NeuralVideoLoader(dataset, 3, shuffle=True, seed=1)
    epochs = [_clips(expected), _clips(expected)]
    loader = NeuralVideoLoader(dataset, 3, shuffle=True, seed=1, **way)
    pairs = list(zip(loader, loader, strict=True))
    assert [_clips(batches) for batches in zip(*pairs, strict=True)] == epochs


@forks
def test_persistent_workers_serve_the_newest_iterator(fresh: Callable[..., NeuralVideoDataset]) -> None:
    dataset = fresh(step_between_clips=1, return_info=True)
    loader = NeuralVideoLoader(dataset, 3, seed=1, **FORK, persistent_workers=True)
    old = iter(loader)
    next(old)
    assert len(_clips(loader)) == 4
    with pytest.raises(RuntimeError, match="a newer iterator of this loader has taken over its persistent workers"):
        next(old)
    assert len(_clips(loader)) == 4


@pytest.mark.parametrize("copy_it", [lambda loader: pickle.loads(pickle.dumps(loader)), copy.deepcopy])
def test_copies_go_on_where_the_loader_is(random_clips: NeuralVideoDataset, copy_it: Callable[[Any], Any]) -> None:
    loader = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=2, generator=torch.Generator())
    list(loader)
    twin = copy_it(loader)
    assert twin.state_dict() == loader.state_dict()
    assert _clips(twin) == _clips(loader)


@forks
def test_a_loader_pickles_while_it_is_used(dataset: NeuralVideoDataset) -> None:
    loader = NeuralVideoLoader(dataset, 4, **FORK)
    batches = iter(loader)
    next(batches)
    assert len(pickle.loads(pickle.dumps(loader))) == 3
    assert len(list(batches)) == 2


# --- what is decoded, and how often ---------------------------------------------------------------------------------


@forks
@ways
def test_warm_epochs_read_no_key_frame_again(fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]) -> None:
    dataset = fresh(step_between_clips=1)
    loader = NeuralVideoLoader(dataset, 2, shuffle=True, **way)
    for _ in range(3):
        list(loader)
        assert dataset.counts.num_keyframes_read == len(dataset.pack.index.keys)


@forks
@pytest.mark.usefixtures("small_steps")
@ways
def test_without_a_cache_they_are_read_again(fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]) -> None:
    dataset = fresh(step_between_clips=1, cache="none")
    loader = NeuralVideoLoader(dataset, 2, shuffle=True, **way)
    list(loader)
    first = dataset.counts.num_keyframes_read
    list(loader)
    assert dataset.counts.num_keyframes_read > first


def test_frames_used_and_decoded(fast_pack: tiny.TinyPack, paper_pack: tiny.TinyPack) -> None:
    """The fast network decodes the frames that are used, the paper's whole clips."""
    sampler = Segments(num_segments=3, frame="centre")
    used = {0: 3, 1: 1, 2: 3, 3: 3}  # different frames of each video
    for pack, decoded in [(fast_pack, sum(used.values())), (paper_pack, 8 + 8 + 16 + 8)]:
        dataset = NeuralVideoDataset(pack.path, device="cpu", sampler=sampler)
        list(NeuralVideoLoader(dataset, 4))
        assert dataset.counts.num_frames_used == sum(used.values())
        assert dataset.counts.num_frames_decoded == decoded
        list(NeuralVideoLoader(dataset, 4))
        assert dataset.counts.num_frames_decoded == 2 * decoded


GROWTH = """
import os, sys, threading
from pathlib import Path
import torch
from neuralloader import NeuralVideoDataset, NeuralVideoLoader

torch.set_num_threads(1)
page_bytes = os.sysconf("SC_PAGE_SIZE")
options = {"frames_per_clip": 32, "step_between_clips": 1, "dtype": torch.float32}
dataset = NeuralVideoDataset(sys.argv[1], device="cpu", **options)
loader = NeuralVideoLoader(dataset, 2, shuffle=True, prefetch=int(sys.argv[2]))  # a batch is 2.4 MB
kept = []
for epoch in range(20):
    for videos, labels in loader:
        pass
    kept += [videos.clone()] if sys.argv[3] == "leak" else []
    del videos, labels
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * page_bytes
    print(resident, len(os.listdir("/proc/self/fd")), threading.active_count())
"""
# freed memory goes back at once, so that what is resident is what is held
STRICT_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_memory_stays_flat(fast_pack: tiny.TinyPack, tmp_path: Path, prefetch: int) -> None:
    def after_each_epoch(mode: str) -> list[tuple[int, ...]]:
        process = _run_script(tmp_path, GROWTH, fast_pack.path, prefetch, mode, env={**os.environ, **STRICT_MALLOC})
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return [tuple(map(int, line.split())) for line in output.splitlines()]

    rows = after_each_epoch("honest")
    assert len(rows) == 20
    assert {row[1:] for row in rows[2:]} == {(rows[2][1], 1)}  # files, threads
    assert max(row[0] for row in rows[3:]) < 1.02 * rows[2][0]
    if prefetch == 0:  # and it would show
        leaking = after_each_epoch("leak")
        assert max(row[0] for row in leaking[3:]) > 1.02 * leaking[2][0]
