"""What a run works with: device, sizes, packs, and the time that is left."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from neuralloader.loading.dataset import NeuralVideoDataset
from neuralloader.loading.samplers import RandomClips

Network = tuple[str, str]  # backend and configuration
FRAMES_PER_CLIP = 8


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        frame: (height, width) of the packs.
        num_videos: in a pack, one clip of each in a batch; ``num_videos_paper`` in those of the paper configurations,
            whose key-frame features are large.
        frames_per_video: of each.
        width: of the networks.
        batches: clips in a batch, of the ladder.
        batch: of all else.
        race_batches: that the checks of the loader read.
        matrix, copy_bytes: what ceilings are measured with.
        training_size, training_steps, warm_up_steps, consumer: of the training step.
        rounds, seconds: turns of each timing, and what each takes at least.
    """

    frame: tuple[int, int] = (256, 320)
    num_videos: int = 256
    num_videos_paper: int = 64
    frames_per_video: int = 16
    width: str | int = "S"
    batches: tuple[int, ...] = (32, 1, 8, 256)  # the most telling first: time may run out
    batch: int = 32
    race_batches: int = 8
    matrix: int = 8192
    copy_bytes: int = 1 << 30
    training_size: tuple[int, int] = (224, 224)
    training_steps: int = 8
    warm_up_steps: int = 4  # more than are decoded ahead
    consumer: str = "resnet50"
    rounds: int = 5
    seconds: float = 0.2


SMALL = Sizes(
    frame=(32, 64),
    num_videos=4,
    num_videos_paper=4,
    width=8,
    batches=(2, 1),
    batch=2,
    race_batches=3,
    matrix=256,
    copy_bytes=1 << 22,
    training_size=(32, 32),
    training_steps=1,
    warm_up_steps=1,
    consumer="resnet18",
    rounds=1,
    seconds=0.01,
)


@dataclass(frozen=True)
class Mode:
    """How a pack is decoded."""

    name: str
    precision: torch.dtype
    compile: bool = False
    cuda_graphs: bool = False

    @property
    def is_eager(self) -> bool:
        return not (self.compile or self.cuda_graphs)


EAGER = Mode("eager", torch.bfloat16)
COMPILED = Mode("compiled", torch.bfloat16, compile=True)
GRAPHED = Mode("graphed", torch.bfloat16, cuda_graphs=True)
COMPILED_GRAPHED = Mode("compiled+graphed", torch.bfloat16, compile=True, cuda_graphs=True)


@dataclass
class Setting:
    """A run.

    Attributes:
        device: where to decode.
        sizes: of everything.
        packs: by network.
        folder: for packs that are made on the way.
        deadline: of the part that runs, on the clock of ``time.monotonic``.
    """

    device: torch.device
    sizes: Sizes
    packs: dict[Network, Path]
    folder: Path
    deadline: float = field(default=float("inf"))

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def why_not(self, mode: Mode, seconds: float = 0.0) -> str | None:
        """Why a row in this mode cannot be measured: it needs CUDA, or more seconds than are left."""
        if not (self.is_cuda or mode.is_eager):
            return "needs CUDA"
        return None if self.seconds_left() > seconds else "no time left"

    def open(
        self, network: Network, mode: Mode, *, device: torch.device | None = None, size: tuple[int, int] | None = None
    ) -> NeuralVideoDataset:
        """A pack in some mode: an item for each video, 8 frames from a random place."""
        return NeuralVideoDataset(
            self.packs[network],
            sampler=RandomClips(num_frames_per_clip=FRAMES_PER_CLIP),
            seed=0,
            device=self.device if device is None else device,
            size=size,
            cache="device",
            cache_bytes=32 << 30,
            precision=mode.precision,
            compile=mode.compile,
            cuda_graphs=mode.cuda_graphs,
        )
