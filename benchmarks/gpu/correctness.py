"""Are the frames right on this device: against the CPU, and whatever else the device is doing meanwhile."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.result import Part, Report, Row
from benchmarks.gpu.setting import COMPILED, COMPILED_GRAPHED, EAGER, GRAPHED, Mode, Network, Setting
from neuralloader.loading.dataset import NeuralVideoDataset
from neuralloader.loading.decode import Decoder, DecodeSettings
from neuralloader.loading.loader import NeuralVideoLoader
from neuralloader.metrics.speed import wait_for
from neuralloader.packfile import Pack

PARITY_FRAMES = 16
FAST: Network = ("dnerv", "fast")
COMPILE_SECONDS = 45.0  # left for compiling a shape
PREFETCH = (0, 2)
MATMULS, MATRIX = 24, 4096  # before each batch of the race: some milliseconds of work of the consumer


@dataclass(frozen=True)
class Bounds:
    """Grey levels that frames may differ by: at most, and on average."""

    max: float
    mean: float


# A float32 difference flips a rounding here and there. On CPUs with these networks at 256x320, bfloat16 is off by 1 at
# most and 0.13 on average, float16 by 1 and 0.02.
BOUNDS = {torch.float32: Bounds(1, 0.005), torch.float16: Bounds(2, 0.1), torch.bfloat16: Bounds(4, 0.5)}


def check_parity(setting: Setting, report: Report) -> Part:
    """Every network against float32 on the CPU."""
    part = Part(
        "Frames against the CPU's",
        "Grey levels by which decoded frames differ from the CPU's in float32. TF32 is off but where a row says so.",
    )
    precisions = [torch.float32, torch.bfloat16] + ([torch.float16] if setting.is_cuda else [])
    for network in setting.packs:
        pack = Pack(setting.packs[network])
        rows = np.random.default_rng(0).permutation(len(pack.frames))[:PARITY_FRAMES]
        rows = np.sort(rows) if network[1] == "fast" else np.arange(PARITY_FRAMES)  # a clip of the paper's costs much
        expected = _decode_alone(setting.packs[network], torch.device("cpu"), torch.float32, rows)
        for precision, tf32 in [(p, False) for p in precisions] + [(torch.float32, True)] * setting.is_cuda:
            row = {"network": " ".join(network), "precision": _name(precision) + (", TF32" if tf32 else "")}
            if setting.seconds_left() < 5:
                part.rows.append({**row, "result": "no time left"})
                continue
            try:
                with _tf32(tf32):
                    found = _decode_alone(setting.packs[network], setting.device, precision, rows)
            except Exception as error:
                part.fail(row, error)
                continue
            off = (found.short() - expected.short()).abs().float()
            bounds, most, mean = BOUNDS[torch.float16 if tf32 else precision], float(off.max()), float(off.mean())
            row: Row = {**row, "max": most, "mean": mean, "contrast": float(expected.float().std())}
            row |= {"allowed max": bounds.max, "allowed mean": bounds.mean}
            if most > bounds.max or not mean <= bounds.mean:
                part.fail(row, "frames differ by more than is allowed")
            else:
                part.rows.append({**row, "result": "ok"})
        report(part)
    return part


def check_races(setting: Setting, report: Report) -> Part:
    """Batches that are decoded beside other work, against the same decoded with nothing beside."""
    part = Part(
        "Frames while other work runs",
        "D-NeRV fast. Every batch is compared, bit by bit, with the same clips decoded with the device idle before and "
        "after. 'kept': list(loader) against clones made at receipt. 'busy': matrix products and freed, overwritten "
        "memory on the consumer's stream. 'items': dataset[i] in the main thread between batches.",
    )
    for mode in (EAGER, GRAPHED, COMPILED, COMPILED_GRAPHED):
        row: Row = {"mode": mode.name}
        why_not = setting.why_not(mode, COMPILE_SECONDS if mode.compile else 5)
        if why_not:
            part.rows.append({**row, "result": why_not})
            continue
        try:
            dataset = setting.open(FAST, mode)
            start = time.monotonic()
            quiet = _Quiet(dataset, setting, with_items=not mode.compile)
            part.rows.append({**row, "check": f"made what follows is compared with: {time.monotonic() - start:.1f} s"})
        except Exception as error:
            part.fail(row, error)
            continue
        for name, check in (("kept", _check_kept), ("busy", _check_busy), ("items", _check_items)):
            for prefetch in () if name == "items" and mode.compile else PREFETCH:  # another shape to compile
                _run_check(
                    part, {**row, "check": name, "prefetch": prefetch}, check, quiet, dataset, prefetch, 0, setting
                )
        if mode is EAGER:  # key-frames come from processes, into a cache that holds none yet
            for prefetch in PREFETCH:
                fresh = setting.open(FAST, mode)
                row = {"mode": f"{mode.name}, 2 workers", "check": "busy", "prefetch": prefetch}
                _run_check(part, row, _check_busy, quiet, fresh, prefetch, 2, setting)
        if not is_still(dataset, mode):
            part.fail({"mode": mode.name}, "it fell back to eager decoding")
        report(part)
    return part


def is_still(dataset: NeuralVideoDataset, mode: Mode) -> bool:
    """Whether a dataset decodes in its mode, and has not fallen back."""
    decoder = dataset.ready_decoder()
    assert isinstance(decoder, Decoder)
    return mode.is_eager or decoder._engine._fast is not None


class _Quiet:
    """What a loader's batches, and items, must be: decoded with the device idle before and after."""

    def __init__(self, dataset: NeuralVideoDataset, setting: Setting, *, with_items: bool):
        self.batches = []
        for videos, _ in _load(dataset, 0, 0, setting):
            wait_for(setting.device)
            self.batches.append(videos.clone())
            wait_for(setting.device)
        self.items = []
        for item in range(setting.sizes.race_batches if with_items else 0):
            wait_for(setting.device)
            self.items.append(dataset[item][0].clone())
            wait_for(setting.device)


