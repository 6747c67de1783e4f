"""How fast clips are decoded: from a plan of frames to uint8 on the device, rung by rung."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.correctness import is_still
from benchmarks.gpu.result import Part, Report, Row
from benchmarks.gpu.setting import (
    COMPILED,
    COMPILED_GRAPHED,
    EAGER,
    FRAMES_PER_CLIP,
    GRAPHED,
    Mode,
    Network,
    Setting,
)
from benchmarks.gpu.timing import time_in_turns
from neuralloader.loading.dataset import NeuralVideoDataset
from neuralloader.metrics.speed import seconds_of

COMPILE_SECONDS = 50.0  # left for compiling a shape
FAST: Network = ("dnerv", "fast")
PAPER: Network = ("dnerv", "paper")
SINGLE = replace(EAGER, precision=torch.float32)
HALF = replace(EAGER, precision=torch.float16)


@dataclass(frozen=True)
class Rung:
    """A network decoded in a way."""

    name: str
    network: Network
    mode: Mode


RUNGS = (
    Rung("paper as published", PAPER, SINGLE),
    Rung("paper tuned", PAPER, EAGER),
    Rung("fast eager", FAST, SINGLE),
    Rung("fast eager", FAST, HALF),
    Rung("fast eager", FAST, EAGER),
    Rung("fast graphed", FAST, GRAPHED),
    Rung("fast compiled", FAST, COMPILED),
    Rung("fast compiled+graphed", FAST, COMPILED_GRAPHED),
)


@dataclass
class Runner:
    """Batches of a rung: a random clip of each of some videos, other places in them at each call.

    Attributes:
        dataset: an item a video.
        items: (B,) of a batch.
        epochs: draw the places.
    """

    dataset: NeuralVideoDataset
    items: np.ndarray
    epochs: Iterable[int] = field(default_factory=count)

    def __call__(self) -> Tensor:
        """(B, 8, 3, H, W) uint8, for the caller's stream."""
        plan = self.dataset.plan_batch(self.items, 0, next(iter(self.epochs)))
        return self.dataset.ready_decoder().stream.call(lambda: self.dataset.decode_batch(plan))

    @property
    def num_frames(self) -> int:
        """Frames that a call gives."""
        return len(self.items) * FRAMES_PER_CLIP


def warm(dataset: NeuralVideoDataset, batch: int) -> None:
    """Read every key-frame of the pack."""
    for start in range(0, len(dataset), batch):
        items = np.arange(start, min(start + batch, len(dataset)))
        for epoch in range(4):
            Runner(dataset, items, count(epoch))()


def climb(setting: Setting, report: Report) -> Part:
    """D-NeRV, from the paper's network as published to the fast one in its best mode."""
    part = Part(
        f"The ladder: D-NeRV at {'x'.join(map(str, setting.sizes.frame))}, random clips of {FRAMES_PER_CLIP} frames",
        "Frames a second that were asked for, from planning to uint8 on the device, key-frames at hand; medians of "
        "rounds in turn. 'first s' is the first call of the shape: compiling (which the checks above have done for one "
        "shape, and left in a cache on disk), recording. 'decoded' is frames decoded for "
        "one that is used (the paper's network decodes whole clips). 'peak GB' is above what was held before the call. "
        "float32 convolutions run in TF32, PyTorch's default.",
    )
    datasets: dict[tuple[Network, Mode], NeuralVideoDataset] = {}
    for batch in setting.sizes.batches:
        is_first = batch == setting.sizes.batches[0]
        rungs = [rung for rung in RUNGS if is_first or rung.mode.precision == torch.bfloat16]
        _climb_with(setting, part, rungs, batch, datasets)
        report(part)
    datasets.clear()
    _time_cold(setting, part)
    return part


