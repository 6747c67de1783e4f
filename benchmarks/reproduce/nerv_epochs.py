"""NeRV: PSNR of Big Buck Bunny by size of the network and number of epochs, and how fast it decodes.

    python -m benchmarks.reproduce.nerv_epochs VIDEO [--model S] [--epochs 300] [--reduced]

Published: 132 frames of 720x1280, batch 1; PSNR after 300, 600, 1200 and 2400 epochs; frames/s on an RTX 2080 Ti.
"""

import torch

from benchmarks.reproduce.single_video import Setting, parse_arguments, print_row, read_frames, reproduce
from neuralloader.backends import NeRVConfig

PUBLISHED = {
    "S": {300: 32.21, 600: 33.56, 1200: 34.21, 2400: 34.86},
    "M": {300: 36.05, 600: 37.47, 1200: 38.14, 2400: 38.70},
    "L": {300: 39.75, 600: 40.84, 1200: 41.29, 2400: 41.99},
}
PUBLISHED_SPEED = {"S": 54.5, "M": 53.8, "L": 52.9}
FULL = Setting((720, 1280), 132, 300, "as published")
REDUCED = Setting((144, 256), 32, 40, "reduced")


def main() -> None:
    options = parse_arguments(__doc__, choices=list(PUBLISHED), default="S")
    setting = REDUCED if options.reduced else FULL
    epochs = options.epochs or setting.epochs
    frames = read_frames(options.video, setting)
    found = reproduce(
        "nerv",
        NeRVConfig.of_width(NeRVConfig.WIDTHS[options.model], setting.size),
        frames,
        epochs,
        torch.device(options.device),
    )
    at = min(PUBLISHED[options.model], key=lambda published: abs(published - epochs))
    print_row(
        {
            "NeRV": options.model,
            "setting": f"{setting.name}: {len(frames)} frames of {setting.size[0]}x{setting.size[1]}, {epochs} epochs",
            "parameters": f"{found.num_parameters:,}",
            "PSNR": f"{found.psnr_db.mean():.2f}",
            "published": f"{PUBLISHED[options.model][at]:.2f} (132 frames of 720x1280, {at} epochs)",
            "PSNR of the pack, 8 bits": f"{found.pack_psnr_db:.2f}",
            "forward frames/s": f"{found.frames_per_second:.1f}",
            "published frames/s": f"{PUBLISHED_SPEED[options.model]} (2080 Ti)",
            "minutes": f"{found.minutes:.1f}",
        }
    )


if __name__ == "__main__":
    main()
