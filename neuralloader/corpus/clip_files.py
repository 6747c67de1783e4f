"""Stored frames written in other ways, for ``clip_readers`` to read: H.264 at the pack's size and rate, JPEG files."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from neuralloader.corpus.clip_readers import jpeg_name

X264_CRF = 23  # libx264's own default
JPEG_QUALITY = 95


def write_x264(path: Path, frames: np.ndarray, frame_rate: float) -> None:
    """Write a video as H.264 in MP4: libx264, crf 23, its other settings as they come (a key-frame every 250 frames).

    Args:
        path: the .mp4 file.
        frames: (T, H, W, 3) uint8 RGB.
        frame_rate: frames per second.

    Raises:
        ImportError: PyAV is not installed.
    """
    import av

    height, width = frames.shape[1:3]
    with av.open(str(path.absolute()), "w") as container:
        rate = Fraction(frame_rate).limit_denominator(1001 * 1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(X264_CRF)})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"  # half-size colour needs even sides
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def write_jpegs(folder: Path, frames: np.ndarray) -> None:
    """Write frames, (T, H, W, 3) uint8 RGB, as one JPEG file each of quality 95 into a new folder."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / jpeg_name(number), quality=JPEG_QUALITY)
