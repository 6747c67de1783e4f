"""All backends on one corpus, for equal minutes and about equal bytes: one table.

    python benchmarks/backends.py CORPUS -o DIR [--minutes 3] [--frame-rate 4] [--size 128x160] [--hold-out 5]
        [--networks dnerv:fast:S nerv:fast:M ...]

Each network is packed into DIR (a pack that is there already is kept), then read back like any reader would: PSNR and
SSIM of its uint8 frames against the originals, bytes by section, and decoded frames a second, warm, the packs taking
turns. With --hold-out N, every Nth frame is kept from training, and both kinds of frames are scored. Prints Markdown.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pack_once import pack_once, pack_path

from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.corpus.frames import FrameFiles
from neuralloader.loading.decode import Decoder
from neuralloader.metrics.quality import psnr_db, ssim
from neuralloader.metrics.rate import bits_per_pixel
from neuralloader.metrics.speed import calls_per_second
from neuralloader.packfile import Pack

NETWORKS = ["dnerv:fast:S", "nerv:fast:S", "cnerv:fast:S", "hnerv:fast:S"]
FRAMES_PER_STEP = 64
ROUNDS = 3


def scores(decoder: Decoder, originals: np.ndarray | FrameFiles) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """PSNR and SSIM of each frame, some frames at a time."""
    for start in range(0, len(originals), FRAMES_PER_STEP):
        rows = np.arange(start, min(start + FRAMES_PER_STEP, len(originals)))
        original = torch.from_numpy(originals[rows]).to(decoder.device).permute(0, 3, 1, 2)
        decoded = decoder.decode(rows)
        yield psnr_db(decoded, original).cpu(), ssim(decoded, original).cpu()


def frames_per_second(decoders: dict[str, Decoder], num_frames: int) -> dict[str, float]:
    """Median over rounds; batches of random frames."""
    rows = np.random.default_rng(0).permutation(num_frames)[:FRAMES_PER_STEP]
    speeds: dict[str, list[float]] = {network: [] for network in decoders}
    for _ in range(ROUNDS):
        for network, decoder in decoders.items():
            speed = calls_per_second(lambda d=decoder: d.decode(rows), device=decoder.device)
            speeds[network].append(speed * len(rows))
    return {network: statistics.median(values) for network, values in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--frame-rate", type=lambda text: None if text == "native" else float(text), default=4.0)
    parser.add_argument("--size", type=lambda text: tuple(int(side) for side in text.split("x")), default=(128, 160))
    parser.add_argument("--hold-out", type=int)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="BACKEND:CONFIG:WIDTH")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    packs = {
        network: Pack(
            pack_once(pack_path(options.output, network), options.corpus, network, options, hold_out=options.hold_out)
        )
        for network in options.networks
    }
    decoders = {network: Decoder(pack, torch.device(options.device)) for network, pack in packs.items()}

    found = find_videos(options.corpus)
    with ingest(found.sources, frame_rate=options.frame_rate, size=options.size, on_error="skip") as corpus:
        quality = {
            network: [torch.cat(parts) for parts in zip(*scores(decoder, corpus.frames), strict=True)]
            for network, decoder in decoders.items()
        }
        num_frames = len(corpus.frames)
    speed = frames_per_second(decoders, num_frames)

    unseen = np.zeros(num_frames, bool)
    if options.hold_out is not None:
        frame = next(iter(packs.values())).frames.all.frame
        unseen = frame % options.hold_out == options.hold_out - 1
    groups = {"": ~unseen} if not unseen.any() else {" seen": ~unseen, " unseen": unseen}
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads; {num_frames} frames\n")
    columns = ["network", "parameters", "steps"]
    columns += [f"{metric}{group}" for group in groups for metric in ("PSNR", "SSIM")]
    columns += ["bits per pixel", "bytes", "weights", "latents", "key-frames", "rest", "frames/s"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for network, pack in packs.items():
        psnr, similarity = quality[network]
        ledger = pack.reader.ledger()
        main_parts = [ledger[name] for name in ("weights", "latents", "keyframes")]
        cells = [network.replace(":", " "), f"{pack.num_parameters:,}", str(pack.description.training["steps"])]
        for mask in groups.values():
            chosen = torch.from_numpy(mask)
            cells += [f"{psnr[chosen].mean():.2f}", f"{similarity[chosen].mean():.4f}"]
        cells.append(f"{bits_per_pixel(pack.size_bytes, num_frames, pack.frame_size):.4f}")
        cells += [f"{size:,}" for size in (pack.size_bytes, *main_parts, pack.size_bytes - sum(main_parts))]
        print(f"| {' | '.join([*cells, f'{speed[network]:.0f}'])} |")


if __name__ == "__main__":
    main()
