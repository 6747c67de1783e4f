"""Decode speed of packs: clips in batches against one at a time, several packs in one run.

    python benchmarks/decode.py fast.nvpack paper.nvpack [--batch 8] [--clips 64] [--seconds 3] [--device cpu]

From the opened pack to uint8 frames in the caller's hands, through ``NeuralVideoDataset``; network loaded, latents
decoded and key-frames cached (warm). The packs take turns over several rounds, and each figure is the median of its
rounds, so that a machine that slows down slows all of them. Prints a Markdown table.
"""

import argparse
import statistics
from pathlib import Path

import torch

from neuralloader import NeuralVideoDataset
from neuralloader.metrics.speed import calls_per_second
from neuralloader.packfile import Pack

ROUNDS = 5


def frames_per_second(dataset: NeuralVideoDataset, clips: list[int], batch: int, seconds: float) -> float:
    """Frames per second when the given clips are decoded ``batch`` at a time."""
    batches = [clips[i : i + batch] for i in range(0, len(clips) - batch + 1, batch)]

    def decode_all() -> None:
        for items in batches:
            dataset.__getitems__(items)

    calls = calls_per_second(decode_all, seconds=seconds, device=dataset.device)
    return calls * len(batches) * batch * dataset.frames_per_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch")
    parser.add_argument("--clips", type=int, default=32, help="clips decoded in a round, drawn at random")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure in each round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    datasets = {path: NeuralVideoDataset(path, device=options.device) for path in options.packs}
    generator = torch.Generator().manual_seed(0)
    clips = {
        path: torch.randperm(len(dataset), generator=generator)[: options.clips].tolist()
        for path, dataset in datasets.items()
    }
    figures: dict[tuple[Path, int], list[float]] = {}
    for _ in range(ROUNDS):
        for path, dataset in datasets.items():
            for batch in (options.batch, 1):
                speed = frames_per_second(dataset, clips[path], min(batch, len(clips[path])), options.seconds)
                figures.setdefault((path, batch), []).append(speed)

    median = {key: statistics.median(values) for key, values in figures.items()}
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads; warm; clips of 8 frames\n")
    print(f"| pack | parameters | frames/s, {options.batch} clips at a time | one at a time | ratio | to the first |")
    print("|---|---|---|---|---|---|")
    first = median[options.packs[0], options.batch]
    for path in datasets:
        together, alone = median[path, options.batch], median[path, 1]
        pack = Pack(path)
        print(
            f"| {path.stem}: {pack.description.backend} {pack.description.config} | {pack.num_parameters:,} "
            f"| {together:.0f} | {alone:.0f} | {together / alone:.2f} | {together / first:.2f} |"
        )


if __name__ == "__main__":
    main()
