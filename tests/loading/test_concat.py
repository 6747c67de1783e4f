"""Datasets one after another: the items of each, those of one dataset decoded in one call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from neuralloader import NeuralVideoDataset
from neuralloader.loading.concat import ConcatNeuralDataset
from neuralloader.loading.samplers import Segments


@pytest.fixture
def parts(fast_pack: tiny.TinyPack) -> list[NeuralVideoDataset]:
    """Of 6, 4 and 7 items, all of 8 frames."""
    return [
        NeuralVideoDataset(fast_pack.path, device="cpu"),
        NeuralVideoDataset(fast_pack.path, device="cpu", sampler=Segments(frame="centre")),
        NeuralVideoDataset(
            fast_pack.path, device="cpu", step_between_clips=4, target_transform=lambda label: label + 10
        ),
    ]


@pytest.fixture
def calls(parts: list[NeuralVideoDataset], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """(number of the dataset, its items) of each call."""
    made: list[tuple[int, list[int]]] = []
    original = NeuralVideoDataset.__getitems__

    def count(self: NeuralVideoDataset, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        made.append((parts.index(self), list(indices)))
        return original(self, indices)

    monkeypatch.setattr(NeuralVideoDataset, "__getitems__", count)
    return made


def _same(found: Sequence[tuple[Any, ...]], expected: Sequence[tuple[Any, ...]]) -> bool:
    return len(found) == len(expected) and all(
        label == own_label and (video.short() - own.short()).abs().max() <= 1
        for (video, label), (own, own_label) in zip(found, expected, strict=True)
    )


def test_items_are_those_of_torchs_concatenation(parts: list[NeuralVideoDataset]) -> None:
    joined, plain = ConcatNeuralDataset(parts), ConcatDataset[Any](parts)
    assert len(joined) == len(plain) == 6 + 4 + 7
    expected = [plain[index] for index in range(17)]
    assert {label for _, label in expected} == {0, 1, 10, 11}
    assert _same(joined.__getitems__(range(17)), expected)
    assert _same([joined[index] for index in (0, 6, 16, -1)], [expected[index] for index in (0, 6, 16, -1)])


def test_a_batch_is_one_call_for_each_dataset_it_touches(
    parts: list[NeuralVideoDataset], calls: list[tuple[int, list[int]]]
) -> None:
    joined = ConcatNeuralDataset(parts)
    items = [16, 2, 9, 10, 2, -17, 6, -1]
    found = joined.__getitems__(items)
    assert calls == [(0, [2, 2, 0]), (1, [3, 0]), (2, [6, 0, 6])]
    assert _same(found, [joined[item] for item in items])
    calls.clear()
    assert joined.__getitems__([]) == []
    assert calls == []


def test_a_data_loader_decodes_batch_by_batch(
    parts: list[NeuralVideoDataset], calls: list[tuple[int, list[int]]]
) -> None:
    sizes = [len(labels) for _, labels in DataLoader(ConcatNeuralDataset(parts), batch_size=8)]
    assert sizes == [8, 8, 1]
    assert [number for number, _ in calls] == [0, 1, 1, 2, 2], "a batch that reaches over a border makes two"


@pytest.mark.parametrize("index", [17, -18, 100])
def test_an_item_that_is_not_there(parts: list[NeuralVideoDataset], index: int) -> None:
    joined = ConcatNeuralDataset(parts)
    with pytest.raises(IndexError, match=f"index {index} is out of range: the dataset has 17 items"):
        joined.__getitems__([0, index])


def test_an_index_is_a_whole_number(parts: list[NeuralVideoDataset]) -> None:
    joined = ConcatNeuralDataset(parts)
    with pytest.raises(TypeError, match="float"):
        joined.__getitems__([1.5])  # type: ignore[list-item]
    for index in (np.int64(7), torch.tensor(7)):
        assert _same(joined.__getitems__([index]), [joined[7]])  # type: ignore[list-item]


def test_another_kind_of_dataset_is_refused(parts: list[NeuralVideoDataset]) -> None:
    with pytest.raises(
        TypeError, match="ConcatNeuralDataset joins NeuralVideoDatasets, not TensorDataset; use torch's"
    ):
        ConcatNeuralDataset([*parts, TensorDataset(torch.zeros(3))])  # type: ignore[list-item]
