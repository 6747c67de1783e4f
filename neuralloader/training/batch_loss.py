"""The loss of one training batch, or of a process's part of it: how far the frames are off, and what latents cost."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from neuralloader.backends import Backend
from neuralloader.backends.precision import autocast
from neuralloader.training.dataset import Batch
from neuralloader.training.losses import LOSSES, psnr_db, squared_error
from neuralloader.training.recipes import Recipe


@dataclass(frozen=True)
class Share:
    """Which part of a batch a process has: of its frames to train on, and of all its frames."""

    trained: float = 1.0
    frames: float = 1.0


ALL = Share()


class BatchLoss(NamedTuple):
    """What a batch, or a process's part of it, gives.

    Attributes:
        loss: this process's part; those of all processes add up to that of the whole.
        psnr_db: mean over this part's frames.
        latent_bits: estimated, summed over this part's frames that store a latent; 0 where latents have no price.
        num_latents: those frames.
    """

    loss: Tensor
    psnr_db: Tensor
    latent_bits: Tensor
    num_latents: Tensor


def batch_loss(
    backend: Backend,
    batch: Batch,
    recipe: Recipe,
    *,
    noise: Tensor | None = None,
    offsets: Tensor | None = None,
    price_factor: float = 1.0,
    share: Share = ALL,
) -> BatchLoss:
    """A process's part of the loss of a batch.

    Args:
        backend: a network, or a stack.
        batch: this process's units.
        recipe: names the loss, and the price of a bit.
        noise: (N * T, *latent_shape) in -0.5..0.5, where latents will be rounded to whole numbers: stands for that, and
            lets gradients through.
        offsets: the same shape, added to the latents.
        price_factor: on the recipe's price of a bit.
        share: what the batch is of the whole one.
    """
    height, width = batch.frames.shape[-2:]
    with autocast(batch.frames.device):
        latents = None
        if backend.latent_shape is not None:
            latents = backend.encode_latents(batch.frames, batch.keyframes, batch.units)
            if offsets is not None:
                latents = latents.float() + offsets
            if noise is not None:
                latents = latents + noise
            latents = latents * batch.has_latent.view(-1, 1, 1, 1)
        predicted = backend.decode(backend.encode_keyframes(batch.keyframes), batch.units, latents)
    predicted, target = predicted.float().flatten(0, 1), batch.frames.flatten(0, 1).float() / 255
    if not batch.valid.all():
        predicted, target = predicted[batch.valid], target[batch.valid]
    mse = squared_error(predicted, target)
    loss = LOSSES[recipe.loss](mse, predicted, target) * share.trained
    bits = mse.new_zeros(1)
    if latents is not None and backend.latent_bits is None:
        bits = backend.estimate_bits(latents) * batch.has_latent
        loss = loss + price_factor * recipe.rate_weight * bits.mean() / (height * width) * share.frames
    return BatchLoss(
        loss=loss * (backend.num_networks or 1),  # of a stack, the sum: each network is trained as if it were alone
        psnr_db=psnr_db(mse.detach()).mean(),
        latent_bits=bits.detach().sum(),
        num_latents=batch.has_latent.sum(),
    )
