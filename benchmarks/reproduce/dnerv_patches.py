"""D-NeRV on UVG: a video cut into patches of 256x320, each a video of its own, and one network for all of them.

    python -m benchmarks.reproduce.dnerv_patches VIDEO [--model XS] [--epochs 400] [--reduced]

Published: seven UVG videos of 1024x1920, 24 patches each, 1600 epochs of 32 clips, after quantisation: one network for
all seven, so a single video is easier. Key-frames are AVIF here, and a learned codec there.
"""

import numpy as np
import torch

from benchmarks.reproduce.single_video import Setting, parse_arguments, print_row, read_frames, reproduce
from neuralloader.backends import DNeRVConfig

PUBLISHED = {"XS": 34.11, "S": 34.76, "M": 35.74, "L": 36.78}
C0 = {"XS": 107, "S": 166, "M": 213, "L": 291}  # UVG's widths
FULL = Setting((1024, 1920), 600, 400, "one video")
REDUCED = Setting((160, 320), 32, 40, "reduced: C0 = 16, patches of 80x160")
PATCH, REDUCED_PATCH = (256, 320), (80, 160)


def cut(frames: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
    """(n, H, W, 3) -> (patches * n, h, w, 3), patch after patch."""
    n, height, width, _ = frames.shape
    rows, columns = height // patch[0], width // patch[1]
    parts = frames.reshape(n, rows, patch[0], columns, patch[1], 3).transpose(1, 3, 0, 2, 4, 5)
    return parts.reshape(rows * columns * n, *patch, 3)


def main() -> None:
    options = parse_arguments(__doc__, choices=list(PUBLISHED), default="XS")
    setting, patch = (REDUCED, REDUCED_PATCH) if options.reduced else (FULL, PATCH)
    epochs = options.epochs or setting.epochs
    frames = read_frames(options.video, setting)
    patches = cut(frames, patch)
    lengths = [len(frames)] * (len(patches) // len(frames))
    record = DNeRVConfig.of_width(16 if options.reduced else C0[options.model], patch)
    found = reproduce("dnerv", record, patches, epochs, torch.device(options.device), lengths=lengths)
    print_row(
        {
            "D-NeRV": options.model,
            "setting": f"{setting.name}: {len(lengths)} patches, {len(frames)} frames each, {epochs} epochs",
            "parameters": f"{found.num_parameters:,}",
            "PSNR": f"{found.psnr_db.mean():.2f}",
            "published": f"{PUBLISHED[options.model]:.2f} (seven videos, 1600 epochs)",
            "PSNR of the pack, 8 bits": f"{found.pack_psnr_db:.2f}",
            "forward frames/s": f"{found.frames_per_second:.1f}",
            "minutes": f"{found.minutes:.1f}",
        }
    )


if __name__ == "__main__":
    main()
