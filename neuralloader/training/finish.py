"""The last step of a budget: bring the finished file to it, from above by its latents, from below by its key-frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neuralloader.packfile.latents import RoundedLatents, latent_bytes, trim_latents
from neuralloader.training.growth import Grown

SLACK_BYTES = 64  # digits of the figures that are still to come into the manifest
CLOSE_ENOUGH = 0.99  # of a budget: a file above that is left as it is


@dataclass(frozen=True)
class Contents:
    """What can still be changed about a pack.

    Attributes:
        keyframes: complete image files.
        keyframe_quality: of the best of them.
        latents: as they are stored, or None.
    """

    keyframes: Sequence[bytes]
    keyframe_quality: int
    latents: RoundedLatents | None


def meet_budget(
    contents: Contents,
    budget_bytes: int,
    *,
    save: Callable[[Contents], int],
    latent_values: np.ndarray | None,
    latents_per_clip: np.ndarray,
    grow: Callable[[int], Grown] | None,
) -> Contents:
    """Change latents and key-frames until the file fills its budget and no more, as far as that goes.

    Args:
        contents: as trained.
        budget_bytes: the most that the file may take.
        save: writes a trial file, and gives its bytes.
        latent_values: of the latents before they were rounded; None where that is to a grid, or there are none.
        latents_per_clip: as ``FrameTable.latents_per_clip`` gives it.
        grow: makes key-frames take so many bytes more (``grow_keyframes``); None where there are none, or must not be.

    Returns:
        The contents of the last trial file.
    """
    spare = budget_bytes - SLACK_BYTES - save(contents)
    if grow is not None and spare > (1 - CLOSE_ENOUGH) * budget_bytes:
        grown = grow(spare)
        contents = Contents(grown.files, max(contents.keyframe_quality, grown.quality), contents.latents)
        spare = budget_bytes - SLACK_BYTES - save(contents)
    if spare < 0 and contents.latents is not None and latent_values is not None:
        limit = latent_bytes(contents.latents, latents_per_clip) + spare
        try:
            trimmed = trim_latents(latent_values, latents_per_clip, limit)
        except ValueError:  # more than all of them: the file stays too large, and says so
            return contents
        contents = Contents(contents.keyframes, contents.keyframe_quality, trimmed)
        save(contents)
    return contents
