"""``neuralloader.pack``: the packer, with the reader's own decoder to measure what it made."""

import os

from neuralloader.report.measure import measure_quality
from neuralloader.training import packer
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
