"""Latents: what rounding does to them, and that they come back from a file, whole or clip by clip."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuralloader.clips import index_corpus, index_frames
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError
from neuralloader.packfile.latents import (
    SYMBOL_OF_CODE_0,
    LatentGrid,
    LatentReader,
    RoundedLatents,
    latent_bytes,
    latents_to_tensors,
    round_latents,
    trim_latents,
)

SHAPE = (3, 2, 4)
PER_CLIP = np.array([2, 0, 1, 3])  # latents of each clip; one has none, and so no block


def _values(rng: np.random.Generator, spread: float = 4.0) -> np.ndarray:
    return rng.normal(scale=spread, size=(PER_CLIP.sum(), *SHAPE)).astype(np.float32)


def _write(path: Path, latents: RoundedLatents, per_clip: np.ndarray = PER_CLIP, **changes: Any) -> PackReader:
    path.unlink(missing_ok=True)
    tensors = latents_to_tensors(latents, per_clip) | changes
    write_pack(path, {}, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    return PackReader(path)


def _open(reader: PackReader, shape: tuple[int, int, int] = SHAPE, per_clip: np.ndarray = PER_CLIP) -> LatentReader:
    return LatentReader(reader, shape, per_clip, lambda clip: f"the latents of clip {clip}")


# --- rounding -------------------------------------------------------------------------------------------------------


def test_whole_numbers_are_rounded_and_clipped() -> None:
    values = np.array([0.4, -0.6, 2.5, 126.7, 127.6, 1e6, -127.6, -1e9], np.float32).reshape(2, 2, 2, 1)
    rounded = round_latents(values, None)
    assert rounded.symbols.dtype == np.int8
    assert rounded.symbols.shape == values.shape
    assert rounded.symbols.ravel().tolist() == [0, -1, 2, 127, 127, 127, -127, -127]
    assert rounded.grid is None


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_covers_each_channel_with_all_its_levels(bits: int) -> None:
    values = _values(np.random.default_rng(0)) * np.array([1, 100, 1e-3], np.float32)[:, None, None]
    rounded = round_latents(values, bits)
    assert rounded.symbols.dtype == np.int8
    assert rounded.grid is not None
    assert rounded.grid.minimum.shape == rounded.grid.scale.shape == (3,)
    assert rounded.grid.minimum.dtype == rounded.grid.scale.dtype == np.float16
    scale = rounded.grid.scale.astype(np.float32)[:, None, None]
    restored = rounded.grid.minimum.astype(np.float32)[:, None, None] + scale * (rounded.symbols.astype(np.int16) + 128)
    assert (np.abs(restored - values) <= scale * 0.5001).all()
    for channel in range(3):
        symbols = rounded.symbols[:, channel]
        assert symbols.min() == SYMBOL_OF_CODE_0 == -128
        assert -128 + 2**bits - 3 < symbols.max() <= -128 + 2**bits - 1, "scales are rounded up, but hardly"


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_not_finite(bits: int | None, value: float) -> None:
    values = np.zeros((1, *SHAPE), np.float32)
    values[0, 1, 1, 3] = value
    with pytest.raises(ValueError, match="finite"):
        round_latents(values, bits)


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 2, 8])
def test_they_come_back(bits: int | None, tmp_path: Path) -> None:
    latents = round_latents(_values(np.random.default_rng(1)), bits)
    reader = _open(_write(tmp_path / "a.nvpack", latents))
    blocks = reader.select(None)
    assert blocks.tolist() == [0, 1, 2]
    assert reader.num_bytes(blocks) == latents.symbols.nbytes
    np.testing.assert_array_equal(reader.read(blocks), latents.symbols)
    assert (reader.grid is None) == (bits is None)
    if reader.grid is not None and latents.grid is not None:
        np.testing.assert_array_equal(reader.grid.minimum, latents.grid.minimum)
        np.testing.assert_array_equal(reader.grid.scale, latents.grid.scale)


@given(data=st.data(), per_clip=st.lists(st.integers(0, 4), min_size=1, max_size=6), has_grid=st.booleans())
def test_whatever_they_are(
    data: st.DataObject, per_clip: list[int], has_grid: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    symbols = data.draw(hnp.arrays(np.int8, (sum(per_clip), *shape)))
    halves = hnp.arrays(np.float16, (shape[0],), elements=st.floats(-100, 100, width=16))
    grid = LatentGrid(data.draw(halves), data.draw(halves)) if has_grid else None
    counts = np.array(per_clip)
    path = tmp_path_factory.getbasetemp() / "drawn.nvpack"
    with _write(path, RoundedLatents(symbols, grid), counts) as reader:
        latents = _open(reader, shape, counts)
        np.testing.assert_array_equal(latents.read(latents.select(None)), symbols)
        assert (latents.grid is None) == (grid is None)
        if latents.grid is not None and grid is not None:
            np.testing.assert_array_equal(latents.grid.scale, grid.scale)
        starts = np.concatenate([[0], np.cumsum(counts)])
        for clip in range(len(counts)):
            one = latents.read(latents.select(np.array([clip])))
            np.testing.assert_array_equal(one, symbols[starts[clip] : starts[clip + 1]])


def test_only_the_blocks_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = round_latents(_values(np.random.default_rng(2)), None)
    pack = _write(tmp_path / "a.nvpack", latents)
    reader = _open(pack)
    sizes = pack.tensor("latents.size").astype(int)
    assert sizes.min() > 0
    ends = np.cumsum(sizes)
    asked: list[tuple[str, list[tuple[int, int]]]] = []
    original = PackReader.read
    monkeypatch.setattr(
        PackReader,
        "read",
        lambda self, name, ranges: asked.append((name, list(ranges))) or original(self, name, ranges),
    )
    blocks = reader.select(np.array([0, 1, 3]))
    assert blocks.tolist() == [0, 2], "clip 1 has no latents"
    read = reader.read(blocks)
    assert asked == [("latents.data", [(0, ends[0]), (ends[1], ends[2])])]
    np.testing.assert_array_equal(read, np.concatenate([latents.symbols[:2], latents.symbols[3:]]))
    assert reader.num_bytes(blocks) == 5 * np.prod(SHAPE)
    assert reader.select(np.array([1])).tolist() == []


def test_frames_with_a_latent_are_those_that_are_no_key_frames() -> None:
    frames = index_frames(*index_corpus(np.array([14, 1, 8]), frames_per_clip=8, key_interval=8))
    assert frames.latents_per_clip().tolist() == [7, 4, 0, 6]
    frames = index_frames(*index_corpus(np.array([14, 1, 8]), frames_per_clip=8, key_interval=None))
    assert frames.latents_per_clip().tolist() == [8, 6, 1, 8]


# --- trimming -------------------------------------------------------------------------------------------------------


def _laplace(num_clips: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    spread = np.array([2.0, 1.0, 0.3], np.float32)[:, None, None]  # of each channel
    return (rng.laplace(size=(7 * num_clips, 3, 8, 10)) * spread).astype(np.float32), np.full(num_clips, 7)


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    latents = round_latents(_values(np.random.default_rng(6)), None)
    reader = _write(tmp_path / "a.nvpack", latents)
    names = [name for name in reader.tensor_names if name.startswith("latents.")]
    assert len(names) == 5
    assert latent_bytes(latents, PER_CLIP) == sum(reader.num_bytes(name) for name in names)


@pytest.mark.parametrize("share", [0.98, 0.9, 0.6, 0.3])
def test_they_are_trimmed_to_just_what_is_allowed(share: float) -> None:
    values, per_clip = _laplace()
    whole = round_latents(values, None)
    max_bytes = int(share * latent_bytes(whole, per_clip))
    trimmed = trim_latents(values, per_clip, max_bytes)
    assert 0.985 * max_bytes <= latent_bytes(trimmed, per_clip) <= max_bytes
    assert trimmed.grid is None
    # toward zero, never past it or away from it
    assert (trimmed.symbols.astype(int) * whole.symbols >= 0).all()
    assert (np.abs(trimmed.symbols.astype(int)) <= np.abs(whole.symbols.astype(int))).all()
    # first those that it changes least
    moved, kept = trimmed.symbols != whole.symbols, (trimmed.symbols == whole.symbols) & (whole.symbols != 0)
    excess = np.abs(values) - (np.abs(whole.symbols) - 0.5)  # above where the next smaller number ends
    assert moved.any()
    assert excess[moved].max() <= excess[kept].min(initial=1.0) + 1e-5


def test_what_fits_is_left_alone() -> None:
    values, per_clip = _laplace()
    whole = round_latents(values, None)
    for spare in (0, 1000):
        trimmed = trim_latents(values, per_clip, latent_bytes(whole, per_clip) + spare)
        np.testing.assert_array_equal(trimmed.symbols, whole.symbols)


def test_all_zero_is_the_least_there_is() -> None:
    values, per_clip = _laplace()
    least = latent_bytes(RoundedLatents(np.zeros(values.shape, np.int8), None), per_clip)
    assert not trim_latents(values, per_clip, least).symbols.any()
    with pytest.raises(ValueError, match=f"max_bytes={least - 1}: latents take at least {least} bytes, even if all"):
        trim_latents(values, per_clip, least - 1)


@given(data=st.data(), share=st.floats(0, 1))
def test_trimmed_latents_fit_whatever_they_are(data: st.DataObject, share: float) -> None:
    values = data.draw(hnp.arrays(np.float32, (int(PER_CLIP.sum()), 2, 2, 3), elements=st.floats(-200, 200, width=32)))
    whole, least = (
        latent_bytes(latents, PER_CLIP)
        for latents in (round_latents(values, None), RoundedLatents(np.zeros(values.shape, np.int8), None))
    )
    max_bytes = least + int(share * max(0, whole - least))
    assert latent_bytes(trim_latents(values, PER_CLIP, max_bytes), PER_CLIP) <= max_bytes


def test_values_that_are_not_finite_are_not_trimmed() -> None:
    with pytest.raises(ValueError, match="finite"):
        trim_latents(np.full((PER_CLIP.sum(), *SHAPE), np.nan, np.float32), PER_CLIP, 100)


# --- damage ---------------------------------------------------------------------------------------------------------

HALVES = np.ones(3, np.float16)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"latents.minimum": HALVES}, r"the pack has no tensor 'latents\.scale'"),
        ({"latents.scale": HALVES}, r"the pack has no tensor 'latents\.minimum'"),
        (
            {"latents.minimum": HALVES, "latents.scale": HALVES[:2]},
            r"latents\.scale must be 3 finite float16, not float16 \(2,\)",
        ),
        (
            {"latents.minimum": HALVES.astype(np.float32), "latents.scale": HALVES},
            r"latents\.minimum must be 3 finite float16, not float32 \(3,\)",
        ),
        ({"latents.minimum": HALVES, "latents.scale": HALVES * np.inf}, r"latents\.scale must be 3 finite float16"),
        ({"latents.minimum": HALVES * np.nan, "latents.scale": HALVES}, r"latents\.minimum must be 3 finite float16"),
        ({"latents.frequencies": None}, r"the pack has no tensor 'latents\.frequencies'"),
        ({"latents.data": None}, r"the pack has no tensor 'latents\.data'"),
    ],
)
def test_tables_that_do_not_fit(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    reader = _write(tmp_path / "a.nvpack", round_latents(_values(np.random.default_rng(3)), None), **changes)
    with pytest.raises(PackError, match=text):
        _open(reader)


def test_blocks_of_another_number_of_clips(tmp_path: Path) -> None:
    reader = _write(tmp_path / "a.nvpack", round_latents(_values(np.random.default_rng(4)), None))
    with pytest.raises(PackError, match="3 blocks of latents are stored, where 4 belong"):
        _open(reader, per_clip=np.array([2, 1, 1, 3]))


def test_a_block_of_another_length_is_named_by_its_clip(tmp_path: Path) -> None:
    """Its CRC32 is right: a stranger's file."""
    reader = _write(tmp_path / "a.nvpack", round_latents(_values(np.random.default_rng(5)), None))
    latents = _open(reader, per_clip=np.array([2, 0, 2, 2]))
    with pytest.raises(PackError, match="the latents of clip 2: latent block 0 is damaged"):
        latents.read(latents.select(None))
    wrong = _open(reader, shape=(4, 2, 4))
    with pytest.raises(PackError, match="latent tables have 3 channels, where 4 belong"):
        wrong.read(wrong.select(None))
