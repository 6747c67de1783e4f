"""CNeRV: PSNR of frames a network was trained on, and of every fifth frame, which it was not.

    python -m benchmarks.reproduce.cnerv_unseen VIDEO [--model 32M] [--epochs 150] [--reduced]

Published: Big Buck Bunny whole (5032 frames of 480x960); epochs and batch are not, so NeRV's recipe is used. NeRV falls
to 16.7 dB on unseen frames there.
"""

import numpy as np
import torch

from benchmarks.reproduce.single_video import Setting, parse_arguments, print_row, read_frames, reproduce
from neuralloader.backends import CNeRVConfig

PUBLISHED = {"32M": (31.33, 26.41), "64M": (33.83, 26.85), "97M": (35.50, 27.08)}
FULL = Setting((480, 960), 5032, 150, "sizes as published")
REDUCED = Setting((144, 288), 40, 60, "reduced, 1 M parameters")
REDUCED_PARAMETERS = 1_000_000
HOLD_OUT = 5


def main() -> None:
    options = parse_arguments(__doc__, choices=list(PUBLISHED), default="32M")
    setting = REDUCED if options.reduced else FULL
    epochs = options.epochs or setting.epochs
    frames = read_frames(options.video, setting)
    total = REDUCED_PARAMETERS if options.reduced else int(options.model.removesuffix("M")) * 1_000_000
    record = CNeRVConfig.of_size(total, setting.size, num_frames=len(frames))
    is_unseen = np.arange(len(frames)) % HOLD_OUT == HOLD_OUT - 1
    found = reproduce("cnerv", record, frames, epochs, torch.device(options.device), held_out=is_unseen)
    seen, unseen = PUBLISHED[options.model]
    print_row(
        {
            "CNeRV": options.model,
            "setting": f"{setting.name}: {len(frames)} frames of {setting.size[0]}x{setting.size[1]}, {epochs} epochs",
            "values, with latents": f"{found.num_parameters:,}",
            "PSNR seen": f"{found.psnr_db[~is_unseen].mean():.2f}",
            "PSNR unseen": f"{found.psnr_db[is_unseen].mean():.2f}",
            "published seen / unseen": f"{seen:.2f} / {unseen:.2f} (5032 frames of 480x960)",
            "PSNR of the pack, 8 bits": f"{found.pack_psnr_db:.2f}",
            "forward frames/s": f"{found.frames_per_second:.1f}",
            "minutes": f"{found.minutes:.1f}",
        }
    )


if __name__ == "__main__":
    main()
