"""``neuralloader demo``: the whole story on a generated corpus: videos, pack, batches, classifier, contact sheet."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from neuralloader.corpus.synthetic import write_synthetic_corpus
from neuralloader.loading.dataset import NeuralVideoDataset
from neuralloader.metrics.speed import calls_per_second
from neuralloader.packfile import Pack
from neuralloader.packing import pack
from neuralloader.report.measure import describe_pack
from neuralloader.report.sheet import contact_sheet
from neuralloader.training.clock import Duration
from neuralloader.training.settings import PackSettings

VIDEOS_PER_CLASS, TEST_VIDEOS_PER_CLASS = 20, 5
FRAMES_PER_VIDEO, FRAME_RATE, SIZE = 24, 8.0, (96, 128)
EPOCHS, BATCH_SIZE = 14, 16
SHEET_COLUMNS = 8
MARKER = "neuralloader-demo"  # a file that says: this folder was made by the demo, and may be made anew

Report = Callable[[str, float, str], None]


def run_demo(folder: Path, *, minutes: float, report: Report) -> list[str]:
    """Run the demo.

    Args:
        folder: where everything goes; made, or emptied where an earlier demo made it.
        minutes: how long to train the network of the pack.
        report: called with stage, share done and a few words.

    Returns:
        Six lines of figures.

    Raises:
        FileExistsError: the folder holds something that is not a demo's.
    """
    _prepare(folder)
    videos, pack_path, sheet_path = folder / "videos", folder / "demo.nvpack", folder / "contact-sheet.png"
    write_synthetic_corpus(
        videos,
        num_videos_per_class=VIDEOS_PER_CLASS,
        num_frames=FRAMES_PER_VIDEO,
        size=SIZE,
        frame_rate=FRAME_RATE,
        progress=lambda done, total: report("make videos", done / total, f"{done} of {total}"),
    )
    settings = PackSettings(frame_rate=None, size=SIZE, duration=Duration(minutes=minutes))
    pack(videos, pack_path, settings, report=report)

    dataset = NeuralVideoDataset(pack_path)
    _draw_sheet(dataset, videos, sheet_path)
    batch = list(range(BATCH_SIZE))
    batches_per_second = calls_per_second(lambda: dataset.__getitems__(batch))
    accuracy = _train_classifier(dataset, report)

    facts = describe_pack(Pack(pack_path))
    video_bytes = sum(path.stat().st_size for path in videos.rglob("*.avi"))
    return [
        f"bytes           {facts['size_bytes']:,} in one pack ({video_bytes:,} as MJPEG videos)",
        f"bits per pixel  {facts['bits_per_pixel']:.3f}",
        f"PSNR            {facts['psnr_db']:.2f} dB, mean over {facts['num_frames']} frames",
        f"frames/s        {batches_per_second * BATCH_SIZE * dataset.frames_per_clip:.0f} decoded in batches of "
        f"{BATCH_SIZE} clips",
        f"accuracy        {accuracy:.0%} on {TEST_VIDEOS_PER_CLASS * len(dataset.classes)} unseen videos, trained from "
        f"the pack (chance: {1 / len(dataset.classes):.0%})",
        f"files           {sheet_path}, {pack_path}, {videos}",
    ]


def _prepare(folder: Path) -> None:
    """An empty folder with the demo's mark."""
    if folder.exists() and not (folder / MARKER).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and was not made by the demo; choose another with -o")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _draw_sheet(dataset: NeuralVideoDataset, videos: Path, path: Path) -> None:
    """One frame from each of eight videos spread over the corpus, in the middle between key-frames."""
    step = len(dataset.pack.index.videos) // SHEET_COLUMNS
    originals, decoded, titles = [], [], []
    for column in range(SHEET_COLUMNS):
        video = column * step + column % 2
        name = dataset.pack.index.videos[video].name
        frame = 4 + 8 * (column % 3)
        windows_per_video = FRAMES_PER_VIDEO // dataset.frames_per_clip
        clip, _ = dataset[video * windows_per_video + frame // dataset.frames_per_clip]
        decoded.append(clip[frame % dataset.frames_per_clip].permute(1, 2, 0).cpu().numpy())
        originals.append(_read_original(videos / name, frame))
        titles.append(f"{Path(name).stem}, frame {frame}")
    contact_sheet(np.stack(originals), np.stack(decoded), titles).save(path)


def _read_original(path: Path, frame: int) -> np.ndarray:
    """(H, W, 3) uint8, read in a process of its own as the packer does."""
    from neuralloader.corpus.cache import ingest
    from neuralloader.corpus.find import find_videos

    with ingest(find_videos(path).sources, frame_rate=None, size=SIZE) as corpus:
        return np.array(corpus.frames[frame])


class MotionNet(nn.Module):
    """A small network that sees only changes between neighbouring frames: (B, T, 3, H, W) uint8 -> (B, classes)."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            *self._layer(1, 16, stride=(1, 2, 2)),
            *self._layer(16, 32, stride=(1, 2, 2)),
            *self._layer(32, 64, stride=(2, 2, 2)),
            *self._layer(64, 64, stride=(1, 2, 2)),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )

    @staticmethod
    def _layer(channels_in: int, channels_out: int, stride: tuple[int, int, int]) -> list[nn.Module]:
        conv = nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        return [conv, nn.BatchNorm3d(channels_out), nn.ReLU()]

    def forward(self, videos: Tensor) -> Tensor:
        grey = videos.float().mean(dim=2) / 64  # (B, T, H, W)
        grey = F.avg_pool2d(grey, 2)
        return self.layers(grey.diff(dim=1).unsqueeze(1))


def _train_classifier(dataset: NeuralVideoDataset, report: Report) -> float:
    """Train on clips of most videos; the share of the other videos' clips that is then told right."""
    torch.manual_seed(0)
    first_test = VIDEOS_PER_CLASS - TEST_VIDEOS_PER_CLASS
    numbers = [int(Path(name).stem.rpartition("_")[2]) for name, _ in dataset.samples]
    train = Subset(dataset, [i for i, number in enumerate(numbers) if number < first_test])
    test = Subset(dataset, [i for i, number in enumerate(numbers) if number >= first_test])
    loader = DataLoader(train, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
    network = MotionNet(len(dataset.classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=EPOCHS * len(loader))
    for epoch in range(EPOCHS):
        for videos, labels in loader:
            loss = F.cross_entropy(network(_flipped(videos)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        report("train classifier", (epoch + 1) / EPOCHS, f"loss {float(loss.detach()):.3f}")
    network.eval()
    with torch.inference_mode():
        right = [network(videos).argmax(dim=1) == labels for videos, labels in DataLoader(test, BATCH_SIZE)]
    return float(torch.cat(right).float().mean())


def _flipped(videos: Tensor) -> Tensor:
    """Half of the batches mirrored left to right."""
    return videos.flip(-1) if torch.rand(()) < 0.5 else videos
