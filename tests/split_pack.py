"""A pack with other splits and problems than it was packed with, and nothing else changed."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from neuralloader.container.index import PackIndex
from neuralloader.packfile import Pack, save_with_weights


def with_splits(
    source: Path,
    output: Path,
    splits: Mapping[str, Collection[str]],
    *,
    problems: Mapping[str, str] | None = None,
    index: PackIndex | None = None,
) -> Path:
    """Write it.

    Args:
        source: the pack.
        output: the file to write.
        splits: names of the videos of each split.
        problems: of some videos, by name.
        index: in the place of the pack's own.

    Returns:
        The file that was written.
    """
    pack = Pack(source)
    index = index or pack.index
    videos = tuple(
        replace(
            video,
            splits=sum(1 << place for place, names in enumerate(splits.values()) if video.name in names),
            problem=(problems or {}).get(video.name, ""),
        )
        for video in index.videos
    )
    save_with_weights(
        output,
        replace(pack.description, splits=tuple(splits)),
        replace(index, videos=videos),
        *pack.weight_parts(),
        pack.keyframe_files(np.arange(len(index.keys))),
        pack.latents() if pack.latent_shape else None,
    )
    return output