_Check = Callable[[_Quiet, NeuralVideoDataset, int, int, Setting], str | None]


def _run_check(
    part: Part,
    row: Row,
    check: _Check,
    quiet: _Quiet,
    dataset: NeuralVideoDataset,
    prefetch: int,
    num_workers: int,
    setting: Setting,
) -> None:
    try:
        wrong = check(quiet, dataset, prefetch, num_workers, setting)
    except Exception as error:
        part.fail(row, error)
        return
    if wrong is None:
        part.rows.append({**row, "result": "ok"})
    else:
        part.fail(row, wrong)


def _check_kept(
    quiet: _Quiet, dataset: NeuralVideoDataset, prefetch: int, num_workers: int, setting: Setting
) -> str | None:
    kept, clones = [], []
    for videos, _ in _load(dataset, prefetch, num_workers, setting):
        kept.append(videos)
        clones.append(videos.clone())
    wait_for(setting.device)
    return _compare(kept, clones, "changed after it was handed out") or _compare(kept, quiet.batches, "is wrong")


def _check_busy(
    quiet: _Quiet, dataset: NeuralVideoDataset, prefetch: int, num_workers: int, setting: Setting
) -> str | None:
    clones = []
    matrix = torch.randn(*[MATRIX if setting.is_cuda else 64] * 2, device=setting.device)
    for videos, _ in _load(dataset, prefetch, num_workers, setting):
        for _ in range(MATMULS):
            matrix = (matrix @ matrix).clamp_(-1, 1)
        clones.append(videos.clone())  # read late: behind the products
        shape = videos.shape
        del videos  # its memory is free for others, who overwrite it at once
        for value in (255, 0):
            torch.full(shape, value, dtype=torch.uint8, device=setting.device)
    wait_for(setting.device)
    return _compare(clones, quiet.batches, "is wrong")


def _check_items(
    quiet: _Quiet, dataset: NeuralVideoDataset, prefetch: int, num_workers: int, setting: Setting
) -> str | None:
    clones, items = [], []
    for number, (videos, _) in enumerate(_load(dataset, prefetch, num_workers, setting)):
        items.append(dataset[number][0])
        clones.append(videos.clone())
    wait_for(setting.device)
    return _compare(clones, quiet.batches, "is wrong") or _compare(items, quiet.items, "of items is wrong")


def _load(
    dataset: NeuralVideoDataset, prefetch: int, num_workers: int, setting: Setting
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the same clips, whichever way."""
    batch = setting.sizes.batch
    num_items = setting.sizes.race_batches * batch
    items = np.random.default_rng(2).integers(0, len(dataset), num_items).tolist()
    loader = NeuralVideoLoader(
        dataset, batch_size=batch, sampler=items, seed=0, prefetch=prefetch, num_workers=num_workers
    )
    return iter(loader)


def _compare(found: list[Tensor], expected: list[Tensor], what: str) -> str | None:
    if len(found) != len(expected):
        return f"{len(found)} batches came, where {len(expected)} were asked for"
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if not torch.equal(a, b):
            off = (a.short() - b.short()).abs()
            share = float((off > 0).float().mean())
            return f"batch {number} {what}: {share:.2%} of the values, by {int(off.max())} grey levels at most"
    return None


def _decode_alone(path: Path, device: torch.device, precision: torch.dtype, rows: np.ndarray) -> Tensor:
    """Frames, from a decoder of their own; on the CPU."""
    decoder = Decoder(Pack(path), device, DecodeSettings(precision=precision))
    frames = decoder.decode(rows).cpu()
    decoder.end_threads()
    return frames


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")
