"""Joins backends, codecs and container: a corpus as one file."""

from neuralloader.packfile.joined import JoinedPack, open_pack
from neuralloader.packfile.latents import RoundedLatents, round_latents
from neuralloader.packfile.manifest import PackDescription
from neuralloader.packfile.pack import Pack, build_backend, save_pack, save_with_weights
from neuralloader.packfile.verify import Verification, verify_pack
from neuralloader.packfile.weights import Part, quantize_parameter, stored_parameters

__all__ = [
    "JoinedPack",
    "Pack",
    "PackDescription",
    "Part",
    "RoundedLatents",
    "Verification",
    "build_backend",
    "open_pack",
    "quantize_parameter",
    "round_latents",
    "save_pack",
    "save_with_weights",
    "stored_parameters",
    "verify_pack",
]
