"""What tests of the loader share: the ways to load, what is in a batch, and scripts in processes of their own."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

# Python 3.12 warns about every fork of a process with threads, and PyTorch has some
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
FORK = {"num_workers": 2, "multiprocessing_context": "fork"}
# with and without workers, with and without a thread that decodes ahead
WAYS = [{}, {"prefetch": 2}, FORK, {**FORK, "prefetch": 2}]
WAY_NAMES = ["here", "ahead", "workers", "workers-ahead"]
ways = pytest.mark.parametrize("way", WAYS, ids=WAY_NAMES)

Clip = tuple[float, ...]


def clips_of(batches: Iterable[Any]) -> list[list[Clip]]:
    """Which clips are in each batch: video, label, times of frames."""
    return [
        [
            (float(video), float(label), *times.flatten().tolist())
            for video, label, times in zip(info["video_index"], labels, info["pts_seconds"], strict=True)
        ]
        for _, labels, info in batches
    ]


def same_videos(a: Tensor, b: Tensor) -> bool:
    """Whether two batches are the same but for rounding: at most one grey level apart."""
    return a.shape == b.shape and a.dtype == b.dtype and float((a.double() - b.double()).abs().max()) <= 1


def run_script(folder: Path, text: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a script with what is on its command line; its output is text, and piped."""
    script = folder / "script.py"
    script.write_text(text)
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
