"""What the device can do at best, measured, and how far the rungs of the ladder are from it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.gpu.counting import Counts, count, count_kernels
from benchmarks.gpu.ladder import FAST, PAPER, RUNGS, Rung, Runner, warm
from benchmarks.gpu.result import Part, Report, Row
from benchmarks.gpu.setting import EAGER, FRAMES_PER_CLIP, Network, Setting
from benchmarks.gpu.timing import time_in_turns

NUM_SMALL_KERNELS = 1000
KEYS_PER_FRAME = 2


@dataclass(frozen=True)
class Ceilings:
    """Operations and bytes a second, and seconds a launch."""

    bf16_flops: float
    fp32_flops: float
    tf32_flops: float
    copy_bytes: float
    upload_bytes: float | None
    launch_seconds: float
    graph_kernel_seconds: float | None


def measure_ceilings(setting: Setting) -> Ceilings:
    """Large matrix products, large copies, many small kernels."""
    device, sizes = setting.device, setting.sizes
    side, small_side = sizes.matrix, sizes.matrix // 2
    half = torch.randn(2, side, side, device=device).bfloat16()  # random: zeros run faster
    single = torch.randn(2, small_side, small_side, device=device)
    source = torch.randint(0, 255, (sizes.copy_bytes,), dtype=torch.uint8, device=device)
    target, small = torch.empty_like(source), torch.zeros(8, device=device)
    calls: dict[str, Callable[[], object]] = {
        "bf16": lambda: half[0] @ half[1],
        "fp32": lambda: single[0] @ single[1],
        "copy": lambda: target.copy_(source),
        "small": lambda: [small.add_(1) for _ in range(NUM_SMALL_KERNELS)],
    }
    if setting.is_cuda:
        calls["tf32"] = lambda: _multiply_in_tf32(single)
        host = torch.randint(0, 255, (sizes.copy_bytes // 4,), dtype=torch.uint8).pin_memory()
        calls["upload"] = lambda: target[: len(host)].copy_(host, non_blocking=True)
        calls["graph"] = _record_small_kernels(small).replay
    for call in calls.values():
        call()
    seconds = time_in_turns(calls, device, num_rounds=sizes.rounds, seconds=sizes.seconds)
    return Ceilings(
        bf16_flops=2 * side**3 / seconds["bf16"],
        fp32_flops=2 * small_side**3 / seconds["fp32"],
        tf32_flops=2 * small_side**3 / seconds.get("tf32", seconds["fp32"]),
        copy_bytes=2 * sizes.copy_bytes / seconds["copy"],  # read and written
        upload_bytes=sizes.copy_bytes // 4 / seconds["upload"] if setting.is_cuda else None,
        launch_seconds=seconds["small"] / NUM_SMALL_KERNELS,
        graph_kernel_seconds=seconds["graph"] / NUM_SMALL_KERNELS if setting.is_cuda else None,
    )


def analyse(setting: Setting, ladder: Part, report: Report) -> Part:
    """Ceilings, then each rung's shares of them, and the largest gaps in words."""
    batch = setting.sizes.batch
    part = Part(
        f"Ceilings, and how far below them {batch} clips are decoded",
        "FLOPs of matrix products and convolutions, and bytes that eager operators read and write, a frame asked for; "
        "shares are of the ceilings above them, measured on this device. A compiled rung moves fewer bytes than its "
        "eager operators, so its share can pass 1. 'kernels' and 'launches' are a batch's; without a profiler, eager "
        "operators are counted.",
    )
    ceilings = measure_ceilings(setting)
    for name, value, unit in (
        ("bf16 matrix product", ceilings.bf16_flops / 1e12, "TFLOP/s"),
        ("fp32 matrix product", ceilings.fp32_flops / 1e12, "TFLOP/s"),
        ("TF32 matrix product", ceilings.tf32_flops / 1e12 if setting.is_cuda else None, "TFLOP/s"),
        ("copy on the device, read and written", ceilings.copy_bytes / 1e9, "GB/s"),
        ("upload from pinned memory", _scaled(ceilings.upload_bytes, 1e-9), "GB/s"),
        ("launch of a small kernel", ceilings.launch_seconds * 1e6, "us"),
        ("small kernel of a graph", _scaled(ceilings.graph_kernel_seconds, 1e6), "us"),
    ):
        part.rows.append({"what": name, "value": value if value is not None else "needs CUDA", "unit": unit})
    report(part)
    speeds = {
        (row["rung"], row["precision"]): row
        for row in ladder.rows
        if row.get("result") == "ok" and row.get("clips") == batch and "ms" in row and "cold" not in row["rung"]
    }
    counts: dict[tuple[Network, torch.dtype], Counts] = {}
    gaps: list[tuple[float, str]] = []
    for rung in RUNGS:
        row: Row = {"what": rung.name, "precision": str(rung.mode.precision).removeprefix("torch.")}
        speed = speeds.get((row["what"], row["precision"]))
        if speed is None:
            part.rows.append({**row, "result": setting.why_not(rung.mode) or "not in the ladder"})
            continue
        try:
            key = rung.network, rung.mode.precision
            if key not in counts:
                counts[key] = _count_network(setting, rung.network, rung.mode.precision)
            found, more = _analyse_rung(setting, rung, counts[key], ceilings, speed["ms"] / 1e3)
        except Exception as error:
            part.fail(row, error)
            continue
        part.rows.append(row | found)
        gaps += more
    _tell_gaps(part, gaps, counts)
    return part


