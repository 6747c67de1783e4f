"""HNeRV, table 2: PSNR of Big Buck Bunny by size of the network; and how fast it decodes.

    python -m benchmarks.reproduce.hnerv_sizes VIDEO [--model 0.35M] [--epochs 300] [--reduced]

Published: 132 frames of 640x1280, 300 epochs of batch 2, one network. The published speeds (224.8 frames/s at 37 dB, on
an RTX 2080 Ti) are of networks with a channel reduction of 1.5, so none stands beside.
"""

import torch

from benchmarks.reproduce.single_video import Setting, parse_arguments, print_row, read_frames, reproduce
from neuralloader.backends import HNeRVConfig

PUBLISHED = {"0.35M": 30.15, "0.75M": 32.81, "1.5M": 35.57, "3M": 37.43}
FULL = Setting((640, 1280), 132, 300, "as published")
REDUCED = Setting((160, 320), 32, 60, "reduced")


def main() -> None:
    options = parse_arguments(__doc__, choices=list(PUBLISHED), default="0.35M")
    setting = REDUCED if options.reduced else FULL
    epochs = options.epochs or setting.epochs
    frames = read_frames(options.video, setting)
    total = round(float(options.model.removesuffix("M")) * 1e6)
    record = HNeRVConfig.of_size(total, setting.size, num_frames=len(frames))
    found = reproduce("hnerv", record, frames, epochs, torch.device(options.device))
    print_row(
        {
            "HNeRV": options.model,
            "setting": f"{setting.name}: {len(frames)} frames of {setting.size[0]}x{setting.size[1]}, {epochs} epochs",
            "values, with latents": f"{found.num_parameters:,}",
            "PSNR": f"{found.psnr_db.mean():.2f}",
            "published": f"{PUBLISHED[options.model]:.2f} (132 frames of 640x1280, 300 epochs)",
            "PSNR of the pack, 8 bits": f"{found.pack_psnr_db:.2f}",
            "forward frames/s": f"{found.frames_per_second:.1f}",
            "minutes": f"{found.minutes:.1f}",
        }
    )


if __name__ == "__main__":
    main()
