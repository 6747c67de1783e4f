"""``neuralloader.pack`` and ``append``: the packer, with the reader's own decoder to measure what it made."""

import os
from collections.abc import Sequence

import torch

from neuralloader.report.measure import measure_quality
from neuralloader.training import append as appending
from neuralloader.training import packer
from neuralloader.training.append import AppendResult
from neuralloader.training.packer import PackResult
from neuralloader.training.reading import Source
from neuralloader.training.settings import OnError, PackSettings
from neuralloader.training.stages import Report


def pack(
    source: Source,
    output: str | os.PathLike[str],
    settings: PackSettings | None = None,
    *,
    report: Report = lambda stage, done, note: None,
) -> PackResult:
    """Train one network on a corpus and store everything in one file.

    What was read and trained is kept beside the output, in ``OUTPUT.run``, until the pack is there: whatever ends this
    early, the same call goes on from the last checkpoint. Started by ``torchrun``, its processes do it together.

    Args:
        source: a folder with one folder of videos per class, a flat folder, one video, a folder of folders of numbered
            images, a list file; or videos in Python, a sequence of (frames, label, name) with frames (T, 3, H, W) uint8
            RGB and labels that are class names, integers or None.
        output: the .nvpack file to write.
        settings: what to choose; None is all defaults.
        report: called with the stage, the share of it that is done, and a few words, as the work goes on.

    Returns:
        Where the pack is, how big and how good.

    Raises:
        FileNotFoundError: no source, or no folder to write to.
        FileExistsError: the output is there already and ``overwrite`` is off.
        PermissionError: the output's folder cannot be written to.
        OSError: the disk is too small for the frames, or full.
        ValueError: no videos, a list that matches nothing, a setting that is impossible, or another one than that of
            the interrupted run that is to be gone on with (``fresh`` starts over).
        SourceError: videos that cannot be decoded; all of them are named.
        TrainingDiverged: the loss stopped being a number.
        Interrupted: a signal stopped the training, a KeyboardInterrupt; a checkpoint is there.
    """
    return packer.pack(source, output, settings or PackSettings(), measure=measure_quality, report=report)


def append(
    pack: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    device: torch.device | None = None,
    annotations: Sequence[str] = (),
    on_error: OnError = "raise",
    overwrite: bool = False,
    report: Report = lambda stage, done, note: None,
) -> AppendResult:
    """Add videos to a pack without training. Its old videos decode to the frames they did.

    Args:
        pack: a .nvpack file or URL that was packed with ``appendable``.
        source: as ``pack`` has it; frames are resampled and resized as the pack's are.
        output: the .nvpack file to write; may be the old one, with ``overwrite``.
        device: where to encode; None is CUDA where it is there, else the CPU.
        annotations: as ``PackSettings`` has them; splits of one name are joined.
        on_error: as ``PackSettings`` has it.
        overwrite: replace a file that is there.
        report: as ``pack`` has it.

    Returns:
        Where the new pack is, and what the added videos cost and look like.

    Raises:
        FileNotFoundError: no pack, no source, or no folder to write to.
        FileExistsError: the output is there already and ``overwrite`` is off.
        PackError: the pack is damaged.
        ValueError: a pack that no videos can be added to, with the reason; a video that it has already; no videos.
        SourceError: videos that cannot be decoded.
    """
    return appending.append(
        pack,
        source,
        output,
        device=device,
        annotations=annotations,
        on_error=on_error,
        overwrite=overwrite,
        measure=measure_quality,
        report=report,
    )
