"""Is a pack whole? Everything in it is read and checked, and what is damaged is named."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from neuralloader.container.reader import PackReader
from neuralloader.errors import PackError
from neuralloader.packfile.pack import Pack

KEYFRAME_BYTES_PER_STEP = 256 << 20
CLIPS_PER_STEP = 1024


@dataclass(frozen=True)
class Verification:
    """What a check of a whole pack found.

    Attributes:
        num_tensors, num_keyframes, num_clips: what was checked.
        problems: a line for each thing that is damaged; none in a whole pack.
    """

    num_tensors: int
    num_keyframes: int
    num_clips: int
    problems: tuple[str, ...]


def verify_pack(path: str | os.PathLike[str], on_progress: Callable[[float], None] = lambda done: None) -> Verification:
    """Check every byte of a pack: hashes, tables, weights, each block of latents and each key-frame.

    A checksum says that the bytes are the packer's; that they decode is checked too.

    Args:
        path: a .nvpack file or URL.
        on_progress: called with the share that is done.

    Returns:
        What was checked and what is damaged.

    Raises:
        FileNotFoundError: there is no such file.
        PackVersionError: a newer version of the format.
        PackError: the file's header is damaged, so that nothing behind it can be found.
        ImportError: the Pillow that is installed cannot read its key-frames.
    """
    problems: list[str] = []

    def check(step: Callable[[], object]) -> None:
        try:
            step()
        except PackError as error:
            problems.append(str(error))

    with PackReader(path) as reader:
        names = reader.tensor_names
        for number, name in enumerate(names):
            check(lambda name=name: reader.check_tensor(name))
            on_progress(0.3 * (number + 1) / len(names))
    try:
        pack = Pack(path)
        has_latents = pack.latent_shape is not None
    except PackError as error:
        return Verification(len(names), 0, 0, _each_once([*problems, str(error)]))

    num_keys, num_clips = len(pack.index.keys), len(pack.index.clips)
    check(lambda: pack.load_backend(with_encoder=pack.is_appendable))
    if has_latents:
        for rows in _steps(num_clips, CLIPS_PER_STEP):
            _check_each(pack.latents, rows, check)
    on_progress(0.5)
    height, width = pack.frame_size
    for rows in _steps(num_keys, max(1, KEYFRAME_BYTES_PER_STEP // (height * width * 3))):
        _check_each(pack.keyframes, rows, check)
        on_progress(0.5 + 0.5 * (rows[-1] + 1) / num_keys)
    on_progress(1)
    return Verification(len(names), num_keys, num_clips, _each_once(problems))


def _check_each(
    read: Callable[[np.ndarray], object], rows: np.ndarray, check: Callable[[Callable[[], object]], None]
) -> None:
    """Read many rows together, and where that fails, one by one, so that each damaged one is named."""
    try:
        read(rows)
    except PackError:
        for row in rows:
            check(lambda row=row: read(np.array([row])))


def _steps(num_rows: int, rows_per_step: int) -> Iterator[np.ndarray]:
    for start in range(0, num_rows, rows_per_step):
        yield np.arange(start, min(start + rows_per_step, num_rows))


def _each_once(problems: list[str]) -> tuple[str, ...]:
    """Without repeats: damaged tables are found again by every row that needs them."""
    return tuple(dict.fromkeys(problems))
