"""What ``neuralloader bench`` is asked for, and what it found: records alone, for the table, the chart and JSON."""

from dataclasses import dataclass

from neuralloader.metrics.memory import Memory
from neuralloader.report.batches import SamplerName
from neuralloader.report.consumer import ConsumerName


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        sampler: how clips are chosen: all windows, random, regular, segments.
        frames_per_clip: T.
        batch_size: clips in a batch.
        num_clips: clips to read in a pass, at most.
        num_videos: videos to draw them from, at most; all of these are prepared for the rivals.
        num_rounds: turns of each reader.
        consumer: the network that is trained from the loaders; None leaves this out.
        seed: of the choice of videos and clips.
    """

    sampler: SamplerName = "windows"
    frames_per_clip: int = 8
    batch_size: int = 8
    num_clips: int = 64
    num_videos: int = 20
    num_rounds: int = 5
    consumer: ConsumerName | None = "resnet18"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("frames_per_clip", "batch_size", "num_clips", "num_videos", "num_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")


@dataclass(frozen=True)
class ReaderRow:
    """One reader's figures.

    Attributes:
        name: the reader, and what it reads.
        clips_per_second, frames_per_second: warm.
        cold_clips_per_second: over the first pass, with opening.
        to_the_pack: its clips/s over those of the pack: above 1, it is faster.
        batch_ms, batch_ms_95: a batch's median and 95th percentile, warm, over all rounds.
        useful_share: of the frames it decodes, those that were asked for; None where its library does not tell.
        memory: what it takes to open it and read all clips; None where the system does not tell.
        bytes_per_frame: of its files, over the stored frames in them.
        psnr_db, worst_psnr_db: mean over frames, and of the worst one, against the frames that were packed; None
            without the originals. A reader far below others of the same files gives other frames than asked for.
    """

    name: str
    clips_per_second: float
    frames_per_second: float
    cold_clips_per_second: float
    to_the_pack: float
    batch_ms: float
    batch_ms_95: float
    useful_share: float | None
    memory: Memory | None
    bytes_per_frame: float
    psnr_db: float | None
    worst_psnr_db: float | None


@dataclass(frozen=True)
class WaitingRow:
    """One loader's figures in training: medians over all steps.

    Attributes:
        name: the reader, and what it reads.
        num_workers: of its ``DataLoader``.
        waiting_ms, training_ms: of a step.
        waiting_share: of a step's time.
    """

    name: str
    num_workers: int
    waiting_ms: float
    training_ms: float
    waiting_share: float


@dataclass(frozen=True)
class NotMeasured:
    """A reader that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class BenchResult:
    """Everything that was measured, and what it was measured with; ``dataclasses.asdict`` makes JSON of it.

    Attributes:
        pack: its path.
        backend, config: its network.
        frame_size: (height, width).
        settings: as they were asked for.
        device, threads, torch: what it ran on.
        num_videos, num_videos_in_pack: chosen, and there.
        num_clips, batch_size: as many as there were of those asked for.
        num_frames: in the clips of a pass.
        num_different_frames: of these, those that are not repeated in their clip.
        readers: the pack first.
        waiting: loaders in training, the pack first.
        not_measured: what could not take part.
    """

    pack: str
    backend: str
    config: str
    frame_size: tuple[int, int]
    settings: BenchSettings
    device: str
    threads: int
    torch: str
    num_videos: int
    num_videos_in_pack: int
    num_clips: int
    batch_size: int
    num_frames: int
    num_different_frames: int
    readers: tuple[ReaderRow, ...]
    waiting: tuple[WaitingRow, ...]
    not_measured: tuple[NotMeasured, ...]
