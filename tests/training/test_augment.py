"""Changes to batches: how often, that all pictures of a batch share them, and that nothing else moves."""

from collections import Counter
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from neuralloader.backends import Units
from neuralloader.training.augment import Change, augment
from neuralloader.training.dataset import Batch

HEIGHT, WIDTH = 3, 4
ALL: tuple[Change, ...] = ("mirror", "reverse", "shift")
NUM_DRAWS = 800
PIXELS = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH)


def _batch() -> Batch:
    """2 units of 2 frames, and 3 key-frames: planes of one pattern, and in all no two values alike."""
    planes = PIXELS + HEIGHT * WIDTH * torch.arange(21).view(7, 3, 1, 1)
    images = planes.to(torch.uint8)
    phase = torch.tensor([[0.25, 0.5], [0.0, 0.75]])
    units = Units(torch.tensor([[0, 1], [1, 2]]), phase, phase / 2, phase.double() / 3)
    valid = torch.tensor([True, True, True, False])
    return Batch(images[:4].unflatten(0, (2, 2)), images[4:], units, valid, ~valid)


def _draws(changes: tuple[Change, ...], num_draws: int = NUM_DRAWS, seed: int = 0) -> list[Batch]:
    torch.manual_seed(seed)
    batch = _batch()
    return [augment(batch, changes) for _ in range(num_draws)]


def _plane(batch: Batch) -> Tensor:
    """The pattern that all planes of all pictures share, or an error where they do not."""
    images = torch.cat([batch.frames.flatten(0, 1), batch.keyframes]).long()  # (7, 3, H, W)
    planes = images - HEIGHT * WIDTH * torch.arange(21).view(7, 3, 1, 1)
    assert (planes == planes[0, 0]).all(), "all pictures change in the same way"
    return planes[0, 0]


def _change(batch: Batch) -> tuple[bool, int, int, bool]:
    """Whether it is mirrored, how far it is rolled down and to the right after that, whether it is reversed."""
    plane = _plane(batch)
    is_reversed = batch.units.keys.tolist() == [[1, 0], [2, 1]]
    for is_mirrored in (False, True):
        start = PIXELS.flip(1) if is_mirrored else PIXELS
        for down in range(HEIGHT):
            for right in range(WIDTH):
                if torch.equal(plane, start.roll((down, right), (0, 1))):
                    return is_mirrored, down, right, is_reversed
    raise AssertionError(f"{plane.tolist()} is neither mirrored nor rolled")


def _blend(batch: Batch) -> Tensor:
    """The picture between its key-frames that each frame would be, were there no network."""
    phase = batch.units.phase.view(2, 2, 1, 1, 1)
    start, end = batch.keyframes.float()[batch.units.keys].unbind(1)  # (2, 3, H, W)
    return (1 - phase) * start.unsqueeze(1) + phase * end.unsqueeze(1)


def _assert_half(count: int, total: int) -> None:
    """Within 4 standard deviations of a fair coin."""
    assert abs(count - total / 2) < 4 * (total / 4) ** 0.5


def _assert_same(a: Batch, b: Batch) -> None:
    for field in fields(Batch):
        if field.name != "units":
            assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name
    for field in fields(Units):
        assert torch.equal(getattr(a.units, field.name), getattr(b.units, field.name)), field.name


@pytest.mark.parametrize("changes", [("mirror",), ("reverse",), ("shift",), ALL])
def test_half_of_the_batches_stay_as_they_are(changes: tuple[Change, ...]) -> None:
    torch.manual_seed(0)
    batch = _batch()
    _assert_half(sum(augment(batch, changes) is batch for _ in range(NUM_DRAWS)), NUM_DRAWS)
    _assert_same(batch, _batch())


def test_without_changes_a_batch_stays_itself() -> None:
    batch = _batch()
    state = torch.get_rng_state()
    assert all(augment(batch, ()) is batch for _ in range(10))
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"


def test_half_of_the_changed_ones_are_mirrored() -> None:
    found = Counter(_change(batch) for batch in _draws(("mirror",)))
    assert set(found) == {(False, 0, 0, False), (True, 0, 0, False)}
    mirrored = found[True, 0, 0, False]
    assert abs(mirrored - NUM_DRAWS / 4) < 4 * (NUM_DRAWS * 3 / 16) ** 0.5


