"""How a loader ends: by errors, which reach the consumer, or cleanly, leaving nothing behind; memory stays flat."""

import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from loaders import FORK, forks, run_script, ways
from torch.utils.data import ConcatDataset, StackDataset, Subset

from neuralloader import NeuralVideoDataset, NeuralVideoLoader, PackError
from neuralloader.container.blobs import BlobReader
from neuralloader.container.reader import PackReader

# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 must be 1 or more"),
        ({"batch_size": -3}, ValueError, "batch_size=-3 must be 1 or more"),
        ({"batch_size": None}, ValueError, "batch_size=None needs a sampler that gives lists of items; for single"),
        ({"batch_size": None, "drop_last": True, "sampler": [[0]]}, ValueError, "batch_size=None excludes drop_last"),
        ({"shuffle": True, "sampler": [0]}, ValueError, "sampler excludes shuffle"),
        *(
            (
                {"batch_sampler": [[0]], **more},
                ValueError,
                "batch_sampler excludes batch_size, shuffle, sampler and drop_last",
            )
            for more in ({"batch_size": 2}, {"shuffle": True}, {"sampler": [0]}, {"drop_last": True})
        ),
        ({"prefetch": -1}, ValueError, "prefetch=-1 must be 0 or more"),
        ({"rank": 0}, ValueError, "rank and num_replicas belong together: give both or neither"),
        ({"num_replicas": 2}, ValueError, "rank and num_replicas belong together: give both or neither"),
        ({"rank": 2, "num_replicas": 2}, ValueError, "rank=2 must be 0 to num_replicas - 1 = 1"),
        ({"rank": -1, "num_replicas": 2}, ValueError, "rank=-1 must be 0 to num_replicas - 1 = 1"),
        ({"num_workers": -1}, ValueError, "num_workers option should be non-negative"),
        ({"prefetch_factor": 2}, ValueError, "prefetch_factor option could only be specified in multiprocessing"),
        ({"persistent_workers": True}, ValueError, "persistent_workers option needs num_workers > 0"),
        ({"timeout": -1}, ValueError, "timeout option should be non-negative"),
        ({"seed": 1.5}, TypeError, "'float' object cannot be interpreted as an integer"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(
    dataset: NeuralVideoDataset, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        NeuralVideoLoader(dataset, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sampler": [0, 11]}, IndexError, "index 11 is out of range: the dataset has 11 items"),
        ({"batch_sampler": [[0], [-12]]}, IndexError, "index -12 is out of range: the dataset has 11 items"),
        ({"batch_sampler": [[0], []]}, ValueError, "a batch is empty: the sampler gave no item for it"),
        ({"batch_sampler": [[0, 1.5]]}, TypeError, "a sampler gives lists of whole numbers, not [0.0, 1.5]"),
        ({"batch_size": None, "sampler": [3]}, TypeError, "batch_size=None, a sampler gives lists of items, not 3"),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_samplers_must_not_give(
    dataset: NeuralVideoDataset, arguments: dict[str, Any], error: type[Exception], message: str, prefetch: int
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        list(NeuralVideoLoader(dataset, **arguments, prefetch=prefetch))


def test_datasets_of_other_kinds(dataset: NeuralVideoDataset) -> None:
    for other, name in [(StackDataset(dataset, dataset), "StackDataset"), ([1, 2], "list")]:
        with pytest.raises(
            TypeError,
            match=f"NeuralVideoLoader loads NeuralVideoDatasets, their subsets and concatenations, not {name}; use",
        ):
            NeuralVideoLoader(other)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="index 11 is out of range: the dataset has 11 items"):
        NeuralVideoLoader(Subset(dataset, [0, 11]))


def test_datasets_of_different_seeds(fresh: Callable[..., NeuralVideoDataset]) -> None:
    whole: ConcatDataset = ConcatDataset([fresh(seed=1), fresh(seed=2)])
    with pytest.raises(ValueError, match="the datasets have different seeds, 1, 2: give the loader one"):
        NeuralVideoLoader(whole)
    assert len(list(NeuralVideoLoader(whole, 6, seed=0))) == 2


def test_samplers_without_a_length(dataset: NeuralVideoDataset) -> None:
    for name in ("sampler", "batch_sampler"):
        with pytest.raises(TypeError, match=f"the {name} has no length, so the loader has none"):
            len(NeuralVideoLoader(dataset, **{name: iter([[0]])}))  # type: ignore[arg-type]


@pytest.fixture
def damaged_path(fast_pack: tiny.TinyPack, tmp_path: Path) -> Path:
    """The pack with a bit flipped in the first video's last key-frame."""
    path = tmp_path / "damaged.nvpack"
    data = bytearray(fast_pack.path.read_bytes())
    keyframe = BlobReader(PackReader(fast_pack.path), "keyframes")[1]
    data[data.index(keyframe) + len(keyframe) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


@forks
@ways
def test_a_damaged_key_frame(damaged_path: Path, way: dict[str, Any]) -> None:
    dataset = NeuralVideoDataset(damaged_path, device="cpu")
    assert dataset.pack.index.videos[int(dataset.pack.index.keys.video[1])].name == "left/eight.avi"
    loader = NeuralVideoLoader(dataset, 1, sampler=[2, 0, 3], **way)
    batches = iter(loader)
    next(batches)  # what comes before it is handed out
    with pytest.raises(PackError, match=r"damaged\.nvpack.*the key-frame at frame 7 of left/eight\.avi"):
        next(batches)
    assert list(batches) == []
    loader = NeuralVideoLoader(dataset, 1, sampler=[2, 3], **way)
    assert len(list(loader)) == 2


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", ["transform", "target_transform", "batch_transform", "collate_fn"])
def test_a_function_that_raises(fresh: Callable[..., NeuralVideoDataset], prefetch: int, kind: str) -> None:
    def fail(_: Any) -> None:
        raise LookupError("no such thing")

    of_dataset: dict[str, Any] = {kind: fail} if kind in ("transform", "target_transform") else {}
    of_loader: dict[str, Any] = {} if of_dataset else {kind: fail}
    loader = NeuralVideoLoader(fresh(**of_dataset), 2, prefetch=prefetch, **of_loader)
    for _ in range(2):  # it fails again, and does not hang
        with pytest.raises(LookupError, match="no such thing") as caught:
            next(iter(loader))
        assert any(entry.name == "fail" for entry in caught.traceback)


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@forks
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_killed_worker(fresh: Callable[..., NeuralVideoDataset], prefetch: int) -> None:
    loader = NeuralVideoLoader(fresh(), 2, **FORK, worker_init_fn=_die, prefetch=prefetch)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(is killed by signal|exited unexpectedly)"):
        list(loader)
    assert time.monotonic() - began < 30


@forks
def test_a_worker_that_takes_too_long(fresh: Callable[..., NeuralVideoDataset]) -> None:
    options = {"num_workers": 1, "multiprocessing_context": "fork", "timeout": 0.2}
    loader = NeuralVideoLoader(fresh(), 2, worker_init_fn=lambda _: time.sleep(1), **options)
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.2 seconds"):
        list(loader)


# --- how it ends ----------------------------------------------------------------------------------------------------


def _what_is_left() -> tuple[list[str], list[Any], int]:
    """Our threads, child processes, number of open files."""
    threads = [thread.name for thread in threading.enumerate() if "neuralloader" in thread.name]
    return threads, multiprocessing.active_children(), len(os.listdir("/proc/self/fd"))


def _finish(loader: NeuralVideoLoader) -> None:
    assert len(list(loader)) == 6


def _break(loader: NeuralVideoLoader) -> None:
    for _ in loader:
        break


def _raise(loader: NeuralVideoLoader) -> None:
    def train() -> None:
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()


def _interrupt(loader: NeuralVideoLoader) -> None:
    def train() -> None:
        for _ in loader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()


def _drop_iterator(loader: NeuralVideoLoader) -> None:
    iterator = iter(loader)
    next(iterator)
    del iterator


def _keep_in_a_cycle(loader: NeuralVideoLoader) -> None:
    cycle: list[Any] = [iter(loader)]
    next(cycle[0])
    cycle.append(cycle)


ENDS = [_finish, _break, _raise, _interrupt, _drop_iterator, _keep_in_a_cycle]


@forks
@pytest.mark.usefixtures("small_steps", "two_threads")
@ways
def test_nothing_is_left(fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]) -> None:
    dataset = fresh(cache="none")
    names = set()
    for batch in NeuralVideoLoader(dataset, 1, **way):  # and what is opened once for all is open
        names |= set(_what_is_left()[0])
        assert len(batch) == 2
    assert {name.rsplit("_", 1)[0] for name in names} == {
        "neuralloader-decode",
        *(["neuralloader-prefetch"] if "prefetch" in way else []),
    }
    gc.collect()
    _settle(([], [], _what_is_left()[2]))
    before = _what_is_left()
    assert before[:2] == ([], [])
    for end in ENDS:
        began = time.monotonic()
        loader = NeuralVideoLoader(dataset, 1, **way)
        end(loader)
        if end is _keep_in_a_cycle:
            gc.collect()
        _settle(before)
        assert _what_is_left() == before, end.__name__
        assert len(list(loader)) == 6  # it is still good
        del loader
        _settle(before)
        assert _what_is_left() == before, end.__name__
        assert time.monotonic() - began < 30
        if end is _drop_iterator and way is FORK:
            return  # for workers in a cycle, DataLoader waits 5 seconds each


@forks
@ways
def test_nothing_is_prepared_for_a_consumer_that_left(
    fresh: Callable[..., NeuralVideoDataset], way: dict[str, Any]
) -> None:
    asked: list[int] = []

    def sampler() -> Iterator[int]:
        for number in range(2000):
            asked.append(number)
            yield number % 6

    for _ in NeuralVideoLoader(fresh(cache="none"), 1, sampler=sampler(), **way):
        break
    assert 1 <= len(asked) < 20


def _settle(before: tuple[list[str], list[Any], int]) -> None:
    """Threads that were told to end may take a moment."""
    for _ in range(200):
        if _what_is_left() == before:
            return
        time.sleep(0.01)


@forks
def test_a_loader_with_persistent_workers_ends_with_its_last_reference(
    fresh: Callable[..., NeuralVideoDataset],
) -> None:
    dataset = fresh(cache="none")
    gc.collect()
    before = _what_is_left()
    for end in (_finish, _break, _interrupt):
        loader = NeuralVideoLoader(dataset, 1, **FORK, persistent_workers=True, prefetch=1)
        end(loader)
        assert len(multiprocessing.active_children()) == 2
        del loader
        gc.collect()
        _settle(before)
        assert _what_is_left() == before


INTERRUPTED = """
import signal, sys, time
import torch
from neuralloader import NeuralVideoDataset, NeuralVideoLoader

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what runs in the background without it
    torch.set_num_threads(1)
    dataset = NeuralVideoDataset(sys.argv[1], device="cpu", cache="none")
    loader = NeuralVideoLoader(
        dataset, 1, num_workers=2, multiprocessing_context="spawn", prefetch=2, persistent_workers=True
    )
    while True:
        for _ in loader:
            print("batch", flush=True)
            time.sleep(0.05)
"""


def test_control_c(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    process = run_script(tmp_path, INTERRUPTED, fast_pack.path, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells all processes
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT, 1)
    assert "KeyboardInterrupt" in errors
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("its workers live on")


# --- memory -----------------------------------------------------------------------------------------------------------


GROWTH = """
import os, sys, threading
from pathlib import Path
import torch
from neuralloader import NeuralVideoDataset, NeuralVideoLoader

torch.set_num_threads(1)
page_bytes = os.sysconf("SC_PAGE_SIZE")
options = {"frames_per_clip": 32, "step_between_clips": 1, "dtype": torch.float32}
dataset = NeuralVideoDataset(sys.argv[1], device="cpu", **options)
loader = NeuralVideoLoader(dataset, 2, shuffle=True, prefetch=int(sys.argv[2]))  # a batch is 2.4 MB
kept = []
for epoch in range(20):
    for videos, labels in loader:
        pass
    kept += [videos.clone()] if sys.argv[3] == "leak" else []
    del videos, labels
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * page_bytes
    print(resident, len(os.listdir("/proc/self/fd")), threading.active_count())
"""
# freed memory goes back at once, so that what is resident is what is held
STRICT_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_memory_stays_flat(fast_pack: tiny.TinyPack, tmp_path: Path, prefetch: int) -> None:
    def after_each_epoch(mode: str) -> list[tuple[int, ...]]:
        process = run_script(tmp_path, GROWTH, fast_pack.path, prefetch, mode, env={**os.environ, **STRICT_MALLOC})
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return [tuple(map(int, line.split())) for line in output.splitlines()]

    rows = after_each_epoch("honest")
    assert len(rows) == 20
    assert {row[1:] for row in rows[2:]} == {(rows[2][1], 1)}  # files, threads
    assert max(row[0] for row in rows[3:]) < 1.02 * rows[2][0]
    if prefetch == 0:  # and it would show
        leaking = after_each_epoch("leak")
        assert max(row[0] for row in leaking[3:]) > 1.02 * leaking[2][0]
