"""How long a training takes and how far it is, with the time faked."""

import pytest

from neuralloader.training.clock import Clock, Duration


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr("neuralloader.training.clock.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "give minutes or epochs, not both: minutes=None, epochs=None"),
        ({"minutes": 1.0, "epochs": 1}, r"give minutes or epochs, not both: minutes=1\.0, epochs=1"),
        ({"minutes": 0.0}, r"minutes=0\.0 must be above 0"),
        ({"minutes": -1.0}, r"minutes=-1\.0 must be above 0"),
        ({"minutes": float("nan")}, "minutes=nan must be above 0"),
        ({"minutes": float("inf")}, "minutes=inf must be"),
        ({"epochs": 0}, "epochs=0 must be above 0"),
    ],
)
def test_durations_that_make_no_sense(arguments: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Duration(**arguments)  # type: ignore[arg-type]


def test_by_epochs_only_steps_count(now: list[float]) -> None:
    clock = Clock(Duration(epochs=3), steps_per_epoch=4)
    assert (clock.done(), clock.seconds_left()) == (0, float("inf"))
    clock.steps, now[0] = 3, now[0] + 10
    assert clock.done() == 0.25
    assert clock.seconds_left() == pytest.approx(30)
    clock.steps = 13
    assert (clock.done(), clock.seconds_left()) == (1, 0)


def test_by_minutes_only_time_counts(now: list[float]) -> None:
    clock = Clock(Duration(minutes=2), steps_per_epoch=4)
    clock.steps = 100
    assert (clock.done(), clock.seconds()) == (0, 0)
    now[0] += 30
    assert (clock.done(), clock.seconds()) == (0.25, 30)
    assert clock.seconds_left() == pytest.approx(90)
    now[0] += 1000
    assert clock.done() == 1


def test_the_time_before_an_interruption_counts_and_the_time_between_does_not(now: list[float]) -> None:
    now[0] += 1e6  # meanwhile
    clock = Clock(Duration(minutes=2), steps_per_epoch=4)
    clock.go_on(steps=7, seconds=30.0)
    assert (clock.steps, clock.seconds(), clock.done()) == (7, 30, 0.25)
    now[0] += 30
    assert (clock.seconds(), clock.done()) == (60, 0.5)
