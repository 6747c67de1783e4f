"""Memory of a process of its own, against allocations of known size."""

from functools import partial
from pathlib import Path

import pytest

from neuralloader.metrics.memory import measure_memory

MB = 1 << 20

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")


def test_what_is_kept_is_resident() -> None:
    memory = measure_memory(partial(bytes.__mul__, b"x", 64 * MB))
    assert memory is not None
    assert 63 * MB < memory.resident_bytes < 80 * MB
    assert memory.resident_bytes <= memory.peak_bytes < 80 * MB
    assert memory.device_bytes == 0


def test_what_is_dropped_counts_for_the_peak() -> None:
    memory = measure_memory(partial(eval, "len(b'x' * (64 << 20))"))
    assert memory is not None
    assert memory.resident_bytes < 16 * MB
    assert 63 * MB < memory.peak_bytes < 80 * MB


def test_nothing_takes_next_to_nothing() -> None:
    memory = measure_memory(int)
    assert memory is not None
    assert memory.peak_bytes < 8 * MB


def test_a_function_that_fails_is_not_measured() -> None:
    assert measure_memory(partial(int, "no number")) is None