def _climb_with(
    setting: Setting,
    part: Part,
    rungs: list[Rung],
    batch: int,
    datasets: dict[tuple[Network, Mode], NeuralVideoDataset],
) -> None:
    """The rungs with one size of batch."""
    rows: dict[int, Row] = {}
    runners: dict[int, Runner] = {}
    for number, rung in enumerate(rungs):
        row = rows[number] = {"rung": rung.name, "precision": _name(rung.mode.precision), "clips": batch}
        why_not = setting.why_not(rung.mode, COMPILE_SECONDS if rung.mode.compile else 3)
        if why_not:
            row["result"] = why_not
            continue
        try:
            if (rung.network, rung.mode) not in datasets:
                datasets[rung.network, rung.mode] = setting.open(rung.network, rung.mode)
                warm(datasets[rung.network, rung.mode], setting.sizes.batch)
            dataset = datasets[rung.network, rung.mode]
            runner = Runner(dataset, np.arange(min(batch, len(dataset))))
            row |= {"clips": len(runner.items), **_first_calls(runner, setting)}
            if not is_still(dataset, rung.mode):
                raise RuntimeError("it fell back to eager decoding")
            runners[number] = runner
        except Exception as error:
            del rows[number]
            part.fail(row, error)
    seconds = _time(runners, setting)
    for number, runner in runners.items():
        rows[number] |= {"ms": 1e3 * seconds[number], "frames/s": runner.num_frames / seconds[number], "result": "ok"}
    part.rows += rows.values()


def compare_backends(setting: Setting, report: Report) -> Part:
    """All four backends, both configurations, eager and in the best mode."""
    batch = setting.sizes.batch
    part = Part(
        f"All backends, {batch} clips of {FRAMES_PER_CLIP} frames",
        "As above, in bfloat16: eager, recorded as a graph, and, where there is time, compiled and recorded.",
    )
    for mode in (EAGER, GRAPHED, COMPILED_GRAPHED):
        rows, runners = {}, {}
        for network in setting.packs:
            row: Row = {"network": " ".join(network), "mode": mode.name}
            if network[1] == "paper" and mode.compile:
                continue
            why_not = setting.why_not(mode, COMPILE_SECONDS / 2 if mode.compile else 3)
            if why_not:
                part.rows.append({**row, "result": why_not})
                continue
            try:
                dataset = setting.open(network, mode)
                warm(dataset, batch)
                runner = Runner(dataset, np.arange(min(batch, len(dataset))))
                rows[network] = row | _first_calls(runner, setting)
                if not is_still(dataset, mode):
                    raise RuntimeError("it fell back to eager decoding")
                runners[network] = runner
            except Exception as error:
                part.fail(row, error)
        seconds = _time(runners, setting)
        for network, runner in runners.items():
            row = rows[network] | {"ms": 1e3 * seconds[network]}
            part.rows.append({**row, "frames/s": runner.num_frames / seconds[network], "result": "ok"})
        report(part)
    return part


def _first_calls(runner: Runner, setting: Setting) -> Row:
    """The first call in a shape, what it leaves for later ones, and the memory that a call takes."""
    before = _allocated(setting)
    first = seconds_of(runner, device=setting.device)
    runner()
    counts = replace(runner.dataset.counts)
    runner()
    after = runner.dataset.counts
    decoded = (after.num_frames_decoded - counts.num_frames_decoded) / (after.num_frames_used - counts.num_frames_used)
    row: Row = {"first s": first, "decoded": decoded}
    if setting.is_cuda:
        row["peak GB"] = (torch.cuda.max_memory_allocated(setting.device) - before) / 1e9
    return row


def _allocated(setting: Setting) -> int:
    if not setting.is_cuda:
        return 0
    torch.cuda.synchronize(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    return torch.cuda.memory_allocated(setting.device)


def _time(runners: dict, setting: Setting) -> dict:
    return time_in_turns(
        runners,
        setting.device,
        num_rounds=setting.sizes.rounds,
        seconds=setting.sizes.seconds,
        has_time=lambda: setting.seconds_left() > 2,
    )


def _time_cold(setting: Setting, part: Part) -> None:
    """From opening the pack to the first batch."""
    row: Row = {"rung": "fast eager, cold: opening and first batch", "precision": "bfloat16"}
    if setting.seconds_left() < 3:
        part.rows.append({**row, "result": "no time left"})
        return
    try:
        start = time.perf_counter()
        dataset = setting.open(FAST, EAGER)
        runner = Runner(dataset, np.arange(min(setting.sizes.batch, len(dataset))))
        first = seconds_of(runner, device=setting.device)
        seconds = time.perf_counter() - start
    except Exception as error:
        part.fail(row, error)
        return
    row |= {"clips": len(runner.items), "first s": first, "ms": 1e3 * seconds}
    part.rows.append({**row, "frames/s": runner.num_frames / seconds, "result": "ok"})


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")
