"""The cache of key-frames: a bound on bytes, the oldest out first, nothing decoded twice while it is kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.errors import PackError
from neuralloader.loading.cache import KeyframeCache

FRAME_BYTES = 2 * 4 * 3


class _Reader:
    """Key-frame ``row`` is an image full of ``row``, and its first pixel tells the axes."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.calls.append(rows.tolist())
        images = np.repeat(rows.astype(np.uint8), FRAME_BYTES).reshape(-1, 2, 4, 3)
        images[:, 0, 1] = [201, 202, 203]
        return images


def _cache(num_frames: int) -> tuple[KeyframeCache, _Reader]:
    reader = _Reader()
    return KeyframeCache(reader, torch.device("cpu"), num_frames * FRAME_BYTES), reader


def test_images_come_in_the_order_asked_for() -> None:
    cache, reader = _cache(10)
    images = cache.get(np.array([5, 2, 5, 9]))
    assert images.shape == (4, 3, 2, 4)
    assert images.dtype == torch.uint8
    assert images[:, 0, 1, 3].tolist() == [5, 2, 5, 9]
    assert images[0, :, 0, 1].tolist() == [201, 202, 203]
    assert reader.calls == [[5, 2, 9]], "a row asked for twice is decoded once"


def test_nothing_is_decoded_twice_within_the_bound() -> None:
    cache, reader = _cache(4)
    for rows in ([0, 1], [1, 2], [3, 0], [2, 1, 3, 0]):
        assert cache.get(np.array(rows))[:, 0, 1, 3].tolist() == rows
    assert reader.calls == [[0, 1], [2], [3]]


def test_the_least_recently_used_go_first() -> None:
    cache, reader = _cache(2)
    for rows in ([0], [1], [0], [2]):  # 1 was used longest ago
        cache.get(np.array(rows))
    reader.calls.clear()
    cache.get(np.array([0]))
    cache.get(np.array([2]))
    assert reader.calls == []
    cache.get(np.array([1]))
    assert reader.calls == [[1]]


def test_a_request_beyond_the_bound_is_served_and_then_cut_down() -> None:
    cache, reader = _cache(2)
    assert cache.get(np.arange(5))[:, 0, 1, 3].tolist() == [0, 1, 2, 3, 4]
    reader.calls.clear()
    assert cache.get(np.array([3, 4]))[:, 0, 1, 3].tolist() == [3, 4]
    assert reader.calls == []
    cache.get(np.array([0]))
    assert reader.calls == [[0]]


@pytest.mark.parametrize("num_frames", [0, 0.5])
def test_a_cache_without_room_still_serves(num_frames: float) -> None:
    reader = _Reader()
    cache = KeyframeCache(reader, torch.device("cpu"), int(num_frames * FRAME_BYTES))
    for _ in range(2):
        assert cache.get(np.array([1, 0]))[:, 0, 1, 3].tolist() == [1, 0]
    assert reader.calls == [[1, 0], [1, 0]]


@given(requests=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=20), room=st.integers(0, 6))
@settings(max_examples=50)
def test_against_a_list_in_order_of_use(requests: list[list[int]], room: int) -> None:
    cache, reader = _cache(room)
    kept: list[int] = []  # least recently used first
    for rows in requests:
        missing = [row for row in dict.fromkeys(rows) if row not in kept]
        reader.calls.clear()
        assert cache.get(np.array(rows))[:, 0, 1, 3].tolist() == rows
        assert reader.calls == ([missing] if missing else [])
        for row in [*missing, *rows]:
            if row in kept:
                kept.remove(row)
            kept.append(row)
        kept = kept[max(0, len(kept) - room) :]


def test_what_is_handed_out_is_not_the_cache_itself() -> None:
    cache, _ = _cache(2)
    cache.get(np.array([7])).zero_()
    assert cache.get(np.array([7]))[0, 0, 1, 3] == 7


def test_a_failed_read_leaves_the_cache_as_it_was() -> None:
    cache, reader = _cache(4)
    cache.get(np.array([0, 1]))

    def fail(rows: np.ndarray) -> np.ndarray:
        raise PackError("damaged")

    cache._read = fail
    with pytest.raises(PackError, match="damaged"):
        cache.get(np.array([1, 2]))
    assert cache.get(np.array([1, 0]))[:, 0, 1, 3].tolist() == [1, 0]
    cache._read = reader
    assert cache.get(np.array([2]))[0, 0, 1, 3] == 2
