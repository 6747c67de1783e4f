"""What a loader feeds: a ResNet over frames with TSM's temporal shift, and a training step of it.

    (B, T, 3, H, W) uint8 -> (B * T, 3, H, W) -> ResNet, each residual block:  x --- shift - conv1 ... - conv -(+)-
                                                                                '---------------------------'
    (B * T, classes) -> mean over T -> (B, classes)

The shift moves one eighth of the channels a frame back in time and one eighth a frame ahead, and fills with zeros
(the residual shift of Lin et al., TSM, ICCV 2019). Weights are random: it is here for its time, not its accuracy.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck

ConsumerName = Literal["resnet18", "resnet50"]

_SHIFTED_SHARE = 8  # one in so many channels goes each way
# So small that nothing is learnt. A network that has learnt its few clips by heart has gradients near zero, which a CPU
# takes ten times as long to calculate with (denormal numbers), so that one loader's steps would not be another's.
_LEARNING_RATE = 1e-8
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1


def shift_in_time(features: Tensor, frames_per_clip: int) -> Tensor:
    """(B * T, C, H, W) -> the same: the first C // 8 channels show the next frame, the next C // 8 the one before."""
    clips = features.unflatten(0, (-1, frames_per_clip))  # (B, T, C, H, W)
    share = features.shape[1] // _SHIFTED_SHARE
    shifted = torch.zeros_like(clips)
    shifted[:, :-1, :share] = clips[:, 1:, :share]
    shifted[:, 1:, share : 2 * share] = clips[:, :-1, share : 2 * share]
    shifted[:, :, 2 * share :] = clips[:, :, 2 * share :]
    return shifted.flatten(0, 1)


class ShiftedConv(nn.Module):
    """A convolution that first shifts its input in time."""

    def __init__(self, conv: nn.Conv2d, frames_per_clip: int):
        super().__init__()
        self.conv, self.frames_per_clip = conv, frames_per_clip

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(shift_in_time(features, self.frames_per_clip))


class ShiftedResNet(nn.Module):
    """ResNet-18 or -50 with the shift before the first convolution of every residual block.

    Args:
        name: "resnet18" or "resnet50".
        num_classes: logits to give.
        frames_per_clip: T.

    Raises:
        ValueError: another name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: ConsumerName, num_classes: int, frames_per_clip: int):
        super().__init__()
        if name not in get_args(ConsumerName):
            raise ValueError(f"consumer={name!r} must be one of {', '.join(get_args(ConsumerName))}")
        self.resnet = getattr(resnet, name)(weights=None, num_classes=num_classes)
        for block in [module for module in self.resnet.modules() if isinstance(module, BasicBlock | Bottleneck)]:
            block.conv1 = ShiftedConv(block.conv1, frames_per_clip)  # pyright: ignore[reportAttributeAccessIssue]
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, videos: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, num_classes)."""
        frames = (videos.flatten(0, 1).float() / 255 - self.mean) / self.std  # (B * T, 3, H, W)
        return self.resnet(frames).unflatten(0, (len(videos), -1)).mean(dim=1)


class Consumer:
    """A network in training: ``step`` is forward, backward and SGD, all alike in what they cost.

    Args:
        name: "resnet18" or "resnet50".
        num_classes: classes of the corpus; 0 where it has none.
        frames_per_clip: T.
        device: where it is trained.
    """

    def __init__(self, name: ConsumerName, num_classes: int, frames_per_clip: int, device: torch.device):
        self.network = ShiftedResNet(name, max(2, num_classes), frames_per_clip).to(device)
        self._optimizer = torch.optim.SGD(self.network.parameters(), lr=_LEARNING_RATE, momentum=0.9)

    def step(self, videos: Tensor, labels: Tensor) -> Tensor:
        """One training step.

        Args:
            videos: (B, T, 3, H, W) uint8 on the device.
            labels: (B,) int64 on the device; those below 0 (no class) count as class 0.

        Returns:
            The loss, a scalar on the device.
        """
        loss = nn.functional.cross_entropy(self.network(videos), labels.clamp(min=0))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()
