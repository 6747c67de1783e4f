"""Charts, as PNG files, with matplotlib: a part of the extra ``report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuralloader.report.bench_result import BenchResult

_PACK_COLOUR, _RIVAL_COLOUR = "#c0392b", "#7f8c8d"


def check_can_draw(path: Path) -> None:
    """Refuse what could not be written in the end, before minutes of measuring.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the path does not end in .png.
        FileNotFoundError: its folder is not there.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; `pip install 'neuralloader[report]'` provides it") from error
    if path.suffix.lower() != ".png":
        raise ValueError(f"the chart {path} must be a .png file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for the chart")


def draw_bench(result: BenchResult, path: Path) -> None:
    """Draw clips per second of every reader as bars, the pack's in another colour; below, the waiting in training.

    Args:
        result: what was measured.
        path: the .png file; overwritten.

    Raises: as ``check_can_draw``.
    """
    check_can_draw(path)
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and looks for a screen

    num_bars = [len(result.readers), len(result.waiting)] if result.waiting else [len(result.readers)]
    figure = Figure(figsize=(8, 1.2 * len(num_bars) + 0.32 * sum(num_bars)), layout="constrained")
    axes = figure.subplots(len(num_bars), 1, squeeze=False, height_ratios=num_bars)[:, 0]

    _draw_bars(
        axes[0],
        f"clips of {result.settings.frames_per_clip} frames per second, warm (to the pack), on a log scale",
        [
            (row.name, row.clips_per_second, f"{row.clips_per_second:,.1f} ({row.to_the_pack:,.2f})")
            for row in result.readers
        ],
    )
    axes[0].set_xscale("log")  # frames in memory are hundreds of times faster than any decoder
    speeds = [row.clips_per_second for row in result.readers]
    axes[0].set_xlim(min(1.0, min(speeds) / 2), 10 * max(speeds))
    if result.waiting:
        _draw_bars(
            axes[1],
            f"% of training {result.settings.consumer} that is spent waiting",
            [
                (f"{row.name}, {row.num_workers} workers", 100 * row.waiting_share, f"{row.waiting_share:.1%}")
                for row in result.waiting
            ],
        )
    figure.savefig(path, dpi=120)


def _draw_bars(axis: Any, title: str, bars: Sequence[tuple[str, float, str]]) -> None:
    """Lying bars with a name, a length and a label each: the pack first, on top and in its own colour."""
    names, lengths, labels = zip(*bars, strict=True)
    colours = [_PACK_COLOUR, *[_RIVAL_COLOUR] * (len(bars) - 1)]
    axis.bar_label(axis.barh(names, lengths, color=colours), labels, padding=3)
    axis.set_title(title)
    axis.invert_yaxis()
    axis.margins(x=0.2)  # room for the labels
    axis.spines[["top", "right"]].set_visible(False)
