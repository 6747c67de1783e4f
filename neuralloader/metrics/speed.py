"""How fast something runs: warmed up, then timed until enough time has passed."""

import time
from collections.abc import Callable

import torch


def calls_per_second(call: Callable[[], object], *, seconds: float = 1.0, device: torch.device | None = None) -> float:
    """Calls per second of a function, after one call that is not timed.

    Args:
        call: what to time; called at least twice.
        seconds: stop once this much time has passed.
        device: a CUDA device to wait for before looking at the clock.
    """
    call()
    _wait_for(device)
    start, num_calls = time.perf_counter(), 0
    while True:
        call()
        num_calls += 1
        _wait_for(device)
        passed = time.perf_counter() - start
        if passed >= seconds:
            return num_calls / passed


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
