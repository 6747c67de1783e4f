"""The networks: what each backend is called, its configurations, and how a preset is chosen. One paper per file."""

from typing import Any

from neuralloader.backends.base import Backend, KeyFeatures, Units
from neuralloader.backends.dnerv import DNeRV, DNeRVConfig
from neuralloader.backends.dnerv_fast import FastDNeRV, FastDNeRVConfig

# (backend, configuration) -> the frozen record a network is built from, and the network
BACKENDS: dict[tuple[str, str], tuple[type[Any], type[Backend]]] = {
    ("dnerv", "fast"): (FastDNeRVConfig, FastDNeRV),
    ("dnerv", "paper"): (DNeRVConfig, DNeRV),
}
PRESETS = ("XS", "S", "M", "L")


def network_of(backend: str, config: str, preset: str, frame_size: tuple[int, int]) -> Any:
    """The record of a preset's network, for frames of (height, width).

    Raises:
        ValueError: a frame size that the network cannot make.
    """
    return BACKENDS[backend, config][0].preset(preset, frame_size)


__all__ = ["BACKENDS", "PRESETS", "Backend", "KeyFeatures", "Units", "network_of"]
