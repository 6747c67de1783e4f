"""The loader: DataLoader's words and batches, several iterators at once, copies, and how often things are decoded."""

import copy
import inspect
import itertools
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from loaders import FORK, clips_of, forks, same_videos, ways
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Subset

from neuralloader import NeuralVideoDataset, NeuralVideoLoader
from neuralloader.loading.samplers import RandomClips, Segments

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
    assert clips_of(batches) == clips_of(expected)
    for (videos, labels, info), (their_videos, their_labels, their_info) in zip(batches, expected, strict=True):
        assert same_videos(videos, their_videos)
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
    assert clips_of(batches) == clips_of(expected)
    for (videos, labels, _), (their_videos, their_labels, _) in zip(batches, expected, strict=True):
        assert same_videos(videos, their_videos)
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
    assert clips_of(own) == clips_of(theirs)
    for (videos, labels, _), (their_videos, their_labels, _) in zip(own, theirs, strict=True):
        assert same_videos(videos, their_videos)
        assert labels.tolist() == their_labels.tolist()
    train, val = torch.utils.data.random_split(dataset, [0.7, 0.3])
    assert len(NeuralVideoLoader(train, 4)) == 2
    both = [*clips_of(NeuralVideoLoader(train, 4)), *clips_of(NeuralVideoLoader(val, 4))]
    assert sorted(itertools.chain(*both)) == sorted(itertools.chain(*clips_of(NeuralVideoLoader(dataset, 4))))
    assert list(NeuralVideoLoader(Subset(dataset, []), 4)) == []


def test_packs_side_by_side(fast_pack: tiny.TinyPack, paper_pack: tiny.TinyPack) -> None:
    packs = [NeuralVideoDataset(path, device="cpu", return_info=True) for path in (fast_pack.path, paper_pack.path)]
    whole: ConcatDataset[Any] = ConcatDataset(packs)
    own = NeuralVideoLoader(whole, 5, sampler=[6, 0, 11, 5, 7])
    videos, _, _ = next(iter(own))
    assert same_videos(videos, torch.stack([whole[item][0] for item in (6, 0, 11, 5, 7)]))


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
    epochs = [clips_of(expected), clips_of(expected)]
    loader = NeuralVideoLoader(dataset, 3, shuffle=True, seed=1, **way)
    pairs = list(zip(loader, loader, strict=True))
    assert [clips_of(batches) for batches in zip(*pairs, strict=True)] == epochs


@forks
def test_persistent_workers_serve_the_newest_iterator(fresh: Callable[..., NeuralVideoDataset]) -> None:
    dataset = fresh(step_between_clips=1, return_info=True)
    loader = NeuralVideoLoader(dataset, 3, seed=1, **FORK, persistent_workers=True)
    old = iter(loader)
    next(old)
    assert len(clips_of(loader)) == 4
    with pytest.raises(RuntimeError, match="a newer iterator of this loader has taken over its persistent workers"):
        next(old)
    assert len(clips_of(loader)) == 4


@pytest.mark.parametrize("copy_it", [lambda loader: pickle.loads(pickle.dumps(loader)), copy.deepcopy])
def test_copies_go_on_where_the_loader_is(random_clips: NeuralVideoDataset, copy_it: Callable[[Any], Any]) -> None:
    loader = NeuralVideoLoader(random_clips, 1, shuffle=True, seed=2, generator=torch.Generator())
    list(loader)
    twin = copy_it(loader)
    assert twin.state_dict() == loader.state_dict()
    assert clips_of(twin) == clips_of(loader)


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
