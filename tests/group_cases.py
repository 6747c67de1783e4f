"""Trainings by several processes, for ``training/test_group.py``: ``python group_cases.py FOLDER`` runs them all.

    FOLDER/SIZE/RANK/CASE.pt    what a process of so many has in the end, tensors by name
    FOLDER/HOW/RANK.txt         the error that ended a process; SIZE instead of HOW where none was meant to come

The program imports everything once and then forks, so that a process costs next to nothing.
"""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # by the first step of an optimiser anyway
from torch import Tensor
from training_case import make_data, make_dnerv, make_hnerv, make_video_data

from neuralloader.backends import precision
from neuralloader.training import keyframes, samplers
from neuralloader.training import videos as videos_module
from neuralloader.training.clock import Duration
from neuralloader.training.fit import Progress, fit
from neuralloader.training.group import Group, joined_group
from neuralloader.training.keeper import Interrupted, Keeper
from neuralloader.training.recipes import FAST, FAST_FRAMES
from neuralloader.training.videos import fit_videos

LIMIT_SECONDS = 60.0
SIZES = (1, 2, 3)
DEATHS = ("killed", "error")
# everything that processes must agree on; but AdamW, because Muon's bfloat16 makes the noise of floats large
RECIPE = replace(FAST, matrix_learning_rate=None, learning_rate=1e-3, rounding_share=0.3, offset_share=0.5)


def _learned(backend: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in backend.named_parameters()}


def case_sums(group: Group, folder: Path) -> dict[str, Tensor]:
    """What the group itself does, with numbers that tell the ranks apart."""
    first, second, third = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1,)))
    first.grad = torch.full((2, 3), 10.0 + group.rank)
    if group.is_first:
        second.grad = torch.arange(4.0)
    group.sum_gradients([first, second, third])
    group.wait()
    assert first.grad is not None
    return {
        "sum": torch.tensor(group.sum([1.0, group.rank, 1 / 3]), dtype=torch.float64),
        "first": first.grad,
        "second": torch.zeros(4) if second.grad is None else second.grad,
        "tensor": group.sum_tensor(torch.full((2,), 1.0 + group.rank)),
    }


def _fit(group: Group, path: Path | None = None, backend_seed: int = 0) -> dict[str, Tensor]:
    held_out = np.zeros(22, bool)
    held_out[[3, 4, 5, 20]] = True  # parts of a batch have unlike numbers of frames to train on
    data = make_data(lengths=np.array([9, 1, 12]), held_out=held_out)  # 5 clips
    backend = make_dnerv(backend_seed)
    fitted = fit(
        backend,
        data,
        replace(RECIPE, clips_per_step=3),
        Duration(epochs=3),
        seed=1,
        weight_bits=8,
        on_progress=_ignore,
        changes=("mirror", "reverse", "shift"),
        group=group,
        keeper=Keeper(path),
    )
    assert fitted.offsets is not None
    return {**_learned(backend), "offsets": fitted.offsets.values, "steps": torch.tensor(fitted.steps)}


def case_clips(group: Group, folder: Path) -> dict[str, Tensor]:
    """Batches of 3 clips, with 2 in the last of an epoch."""
    return _fit(group)


def case_small_batches(group: Group, folder: Path) -> dict[str, Tensor]:
    """One frame a step: all processes but the first have nothing to do."""
    data, backend = make_data(lengths=np.array([2, 1])), make_hnerv()
    recipe = replace(RECIPE, frames_per_step=1)
    fitted = fit(backend, data, recipe, Duration(epochs=2), seed=1, weight_bits=8, on_progress=_ignore, group=group)
    return {**_learned(backend), "steps": torch.tensor(fitted.steps)}


def case_resumed(group: Group, folder: Path) -> dict[str, Tensor]:
    """Stopped by a signal to the last process alone, and gone on with."""
    path = folder / "checkpoint"
    try:
        with _signal_after(3 if group.rank == group.size - 1 else None):
            _fit(group, path)
    except Interrupted:
        if group.is_first:
            shutil.copy(path, folder / "interrupted")
        return _fit(group, path, backend_seed=7)
    raise AssertionError("it was not interrupted")


