"""Training batches: whole clips, the right frames and key-frames beside each other, padding and key-frames marked."""

import numpy as np
import pytest
import torch

from neuralloader.clips import index_corpus, index_frames, index_units
from neuralloader.training.dataset import TrainingSet

LENGTHS = [9, 1, 14]
CPU = torch.device("cpu")


def _training_set(frames_per_unit: int, held_out: np.ndarray | None = None) -> TrainingSet:
    """Frame i is full of i, key-frame j full of 100 + j; the first row of pixels tells the channels apart."""
    clips, keys = index_corpus(np.array(LENGTHS), frames_per_clip=8, key_interval=8)
    table = index_frames(clips, keys)

    def images(values: np.ndarray) -> np.ndarray:
        filled = np.broadcast_to(values[:, None, None, None], (len(values), 4, 6, 3)).astype(np.uint8)
        filled[:, 0] = [200, 201, 202]
        filled.setflags(write=False)  # as the cache hands them out
        return filled

    return TrainingSet(
        images(np.arange(len(table))),
        images(100 + np.arange(len(keys))),
        table,
        index_units(clips, frames_per_unit),
        CPU,
        held_out,
    )


@pytest.mark.parametrize("frames_per_unit", [1, 8])
def test_a_batch_holds_its_clips_whole(frames_per_unit: int) -> None:
    data = _training_set(frames_per_unit)
    assert len(data.trained_clips) == 2 + 1 + 2
    assert data.frame_size == (4, 6)
    table = data.table
    for clips in ([0], [1, 2], [0, 3, 4], [4], [0, 1, 2, 3, 4]):
        batch = data.draw_units(data.units_of_clips(np.array(clips)))
        rows = batch.frames[:, :, 0, 1, 0].numpy().astype(int)  # (N, T), by what is in the pixels
        assert batch.frames.dtype == torch.uint8
        assert batch.frames.shape[1:] == (frames_per_unit, 3, 4, 6)
        assert batch.frames[0, 0, :, 0, 0].tolist() == [200, 201, 202]
        valid = batch.valid.numpy().reshape(rows.shape)
        assert sorted(rows[valid].tolist()) == np.flatnonzero(np.isin(table.all.clip, clips)).tolist()
        padding = rows[~valid]
        assert all(row in table.first_row[1:] - 1 for row in padding.tolist()), "padding repeats a last frame"
        np.testing.assert_array_equal(batch.has_latent.numpy().reshape(rows.shape), ~table.all.is_key[rows])
        np.testing.assert_array_equal(batch.units.phase, table.all.phase[rows])
        np.testing.assert_array_equal(batch.units.time, table.all.time[rows])
        keys = batch.keyframes[batch.units.keys][:, :, 0, 1, 0].numpy() - 100  # (N, 2), by the pixels again
        np.testing.assert_array_equal(keys, table.all.keys[rows[:, 0]])
        assert len(batch.keyframes) == len(np.unique(table.all.keys[rows])), "each key-frame once"


def test_units_by_row() -> None:
    data = _training_set(1)
    batch = data.unit_batch(np.array([23, 0, 9]))
    assert batch.frames[:, 0, 0, 1, 0].tolist() == [23, 0, 9]
    assert batch.keyframes.shape[1:] == (3, 4, 6)


@pytest.mark.parametrize("frames_per_unit", [1, 8])
def test_frames_held_out_count_as_padding(frames_per_unit: int) -> None:
    held_out = np.zeros(24, bool)
    held_out[[1, 7, 8, 9, 22]] = True  # two of clip 0; all of clip 1 (frame 8 alone) and of clip 2 (the video of one)
    data = _training_set(frames_per_unit, held_out)
    assert data.trained_clips.tolist() == [0, 3, 4]
    assert len(data.trained_units) == (19 if frames_per_unit == 1 else 3)
    trained: list[int] = []
    for clips in ([0], [3, 4]):
        unit_rows = data.units_of_clips(np.array(clips))
        batch = data.draw_units(unit_rows)
        assert data.num_trained(unit_rows) == batch.valid.sum()
        rows = batch.frames[:, :, 0, 1, 0].reshape(-1).numpy().astype(int)
        trained += rows[batch.valid.numpy()].tolist()
    assert sorted(trained) == np.flatnonzero(~held_out).tolist()
    batch = data.draw_units(data.trained_units)
    rows = batch.frames[:, :, 0, 1, 0].reshape(-1).numpy().astype(int)
    assert sorted(rows[batch.valid.numpy()].tolist()) == np.flatnonzero(~held_out).tolist()
    whole = data.unit_batch(np.arange(len(data.units)))
    rows = whole.frames[:, :, 0, 1, 0].reshape(-1).numpy().astype(int)
    assert rows[whole.valid.numpy()].tolist() == list(range(24)), "all of them are encoded and stored"
