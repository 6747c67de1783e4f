"""What a corpus of many short videos costs before training: time and memory of finding, counting, reading, indexing.

    python benchmarks/scan.py [--videos 500 1000 5000] [--folder /tmp]

Each video is 8 small frames of Motion-JPEG. Every row runs in a process of its own. "Ingest" opens and counts all
videos once more before it decodes them; "resume" opens the full cache again and checks all of its frames. Memory is the
peak beyond what the process held once everything was imported, up to the probe's end and in all, and the whole of the
largest reader process (Linux only). Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from neuralloader.clips import index_corpus, index_frames
from neuralloader.container.index import PackIndex, index_to_tensors
from neuralloader.corpus.cache import FrameCache
from neuralloader.corpus.find import find_sources
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.probe import probe_sources
from neuralloader.corpus.settings import ReadSettings

FRAMES_PER_VIDEO, SOURCE_SIZE, NUM_CLASSES = 8, (48, 64), 20
SIZE = (32, 40)
FRAMES_PER_CLIP = 8


def write_corpus(folder: Path, num_videos: int) -> None:
    """Videos of flat colours, no two alike."""
    rng = np.random.default_rng(0)
    for number in range(num_videos):
        path = folder / f"class_{number % NUM_CLASSES:02}" / f"video_{number:05}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 256, (FRAMES_PER_VIDEO, 1, 1, 3), dtype=np.uint8)
        write_mjpeg_avi(path, np.broadcast_to(colours, (FRAMES_PER_VIDEO, *SOURCE_SIZE, 3)), 8)


def measure(corpus: Path, folder: Path) -> dict[str, float]:
    """Go through all steps once; gives seconds of each, and the peaks of memory in megabytes."""
    row: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        row[name] = time.perf_counter() - started
        return result

    before = _peak_megabytes(os.getpid())
    found = timed("find", lambda: find_sources(corpus))
    timed("probe", lambda: probe_sources(found.sources, ReadSettings(None, SIZE)))
    row["peak, scanned"] = _peak_megabytes(os.getpid()) - before
    cache = timed("open", lambda: FrameCache.open(folder, found.sources, frame_rate=None, size=SIZE))
    readers: dict[int, float] = {}

    def watch(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            for process in _children():
                readers[process] = max(readers.get(process, 0), _peak_megabytes(process))

    timed("ingest", lambda: cache.fill(progress=watch))
    ingested = timed("load", lambda: cache.load())
    timed("resume", lambda: _reopen(folder, found.sources))

    def index() -> None:
        num_frames = np.array([video.num_frames for video in ingested.videos])
        clips, keys = index_corpus(num_frames, frames_per_clip=FRAMES_PER_CLIP, key_interval=FRAMES_PER_CLIP)
        index_frames(clips, keys)
        index_to_tensors(PackIndex(tuple(ingested.videos), tuple(ingested.skipped), clips, keys))

    timed("index", index)
    row["peak, in all"] = _peak_megabytes(os.getpid()) - before
    row["reader"] = max(readers.values(), default=0.0)
    return row


def _reopen(folder: Path, sources: Any) -> None:
    cache = FrameCache.open(folder, sources, frame_rate=None, size=SIZE)
    cache.fill()
    cache.load()


def _peak_megabytes(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has ended
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def _children() -> list[int]:
    """Processes that this one started, from whichever thread."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has ended
            found += map(int, (task / "children").read_text().split())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[500, 1000, 5000])
    parser.add_argument("--folder", type=Path, default=None, help="where files are written; they are removed again")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.corpus:
            print(json.dumps(measure(options.corpus, Path(folder) / "cache")))
            return
        print("| videos | find | probe | ingest | load | resume | index | peak, scanned | peak, in all | reader |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for num_videos in options.videos:
            corpus = Path(folder) / str(num_videos)
            write_corpus(corpus, num_videos)
            command = [sys.executable, __file__, "--corpus", str(corpus), "--folder", folder]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            seconds = " | ".join(
                f"{row[name]:.2f} s" for name in ("find", "probe", "ingest", "load", "resume", "index")
            )
            memory = " | ".join(f"{row[name]:.1f} MB" for name in ("peak, scanned", "peak, in all", "reader"))
            print(f"| {num_videos:,} | {seconds} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
