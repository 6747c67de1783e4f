"""Videos that are arrays in Python, written to files that are then packed like others."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neuralloader.corpus.labels import Label, label_classes
from neuralloader.corpus.opened import OpenedVideo
from neuralloader.corpus.source import FoundCorpus, Source, check_name
from neuralloader.errors import SourceError

ARRAY_SUFFIX = ".npy"


def save_arrays(videos: Iterable[tuple[Any, Label, str]], folder: Path) -> FoundCorpus:
    """Write videos to a folder, one after the other, so that no two need be in memory.

    A file that holds the same frames already stays as it is: a cache of it goes on where it stopped.

    Args:
        videos: (frames, label, name) of each. Frames are (T, C, H, W) uint8 RGB, an array or a tensor on any device;
            labels are class names, or integers, or None; names are unique paths with ``/`` between the parts.
        folder: where the files go; made if missing.

    Returns:
        The videos in name order; labels index the sorted class names, as of listed videos.

    Raises:
        ValueError: no videos, frames of another shape or type, a name that no pack can hold or that comes twice.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    labels: list[Label] = []
    names: dict[str, int] = {}
    for number, (frames, label, name) in enumerate(videos):
        check_name(name)
        if name in names:
            raise ValueError(f"videos {names[name]} and {number} are both called {name!r}; names must be unique")
        _save(folder / f"{number:07d}{ARRAY_SUFFIX}", _as_array(frames, name))
        names[name] = number
        labels.append(label)
    if not names:
        raise ValueError("there are no videos; give (frames, label, name) of each")
    classes, indices = label_classes(labels)
    sources = [Source(folder / f"{number:07d}{ARRAY_SUFFIX}", name, indices[number]) for name, number in names.items()]
    return FoundCorpus(tuple(sorted(sources, key=lambda source: source.name.split("/"))), classes)


class ArrayFile(OpenedVideo):
    """A file of ``save_arrays``."""

    def __init__(self, path: Path, frame_rate: float):
        try:
            self._frames = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, OSError) as error:
            raise SourceError("no array, or damaged: it cannot be opened") from error
        problem = _problem(self._frames)
        if problem:
            raise SourceError(f"its array is {problem}")
        num_frames = len(self._frames)
        super().__init__(np.arange(num_frames) / frame_rate, frame_rate, num_frames)

    def frames(self, is_wanted: np.ndarray) -> Iterator[np.ndarray | None]:
        for frame, wanted in zip(self._frames, is_wanted.tolist(), strict=True):
            yield np.ascontiguousarray(frame.transpose(1, 2, 0)) if wanted else None  # (C, H, W) -> (H, W, C)


def _as_array(frames: Any, name: str) -> np.ndarray:
    """(T, C, H, W) uint8, on the host."""
    if hasattr(frames, "detach"):  # a tensor, whose library is not imported here
        frames = frames.detach().cpu().numpy()
    array = np.asarray(frames)
    problem = _problem(array)
    if problem:
        raise ValueError(f"the frames of {name!r} are {problem}")
    return array


def _problem(array: np.ndarray) -> str:
    """Why an array is no video; empty if it is one."""
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[1] == 3 and array.size:
        return ""
    return f"{array.dtype} {array.shape}, where (T, 3, H, W) uint8 RGB is needed, at least one frame and pixel"


def _save(path: Path, array: np.ndarray) -> None:
    """Write a file whole or not at all, unless it is there already."""
    if path.exists():
        try:
            if np.array_equal(np.lib.format.open_memmap(path, mode="r"), array):
                return
        except (ValueError, OSError):
            pass  # written by something else
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)
