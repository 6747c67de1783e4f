"""Joins backends, codecs and container: a corpus as one file."""

from neuralloader.packfile.manifest import PackDescription
from neuralloader.packfile.pack import Pack, build_backend, open_pack, save_pack
from neuralloader.packfile.weights import stored_parameters, weight_axis

__all__ = ["Pack", "PackDescription", "build_backend", "open_pack", "save_pack", "stored_parameters", "weight_axis"]
