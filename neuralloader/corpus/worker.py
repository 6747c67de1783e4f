"""The reader process: ``python -m neuralloader.corpus.worker``, started and fed by ``pool.py``.

It reads one task a line from standard input and answers each with one line on standard output, both JSON:

    -> {"path": ..., "settings": {"frame_rate": 2.0, "size": [128, 160], ...}, "part": ...}
    <- {"facts": {...}} | {"reason": "decoded 93 of 164 frames"} | {"disk": "..."}
    -> {"path": ..., "settings": {...}}
    <- {"probe": {...}} | {"reason": ...}

The first line it writes is ``{"ready": true}``, or ``{"missing": "..."}`` when the decoder cannot be imported. Frames
go to the file ``part``, (num_frames, H, W, 3) uint8 without a header; without one the video is only counted. The
process ends with its standard input, also in the middle of a video, so that it never outlives the process that started
it. It never imports torch.
"""

import json
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from neuralloader.corpus.read import decode_video, probe_video
from neuralloader.corpus.settings import ReadSettings
from neuralloader.errors import SourceError


def main() -> None:
    """Serve tasks with the real decoder."""
    serve(read, prepare=_import_decoder)


def serve(read: Callable[[dict[str, Any]], dict[str, Any]], *, prepare: Callable[[], None] = lambda: None) -> None:
    """Answer tasks until standard input ends.

    Args:
        read: turns a task into its answer; exceptions become a reason.
        prepare: called before the first task; an ImportError is reported and ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what ends
    tasks, answers = _take_over_pipes()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")  # ASCII, so that a newline in a name stays escaped
        answers.flush()

    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks, waiting), daemon=True).start()
    try:
        prepare()
    except ImportError as error:
        return answer({"missing": str(error)})
    answer({"ready": True})
    while True:
        try:
            reply = read(json.loads(waiting.get()))
        except Exception as error:  # one bad file must not end the process
            reply = {"reason": f"{type(error).__name__}: {error}"}
        answer(reply)


def read(task: dict[str, Any]) -> dict[str, Any]:
    """Decode the task's video into its part file, which is removed again when that fails; or count its frames."""
    settings = ReadSettings(**task["settings"])
    path = Path(task["path"])
    try:
        if "part" in task:
            return _read_to_part(path, settings, Path(task["part"]))
        return {"probe": asdict(probe_video(path, settings))}
    except SourceError as error:
        return {"reason": str(error)}


def _read_to_part(path: Path, settings: ReadSettings, part: Path) -> dict[str, Any]:
    def check_space(num_frames: int) -> None:
        need, have = num_frames * settings.bytes_per_frame, shutil.disk_usage(part.parent).free
        if need > have:
            raise OSError(f"its {num_frames} frames need {need / 1e6:.4g} MB, {have / 1e6:.4g} MB are free")

    try:
        with open(part, "wb") as file:
            facts = decode_video(
                path,
                settings,
                store=lambda frame: file.write(np.ascontiguousarray(frame).data),
                restart=lambda: file.truncate(file.seek(0)),
                announce=check_space,
            )
        return {"facts": asdict(facts)}
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of the part file: those of the source are SourceErrors
            return {"disk": error.strerror or str(error)}
        raise


def _take_over_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Move the two pipes away from descriptors 0 and 1, where a library's stray print would break the protocol."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return tasks, answers


def _listen(tasks: IO[bytes], waiting: "queue.SimpleQueue[bytes]") -> None:
    """Hand on each task; at the end of input leave at once, even from inside a decoder that hangs."""
    for line in tasks:
        waiting.put(line)
    os._exit(0)


def _import_decoder() -> None:
    import decord

    decord.logging.set_level(decord.logging.QUIET)


if __name__ == "__main__":
    sys.exit(main())
