"""How each configuration is trained: loss, optimiser, schedule. A recipe holds numbers only; ``fit`` follows it."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from neuralloader.training.augment import Change


@dataclass(frozen=True)
class Recipe:
    """Everything that ``fit`` needs to know besides the data and the time it has.

    Attributes:
        loss: name in ``losses.LOSSES``.
        learning_rate: peak rate of AdamW.
        matrix_learning_rate: peak rate of Muon for weights with two or more axes; None gives them to AdamW too.
        matrix_weight_decay: of Muon, as a share of a weight for each step at a rate of 1.
        warmup: share of the training spent raising the rate linearly from ``warmup_start`` to 1, before the cosine.
        warmup_start: factor on the learning rate at the first step.
        clips_per_step: clips in a training step, all their units.
        frames_per_step: frames in a step instead, each drawn alone; for networks whose unit is one frame.
        frames_per_network: the same for each network, where every video has one of its own.
        changes: to the batches of a network that is to encode videos it was not trained on.
        betas: of AdamW.
        max_gradient_norm: gradients are clipped to this norm; None leaves them.
        rate_weight: price of the latents, in units of the loss for one bit per pixel.
        rounding_share: last share of the training in which the weights are rounded as they will be stored.
        keyframe_quality: of the key-frames' image codec, where the user names none.
        weight_bits: of a stored weight, where the user names none.
        offset_share: last share of the training in which each stored latent has an offset of its own (``offsets``).
        offset_learning_rate: of these, in units of a latent's step, before the fall to 0.
    """

    loss: Literal["psnr", "l2_ssim", "l1_ssim", "l2"]
    learning_rate: float
    matrix_learning_rate: float | None
    warmup: float
    warmup_start: float
    clips_per_step: int
    max_gradient_norm: float | None
    rate_weight: float
    rounding_share: float
    keyframe_quality: int
    weight_bits: int
    frames_per_step: int | None = None
    frames_per_network: int = 4
    changes: tuple[Change, ...] = ("mirror", "shift")
    betas: tuple[float, float] = (0.9, 0.999)
    matrix_weight_decay: float = 0.0
    offset_share: float = 0.0
    offset_learning_rate: float = 0.05

    def rate_factor(self, progress: float) -> float:
        """Factor on the learning rates when ``progress`` (0 to 1) is behind us: warm-up, then cosine to 0."""
        if progress < self.warmup:
            return self.warmup_start + (1 - self.warmup_start) * progress / self.warmup
        return (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2

    def offset_rate(self, progress: float) -> float:
        """Learning rate of the latents' offsets: even for half of their share of the training, then straight to 0."""
        left = (1 - progress) / max(self.offset_share, 1e-9)
        return self.offset_learning_rate * min(1.0, 2 * left)


FAST = Recipe(
    loss="psnr",
    learning_rate=4e-3,
    matrix_learning_rate=0.02,
    matrix_weight_decay=0.1,
    warmup=0.03,
    warmup_start=0.1,
    clips_per_step=4,
    max_gradient_norm=30.0,
    rate_weight=7.0,
    rounding_share=0.4,
    keyframe_quality=50,
    weight_bits=6,
    offset_share=0.4,
    offset_learning_rate=0.1,
    changes=("mirror", "reverse"),
)

FAST_FRAMES = replace(
    FAST, frames_per_step=16, changes=("mirror", "shift")
)  # without key-frames, the frames of a clip have nothing in common

# D-NeRV's code for UCF101; its 32 clips a step are kept where the corpus has them to spare (see ``fit``)
PAPER = Recipe(
    loss="l2_ssim",
    learning_rate=5e-4,
    matrix_learning_rate=None,
    warmup=0.2,
    warmup_start=0.1,
    clips_per_step=32,
    max_gradient_norm=None,
    rate_weight=0.0,
    rounding_share=0.0,
    keyframe_quality=30,
    weight_bits=8,
)
# NeRV, section 4.1, and for what CNeRV does not tell
PAPER_NERV = replace(PAPER, loss="l1_ssim", betas=(0.5, 0.999), frames_per_step=1, frames_per_network=1)
# HNeRV, section 4.1; the warm-up is the code's
PAPER_HNERV = replace(PAPER, loss="l2", learning_rate=1e-3, warmup=0.1, frames_per_step=2, frames_per_network=2)

RECIPES = {
    ("dnerv", "fast"): FAST,
    ("dnerv", "paper"): PAPER,
    ("nerv", "fast"): FAST_FRAMES,
    ("nerv", "paper"): PAPER_NERV,
    ("cnerv", "fast"): FAST_FRAMES,
    ("cnerv", "paper"): PAPER_NERV,
    ("hnerv", "fast"): FAST_FRAMES,
    ("hnerv", "paper"): PAPER_HNERV,
}
KEY_INTERVALS = {("dnerv", "fast"): 8, ("dnerv", "paper"): 8}  # frames between key-frames; the paper's is its clip
