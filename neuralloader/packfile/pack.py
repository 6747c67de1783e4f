"""A corpus as one file: saving and opening, side by side. The network runs elsewhere (``loading``).

manifest      see ``manifest``, and the table of weights
tables        videos, skipped sources, clips, key-frames (``container.index``)
weights.*     8-bit codes; scales.* to go with them (``weights``)
latents.*     a block for each clip that has any, and the probability tables (``codecs.rans``)
keyframes.*   image files less what they share (``codecs.keyframes``)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralloader.backends import BACKENDS, Backend
from neuralloader.clips import FrameTable, UnitTable, index_frames, index_units
from neuralloader.codecs.keyframes import check_codec_available, decode_keyframes, pack_keyframes, unpack_keyframe
from neuralloader.codecs.rans import LatentTables, decode_blocks, encode_blocks, fit_tables
from neuralloader.container.blobs import BlobReader, blob_to_tensors
from neuralloader.container.index import PackIndex, index_from_tensors, index_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError
from neuralloader.packfile.manifest import PackDescription, read_description, write_description
from neuralloader.packfile.weights import (
    Shapes,
    read_weight_table,
    stored_parameters,
    weights_from_tensors,
    weights_to_tensors,
)

MAX_LATENT_BYTES = 64 << 30  # decoded
MAX_UNSTORED_BYTES = 256 << 20  # weights that only packing needs, but that the network has all the same


def build_backend(backend: str, config: str, network: Any) -> Backend:
    """The untrained network of a record."""
    return BACKENDS[backend, config][1](network)


def save_pack(
    path: str | os.PathLike[str],
    description: PackDescription,
    index: PackIndex,
    backend: Backend,
    keyframes: list[bytes],
    latents: np.ndarray | None,
    *,
    overwrite: bool = False,
) -> int:
    """Write a pack.

    Args:
        path: the file to write.
        description: the manifest's part.
        index: videos, clips, key-frames, skipped sources.
        backend: the trained network; its weights are rounded on the way.
        keyframes: complete image files, one for each row of the key-frame table.
        latents: (num_latents, channels, height, width) int8 of all frames that are no key-frames, or None.
        overwrite: replace a file that is there.

    Returns:
        The file's size in bytes.
    """
    weight_table, tensors = weights_to_tensors(backend, description.weight_bits)
    template, payloads = pack_keyframes(keyframes, description.keyframe_codec)
    tensors |= blob_to_tensors("keyframes", payloads)
    tensors["keyframes.template"] = np.frombuffer(template, np.uint8)
    if latents is not None:
        tables = fit_tables(latents)
        per_clip = latents_per_clip(index_frames(index.clips, index.keys), len(index.clips))
        blocks = encode_blocks(latents, per_clip[per_clip > 0], tables)
        tensors |= blob_to_tensors("latents", blocks)
        tensors |= {"latents.offset": tables.offset, "latents.frequencies": tables.frequencies}
    tensors |= index_to_tensors(index)
    manifest = write_description(description) | {"weights": weight_table}
    return write_pack(path, manifest, tensors, overwrite=overwrite)


def latents_per_clip(frames: FrameTable, num_clips: int) -> np.ndarray:
    """(num_clips,) int64: frames of each clip that store a latent."""
    return np.bincount(frames.clip[~frames.is_key], minlength=num_clips)


def open_pack(path: str | os.PathLike[str]) -> "Pack":
    """Open a pack; see ``Pack``."""
    return Pack(path)


class Pack:
    """An opened pack: its index and manifest in memory, everything else read and checked when asked for.

    It pickles without its file, and opens it again where it is unpickled.

    Args:
        path: a .nvpack file.

    Raises:
        FileNotFoundError: there is no such file.
        PackVersionError: a newer version of the format.
        PackError: the file is no pack, or is damaged.
        ImportError: the Pillow that is installed cannot read its key-frames.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.reader = PackReader(path)
        self.path = self.reader.path
        with _naming(self.path):
            self.description = read_description(self.reader.manifest)
            self.index = index_from_tensors(
                self.reader.tensor,
                num_classes=len(self.description.classes),
                frames_per_clip=self.description.frames_per_clip,
            )
            if not self.index.videos:
                raise PackError("it holds no video")
            check_codec_available(self.description.keyframe_codec)
            self.frames: FrameTable = index_frames(self.index.clips, self.index.keys)
            self._keyframes = BlobReader(self.reader, "keyframes")
            self._template = self.reader.tensor("keyframes.template").tobytes()
            num_keys = len(self.index.keys)
            if len(self._keyframes) != num_keys:
                raise PackError(f"{len(self._keyframes)} key-frames are stored, where the index has {num_keys}")

    @property
    def size_bytes(self) -> int:
        return self.reader.size_bytes

    @property
    def num_parameters(self) -> int:
        """Parameters of the network that are stored."""
        return sum(prod(shape) for shape in self._weight_shapes().values())

    def units(self, backend: Backend) -> UnitTable:
        """What the backend decodes together, over the whole pack."""
        return index_units(self.index.clips, backend.frames_per_unit)

    def load_backend(self) -> Backend:
        """The network with the weights of the pack, on the CPU, ready to decode.

        Raises:
            PackError: weights that are damaged, or that do not fit the network.
        """
        description = self.description
        with _naming(self.path):
            shapes = self._weight_shapes()
            outline = self._outline()
            if {name: tuple(p.shape) for name, p in stored_parameters(outline).items()} != shapes:
                raise PackError(f"its weights do not fit its {description.config} {description.backend}")
            unstored = sum(4 * p.numel() for name, p in outline.named_parameters() if not outline.is_stored(name))
            if unstored > MAX_UNSTORED_BYTES:
                raise PackError(
                    f"its network has {unstored} bytes of weights that are not stored; {MAX_UNSTORED_BYTES} are allowed"
                )
            weights = weights_from_tensors(self.reader.tensor, shapes)
        backend = build_backend(description.backend, description.config, description.network)
        backend.load_state_dict(weights, strict=False)
        return backend.eval().requires_grad_(False)

    def keyframes(self, rows: np.ndarray) -> np.ndarray:
        """Decoded key-frames.

        Args:
            rows: (n,) rows of the key-frame table.

        Returns:
            (n, H, W, 3) uint8 RGB.

        Raises:
            PackError: a key-frame is damaged.
        """
        with _naming(self.path):
            files = [unpack_keyframe(self._template, self._keyframes[int(row)]) for row in rows]
            try:
                return decode_keyframes(files, self.description.keyframe_codec, self.description.frame_size)
            except PackError as error:
                raise PackError(f"key-frames {rows.tolist()}: {error}") from error

    def latents(self, shape: tuple[int, int, int]) -> np.ndarray:
        """All latents, (num_latents, *shape) int8, in frame order; key-frames have none.

        Raises:
            PackError: they are damaged.
        """
        per_clip = latents_per_clip(self.frames, len(self.index.clips))
        per_block = per_clip[per_clip > 0]
        with _naming(self.path):
            num_bytes = int(per_block.sum()) * prod(shape)
            if num_bytes > MAX_LATENT_BYTES:
                raise PackError(f"its latents would take {num_bytes} bytes; the limit is {MAX_LATENT_BYTES}")
            blocks = BlobReader(self.reader, "latents")
            if len(blocks) != len(per_block):
                raise PackError(f"{len(blocks)} blocks of latents are stored, where {len(per_block)} belong")
            tables = LatentTables(self.reader.tensor("latents.offset"), self.reader.tensor("latents.frequencies"))
            return decode_blocks([blocks[i] for i in range(len(blocks))], per_block, shape, tables)

    def _weight_shapes(self) -> Shapes:
        """Name to shape, as the manifest has it."""
        with _naming(self.path):
            return read_weight_table(self.reader.manifest.get("weights"))

    def _outline(self) -> Backend:
        """The network without memory for its weights: a stranger's configuration is not yet to be trusted."""
        description = self.description
        try:
            with torch.device("meta"):
                return build_backend(description.backend, description.config, description.network)
        except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
            raise PackError(f"no network can be built from its configuration: {error}") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the pack's path before what is wrong with it, where it is not said already."""
    try:
        yield
    except PackError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
