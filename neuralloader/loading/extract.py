"""A pack back to pictures: every frame of every video as a PNG file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from neuralloader.loading.decode import Decoder
from neuralloader.packfile import Pack

FRAMES_PER_STEP = 64


def extract_frames(
    pack: Pack, folder: Path, device: torch.device, on_progress: Callable[[float], None] = lambda done: None
) -> int:
    """Write ``folder/<video name>/000000.png`` and so on.

    Args:
        pack: an opened pack.
        folder: made where it is missing; must be empty.
        device: where to decode.
        on_progress: called with the share that is done.

    Returns:
        The number of frames written.

    Raises:
        FileExistsError: the folder holds something, or is a file.
        PackError: the pack is damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is no empty folder; choose another -o")
    decoder, table = Decoder(pack, device), pack.frames
    for start in range(0, len(table), FRAMES_PER_STEP):
        rows = np.arange(start, min(start + FRAMES_PER_STEP, len(table)))
        images = decoder.decode(rows).permute(0, 2, 3, 1).cpu().numpy()
        frames = table.at(rows)
        for video, frame, image in zip(frames.video, frames.frame, images, strict=True):
            name = pack.index.videos[video].name  # checked on opening: it stays inside the folder
            path = folder / name / f"{frame:06d}.png"
            if frame == 0:
                path.parent.mkdir(parents=True, exist_ok=True)  # "a/b" may be there already when "a" comes
            Image.fromarray(image).save(path)
        on_progress((start + len(rows)) / len(table))
    return len(table)
