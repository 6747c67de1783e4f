"""Frames that no pack holds: what networks see between stored frames, beside the frames that were there.

    python benchmarks/interpolation.py CORPUS -o DIR [--minutes 2] [--frame-rate 6] [--size 128x160]
        [--networks dnerv:fast:S hnerv:fast:S cnerv:fast:S]

Each network is packed from every second frame of the corpus: at --frame-rate, from sources read at twice that rate. The
frames in between are then asked for (``get_frames_interpolated_at``) and compared with the true ones; so is the mean of
the two neighbours, of the originals and of the decoded frames. Packs that are in DIR already are kept. Prints Markdown.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from pack_once import pack_once, pack_path
from torch import Tensor

import neuralloader
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.metrics.quality import psnr_db, ssim

NETWORKS = ["dnerv:fast:S", "hnerv:fast:S", "cnerv:fast:S"]


def read_videos(options: argparse.Namespace) -> dict[str, Tensor]:
    """Name to frames at twice the rate, (2 n - 1, 3, H, W) uint8: even ones are stored, odd ones lie between."""
    found = find_videos(options.corpus)
    with ingest(found.sources, frame_rate=2 * options.frame_rate, size=options.size) as corpus:
        ends = np.cumsum([video.num_frames for video in corpus.videos])
        parts = np.split(np.array(corpus.frames), ends[:-1])
    videos = {}
    for video, part in zip(corpus.videos, parts, strict=True):
        frames = torch.from_numpy(part).permute(0, 3, 1, 2)
        videos[video.name] = frames if len(frames) % 2 else frames[:-1]
    return videos


def mean_of_neighbours(frames: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n - 1, 3, H, W) uint8."""
    return ((frames[:-1].int() + frames[1:].int() + 1) // 2).to(torch.uint8)


def scores(pairs: list[tuple[Tensor, Tensor]]) -> str:
    """Mean PSNR and SSIM over all frames of some videos."""
    psnr = torch.cat([psnr_db(made, true) for made, true in pairs]).mean()
    similarity = torch.cat([ssim(made, true) for made, true in pairs]).mean()
    return f"{psnr:.2f} / {similarity:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--frame-rate", type=float, default=6.0)
    parser.add_argument("--size", type=lambda text: tuple(int(side) for side in text.split("x")), default=(128, 160))
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="BACKEND:CONFIG:WIDTH")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    paths = {
        network: pack_once(pack_path(options.output, network), options.corpus, network, options)
        for network in options.networks
    }
    true = {name: frames for name, frames in read_videos(options).items() if len(frames) > 1}
    between = sum(len(frames) // 2 for frames in true.values())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.minutes:g} minutes each;")
    print(f"{between} frames between stored ones; PSNR in dB / SSIM\n")
    columns = ["network", "stored frames", "between, by the network", "mean of decoded neighbours", "mean of originals"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)
    pixels = scores([(mean_of_neighbours(frames[::2]), frames[1::2]) for frames in true.values()])
    for network, path in paths.items():
        stored, made, means = [], [], []
        for video in neuralloader.open_videos(path, device="cpu"):
            if video.info.name not in true:
                continue
            frames = true[video.info.name]
            decoded = video[: (len(frames) + 1) // 2]
            times = (np.arange(len(frames) // 2) + 0.5) / video.info.frame_rate
            stored.append((decoded, frames[::2]))
            made.append((video.get_frames_interpolated_at(times).data, frames[1::2]))
            means.append((mean_of_neighbours(decoded), frames[1::2]))
        cells = [network.replace(":", " "), scores(stored), scores(made), scores(means), pixels]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
