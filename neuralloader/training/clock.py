"""How long a training takes, by time or by steps, and how far it is. Interruptions do not count."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Duration:
    """How long to train: exactly one of the two.

    Attributes:
        minutes: wall-clock minutes of training.
        epochs: passes over all clips; repeatable to the bit on a CPU.
    """

    minutes: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.epochs is None):
            raise ValueError(f"give minutes or epochs, not both: minutes={self.minutes}, epochs={self.epochs}")
        for name, value in (("minutes", self.minutes), ("epochs", self.epochs)):
            if value is not None and not 0 < value < 1e7:
                raise ValueError(f"{name}={value} must be above 0")


class Clock:
    """Share of a training that is done.

    Args:
        duration: of the whole training.
        steps_per_epoch: of its sampler.

    Attributes:
        steps: done; counted by the training.
    """

    def __init__(self, duration: Duration, steps_per_epoch: int):
        self.steps, self._start = 0, time.monotonic()
        self._limit_seconds = duration.minutes and duration.minutes * 60
        self._limit_steps = duration.epochs and duration.epochs * steps_per_epoch

    def go_on(self, steps: int, seconds: float) -> None:
        """As if so many steps had just been done in so many seconds."""
        self.steps, self._start = steps, time.monotonic() - seconds

    @property
    def is_by_steps(self) -> bool:
        """Whether steps count, and not the time."""
        return self._limit_steps is not None

    def seconds(self) -> float:
        """Since the training began."""
        return time.monotonic() - self._start

    def done(self) -> float:
        """0 to 1."""
        if self._limit_steps is not None:
            return min(1.0, self.steps / self._limit_steps)
        assert self._limit_seconds is not None
        return min(1.0, self.seconds() / self._limit_seconds)

    def seconds_left(self) -> float:
        """Estimated from the time so far; infinite at the start."""
        done = self.done()
        return self.seconds() * (1 - done) / done if done else float("inf")
