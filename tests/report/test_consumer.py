"""The network that loaders feed: the shift against its definition, where it stands, and that a step trains."""

import pytest
import torch
from torchvision.models.resnet import resnet18

from neuralloader.report.consumer import Consumer, ShiftedConv, ShiftedResNet, shift_in_time

CPU = torch.device("cpu")


def test_the_shift_moves_an_eighth_each_way() -> None:
    features = torch.randn(2 * 4, 16, 3, 5)
    clips, shifted = (each.unflatten(0, (2, 4)) for each in (features, shift_in_time(features, 4)))
    for time in range(4):
        after = clips[:, time + 1, :2] if time < 3 else torch.zeros(2, 2, 3, 5)
        before = clips[:, time - 1, 2:4] if time > 0 else torch.zeros(2, 2, 3, 5)
        assert torch.equal(shifted[:, time, :2], after)
        assert torch.equal(shifted[:, time, 2:4], before)
        assert torch.equal(shifted[:, time, 4:], clips[:, time, 4:])


@pytest.mark.parametrize(("name", "num_blocks"), [("resnet18", 8), ("resnet50", 16)])
def test_every_residual_block_shifts_before_its_first_convolution(name: str, num_blocks: int) -> None:
    network = ShiftedResNet(name, 5, 8)  # type: ignore[arg-type]
    shifted = [where for where, module in network.named_modules() if isinstance(module, ShiftedConv)]
    assert len(shifted) == num_blocks
    assert all(where.endswith(".conv1") and ".layer" in where for where in shifted)


def test_it_has_resnets_parameters() -> None:
    ours = sum(p.numel() for p in ShiftedResNet("resnet18", 5, 8).parameters())
    assert ours == sum(p.numel() for p in resnet18(num_classes=5).parameters())


def test_uint8_videos_to_logits() -> None:
    network = ShiftedResNet("resnet18", 5, 4).eval()
    videos = torch.randint(0, 256, (3, 4, 3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits = network(videos)
        assert logits.shape == (3, 5)
        assert torch.allclose(network(videos[1:2]), logits[1:2], atol=1e-4), "clips do not mix"
        assert not torch.allclose(network(videos.flip(1)), logits, atol=1e-4), "the order of frames matters"


def test_every_step_goes_backward_and_the_loss_stays() -> None:
    """With a loss near zero, steps would take another time than before."""
    torch.manual_seed(0)
    consumer = Consumer("resnet18", 2, 2, CPU)
    videos, labels = torch.randint(0, 256, (4, 2, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 0, 0, 0])
    losses = [float(consumer.step(videos, labels)) for _ in range(20)]
    assert losses[-1] == pytest.approx(losses[0], rel=0.05)
    gradients = [parameter.grad for parameter in consumer.network.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_videos_without_a_class() -> None:
    consumer = Consumer("resnet18", 0, 2, CPU)
    loss = consumer.step(torch.zeros(2, 2, 3, 32, 32, dtype=torch.uint8), torch.tensor([-1, -1]))
    assert torch.isfinite(loss)


def test_an_unknown_network() -> None:
    with pytest.raises(ValueError, match="consumer='vgg' must be one of resnet18, resnet50"):
        ShiftedResNet("vgg", 5, 8)  # type: ignore[arg-type]
