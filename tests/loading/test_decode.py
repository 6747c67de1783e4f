"""The decoder: the same frames whatever the batch, each key-frame read once, and the paper's padding put back."""

import counter
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from neuralloader.backends import Units
from neuralloader.backends.precision import autocast
from neuralloader.loading import decode
from neuralloader.loading.decode import DEFAULT_SETTINGS, Decoder, DecodeSettings
from neuralloader.loading.output import to_uint8
from neuralloader.metrics.quality import psnr_db
from neuralloader.packfile import Pack, open_pack

CPU = torch.device("cpu")
FOURTEEN = list(tiny.CORPUS).index("right/fourteen.avi")


@pytest.fixture
def pack(every_pack: tiny.TinyPack) -> Pack:
    return open_pack(every_pack.path)


def _differ_by(a: Tensor, b: Tensor) -> int:
    return int((a.short() - b.short()).abs().max())


def test_frames_look_like_their_originals(every_pack: tiny.TinyPack, pack: Pack) -> None:
    decoded = Decoder(pack, CPU).decode(np.arange(len(pack.frames)))
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (32, 3, *tiny.SIZE)
    quality = psnr_db(decoded, torch.from_numpy(every_pack.originals).permute(0, 3, 1, 2))
    assert quality.mean() > 22
    worse = psnr_db(decoded, torch.from_numpy(np.roll(every_pack.originals, 1, axis=0)).permute(0, 3, 1, 2))
    assert quality.mean() > worse.mean() + 3, "a neighbour fits as well: this would prove nothing"


def test_batches_equal_single_frames_within_a_grey_level(pack: Pack) -> None:
    decoder = Decoder(pack, CPU)
    rows = np.random.default_rng(0).permutation(len(pack.frames))
    together = decoder.decode(rows)
    for row, frame in zip(rows, together, strict=True):
        assert _differ_by(decoder.decode(np.array([row]))[0], frame) <= 1


def test_rows_may_repeat_and_come_in_any_order(pack: Pack) -> None:
    decoder = Decoder(pack, CPU)
    rows = np.array([20, 3, 3, 31, 0, 20])
    frames = decoder.decode(rows)
    assert torch.equal(frames[1], frames[2])
    assert torch.equal(frames[0], frames[5])
    assert _differ_by(frames[[4, 3]], decoder.decode(np.array([0, 31]))) <= 1
    assert decoder.decode(np.array([], dtype=np.int64)).shape == (0, 3, *tiny.SIZE)


@pytest.mark.parametrize("units_per_step", [1, 3])
def test_small_steps_give_the_same_frames(pack: Pack, monkeypatch: pytest.MonkeyPatch, units_per_step: int) -> None:
    rows = np.random.default_rng(1).integers(0, len(pack.frames), 40)
    whole = Decoder(pack, CPU).decode(rows)
    backend = pack.load_backend()
    frames_per_unit = 8 if (pack.description.backend, pack.description.config) == ("dnerv", "paper") else 1
    values = units_per_step * frames_per_unit * tiny.SIZE[0] * tiny.SIZE[1] * backend.values_per_pixel
    for bound in (decode.VALUES_PER_STEP, decode.STACK_VALUES_PER_STEP):
        monkeypatch.setitem(bound, "cpu", values)
    decoder = Decoder(pack, CPU)
    sizes = [len(step.rows) for step in decoder.plan(rows).steps]
    assert max(sizes) <= units_per_step, "the bound on what is decoded at a time"
    assert max(sizes) == units_per_step or pack.num_networks is not None, "some networks have fewer units to decode"
    assert len(sizes) > 1
    for settings in (DEFAULT_SETTINGS, DecodeSettings(cache_bytes=0)):
        assert _differ_by(Decoder(pack, CPU, settings).decode(rows), whole) <= 1


@pytest.mark.parametrize("num_threads", [2, 3])
def test_steps_side_by_side_give_the_same_frames(pack: Pack, monkeypatch: pytest.MonkeyPatch, num_threads: int) -> None:
    rows = np.random.default_rng(1).integers(0, len(pack.frames), 40)
    alone = Decoder(pack, CPU).decode(rows)
    monkeypatch.setattr(decode, "VALUES_PER_THREAD", 1)
    torch.set_num_threads(num_threads)
    try:
        decoder = Decoder(pack, CPU)
        if pack.num_networks is None:  # the networks of a stack take turns
            assert len(decoder.plan(rows).steps) >= num_threads
        assert _differ_by(decoder.decode(rows), alone) <= 1
        assert torch.get_num_threads() == num_threads, "the caller's threads are left as they were"
        for damaged in (True, False):  # an error leaves the threads usable
            if damaged:
                monkeypatch.setattr(decoder, "_decode", _fail)
                with pytest.raises(RuntimeError, match="no frame today"):
                    decoder.decode(rows)
                monkeypatch.undo()
        assert _differ_by(decoder.decode(rows), alone) <= 1
    finally:
        torch.set_num_threads(1)


def _fail(*arguments: object) -> Tensor:
    raise RuntimeError("no frame today")


