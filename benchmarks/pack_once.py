"""What the benchmarks of several networks share: a network by name, packed unless its pack is there already."""

import argparse
from pathlib import Path
from typing import Any

import neuralloader


def pack_once(path: Path, source: Path, network: str, options: argparse.Namespace, **settings: Any) -> Path:
    """Pack a corpus.

    Args:
        path: the pack; one that is there is kept.
        source: the corpus.
        network: BACKEND:CONFIG:WIDTH, the width a preset or a number of channels.
        options: ``frame_rate``, ``size`` and ``minutes``, as the benchmarks' command lines have them.
        settings: more of ``PackSettings``.
    """
    if path.exists():
        return path
    backend, config, width = network.split(":")
    chosen = neuralloader.PackSettings(
        frame_rate=options.frame_rate,
        size=options.size,
        backend=backend,
        config=config,
        width=int(width) if width.isdecimal() else width,
        duration=neuralloader.Duration(minutes=options.minutes),
        **settings,
    )
    neuralloader.pack(source, path, chosen)
    return path


def pack_path(folder: Path, network: str) -> Path:
    """Where the pack of a network belongs."""
    return folder / f"{network.replace(':', '-')}.nvpack"
