"""Changes to training batches, for networks that will meet videos they were not trained on.

They keep a network from learning the backgrounds of its corpus by heart. Frames it was trained on lose by it, others
gain more (docs/experiments.md, "What amortisation is worth").
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from neuralloader.training.dataset import Batch

Change = Literal["mirror", "reverse", "shift"]
SHARE_CHANGED = 0.5  # of the batches: others keep what is to be stored in sight


def augment(batch: Batch, changes: Sequence[Change], generator: torch.Generator | None = None) -> Batch:
    """Leave half of the batches as they are, and change the others.

    Args:
        batch: of a network that is not told a frame's place in its video.
        changes: all frames and key-frames of a batch are changed in the same way. "mirror" swaps left and right in half
            of the cases, "reverse" swaps the start and the end key-frame in half of them, "shift" rolls frames by a
            random distance: what leaves on one side enters on the other.
        generator: where chance comes from, on the CPU; None is torch's own.
    """
    if not changes or torch.rand((), generator=generator) >= SHARE_CHANGED:
        return batch
    frames, keyframes, units = batch.frames, batch.keyframes, batch.units
    if "mirror" in changes and torch.rand((), generator=generator) < 0.5:
        frames, keyframes = frames.flip(-1), keyframes.flip(-1)
    if "reverse" in changes and torch.rand((), generator=generator) < 0.5:
        units = replace(units, keys=units.keys.flip(1), phase=1 - units.phase)
    if "shift" in changes:
        distance = [int(torch.randint(side, (), generator=generator)) for side in frames.shape[-2:]]
        frames, keyframes = frames.roll(distance, (-2, -1)), keyframes.roll(distance, (-2, -1))
    return replace(batch, frames=frames, keyframes=keyframes, units=units)
