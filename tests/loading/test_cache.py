"""The caches of key-frames: bounds on bytes, the least recently used out first, nothing read twice while it is kept."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuralloader.backends import KeyFeatures
from neuralloader.errors import PackError
from neuralloader.loading.cache import (
    DEFAULT_BYTES,
    CacheMode,
    FeatureCache,
    PixelCache,
    choose_bounds,
    feature_bytes,
)
from neuralloader.loading.transfer import upload_images

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
IMAGE_BYTES = 2 * 4 * 3
NUM_KEYS = 12
requests_of_rows = st.lists(st.lists(st.integers(0, NUM_KEYS - 1), min_size=1, max_size=6), max_size=20)


class _Reader:
    """Key-frame ``row`` is an image full of ``row``, and its second pixel tells the axes."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.is_damaged = False

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if self.is_damaged:
            raise PackError("damaged")
        self.calls.append(rows.tolist())
        return _draw(rows)


def _draw(rows: Sequence[int] | np.ndarray) -> np.ndarray:
    images = np.repeat(np.asarray(rows, np.uint8), IMAGE_BYTES).reshape(-1, 2, 4, 3)
    images[:, 0, 1] = [201, 202, 203]
    return images


# --- features -------------------------------------------------------------------------------------------------------


class _Encoder:
    """Features of two types: the mean of a corner, and the second pixel's colours."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.is_broken = False

    def __call__(self, images: Tensor) -> KeyFeatures:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 2, 4)
        if self.is_broken:
            raise RuntimeError("no memory")
        self.sizes.append(len(images))
        return images[:, :1, 1:, 2:].float(), images[:, :, 0, 1].short()


FEATURE_BYTES = 2 * 4 + 3 * 2


def _features(
    num_slots: float, *, min_slots: int = 0, keys_per_step: int = 100
) -> tuple[FeatureCache, _Reader, _Encoder]:
    reader, encoder = _Reader(), _Encoder()
    cache = FeatureCache(
        NUM_KEYS,
        reader,
        encoder,
        _Encoder()(torch.zeros((1, 3, 2, 4), dtype=torch.uint8)),
        max_bytes=int(num_slots * FEATURE_BYTES),
        min_slots=min_slots,
        keys_per_step=keys_per_step,
    )
    return cache, reader, encoder


def _rows_at(cache: FeatureCache, slots: np.ndarray) -> list[int]:
    """The rows whose features stand in some slots."""
    means, colours = (feature[torch.from_numpy(slots)] for feature in cache.features)
    assert (colours == torch.tensor([201, 202, 203])).all()
    assert (means == means[:, :, :1, :1]).all()
    return means[:, 0, 0, 0].int().tolist()


def _kept(cache: FeatureCache) -> set[int]:
    return set(range(NUM_KEYS)) - set(cache.missing(np.arange(NUM_KEYS)).tolist())


@pytest.mark.parametrize(
    ("num_slots", "min_slots", "expected"), [(5, 0, 5), (5.9, 0, 5), (2, 4, 4), (0, 3, 3), (99, 0, 12), (0, 99, 12)]
)
def test_as_many_slots_as_the_bound_has_room_for(num_slots: float, min_slots: int, expected: int) -> None:
    cache, _, _ = _features(num_slots, min_slots=min_slots)
    assert cache.num_slots == expected
    assert [feature.shape for feature in cache.features] == [(expected, 1, 1, 2), (expected, 3)]
    assert [feature.dtype for feature in cache.features] == [torch.float32, torch.int16]
    assert sum(feature.numel() * feature.element_size() for feature in cache.features) == expected * FEATURE_BYTES


def test_bytes_of_one_key_frame() -> None:
    assert feature_bytes((torch.zeros(7, 2, 3), torch.zeros(7, 5, dtype=torch.bfloat16))) == 24 + 10


def test_features_stand_in_the_slots_of_their_rows() -> None:
    cache, reader, _ = _features(6)
    for rows in ([5, 2, 9], [2], [9, 0, 5, 1], [11, 5]):
        slots = cache.slots(np.array(rows))
        assert slots.dtype == np.int64
        assert len(set(slots.tolist())) == len(rows)
        assert _rows_at(cache, slots) == rows
    assert reader.calls == [[5, 2, 9], [0, 1], [11]], "what is there is not read again"


def test_many_key_frames_are_read_at_once_and_encoded_in_steps() -> None:
    cache, reader, encoder = _features(12, keys_per_step=5)
    assert _rows_at(cache, cache.slots(np.arange(12)[::-1])) == [*range(12)][::-1]
    assert reader.calls == [[*range(12)][::-1]]
    assert encoder.sizes == [5, 5, 2]


def test_the_slots_used_longest_ago_are_given_anew() -> None:
    cache, reader, _ = _features(3)
    for rows in ([0], [1], [2], [0], [3]):  # 1 was used longest ago
        cache.slots(np.array(rows))
    assert _kept(cache) == {0, 2, 3}
    cache.slots(np.array([4, 2]))
    assert _kept(cache) == {2, 3, 4}
    assert reader.calls == [[0], [1], [2], [3], [4]]


@given(requests=requests_of_rows, num_slots=st.integers(6, 9), keys_per_step=st.integers(1, 4))
def test_features_against_a_list_in_order_of_use(requests: list[list[int]], num_slots: int, keys_per_step: int) -> None:
    """Rows of one call are used at the same time: any of them may go before the others, later."""
    cache, reader, _ = _features(num_slots, keys_per_step=keys_per_step)
    used_at: dict[int, int] = {}  # of the rows that are kept
    for now, request in enumerate(requests):
        rows = list(dict.fromkeys(request))
        missing = [row for row in rows if row not in used_at]
        assert cache.missing(np.array(rows)).tolist() == missing
        reader.calls.clear()
        assert _rows_at(cache, cache.slots(np.array(rows))) == rows
        assert reader.calls == ([missing] if missing else [])
        used_at |= dict.fromkeys(rows, now)
        kept = _kept(cache)
        assert kept >= set(rows), "what the same call asked for is never given up"
        assert len(kept) == min(num_slots, len(used_at)), "none goes before it must"
        given_up = set(used_at) - kept
        assert max((used_at[row] for row in given_up), default=-1) <= min(used_at[row] for row in kept)
        used_at = {row: used_at[row] for row in kept}
        everything = np.array(sorted(kept))
        assert _rows_at(cache, cache._slot[everything]) == everything.tolist(), "the others stand where they stood"


def test_key_frames_read_elsewhere_need_no_reading() -> None:
    cache, reader, encoder = _features(4)
    cache.slots(np.array([3]))
    reader.calls.clear()
    encoder.sizes.clear()
    cache.put(np.array([7, 3, 8]), _draw([7, 3, 8]))
    assert encoder.sizes == [2], "what is there already is left"
    assert _rows_at(cache, cache.slots(np.array([8, 3, 7]))) == [8, 3, 7]
    assert reader.calls == []


def test_more_read_elsewhere_than_there_is_room_for() -> None:
    cache, reader, _ = _features(3)
    cache.put(np.arange(5), _draw(range(5)))
    assert len(_kept(cache)) == 3
    kept = np.array(sorted(_kept(cache)))
    assert _rows_at(cache, cache.slots(kept)) == kept.tolist()
    assert reader.calls == []
    cache.put(np.zeros(0, np.int64), _draw([]))
    assert len(_kept(cache)) == 3


@pytest.mark.parametrize("culprit", ["reader", "encoder"])
def test_a_failure_leaves_the_features_as_they_were(culprit: str) -> None:
    cache, reader, encoder = _features(3)
    cache.slots(np.array([0, 1, 2]))
    reader.is_damaged, encoder.is_broken = culprit == "reader", culprit == "encoder"
    with pytest.raises((PackError, RuntimeError), match="damaged" if culprit == "reader" else "no memory"):
        cache.slots(np.array([1, 5]))
    assert _kept(cache) == {0, 1, 2}
    assert _rows_at(cache, cache.slots(np.array([2, 0, 1]))) == [2, 0, 1]
    reader.is_damaged = encoder.is_broken = False
    assert _rows_at(cache, cache.slots(np.array([5, 2]))) == [5, 2]


def test_features_are_kept_in_the_types_of_the_example() -> None:
    reader, encoder = _Reader(), _Encoder()
    example = (torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16), torch.zeros(1, 3, dtype=torch.int32))
    cache = FeatureCache(NUM_KEYS, reader, encoder, example, max_bytes=0, min_slots=2, keys_per_step=1)
    assert _rows_at(cache, cache.slots(np.array([4, 6]))) == [4, 6]
    assert [feature.dtype for feature in cache.features] == [torch.bfloat16, torch.int32]


# --- pixels ---------------------------------------------------------------------------------------------------------


def _pixels(num_images: float) -> tuple[PixelCache, _Reader]:
    reader = _Reader()
    return PixelCache(reader, int(num_images * IMAGE_BYTES)), reader


def _get(cache: PixelCache, rows: Sequence[int]) -> list[int]:
    images = cache.get(np.array(rows))
    assert images.shape == (len(rows), 2, 4, 3)
    assert images.dtype == np.uint8
    assert (images[:, 0, 1] == [201, 202, 203]).all()
    return images[:, 1, 3, 0].tolist()


def test_images_come_in_the_order_asked_for() -> None:
    cache, reader = _pixels(10)
    assert _get(cache, [5, 2, 5, 9]) == [5, 2, 5, 9]
    assert reader.calls == [[5, 2, 9]], "a row asked for twice is decoded once"


def test_nothing_is_decoded_twice_within_the_bound() -> None:
    cache, reader = _pixels(4)
    for rows in ([0, 1], [1, 2], [3, 0], [2, 1, 3, 0]):
        assert _get(cache, rows) == rows
    assert reader.calls == [[0, 1], [2], [3]]
    assert cache.missing(np.array([3, 7, 0, 7])).tolist() == [7]


def test_the_least_recently_used_images_go_first() -> None:
    cache, reader = _pixels(2)
    for rows in ([0], [1], [0], [2]):  # 1 was used longest ago
        _get(cache, rows)
    reader.calls.clear()
    _get(cache, [0])
    _get(cache, [2])
    assert reader.calls == []
    _get(cache, [1])
    assert reader.calls == [[1]]


def test_a_request_beyond_the_bound_is_served_and_then_cut_down() -> None:
    cache, reader = _pixels(2)
    assert _get(cache, [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]
    reader.calls.clear()
    assert _get(cache, [3, 4]) == [3, 4]
    assert reader.calls == []
    _get(cache, [0])
    assert reader.calls == [[0]]


@pytest.mark.parametrize("num_images", [0, 0.5])
def test_a_cache_without_room_still_serves(num_images: float) -> None:
    cache, reader = _pixels(num_images)
    for _ in range(2):
        assert _get(cache, [1, 0]) == [1, 0]
    assert reader.calls == [[1, 0], [1, 0]]


@given(requests=requests_of_rows, room=st.integers(0, 6))
@settings(max_examples=50)
def test_pixels_against_a_list_in_order_of_use(requests: list[list[int]], room: int) -> None:
    cache, reader = _pixels(room)
    kept: list[int] = []  # least recently used first
    for rows in requests:
        missing = [row for row in dict.fromkeys(rows) if row not in kept]
        assert cache.missing(np.array(rows)).tolist() == missing
        reader.calls.clear()
        assert _get(cache, rows) == rows
        assert reader.calls == ([missing] if missing else [])
        for row in [*missing, *rows]:
            if row in kept:
                kept.remove(row)
            kept.append(row)
        kept = kept[max(0, len(kept) - room) :]


def test_images_read_elsewhere_need_no_reading() -> None:
    cache, reader = _pixels(3)
    _get(cache, [1])
    cache.put(np.array([1, 4]), _draw([1, 4]))
    assert _get(cache, [4, 1]) == [4, 1]
    assert reader.calls == [[1]]
    cache.put(np.array([5, 6]), _draw([5, 6]))  # beyond the bound, until the next request
    assert _get(cache, [6]) == [6]
    assert cache.missing(np.array([1, 4, 5, 6])).tolist() == [4], "the bound holds, and 4 was used before 1"


def test_what_is_handed_out_is_not_the_cache_itself() -> None:
    cache, _ = _pixels(2)
    cache.get(np.array([7]))[:] = 0
    assert _get(cache, [7]) == [7]


def test_what_was_put_in_is_not_the_cache_itself() -> None:
    cache, _ = _pixels(2)
    images = _draw([7])
    cache.put(np.array([7]), images)
    images[:] = 0
    assert _get(cache, [7]) == [7]


def test_a_failed_read_leaves_the_pixels_as_they_were() -> None:
    cache, reader = _pixels(4)
    _get(cache, [0, 1])
    reader.is_damaged = True
    with pytest.raises(PackError, match="damaged"):
        cache.get(np.array([1, 2]))
    assert _get(cache, [1, 0]) == [1, 0]
    reader.is_damaged = False
    assert _get(cache, [2]) == [2]


def test_a_cpu_uploads_nothing() -> None:
    images = _draw([3])
    assert upload_images(images, CPU).data_ptr() == images.ctypes.data


# --- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "max_bytes", "bounds"),
    [
        ("auto", None, (DEFAULT_BYTES, 0)),
        ("device", None, (DEFAULT_BYTES, 0)),
        ("host", None, (DEFAULT_BYTES, 0)),
        ("none", None, (0, 0)),
        ("auto", 70, (70, 0)),
        ("device", 70, (70, 0)),
        ("host", 70, (70, 0)),
        ("none", 70, (0, 0)),
        ("auto", 0, (0, 0)),
    ],
)
def test_bounds_on_a_cpu(mode: CacheMode, max_bytes: int | None, bounds: tuple[int, int]) -> None:
    """Device and host are one there: nothing is kept twice."""
    assert choose_bounds(mode, max_bytes, 100, CPU) == bounds


@pytest.mark.parametrize(
    ("mode", "max_bytes", "bounds"),
    [
        ("auto", None, (200, 0)),  # a quarter of what is free, where all key-frames have room
        ("auto", 100, (100, 0)),
        ("auto", 99, (99, 99)),  # what has no room is kept as pixels
        ("auto", 0, (0, 0)),
        ("device", None, (DEFAULT_BYTES, 0)),
        ("device", 70, (70, 0)),
        ("host", None, (0, DEFAULT_BYTES)),
        ("host", 70, (0, 70)),
        ("none", None, (0, 0)),
    ],
)
def test_bounds_on_a_gpu(
    mode: CacheMode, max_bytes: int | None, bounds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 5000))
    assert choose_bounds(mode, max_bytes, 100, CUDA) == bounds


def test_a_gpu_with_little_room_keeps_pixels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (399, 5000))
    assert choose_bounds("auto", None, 100, CUDA) == (99, DEFAULT_BYTES)
    assert asked == [CUDA]


def test_an_unknown_mode_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="cache='gpu' must be one of auto, device, host, none"):
        choose_bounds("gpu", None, 0, CPU)  # type: ignore[arg-type]


def test_a_bound_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="cache_bytes=-1 must be 0 or more"):
        choose_bounds("auto", -1, 0, CPU)
