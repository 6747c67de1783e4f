"""What a pack will take before there is one: bytes of each part, estimated from counts.

Weights follow from the number of parameters, the index is laid out for real, and key-frames and latents come from a
probe and a choice (``keyframe_probe``, ``choice``). No network is made: parameters are counted without memory for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch

from neuralloader.backends import network_of
from neuralloader.clips import SkippedSource, VideoInfo, VideoTable, index_corpus, index_frames
from neuralloader.container.index import PackIndex, index_to_tensors
from neuralloader.packfile import build_backend, stored_parameters

BYTES_PER_SCALE = 4  # minimum and scale, float16
SPARED_BITS = 0.65  # of a trained code, by entropy coding: 0.58 to 0.73 at 8 to 4 bits
MAX_SCALE_SHARE = 0.02  # where the quantiser chooses the axis: scales take no more of the bytes

# The header: measured over all backends, within 300 bytes (names, shapes, offsets and hashes in the manifest)
HEADER_BYTES, HEADER_BYTES_PER_TENSOR, HEADER_BYTES_PER_PARAMETER = 900, 170, 38
NUM_WEIGHT_TENSORS, NUM_KEYFRAME_TENSORS, NUM_LATENT_TENSORS = 3, 4, 5
BYTES_PER_ITEM = 6  # of a blob: its size and its CRC32
TEMPLATE_BYTES = 300  # what AVIF key-frames share
CODER_BYTES_PER_BLOCK = 8  # of latents: its last state, and what tables cost that fit the corpus, not the block
TABLE_BYTES_PER_CHANNEL = 82  # of the latents' coder: 40 symbols


@dataclass(frozen=True)
class PartBytes:
    """A pack's bytes, parted as a budget is.

    Attributes:
        weights: codes of the network's weights, and of its encoder where the pack keeps that.
        keyframes: image data of the key-frames.
        latents: coded symbols.
        rest: index, header, scales and tables.
    """

    weights: int
    keyframes: int
    latents: int
    rest: int

    @property
    def total(self) -> int:
        return self.weights + self.keyframes + self.latents + self.rest


@dataclass(frozen=True)
class NetworkSize:
    """A network's counts.

    Attributes:
        num_parameters, num_scales: of what decoding needs.
        num_tensors: its parameters as tensors: rows of the manifest.
        num_encoder_parameters: of what only encoding new videos needs.
        latent_shape, latent_bits, uses_keyframes: as ``Backend`` has them.
    """

    num_parameters: int
    num_scales: int
    num_tensors: int
    num_encoder_parameters: int
    latent_shape: tuple[int, int, int] | None
    latent_bits: int | None
    uses_keyframes: bool

    @property
    def latents_are_steered(self) -> bool:
        """Whether training decides what latents cost, so that a price can be set."""
        return self.latent_shape is not None and self.latent_bits is None

    @property
    def can_fill_up(self) -> bool:
        """Whether a file can be brought to a size when the network is chosen: with better key-frames, or latents."""
        return self.uses_keyframes or self.latents_are_steered

    @property
    def symbols_per_latent(self) -> int:
        return 0 if self.latent_shape is None else prod(self.latent_shape)


@lru_cache(maxsize=1024)
def network_size(backend: str, config: str, width: str | int, frame_size: tuple[int, int]) -> NetworkSize:
    """Count a network's parameters, without making it.

    Raises:
        ValueError: a width or a frame size that it cannot have.
    """
    with torch.device("meta"):
        outline = build_backend(backend, config, network_of(backend, config, width, frame_size))
    stored = stored_parameters(outline)
    num_scales = 0
    for name, parameter in stored.items():
        axis = outline.scale_axis(name, tuple(parameter.shape))
        if axis == "best":
            num_scales += 1 + int(MAX_SCALE_SHARE * parameter.numel() / BYTES_PER_SCALE)
        else:
            num_scales += 1 if axis is None else parameter.shape[axis]
    return NetworkSize(
        num_parameters=sum(parameter.numel() for parameter in stored.values()),
        num_scales=num_scales,
        num_tensors=len(stored),
        num_encoder_parameters=sum(p.numel() for p in stored_parameters(outline, "encoder").values()),
        latent_shape=outline.latent_shape,
        latent_bits=outline.latent_bits,
        uses_keyframes=outline.uses_keyframes,
    )


@dataclass(frozen=True)
class CorpusSize:
    """A corpus's counts with key-frames at some interval, or without any.

    Attributes:
        num_frames, num_clips, num_keyframes: of all videos.
        num_latent_blocks: clips with a frame that stores a latent, in a network with latents.
        index_bytes: what videos, skipped sources, clips and key-frames take in a pack.
        num_index_tensors: that they are stored in.
    """

    num_frames: int
    num_clips: int
    num_keyframes: int
    num_latent_blocks: int
    index_bytes: int
    num_index_tensors: int

    @property
    def num_latents(self) -> int:
        """Frames that store one, in a network with latents."""
        return self.num_frames - self.num_keyframes


@dataclass(frozen=True, eq=False)
class Outline:
    """What is to be packed, before a network, key-frames and latents are chosen.

    Attributes:
        backend, config: a key of ``BACKENDS``.
        frame_size: (height, width).
        videos, skipped: as the pack will list them; frames may be counted by a probe only.
        frames_per_clip: frames in a clip.
        num_networks: one for the corpus, or as many as videos.
        appendable: whether the pack keeps the encoder.
    """

    backend: str
    config: str
    frame_size: tuple[int, int]
    videos: Sequence[VideoInfo]
    skipped: Sequence[SkippedSource]
    frames_per_clip: int
    num_networks: int = 1
    appendable: bool = False

    @property
    def num_frames(self) -> int:
        return int(VideoTable.of(self.videos).num_frames.sum())

    def network(self, width: str | int) -> NetworkSize:
        """As ``network_size``."""
        return network_size(self.backend, self.config, width, self.frame_size)

    def corpus(self, key_interval: int | None) -> CorpusSize:
        """Count clips and key-frames, and lay out the index.

        Args:
            key_interval: as ``index_corpus`` has it.

        Raises:
            ValueError: a name that no pack can hold, or an interval that is no multiple of the clip.
        """
        num_frames = VideoTable.of(self.videos).num_frames
        clips, keys = index_corpus(num_frames, frames_per_clip=self.frames_per_clip, key_interval=key_interval)
        tensors = index_to_tensors(PackIndex(self.videos, tuple(self.skipped), clips, keys))
        per_clip = index_frames(clips, keys).latents_per_clip()
        return CorpusSize(
            num_frames=int(num_frames.sum()),
            num_clips=len(clips),
            num_keyframes=len(keys),
            num_latent_blocks=int((per_clip > 0).sum()),
            index_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            num_index_tensors=len(tensors),
        )

    def weight_bytes(self, network: NetworkSize, bits: int) -> int:
        """Bytes of the codes of all networks.

        Where nothing else can make up for an error, in a network without key-frames or steered latents, it is what they
        take at most: entropy coding spares little in some networks.
        """
        num_codes = network.num_parameters + (network.num_encoder_parameters if self.appendable else 0)
        coded_bits = bits - SPARED_BITS if network.can_fill_up else bits
        return round(self.num_networks * num_codes * coded_bits / 8)

    def rest_bytes(self, corpus: CorpusSize, network: NetworkSize) -> int:
        """Bytes of index, header, scales and tables."""
        num_tensors = corpus.num_index_tensors + NUM_WEIGHT_TENSORS * (1 + self.appendable)
        total = corpus.index_bytes + BYTES_PER_SCALE * network.num_scales * self.num_networks
        if network.uses_keyframes:
            num_tensors += NUM_KEYFRAME_TENSORS
            total += TEMPLATE_BYTES + BYTES_PER_ITEM * corpus.num_keyframes
        if network.latent_shape is not None:
            num_tensors += NUM_LATENT_TENSORS
            total += TABLE_BYTES_PER_CHANNEL * network.latent_shape[0]
            total += (BYTES_PER_ITEM + CODER_BYTES_PER_BLOCK) * corpus.num_latent_blocks
        total += HEADER_BYTES + HEADER_BYTES_PER_TENSOR * num_tensors + HEADER_BYTES_PER_PARAMETER * network.num_tensors
        return total
