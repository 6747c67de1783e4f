"""The one clock of these benchmarks: the same on a GPU, for which it waits, and on a CPU."""

import statistics
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from neuralloader.metrics.speed import seconds_of

MAX_CALLS = 200  # in a turn

_Key = TypeVar("_Key")


def time_in_turns(
    calls: Mapping[_Key, Callable[[], object]],
    device: torch.device,
    *,
    num_rounds: int,
    seconds: float,
    has_time: Callable[[], bool] = lambda: True,
) -> dict[_Key, float]:
    """Seconds a call of each function takes: medians over rounds, of which each gives every function its turn.

    Args:
        calls: what to time, warmed up.
        device: a CUDA device to wait for, before a turn and after it.
        num_rounds: turns of each.
        seconds: what a turn takes at least: short calls are repeated in it.
        has_time: asked before each round but the first.
    """
    repeats = {}
    for key, call in calls.items():
        once = seconds_of(call, device=device)
        repeats[key] = max(1, min(MAX_CALLS, round(seconds / max(once, 1e-9))))
    found: dict[_Key, list[float]] = {key: [] for key in calls}
    for number in range(num_rounds):
        if number and not has_time():
            break
        for key, call in calls.items():
            found[key].append(seconds_of(_repeat(call, repeats[key]), device=device) / repeats[key])
    return {key: statistics.median(values) for key, values in found.items()}


def _repeat(call: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run
