"""What ``neuralloader bench`` found, as lines for people."""

import itertools
from collections.abc import Sequence

from neuralloader.metrics.quality import PSNR_CAP_DB
from neuralloader.report.bench_result import BenchResult, NotMeasured, ReaderRow, WaitingRow

UNKNOWN = "-"


def bench_lines(result: BenchResult) -> list[str]:
    """The tables: readers, loaders in training, and what could not take part."""
    settings = result.settings
    height, width = result.frame_size
    different = result.num_different_frames
    lines = [
        f"{result.pack}: {result.backend} ({result.config}), {height}x{width}; on {result.device}, {result.threads} "
        f"threads, torch {result.torch}",
        f"{result.num_videos} of {result.num_videos_in_pack} videos; {result.num_clips} clips of "
        f"{settings.frames_per_clip} frames ({settings.sampler}), {result.batch_size} in a batch: {result.num_frames} "
        f"frames, {'all' if different == result.num_frames else different} different; medians of "
        f"{settings.num_rounds} rounds in turns",
        "",
        *_columns([_READER_TITLES, *map(_reader_cells, result.readers)]),
        "",
        "to the pack: clips/s over the pack's; above 1 is faster. cold: opened anew, first pass. used: of the frames",
        "decoded. memory: peak, over that of the imports. PSNR: against the frames before packing, mean and worst; a",
        "reader far below others of the same files gives other frames than it was asked for.",
    ]
    if result.waiting:
        lines += ["", f"Training {settings.consumer} with temporal shift, milliseconds a step:", ""]
        lines += _columns([_WAITING_TITLES, *map(_waiting_cells, result.waiting)])
    if result.not_measured:
        lines += ["", "Not measured:", *_reasons(result.not_measured)]
    return lines


_READER_TITLES = (
    *("reader", "clips/s", "frames/s", "to the pack", "ms a batch", "95%", "cold clips/s", "used"),
    *("memory MB", "kB a frame", "PSNR dB", "worst"),
)


def _reader_cells(row: ReaderRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.clips_per_second:.1f}",
        f"{row.frames_per_second:.0f}",
        f"{row.to_the_pack:.2f}",
        f"{row.batch_ms:.1f}",
        f"{row.batch_ms_95:.1f}",
        f"{row.cold_clips_per_second:.1f}",
        UNKNOWN if row.useful_share is None else f"{row.useful_share:.0%}",
        UNKNOWN if row.memory is None else f"{row.memory.peak_bytes / 1e6:.0f}",
        f"{row.bytes_per_frame / 1e3:.2f}",
        _decibels(row.psnr_db),
        _decibels(row.worst_psnr_db),
    )


_WAITING_TITLES = ("loader", "workers", "waiting", "training", "waiting %")


def _waiting_cells(row: WaitingRow) -> tuple[str, ...]:
    workers = str(row.num_workers)
    return (row.name, workers, f"{row.waiting_ms:.0f}", f"{row.training_ms:.0f}", f"{row.waiting_share:.1%}")


def _decibels(value: float | None) -> str:
    return UNKNOWN if value is None else "exact" if value >= PSNR_CAP_DB else f"{value:.1f}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _reasons(rows: Sequence[NotMeasured]) -> list[str]:
    """A line for each reason, with all it holds for."""
    by_reason = itertools.groupby(sorted(rows, key=lambda row: row.reason), key=lambda row: row.reason)
    return [f"  {'; '.join(row.name for row in group)}: {reason}" for reason, group in by_reason]
