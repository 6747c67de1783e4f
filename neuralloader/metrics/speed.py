"""How fast something runs: warmed up, then timed until enough time has passed; or how long it takes once."""

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
    wait_for(device)
    start, num_calls = time.perf_counter(), 0
    while True:
        call()
        num_calls += 1
        wait_for(device)
        passed = time.perf_counter() - start
        if passed >= seconds:
            return num_calls / passed


def seconds_of(call: Callable[[], object], *, device: torch.device | None = None) -> float:
    """How long one call of a function takes.

    Args:
        call: what to time; called once.
        device: a CUDA device to wait for, before the call and after it.
    """
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device | None) -> None:
    """Until all work on a CUDA device is done; at once for any other."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
