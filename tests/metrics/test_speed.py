"""The stopwatch, on a clock that the test turns."""

import pytest

from neuralloader.metrics import speed


def test_the_first_call_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], [0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def work() -> None:
        calls[0] += 1
        now[0] += 100.0 if calls[0] == 1 else 0.3

    assert speed.calls_per_second(work, seconds=1.0) == pytest.approx(4 / 1.2)
    assert calls[0] == 5


def test_a_slow_call_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += 8

    assert speed.calls_per_second(work, seconds=1.0) == pytest.approx(1 / 8)


def test_seconds_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += 0.25

    assert speed.seconds_of(work) == pytest.approx(0.25)
    assert now == [5.25], "called once"
