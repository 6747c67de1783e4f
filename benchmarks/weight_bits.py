"""PSNR against the bits of a weight, rounded afterwards and trained for it: ``python benchmarks/weight_bits.py SRC``.

One training goes as far as the share where rounding begins, and leaves a checkpoint. From there it goes on once with
exact weights, which are then rounded to each number of bits ("afterwards"), and once for each number of bits with
rounded weights ("trained for it"). Every figure is that of a pack, written and read back. Prints a Markdown table.
"""

import argparse
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from neuralloader.backends import Backend, network_of
from neuralloader.clips import index_corpus, index_frames, index_units
from neuralloader.container.index import PackIndex
from neuralloader.corpus.cache import Ingested, ingest
from neuralloader.corpus.find import find_videos
from neuralloader.packfile import Pack, PackDescription, build_backend, round_latents, save_pack
from neuralloader.report.measure import measure_quality
from neuralloader.training.clock import Duration
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Fitted, Progress, encode_latents, fit
from neuralloader.training.keeper import Interrupted, Keeper
from neuralloader.training.keyframes import encode_to_files
from neuralloader.training.memory import keep_freed_memory
from neuralloader.training.recipes import FAST, Recipe

BITS = (8, 7, 6, 5, 4)
KEY_INTERVAL = FRAMES_PER_CLIP = 8
CPU = torch.device("cpu")


class Bench:
    """A corpus, ready to train on again and again."""

    def __init__(self, corpus: Ingested, folder: Path, size: tuple[int, int], epochs: int):
        self.corpus, self.folder, self.size, self.epochs = corpus, folder, size, epochs
        num_frames = np.array([video.num_frames for video in corpus.videos])
        clips, keys = index_corpus(num_frames, frames_per_clip=FRAMES_PER_CLIP, key_interval=KEY_INTERVAL)
        self.index = PackIndex(corpus.videos, (), clips, keys)
        table = index_frames(clips, keys)
        self.keyframes, decoded = encode_to_files(
            corpus.frames, table.key_rows, "avif", FAST.keyframe_quality, folder / "keyframes", lambda done: None
        )
        self.data = TrainingSet(corpus.frames, decoded, table, index_units(clips, 1), CPU)

    def make_network(self) -> Backend:
        torch.manual_seed(0)
        return build_backend("dnerv", "fast", network_of("dnerv", "fast", "S", self.size))

    def fit(self, backend: Backend, recipe: Recipe, bits: int, checkpoint: Path, stop_at: float = 2.0) -> Fitted:
        """Train, or go on; stopped at a share of the training, it leaves the checkpoint and raises Interrupted."""

        def watch(progress: Progress) -> None:
            if progress.done >= stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        return fit(
            backend,
            self.data,
            recipe,
            Duration(epochs=self.epochs),
            seed=0,
            weight_bits=bits,
            on_progress=watch,
            keeper=Keeper(checkpoint, every_seconds=1e9),
        )

    def measure(self, backend: Backend, fitted: Fitted, bits: int) -> tuple[float, int]:
        """PSNR and bytes of the weights of a pack."""
        values = encode_latents(backend, self.data, units_per_batch=64, offsets=fitted.offsets)
        description = PackDescription(
            backend="dnerv",
            config="fast",
            network=backend.config,  # pyright: ignore[reportArgumentType]
            frame_size=self.size,
            frames_per_clip=FRAMES_PER_CLIP,
            key_interval=KEY_INTERVAL,
            frame_rate=None,
            classes=tuple(f"class {label}" for label in range(1 + max(video.label for video in self.corpus.videos))),
            keyframe_codec="avif",
            keyframe_quality=FAST.keyframe_quality,
            weight_bits=bits,
            training={},
            quality={},
        )
        path = self.folder / "trial.nvpack"
        save_pack(path, description, self.index, backend, self.keyframes, round_latents(values, None), overwrite=True)
        psnr_db = measure_quality(path, self.corpus.frames, CPU, lambda done: None)["psnr_db"]
        return psnr_db, Pack(path).reader.ledger()["weights"]


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--frame-rate", type=float, default=4.0)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 160))
    options = parser.parse_args()
    size: tuple[int, int] = (options.size[0], options.size[1])
    keep_freed_memory()
    with (
        tempfile.TemporaryDirectory() as folder,
        ingest(find_videos(options.corpus).sources, frame_rate=options.frame_rate, size=size) as corpus,
    ):
        bench = Bench(corpus, Path(folder), size, options.epochs)
        shared = Path(folder) / "shared"
        with suppress(Interrupted):
            bench.fit(bench.make_network(), FAST, 8, shared, stop_at=1 - FAST.rounding_share)
        exact = bench.make_network()
        fitted = bench.fit(exact, replace(FAST, rounding_share=0.0), 8, Path(shutil.copy(shared, f"{shared}-exact")))
        print(f"{fitted.steps} steps; the checkpoint is that of {1 - FAST.rounding_share:.0%}\n")
        print("| bits | rounded afterwards | trained for it | difference | bytes of weights |\n|---|---|---|---|---|")
        for bits in BITS:
            afterwards, num_bytes = bench.measure(exact, fitted, bits)
            backend = bench.make_network()
            trained = bench.fit(backend, FAST, bits, Path(shutil.copy(shared, f"{shared}-{bits}")))
            psnr_db, _ = bench.measure(backend, trained, bits)
            print(
                f"| {bits} | {afterwards:.2f} | {psnr_db:.2f} | {psnr_db - afterwards:+.2f} | {num_bytes:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
