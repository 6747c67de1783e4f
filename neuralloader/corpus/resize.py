"""Bring a frame to another size with Pillow's LANCZOS: squashed, cropped or padded."""

import numpy as np
from PIL import Image

from neuralloader.corpus.settings import Resize


def resize_frame(frame: np.ndarray, size: tuple[int, int], how: Resize) -> np.ndarray:
    """Resize (h, w, 3) uint8 to (H, W, 3); a frame of that size is returned as it is.

    Args:
        frame: the frame.
        size: (H, W).
        how: as ``ReadSettings.resize``.
    """
    if frame.shape[:2] == tuple(size):
        return frame
    height, width = size
    if how == "squash":
        return _lanczos(frame, size)
    scale_y, scale_x = height / frame.shape[0], width / frame.shape[1]
    if how == "crop":
        scale = max(scale_y, scale_x)
        return _lanczos(frame, size, kept=(height / scale, width / scale))
    scale = min(scale_y, scale_x)
    inner = max(1, round(frame.shape[0] * scale)), max(1, round(frame.shape[1] * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top : top + inner[0], left : left + inner[1]] = _lanczos(frame, inner)
    return padded


def _lanczos(frame: np.ndarray, size: tuple[int, int], kept: tuple[float, float] | None = None) -> np.ndarray:
    """Squash the middle of a frame, `kept` pixels high and wide; None is all of it."""
    if frame.shape[:2] == tuple(size) and kept is None:
        return frame
    height, width = frame.shape[:2]
    rows, columns = kept or (height, width)
    top, left = max(0.0, (height - rows) / 2), max(0.0, (width - columns) / 2)  # rounding must not leave the frame
    box = (left, top, width - left, height - top)
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box))