def test_half_of_the_changed_ones_are_reversed() -> None:
    found = Counter(_change(batch) for batch in _draws(("reverse",)))
    assert set(found) == {(False, 0, 0, False), (False, 0, 0, True)}
    assert abs(found[False, 0, 0, True] - NUM_DRAWS / 4) < 4 * (NUM_DRAWS * 3 / 16) ** 0.5


def test_reversed_key_frames_make_the_same_picture() -> None:
    original = _batch()
    reverse = next(batch for batch in _draws(("reverse",)) if _change(batch)[-1])
    assert reverse.units.keys.tolist() == [[1, 0], [2, 1]]
    assert reverse.units.phase.tolist() == [[0.75, 0.5], [1.0, 0.25]]
    torch.testing.assert_close(_blend(reverse), _blend(original))
    assert not torch.allclose(_blend(original)[:, 0], _blend(original)[:, 1]), "or any phase would do"
    assert torch.equal(reverse.frames, original.frames)
    assert torch.equal(reverse.keyframes, original.keyframes)


def test_every_distance_is_drawn_along_both_sides() -> None:
    found = Counter(
        _change(batch) for batch in _draws(("shift",)) if torch.equal(_batch().units.keys, batch.units.keys)
    )
    assert set(found) == {(False, down, right, False) for down in range(HEIGHT) for right in range(WIDTH)}
    expected = NUM_DRAWS / 2 / (HEIGHT * WIDTH)
    for (_, down, right, _), count in found.items():
        if (down, right) != (0, 0):  # the unchanged ones are among those
            assert abs(count - expected) < 4 * expected**0.5


def test_changes_go_together() -> None:
    found = {_change(batch) for batch in _draws(ALL)}
    assert {(change[0], change[3]) for change in found} == {(a, b) for a in (False, True) for b in (False, True)}
    assert any(all(change) for change in found)


@pytest.mark.parametrize("changes", [("mirror",), ("reverse",), ("shift",), ALL])
def test_nothing_else_moves(changes: tuple[Change, ...]) -> None:
    original = _batch()
    changed = [batch for batch in _draws(changes, 50) if _change(batch) != (False, 0, 0, False)]
    assert changed
    for batch in changed:
        for name in ("frames", "keyframes"):
            assert getattr(batch, name).dtype == torch.uint8
            assert getattr(batch, name).shape == getattr(original, name).shape
        assert torch.equal(batch.valid, original.valid)
        assert torch.equal(batch.has_latent, original.has_latent)
        assert torch.equal(batch.units.time, original.units.time)
        assert torch.equal(batch.units.network_time, original.units.network_time)
        if "reverse" not in changes:
            assert torch.equal(batch.units.keys, original.units.keys)
            assert torch.equal(batch.units.phase, original.units.phase)


def test_a_seed_repeats_the_draws() -> None:
    first, again, other = ([_change(batch) for batch in _draws(ALL, 20, seed)] for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_chance_may_come_from_elsewhere() -> None:
    """Then torch's own is left alone, and the same chance changes other batches in the same way."""
    batch = _batch()
    state = torch.get_rng_state()
    first, again, other = (
        [_change(augment(batch, ALL, torch.Generator().manual_seed(100 * run + i))) for i in range(20)]
        for run in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first != other
    assert len(set(first)) > 5


def test_a_network_without_key_frames() -> None:
    time = torch.zeros(1, 1)
    units = Units(torch.full((1, 2), -1), time, time, time.double())
    truth = torch.ones(1, dtype=torch.bool)
    frames = PIXELS.to(torch.uint8).expand(1, 1, 3, HEIGHT, WIDTH)
    batch = Batch(frames, torch.zeros(0, 3, HEIGHT, WIDTH, dtype=torch.uint8), units, truth, truth)
    torch.manual_seed(0)
    seen = [augment(batch, ("mirror", "shift")) for _ in range(20)]
    assert {b.keyframes.shape for b in seen} == {(0, 3, HEIGHT, WIDTH)}
    assert len({tuple(b.frames.flatten().tolist()) for b in seen}) > 5
