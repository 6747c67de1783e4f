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


def augment(batch: Batch, changes: Sequence[Change]) -> Batch:
    """Leave half of the batches as they are, and change the others. Draws from torch's generator.

    Args:
        batch: of a network that is not told a frame's place in its video.
        changes: all frames and key-frames of a batch are changed in the same way. "mirror" swaps left and right in half
            of the cases, "reverse" swaps the start and the end key-frame in half of them, "shift" rolls frames by a
            random distance: what leaves on one side enters on the other.
    """
    if not changes or torch.rand(()) >= SHARE_CHANGED:
        return batch
    frames, keyframes, units = batch.frames, batch.keyframes, batch.units
    if "mirror" in changes and torch.rand(()) < 0.5:
        frames, keyframes = frames.flip(-1), keyframes.flip(-1)
    if "reverse" in changes and torch.rand(()) < 0.5:
        units = replace(units, keys=units.keys.flip(1), phase=1 - units.phase)
    if "shift" in changes:
        distance = [int(torch.randint(side, ())) for side in frames.shape[-2:]]
        frames, keyframes = frames.roll(distance, (-2, -1)), keyframes.roll(distance, (-2, -1))
    return replace(batch, frames=frames, keyframes=keyframes, units=units)
