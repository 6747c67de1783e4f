"""``neuralloader.pack`` and ``append``: the packer, with the reader's own decoder to measure what it made."""

import os
from typing import Literal

import torch

from neuralloader.report.measure import measure_quality
from neuralloader.training import append as appending
from neuralloader.training import packer
from neuralloader.training.append import AppendResult
from neuralloader.training.packer import PackResult, PackSettings, Report


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: PackSettings | None = None,
    *,
    report: Report = lambda stage, done, note: None,
) -> PackResult:
    """Train one network on a folder of videos and store everything in one file.

    Args:
        source: a folder with one folder of videos per class, a flat folder, or one video.
        output: the .nvpack file to write.
        settings: what to choose; None is all defaults.
        report: called with the stage, the share of it that is done, and a few words, as the work goes on.

    Returns:
        Where the pack is, how big and how good.

    Raises:
        FileNotFoundError: no source, or no folder to write to.
        FileExistsError: the output is there already and ``overwrite`` is off.
        PermissionError: the output's folder cannot be written to.
        ValueError: no videos, or a setting that is impossible.
        SourceError: videos that cannot be decoded.
        TrainingDiverged: the loss stopped being a number.
    """
    return packer.pack(source, output, settings or PackSettings(), measure=measure_quality, report=report)


def append(
    pack: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    device: torch.device | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    report: Report = lambda stage, done, note: None,
) -> AppendResult:
    """Add videos to a pack without training. Its old videos decode to the frames they did.

    Args:
        pack: a .nvpack file or URL that was packed with ``appendable``.
        source: as ``pack`` has it; frames are resampled and resized as the pack's are.
        output: the .nvpack file to write; may be the old one, with ``overwrite``.
        device: where to encode; None is CUDA where it is there, else the CPU.
        on_error: "raise" names all bad files and adds nothing, "skip" adds the others.
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
        on_error=on_error,
        overwrite=overwrite,
        measure=measure_quality,
        report=report,
    )
