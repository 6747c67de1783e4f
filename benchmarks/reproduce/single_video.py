"""What the reproductions share: frames of one video, a paper's network trained on them, and its scores as papers count.

Papers score the network as trained, before its weights are rounded, and time its forward pass alone; so that is what is
done here, and the PSNR of a reader of the finished pack stands beside. Training is in bfloat16 where the device is fast
at it; the papers trained in float32.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from neuralloader.backends import Backend, select_units
from neuralloader.backends.precision import autocast
from neuralloader.clips import UNLABELLED, VideoInfo, index_corpus, index_frames, index_units
from neuralloader.codecs.keyframes import decode_keyframes, encode_keyframes
from neuralloader.container.index import PackIndex
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.loading.decode import Decoder
from neuralloader.metrics.speed import calls_per_second
from neuralloader.packfile import Pack, PackDescription, build_backend, round_latents, save_pack
from neuralloader.training.clock import Duration
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Progress, encode_latents, fit
from neuralloader.training.memory import keep_freed_memory
from neuralloader.training.recipes import KEY_INTERVALS, RECIPES

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
FRAMES_PER_STEP = 4
WEIGHT_BITS = 8


@dataclass(frozen=True)
class Setting:
    """How much of the published setting is run; the row says so.

    Attributes:
        size: (height, width) of the frames.
        num_frames: at most so many, from the start.
        epochs: of training.
        name: a few words for the row.
    """

    size: tuple[int, int]
    num_frames: int
    epochs: int
    name: str


@dataclass(frozen=True)
class Reproduced:
    """What came of training a network on one video.

    Attributes:
        psnr_db: (num_frames,) of each frame, of the network as trained, on float frames in 0..1.
        pack_psnr_db: mean over frames, of the finished pack with 8-bit weights.
        num_parameters: of what decoding needs, and the latents' values, which the papers count as size too.
        frames_per_second: of the forward pass, a batch of 1 as in the papers.
        minutes: of training.
    """

    psnr_db: np.ndarray
    pack_psnr_db: float
    num_parameters: int
    frames_per_second: float
    minutes: float


def read_frames(source: Path, setting: Setting) -> np.ndarray:
    """Frames of a video or of a folder of images: cropped around the centre to the shape of the setting, then resized.

    Returns:
        (n, H, W, 3) uint8.
    """
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise SystemExit(f"{source} holds no images; give a folder of frames, or a video")
        frames = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths[: setting.num_frames]])
    else:
        found = find_videos(source)
        with ingest(found.sources, frame_rate=None, size=(64, 64)) as small:
            size = small.videos[0].source_size
        with ingest(found.sources, frame_rate=None, size=size) as corpus:
            frames = np.array(corpus.frames[: setting.num_frames])
    height, width = setting.size
    scale = min(frames.shape[1] / height, frames.shape[2] / width)
    crop = round(height * scale), round(width * scale)
    top, left = (frames.shape[1] - crop[0]) // 2, (frames.shape[2] - crop[1]) // 2
    frames = frames[:, top : top + crop[0], left : left + crop[1]]
    if crop == setting.size:
        return frames
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS)) for f in frames])


def reproduce(
    backend_name: str,
    network: object,
    frames: np.ndarray,
    epochs: int,
    device: torch.device,
    *,
    held_out: np.ndarray | None = None,
    lengths: Sequence[int] | None = None,
) -> Reproduced:
    """Train a network of a paper configuration on frames, and score it.

    Args:
        backend_name: "nerv", and so on.
        network: its record.
        frames: (n, H, W, 3) uint8.
        epochs: passes over the frames.
        device: where to train.
        held_out: (n,) bool, frames that training does not see; they are scored all the same.
        lengths: frames of each of several videos behind one another; None is one video.
    """
    keep_freed_memory()
    key_interval = KEY_INTERVALS.get((backend_name, "paper"))
    num_frames = np.array([len(frames)] if lengths is None else lengths)
    clips, keys = index_corpus(num_frames, frames_per_clip=8, key_interval=key_interval)
    table = index_frames(clips, keys)
    recipe = RECIPES[backend_name, "paper"]
    files = encode_keyframes(list(frames[table.key_rows]), "avif", recipe.keyframe_quality) if len(keys) else []
    size: tuple[int, int] = (frames.shape[1], frames.shape[2])
    decoded_keys = decode_keyframes(files, "avif", size) if files else np.empty((0, *size, 3), np.uint8)
    torch.manual_seed(0)
    backend = build_backend(backend_name, "paper", network).to(device)
    data = TrainingSet(frames, decoded_keys, table, index_units(clips, backend.frames_per_unit), device, held_out)
    start = time.monotonic()
    with tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar:30}| {elapsed} {postfix}", mininterval=1) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(f"{progress.psnr_db:.2f} dB", refresh=False)
            bar.update(progress.done - bar.n)

        duration = Duration(epochs=epochs)
        fit(backend, data, recipe, duration, seed=0, weight_bits=WEIGHT_BITS, on_progress=show)
    minutes = (time.monotonic() - start) / 60

    values = None
    if backend.latent_shape is not None:
        values = encode_latents(backend, data, units_per_batch=FRAMES_PER_STEP)
    psnr = _psnr_as_trained(backend, data, values)
    latents = None if values is None else round_latents(values, backend.latent_bits)
    stored = sum(p.numel() for name, p in backend.named_parameters() if backend.is_stored(name))
    index = PackIndex(
        tuple(VideoInfo(f"{i}.avi", UNLABELLED, int(n), int(n), 25.0, 25.0, size) for i, n in enumerate(num_frames)),
        (),
        clips,
        keys,
    )
    description = PackDescription(
        backend_name,
        "paper",
        network,
        size,
        8,
        key_interval,
        None,
        (),
        "avif",
        recipe.keyframe_quality,
        WEIGHT_BITS,
        {},
        {},
    )
    speed = _frames_per_second(backend, data, values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reproduced.nvpack"
        save_pack(path, description, index, backend, files, latents)
        decoder = Decoder(Pack(path), device)
        read = torch.cat([_psnr(decoder.decode(rows).float() / 255, frames[rows]) for rows in _steps(len(frames))])
    return Reproduced(psnr, float(read.mean()), stored + (0 if values is None else values.size), speed, minutes)


@torch.inference_mode()
def _psnr_as_trained(backend: Backend, data: TrainingSet, latents: np.ndarray | None) -> np.ndarray:
    found = np.zeros(len(data.table))
    for units in _steps(len(data.units)):
        batch = data.unit_batch(units)
        with autocast(data.device):
            own = None if latents is None else torch.from_numpy(latents[units]).to(data.device)
            decoded = backend.decode(backend.encode_keyframes(batch.keyframes), batch.units, own)
        original = batch.frames.flatten(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        psnr = _psnr(decoded.float().flatten(0, 1).clamp(0, 1), original).numpy()
        is_valid = data.units.valid[units].ravel()
        found[data.units.rows[units].ravel()[is_valid]] = psnr[is_valid]
    return found


@torch.inference_mode()
def _frames_per_second(backend: Backend, data: TrainingSet, latents: np.ndarray | None) -> float:
    """Forward passes alone, one unit at a time, everything at hand on the device: as the papers time it."""
    rows = data.units.rows[:1]
    keys, units = select_units(data.table, rows)
    batch = data.unit_batch(np.arange(1))
    own = None if latents is None else torch.from_numpy(latents[:1]).to(data.device)
    with autocast(data.device):
        features = backend.encode_keyframes(batch.keyframes) if len(keys) else ()
        units = units.to(data.device)
        calls = calls_per_second(lambda: backend.decode(features, units, own), seconds=2, device=data.device)
    return calls * rows.shape[1]


def _steps(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), -(-count // FRAMES_PER_STEP))


def _psnr(decoded: Tensor, original: np.ndarray) -> Tensor:
    """(n, 3, H, W) in 0..1 and (n, H, W, 3) uint8 -> (n,) dB."""
    target = torch.from_numpy(original).to(decoded.device).permute(0, 3, 1, 2).float() / 255
    return -10 * torch.log10((decoded - target).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)).cpu()


def parse_arguments(doc: str | None, *, choices: Sequence[str], default: str) -> argparse.Namespace:
    """The options that all reproductions have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, help="a video, or a folder of frames")
    parser.add_argument("--model", default=default, choices=choices)
    parser.add_argument("--epochs", type=int, help="other than published")
    parser.add_argument("--reduced", action="store_true", help="small frames, few of them and few epochs, for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def print_row(columns: dict[str, str]) -> None:
    """One row of Markdown, with its head."""
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    print(f"| {' | '.join(columns.values())} |")