def case_videos(group: Group, folder: Path) -> dict[str, Tensor]:
    """A network for each of 3 videos, one at a time; the last process has one less to do, or none."""
    videos_module._networks_per_step = lambda *arguments: 1
    torch.manual_seed(0)
    trained = fit_videos(
        make_hnerv,
        make_video_data(np.array([4, 2, 3])),
        replace(FAST_FRAMES, frames_per_network=2),
        Duration(epochs=2),
        seed=3,
        weight_bits=8,
        on_progress=_ignore,
        group=group,
        open_keeper=lambda number: Keeper(folder / f"checkpoint-{number}"),
    )
    assert trained.latents is not None
    latents, steps = torch.from_numpy(trained.latents), torch.tensor(trained.steps)
    return {**_learned(trained.stack), "latents": latents, "steps": steps}


def case_keyframes(group: Group, folder: Path) -> dict[str, Tensor]:
    """In blocks that the processes share out."""
    keyframes.KEYFRAMES_PER_BLOCK = 2
    data = make_data()
    done: list[int] = []
    files, pixels = keyframes.encode_to_files(
        np.asarray(data._frames), np.arange(0, 24, 3), "jpeg", 70, folder / "keyframes", done.append, group
    )
    assert done == sorted(done)
    assert done[-1] == 8
    return {"files": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8), "pixels": torch.tensor(pixels)}


CASES: dict[str, Callable[[Group, Path], dict[str, Tensor]]] = {
    name.removeprefix("case_"): function for name, function in globals().items() if name.startswith("case_")
}


def _die(group: Group, how: str) -> None:
    """Of two processes, the second ends in the middle of a training."""

    def end(progress: Progress) -> None:
        if group.rank == 1 and progress.step == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the second process has had enough")

    data = make_data(lengths=np.array([9]))
    fit(make_dnerv(), data, RECIPE, Duration(epochs=9), seed=1, weight_bits=8, on_progress=end, group=group)


def _ignore(progress: Progress) -> None:
    """Nothing is told."""


class _signal_after:
    """Within the block, SIGTERM comes to this process after so many of its steps; None is never."""

    def __init__(self, steps: int | None):
        self._left = steps

    def __enter__(self) -> None:
        self._original = Group.sum_gradients

        def count(group: Group, parameters) -> None:
            self._original(group, parameters)
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    signal.raise_signal(signal.SIGTERM)

        Group.sum_gradients = count  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        Group.sum_gradients = self._original  # type: ignore[method-assign]


def _run_one(folder: Path, rank: int, size: int, port: int, work: Callable[[Group, Path], None]) -> None:
    """In a process of its own: join the group as torchrun would have it, and do the work."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    samplers.STEPS_PER_EPOCH = 1  # several clips a step, few as they are
    precision.fast_dtype = lambda device_type: torch.float32  # what bfloat16 rounds away depends on the batch
    (folder / str(rank)).mkdir(parents=True)
    try:
        with joined_group() as group:
            assert (group.rank, group.size) == (rank, size)
            work(group, folder)
    except BaseException as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def _run(folder: Path, size: int, work: Callable[[Group, Path], None]) -> None:
    """A group of so many processes; those that have not ended in a minute are killed, and told of."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = {}
    for rank in range(size):
        pid = os.fork()
        if not pid:
            _run_one(folder, rank, size, port, work)
        pids[pid] = rank
    deadline = time.monotonic() + LIMIT_SECONDS
    while pids:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        pids.pop(pid, None)
        if time.monotonic() > deadline:
            for pid, rank in pids.items():
                os.kill(pid, signal.SIGKILL)
                (folder / f"{rank}.txt").write_text("hung")
            return
        if not pid:
            time.sleep(0.01)


def _all_cases(group: Group, folder: Path) -> None:
    for name, case in CASES.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        torch.save(case(group, own), folder / str(group.rank) / f"{name}.pt")


def main(folder: Path) -> None:
    """Run all there is."""
    for size in SIZES:
        _run(folder / str(size), size, _all_cases)
    for how in DEATHS:
        _run(folder / how, 2, lambda group, _, how=how: _die(group, how))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