def _count_network(setting: Setting, network: Network, precision: torch.dtype) -> Counts:
    dataset = setting.open(network, replace(EAGER, precision=precision))
    warm(dataset, setting.sizes.batch)
    runner = Runner(dataset, np.arange(min(setting.sizes.batch, len(dataset))))
    runner()
    return count(runner, setting.device)


def _analyse_rung(
    setting: Setting, rung: Rung, counts: Counts, ceilings: Ceilings, seconds: float
) -> tuple[Row, list[tuple[float, str]]]:
    """A row, and (milliseconds a batch, sentence) of what it could be faster by."""
    num_frames = setting.sizes.batch * FRAMES_PER_CLIP
    flops_ceiling = ceilings.tf32_flops if rung.mode.precision == torch.float32 else ceilings.bf16_flops
    precision = str(rung.mode.precision).removeprefix("torch.")
    kernels, launches = _launches(setting, rung, counts)
    row: Row = {
        "ms": 1e3 * seconds,
        "GFLOP a frame": counts.flops / num_frames / 1e9,
        "MB a frame": counts.bytes / num_frames / 1e6,
        "TFLOP/s": counts.flops / seconds / 1e12,
        "GB/s": counts.bytes / seconds / 1e9,
        "share of FLOP/s": counts.flops / seconds / flops_ceiling,
        "share of bytes/s": counts.bytes / seconds / ceilings.copy_bytes,
        "kernels": kernels,
        "launches": launches,
    }
    if rung.network != FAST or rung.mode.precision != torch.bfloat16:
        return row, []
    height, width = setting.sizes.frame
    least_bytes = (1 + KEYS_PER_FRAME) * 3 * height * width * num_frames  # uint8: two key-frames in, a frame out
    arithmetic, traffic = counts.flops / flops_ceiling, counts.bytes / ceilings.copy_bytes
    traffic = 0.0 if rung.mode.compile else min(seconds, traffic)  # caches may have served the rest
    least = max(arithmetic, least_bytes / ceilings.copy_bytes)
    starting = min(seconds, (launches or 0) * ceilings.launch_seconds)
    label = f"{rung.name}, {precision}"
    explained = max(arithmetic, traffic, starting)
    gaps = []
    if traffic > least:
        gaps.append((traffic - least, f"{label}: memory traffic of unfused operators beyond the least possible"))
    if starting > least:
        gaps.append((starting - least, f"{label}: starting {launches} kernels, copies or graphs from the host"))
    if seconds > explained:
        text = (
            f"{label}: time that neither arithmetic, nor traffic, nor starting explains (small or slow kernels, host)"
        )
        gaps.append((seconds - explained, text))
    return row, [(1e3 * gap, f"{text}: {1e3 * gap:.3g} of {1e3 * seconds:.3g} ms a batch") for gap, text in gaps]


def _launches(setting: Setting, rung: Rung, counts: Counts) -> tuple[int | None, int | None]:
    if rung.mode.is_eager:
        return counts.kernels, counts.launches if counts.launches is not None else counts.operators
    if rung.mode.compile and setting.seconds_left() < 60:
        return None, None
    dataset = setting.open(rung.network, rung.mode)
    warm(dataset, setting.sizes.batch)
    runner = Runner(dataset, np.arange(min(setting.sizes.batch, len(dataset))))
    runner()
    return count_kernels(runner, setting.device)


def _tell_gaps(part: Part, gaps: list[tuple[float, str]], counts: dict[tuple[Network, torch.dtype], Counts]) -> None:
    gaps.sort(reverse=True)
    part.words += [f"Gap {number + 1}: {text}." for number, (_, text) in enumerate(gaps[:3])]
    paper, fast = (counts.get((network, torch.bfloat16)) for network in (PAPER, FAST))
    for name, own in (("paper", paper), ("fast", fast)):
        if own is not None:
            largest = ", ".join(f"{operator} {size / max(1, own.bytes):.0%}" for operator, size in own.largest)
            part.words.append(f"Most bytes of {name}, eager, bfloat16: {largest}.")
    if paper is not None and fast is not None:
        less = paper.flops / max(1, fast.flops), paper.bytes / max(1, fast.bytes)
        part.words.append(f"A frame of fast takes {less[0]:.3g} times fewer FLOPs and {less[1]:.3g} times fewer bytes.")


def _multiply_in_tf32(matrices: torch.Tensor) -> torch.Tensor:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return matrices[0] @ matrices[1]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def _record_small_kernels(small: torch.Tensor) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NUM_SMALL_KERNELS):
            small.add_(1)
    return graph


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
