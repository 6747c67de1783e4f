"""The last touch: from a network's frames to what the consumer asked for."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

OutputFormat = Literal["TCHW", "THWC", "CTHW"]
OUTPUT_DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)


def check_output(dtype: torch.dtype, output_format: str) -> None:
    """Refuse, with a ValueError, a dtype or a format that is not there."""
    if dtype not in OUTPUT_DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(map(str, OUTPUT_DTYPES))}")
    if output_format not in get_args(OutputFormat):
        raise ValueError(f"output_format={output_format!r} must be one of {', '.join(get_args(OutputFormat))}")


def finish_frames(frames: Tensor, dtype: torch.dtype, size: tuple[int, int] | None = None) -> Tensor:
    """Frames as a consumer gets them.

    Args:
        frames: (..., 3, H, W) float of any kind, nominally 0 to 1.
        dtype: uint8 is grey levels, rounded; a float type is 0 to 1, not rounded.
        size: (height, width) to resize to, bilinear with antialiasing; None leaves it.

    Returns:
        (..., 3, H, W) of the dtype.
    """
    if size is not None and tuple(frames.shape[-2:]) != size:
        flat = frames.reshape(-1, *frames.shape[-3:]).float()
        resized = F.interpolate(flat, size, mode="bilinear", antialias=True)
        frames = resized.view(*frames.shape[:-2], *size)
    if dtype == torch.uint8:
        return (frames.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
    return frames.clamp(0, 1).to(dtype)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in 0..1, any float type -> uint8 grey levels, rounded."""
    return finish_frames(frames, torch.uint8)


def arrange(clips: Tensor, output_format: OutputFormat) -> Tensor:
    """(..., T, C, H, W) as the format has it; a view."""
    if output_format == "TCHW":
        return clips
    return clips.movedim(-3, -1) if output_format == "THWC" else clips.movedim(-3, -4)
