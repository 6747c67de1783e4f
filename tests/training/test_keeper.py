"""What a training leaves behind: when a checkpoint is due, what signals do, and what is said about a bad checkpoint."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from neuralloader.training.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from neuralloader.training.keeper import NOTHING_KEPT, Interrupted, Keeper

SOME = Checkpoint({"a": torch.ones(2)}, {"steps": 1})
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


class Arrived(Exception):
    """A signal reached who watched before."""


@pytest.fixture
def before() -> Iterator[None]:
    """Handlers of somebody else, which tell that they were called."""

    def arrive(number: int, frame: FrameType | None) -> None:
        raise Arrived(number)

    old = {number: signal.signal(number, arrive) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("neuralloader.training.keeper.time.monotonic", lambda: now[0])
    return now


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_due_every_so_often(now: list[float], tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "c", every_seconds=10)
    for _ in range(3):
        assert not keeper.is_due()
        now[0] += 9
        assert not keeper.is_due()
        now[0] += 1
        assert keeper.is_due()
        keeper.write(SOME)


def test_one_that_takes_long_is_due_less_often(
    now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(tmp_path / "c", every_seconds=10)

    def write_slowly(path: Path, checkpoint: Checkpoint) -> None:
        now[0] += 3

    monkeypatch.setattr("neuralloader.training.keeper.write_checkpoint", write_slowly)
    keeper.write(SOME)
    now[0] += 149
    assert not keeper.is_due()
    now[0] += 1
    assert keeper.is_due(), "3 seconds are 2% of 150"


def test_where_nothing_is_kept_nothing_is_due_or_written(now: list[float], tmp_path: Path) -> None:
    now[0] += 1e9
    assert not NOTHING_KEPT.is_due()
    NOTHING_KEPT.write(SOME)
    NOTHING_KEPT.resume(_must_not_run)
    NOTHING_KEPT.log({"step": 1})


def test_a_checkpoint_is_handed_over_if_there_is_one(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "c")
    keeper.resume(_must_not_run)
    keeper.write(SOME)
    seen: list[Checkpoint] = []
    keeper.resume(seen.append)
    assert [kept.numbers for kept in seen] == [SOME.numbers]


def test_what_is_wrong_with_a_checkpoint_is_told_with_its_path_and_the_way_out(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "c")
    keeper.write(SOME)

    def refuse(checkpoint: Checkpoint) -> None:
        raise CheckpointError("it is green")

    with pytest.raises(CheckpointError) as caught:
        keeper.resume(refuse)
    path = tmp_path / "c"
    assert (
        str(caught.value) == f"the checkpoint {path} cannot be used: it is green; start over with --fresh (fresh=True)"
    )
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cannot be used: it is no safetensors file, or cut short .* --fresh"):
        keeper.resume(_must_not_run)


def _must_not_run(checkpoint: Checkpoint) -> None:
    raise AssertionError("there is nothing to hand over")


# --- signals --------------------------------------------------------------------------------------------------------


@BOTH
def test_a_signal_asks_for_an_end_and_a_second_one_ends_at_once(number: int, before: None, tmp_path: Path) -> None:
    watching = Keeper(tmp_path / "c").watching()
    watch = watching.__enter__()
    assert not watch.is_stopped
    signal.raise_signal(number)
    assert watch.is_stopped
    assert watch.signal == number
    with pytest.raises(Arrived):
        signal.raise_signal(number)


@BOTH
def test_the_handlers_of_before_are_back_in_the_end(number: int, before: None, tmp_path: Path) -> None:
    with Keeper(tmp_path / "c").watching():
        pass
    with pytest.raises(Arrived):
        signal.raise_signal(number)
    with pytest.raises(RuntimeError, match="something else"), Keeper(tmp_path / "c").watching():
        raise RuntimeError("something else")
    with pytest.raises(Arrived):
        signal.raise_signal(number)


@BOTH
def test_a_signal_that_came_too_late_is_passed_on(number: int, before: None, tmp_path: Path) -> None:
    with pytest.raises(Arrived) as caught, Keeper(tmp_path / "c").watching():
        signal.raise_signal(number)
    assert caught.value.args == (number,)


@BOTH
def test_one_that_was_acted_upon_is_not(number: int, before: None, tmp_path: Path) -> None:
    def act() -> None:
        with keeper.watching() as watch:
            signal.raise_signal(number)
            if watch.is_stopped:
                raise keeper.interrupted()

    keeper = Keeper(tmp_path / "c")
    with pytest.raises(Interrupted):
        act()


@BOTH
def test_where_nothing_is_kept_signals_do_what_they_did(number: int, before: None) -> None:
    with NOTHING_KEPT.watching() as watch:
        with pytest.raises(Arrived):
            signal.raise_signal(number)
        assert not watch.is_stopped


def test_in_another_thread_nothing_is_watched(before: None, tmp_path: Path) -> None:
    handlers: list[object] = []

    def watch() -> None:
        with Keeper(tmp_path / "c").watching() as watch:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not watch.is_stopped

    here = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert handlers == [here]


def test_interrupted_is_a_keyboard_interrupt_with_one_text() -> None:
    error = Keeper(None).interrupted()
    assert isinstance(error, KeyboardInterrupt)
    assert error.args == ("interrupted; the training so far is kept, and the same command goes on from there",)


def test_a_checkpoint_is_written_where_it_was_asked_for(tmp_path: Path) -> None:
    Keeper(tmp_path / "c").write(SOME)
    read = read_checkpoint(tmp_path / "c")
    assert read is not None
    assert read.numbers == SOME.numbers
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
