"""The number format that networks run in: bfloat16 under autocast where the device is fast at it, else float32."""

import functools

import torch


@functools.cache
def fast_dtype(device_type: str) -> torch.dtype:
    """bfloat16 on CUDA devices and CPUs with instructions for it, else float32."""
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device_type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to the device's fast format; where that is float32, it does nothing."""
    dtype = fast_dtype(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
