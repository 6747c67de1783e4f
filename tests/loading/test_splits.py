"""The splits of a pack: a dataset of one of them, of some of its videos, of two side by side; and what cannot be."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from split_pack import with_splits
from torch import Tensor

from neuralloader import NeuralVideoDataset, NeuralVideoLoader
from neuralloader.loading.concat import ConcatNeuralDataset

ITEMS = 1 + 1 + 2 + 2  # windows of 8 in videos of 8, 1, 14 and 9 frames


def _differ_by(a: Tensor, b: Tensor) -> int:
    return int((a.short() - b.short()).abs().max())


@pytest.fixture(scope="module")
def split_path(fast_pack: tiny.TinyPack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four videos, two are in the first split, two in the second, one of them in both; the third has none."""
    splits = {
        "train": ["left/one.avi", "right/nine.avi"],
        "test": ["right/fourteen.avi", "right/nine.avi"],
        "later": [],
    }
    return with_splits(fast_pack.path, tmp_path_factory.mktemp("split") / "split.nvpack", splits)


def test_a_split(split_path: Path) -> None:
    whole = NeuralVideoDataset(split_path, device="cpu")
    assert whole.splits == list(whole.pack.splits) == ["train", "test", "later"]
    assert len(whole) == ITEMS
    train = NeuralVideoDataset(split_path, device="cpu", split="train", return_info=True)
    assert train.samples == [("left/one.avi", 0), ("right/nine.avi", 1), ("right/nine.avi", 1)]
    test = NeuralVideoDataset(split_path, device="cpu", split="test")
    assert test.samples == [*[("right/fourteen.avi", 1)] * 2, *[("right/nine.avi", 1)] * 2]
    assert test.targets == [1, 1, 1, 1]
    for dataset in (train, test):  # those of the pack, so that a network's outputs mean the same
        assert (dataset.classes, dataset.class_to_idx) == (whole.classes, whole.class_to_idx)
        assert dataset.splits == whole.splits
        assert len(dataset.videos) == 4
    video, _, info = train[1]
    assert info["video_index"] == 3
    assert _differ_by(video, whole[4][0]) <= 1
    assert _differ_by(test[0][0], whole[2][0]) <= 1
    batches = list(NeuralVideoLoader(test, batch_size=3))
    assert [len(labels) for _, labels in batches] == [3, 1]
    assert pickle.loads(pickle.dumps(test)).samples == test.samples


def test_some_videos_of_a_split(split_path: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("right/nine.avi\nleft/eight.avi\nleft/one.avi\n")
    for videos in (listed, listed.read_text().split()):
        dataset = NeuralVideoDataset(split_path, device="cpu", split="train", videos=videos, frames_per_clip=9)
        assert [name for name, _ in dataset.samples] == ["right/nine.avi", "left/one.avi"], "in the order of the list"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": "val"},
            "split='val' must be one of the pack's splits, 'train', 'test', 'later', or None for all videos",
        ),
        ({"split": 0}, "split=0 must be one of the pack's splits, 'train'"),
        ({"split": ""}, "split='' must be one of the pack's splits, 'train'"),
        ({"split": "later"}, "split='later': none of the pack's videos is in it"),
        (
            {"split": "train", "videos": ["left/eight.avi", "right/fourteen.avi"]},
            "split='train': none of the 2 videos that are asked for is in it",
        ),
        ({"split": "train", "videos": ["x.avi"]}, "1 of 1 videos are not in the pack: 'x.avi' is not"),
    ],
    ids=str,
)
def test_splits_that_cannot_be(split_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NeuralVideoDataset(split_path, device="cpu", **options)


def test_a_pack_without_splits(fast_pack: tiny.TinyPack) -> None:
    assert NeuralVideoDataset(fast_pack.path, device="cpu").splits == []
    message = (
        "split='train': the pack has no splits; they are made when it is packed, from lists of videos: neuralloader "
        "pack --annotations trainlist01.txt"
    )
    with pytest.raises(ValueError, match=message):
        NeuralVideoDataset(fast_pack.path, device="cpu", split="train")


def test_two_splits_side_by_side(split_path: Path) -> None:
    """Together, each keeps its own way of choosing clips."""
    train = NeuralVideoDataset(split_path, device="cpu", split="train", frames_per_clip=4)
    test = NeuralVideoDataset(split_path, device="cpu", split="test", frames_per_clip=4, step_between_clips=8)
    joined = ConcatNeuralDataset([train, test])
    assert len(joined) == (1 + 3) + (2 + 2)
    items = joined.__getitems__([1, 4])
    assert [label for _, label in items] == [1, 1]
    assert _differ_by(items[0][0], train[1][0]) <= 1
    assert _differ_by(items[1][0], test[0][0]) <= 1
