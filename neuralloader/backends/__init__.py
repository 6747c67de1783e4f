"""The networks: what each backend is called, its configurations, and how a preset is chosen. One paper per file."""

from typing import Any

from neuralloader.backends.base import Backend, KeyFeatures, Scope, Units, describe_units, select_units
from neuralloader.backends.cnerv import CNeRV, CNeRVConfig
from neuralloader.backends.cnerv_fast import FastCNeRV, FastCNeRVConfig
from neuralloader.backends.dnerv import DNeRV, DNeRVConfig
from neuralloader.backends.dnerv_fast import FastDNeRV, FastDNeRVConfig
from neuralloader.backends.hnerv import HNeRV, HNeRVConfig
from neuralloader.backends.hnerv_fast import FastHNeRV, FastHNeRVConfig
from neuralloader.backends.nerv import NeRV, NeRVConfig
from neuralloader.backends.nerv_fast import FastNeRV, FastNeRVConfig

# (backend, configuration) -> the frozen record a network is built from, and the network
BACKENDS: dict[tuple[str, str], tuple[type[Any], type[Backend]]] = {
    ("dnerv", "fast"): (FastDNeRVConfig, FastDNeRV),
    ("dnerv", "paper"): (DNeRVConfig, DNeRV),
    ("nerv", "fast"): (FastNeRVConfig, FastNeRV),
    ("nerv", "paper"): (NeRVConfig, NeRV),
    ("cnerv", "fast"): (FastCNeRVConfig, FastCNeRV),
    ("cnerv", "paper"): (CNeRVConfig, CNeRV),
    ("hnerv", "fast"): (FastHNeRVConfig, FastHNeRV),
    ("hnerv", "paper"): (HNeRVConfig, HNeRV),
}
PRESETS = ("XS", "S", "M", "L")


def network_of(backend: str, config: str, width: str | int, frame_size: tuple[int, int]) -> Any:
    """The record of a network.

    Args:
        backend, config: a key of ``BACKENDS``.
        width: a preset, "XS" to "L", or the number of channels it stands for.
        frame_size: (height, width).

    Raises:
        ValueError: a width or a frame size that the network cannot have.
    """
    record = BACKENDS[backend, config][0]
    if isinstance(width, str) and width not in PRESETS:
        raise ValueError(f"preset {width!r} must be one of {', '.join(PRESETS)}")
    channels: int = record.WIDTHS[width] if isinstance(width, str) else width
    if not 8 <= channels <= 4096:
        raise ValueError(f"width {channels} must be 8 to 4096 channels")
    return record.of_width(channels, frame_size)


__all__ = [
    "BACKENDS",
    "PRESETS",
    "Backend",
    "KeyFeatures",
    "Scope",
    "Units",
    "describe_units",
    "network_of",
    "select_units",
]