def test_each_unit_that_is_needed_is_decoded_once(pack: Pack, every_pack: tiny.TinyPack) -> None:
    """The planner from end to end: any frames, in any order and with repeats, from as few units as there can be."""
    decoder = Decoder(pack, CPU)
    rows = np.random.default_rng(2).integers(0, len(pack.frames), 25)
    plan = decoder.plan(rows)
    decoded = [unit for step in plan.steps for unit in step.rows.tolist()]
    frames = decoder.run(plan)
    assert decoder.counts.num_frames_used == len(set(rows.tolist()))
    assert decoder.counts.num_frames_decoded == sum(map(len, decoded))
    numbers = [counter.read(frame) for frame in frames.permute(0, 2, 3, 1).numpy()]
    assert numbers == every_pack.numbers[rows].tolist()
    units = pack.units(pack.load_backend()).rows.tolist()
    needed = [own for own in units if set(own) & set(rows.tolist())]
    if pack.num_networks is None:
        assert sorted(decoded) == needed
    else:  # networks decode together, and one that has fewer frames than another repeats one
        assert sorted(set(map(tuple, decoded))) == [*map(tuple, needed)]
        assert len(decoded) < 1.5 * len(needed)


def _count_keyframes(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of all key-frames that are decoded from now on."""
    read: list[int] = []
    original = Pack.keyframes
    monkeypatch.setattr(
        Pack, "keyframes", lambda self, rows, **options: read.extend(rows.tolist()) or original(self, rows, **options)
    )
    return read


def test_no_key_frame_is_decoded_twice(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    read = _count_keyframes(pack, monkeypatch)
    decoder = Decoder(pack, CPU)
    for row in range(len(pack.frames)):
        decoder.decode(np.array([row]))
    decoder.decode(np.arange(len(pack.frames)))
    assert sorted(read) == list(range(len(pack.index.keys)))


def test_only_the_key_frames_needed_are_decoded(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    read = _count_keyframes(pack, monkeypatch)
    row = int(pack.frames.first_row[FOURTEEN]) + 10
    Decoder(pack, CPU).decode(np.array([row]))
    assert sorted(read) == sorted({key for key in pack.frames.all.keys[row].tolist() if key >= 0})
    assert bool(read) == (pack.description.backend == "dnerv")


def test_without_a_cache_frames_stay_the_same(pack: Pack) -> None:
    rows = np.arange(0, len(pack.frames), 3)
    assert torch.equal(Decoder(pack, CPU, DecodeSettings(cache_bytes=0)).decode(rows), Decoder(pack, CPU).decode(rows))


def test_frames_can_be_changed_in_place(pack: Pack) -> None:
    """Transforms do so; tensors made in inference mode would refuse."""
    frames = Decoder(pack, CPU).decode(np.arange(3))
    frames[:, :, 0] = 0
    frames.add_(1)
    assert not frames.is_inference()
    assert not frames.requires_grad


# --- the paper's padding --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_padded_clip_is_decoded_with_its_padding(paper_pack: tiny.TinyPack) -> None:
    """Both clips of the video of 14 frames, through units built by hand from the reference's formulas."""
    pack = open_pack(paper_pack.path)
    backend = pack.load_backend()
    first_key = int(np.flatnonzero(pack.index.keys.video == FOURTEEN)[0])
    assert pack.index.keys.frame[first_key : first_key + 3].tolist() == [0, 8, 13]
    keyframes = torch.from_numpy(pack.keyframes(np.arange(first_key, first_key + 3))).permute(0, 3, 1, 2)
    frame = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 13, 13]])
    units = Units(
        keys=torch.tensor([[0, 1], [1, 2]]),
        phase=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 5, 5]]) / torch.tensor([[8], [5]]),
        time=frame / 13,
        network_time=frame / 20,
    )
    torch.testing.assert_close(units.phase[1], torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1]))
    with autocast(CPU):
        clips = to_uint8(backend.decode(backend.encode_keyframes(keyframes), units, None))
    by_hand = torch.cat([clips[0], clips[1, :6]])

    first = int(pack.frames.first_row[FOURTEEN])
    decoder = Decoder(pack, CPU)
    assert _differ_by(decoder.decode(np.arange(first, first + 14)), by_hand) <= 1
    for k in (8, 13):  # alone, the rest of the clip is still decoded around it
        assert _differ_by(decoder.decode(np.array([first + k]))[0], by_hand[k]) <= 1

    # it would show: the same clip with other padding gives other frames
    phase, time = units.phase[1:].clone(), units.time[1:].clone()
    phase[:, 6:], time[:, 6:] = 0, 0
    with autocast(CPU):
        wrong = backend.decode(backend.encode_keyframes(keyframes), Units(units.keys[1:], phase, time, time), None)
    assert _differ_by(to_uint8(wrong)[0, :6], by_hand[8:]) > 1


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (0.0, 0),
        (1.0, 255),
        (-0.3, 0),
        (1.7, 255),
        (0.5, 128),
        (127.4 / 255, 127),
        (127.6 / 255, 128),
        (254.5 / 255, 254),
    ],
)
def test_grey_levels_are_rounded_and_clamped(value: float, level: int) -> None:
    for dtype in (torch.float32, torch.float64):
        levels = to_uint8(torch.full((1, 3, 2, 2), value, dtype=dtype))
        assert levels.dtype == torch.uint8
        assert levels.unique().tolist() == [level]
