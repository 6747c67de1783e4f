"""A corpus as one file: saving and opening, side by side. The network runs elsewhere (``loading``).

manifest      see ``manifest``, and the table of weights
tables        videos, skipped sources, clips, key-frames (``container.index``)
weights.*     codes of 8 bits and less; scales.* to go with them (``weights``)
encoder.*     the same of what encodes new frames, in a pack that videos can be added to
latents.*     what a frame stores, where its network uses latents (``latents``)
keyframes.*   image files less what they share, where its network uses key-frames (``codecs.keyframes``)
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch

from neuralloader.backends import BACKENDS, Backend
from neuralloader.backends.base import strip_parameters
from neuralloader.backends.stacked import stack_networks
from neuralloader.clips import FrameTable, UnitTable, index_frames, index_units
from neuralloader.codecs.keyframes import (
    check_codec_available,
    decode_keyframe,
    decode_keyframes,
    pack_keyframes,
    unpack_keyframe,
)
from neuralloader.container.blobs import BlobReader, blob_to_tensors
from neuralloader.container.index import PackIndex, index_from_tensors, index_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError
from neuralloader.packfile.latents import LatentReader, RoundedLatents, latents_to_tensors
from neuralloader.packfile.manifest import PackDescription, read_description, write_description
from neuralloader.packfile.weights import (
    Part,
    WeightTable,
    read_codes,
    read_weight_table,
    stored_parameters,
    weight_tensor_names,
    weights_from_tensors,
    weights_to_tensors,
)

# What a pack may unfold to: a stranger's small file must not fill the memory. Weights of 2 bits unfold 16 times,
# latents of a tenth of a bit 80 times.
SMALL_BYTES = 64 << 20  # always allowed
SMALL_LATENT_BYTES = 8 << 20  # the same of latents: a symbol in a lone block takes its decoder 10 microseconds
MAX_EXPANSION = 256  # times the file's size
TABLE_BYTES_PER_FRAME = 64
MAX_TEMPLATE_BYTES = 1 << 16  # it is put before every key-frame that is decoded; writers need about 400


def build_backend(backend: str, config: str, network: Any) -> Backend:
    """The untrained network of a record."""
    return BACKENDS[backend, config][1](network)


def save_pack(
    path: str | os.PathLike[str],
    description: PackDescription,
    index: PackIndex,
    backend: Backend,
    keyframes: Sequence[bytes],
    latents: RoundedLatents | None,
    *,
    appendable: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a pack.

    Args:
        path: the file to write.
        description: the manifest's part.
        index: videos, clips, key-frames, skipped sources.
        backend: the trained network, or with the scope "video" a stack of them, in the order of the videos; its weights
            are rounded on the way.
        keyframes: complete image files, one for each row of the key-frame table; need not all be in memory.
        latents: of all frames that are no key-frames, or None where the network has none.
        appendable: keep the encoder, so that videos can be added later.
        overwrite: replace a file that is there.

    Returns:
        The file's size in bytes.
    """
    manifest, tensors = weights_to_tensors(backend, description.weight_bits)
    if appendable:
        encoder_manifest, encoder_tensors = weights_to_tensors(backend, description.weight_bits, "encoder")
        manifest |= encoder_manifest
        tensors |= encoder_tensors
    return save_with_weights(path, description, index, manifest, tensors, keyframes, latents, overwrite=overwrite)


def save_with_weights(
    path: str | os.PathLike[str],
    description: PackDescription,
    index: PackIndex,
    weight_manifest: Mapping[str, Any],
    weight_tensors: Mapping[str, np.ndarray],
    keyframes: Sequence[bytes],
    latents: RoundedLatents | None,
    *,
    overwrite: bool = False,
) -> int:
    """Write a pack whose weights are laid out already, as ``weights_to_tensors`` does or another pack has them.

    Args: as ``save_pack``, and the manifest's part and the tensors of weights and encoder.

    Returns:
        The file's size in bytes.
    """
    tensors: dict[str, Any] = dict(weight_tensors)
    if description.key_interval is not None:
        template, payloads = pack_keyframes(keyframes, description.keyframe_codec)
        tensors |= blob_to_tensors("keyframes", payloads)
        tensors["keyframes.template"] = np.frombuffer(template, np.uint8)
    if latents is not None:
        tensors |= latents_to_tensors(latents, index_frames(index.clips, index.keys).latents_per_clip())
    tensors |= index_to_tensors(index)
    manifest = write_description(description) | dict(weight_manifest)
    return write_pack(path, manifest, tensors, overwrite=overwrite)


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
                self.reader.tensor_names,
                num_classes=len(self.description.classes),
                num_splits=len(self.description.splits),
                frames_per_clip=self.description.frames_per_clip,
            )
            if not self.index.videos:
                raise PackError("it holds no video")
            height, width = self.description.frame_size
            self._check_expansion("frames", height * width * 3)
            self._check_expansion("table of frames", int(self.index.clips.num_valid.sum()) * TABLE_BYTES_PER_FRAME)
            self.frames: FrameTable = index_frames(self.index.clips, self.index.keys)
            self._keyframes, self._template = self._open_keyframes()

    @property
    def size_bytes(self) -> int:
        return self.reader.size_bytes

    @property
    def classes(self) -> tuple[str, ...]:
        return self.description.classes

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the parts of the corpus, such as "train" and "test"; none in most packs."""
        return self.description.splits

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.description.frame_size

    @property
    def num_parameters(self) -> int:
        """Parameters of the network that are stored."""
        return self.weight_table().num_codes

    def units(self, backend: Backend) -> UnitTable:
        """What the backend decodes together, over the whole pack."""
        return index_units(self.index.clips, backend.frames_per_unit)

    @property
    def num_networks(self) -> int | None:
        """Networks in the pack, one for each video in order; None where one is for all."""
        return len(self.index.videos) if self.description.scope == "video" else None

    @property
    def is_appendable(self) -> bool:
        """Whether the pack holds its encoder, so that videos can be added."""
        return "encoder" in self.reader.manifest

    def load_backend(self, *, with_encoder: bool = False) -> Backend:
        """The network with the weights of the pack, or the stack of all its networks, on the CPU, ready to decode.

        Args:
            with_encoder: read the encoder's weights too; without them, it cannot encode.

        Raises:
            PackError: weights that are damaged, or that do not fit the network; or no encoder where it is asked for.
        """
        description = self.description
        with _naming(self.path):
            tables = [self.weight_table("weights")]
            if with_encoder:
                if not self.is_appendable:
                    raise PackError("it holds no encoder; pack with --appendable to add videos later")
                tables.append(self.weight_table("encoder"))
            outline = self._outline(with_encoder=with_encoder)
            for table in tables:
                if {n: tuple(p.shape) for n, p in stored_parameters(outline, table.part).items()} != table.shapes:
                    raise PackError(f"its {table.part} do not fit its {description.config} {description.backend}")
            parts = [*outline.parameters(), *outline.buffers()]
            self._check_expansion("network", sum(part.numel() * part.element_size() for part in parts))
            weights = {}
            for table in tables:
                weights |= weights_from_tensors(self.reader.tensor, table)
        with torch.random.fork_rng(devices=[]):  # an untrained network is drawn at random
            backend = self._build(with_encoder=with_encoder)
        backend.load_state_dict(weights)
        return backend.eval().requires_grad_(False)

    def weight_table(self, part: Part = "weights") -> WeightTable:
        """The stored parameters with their shapes.

        Raises:
            PackError: the manifest has no such table.
        """
        with _naming(self.path):
            return read_weight_table(self.reader.manifest, self.num_networks, part)

    def weight_parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The weights and, where it is there, the encoder, as they stand in the file: for ``save_with_weights``.

        Raises:
            PackError: they are damaged.
        """
        parts: list[Part] = ["weights", "encoder"] if self.is_appendable else ["weights"]
        manifest = {key: self.reader.manifest[key] for key in (*parts, "weight_levels")}
        return manifest, {name: self.reader.tensor(name) for part in parts for name in weight_tensor_names(part)}

    def weight_codes(self) -> np.ndarray:
        """The codes of all weights, (num_parameters,) uint8 or uint16, as they were entropy-coded.

        Raises:
            PackError: they are damaged.
        """
        with _naming(self.path):
            table = self.weight_table()
            self._check_expansion("weights", 2 * table.num_codes)
            return read_codes(self.reader.tensor, table)

    def keyframe_files(self, rows: np.ndarray) -> list[bytes]:
        """Key-frames as complete image files.

        Raises:
            PackError: a key-frame is damaged; it is named by its video and frame.
        """
        if self._keyframes is None:
            raise PackError(f"{self.path}: its {self.description.backend} stores no key-frames")
        with _naming(self.path):
            return [unpack_keyframe(self._template, payload) for payload in self._keyframes.items(rows.tolist())]

    def keyframes(self, rows: np.ndarray, *, num_threads: int | None = None) -> np.ndarray:
        """Decoded key-frames.

        Args:
            rows: (n,) rows of the key-frame table.
            num_threads: images that are decoded at once; None is one for each processor.

        Returns:
            (n, H, W, 3) uint8 RGB.

        Raises:
            PackError: a key-frame is damaged; it is named by its video and frame.
        """
        files = self.keyframe_files(rows)
        with _naming(self.path):
            codec, size = self.description.keyframe_codec, self.description.frame_size
            try:
                return decode_keyframes(files, codec, size, num_threads=num_threads)
            except PackError:
                for row, file in zip(rows, files, strict=True):
                    with _naming(self.name_keyframe(int(row))):
                        decode_keyframe(file, codec, size)
                raise

    @cached_property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of a frame's latent, or None where the network has none.

        Raises:
            PackError: no network can be built from the pack's configuration.
        """
        with _naming(self.path):
            return self._outline().latent_shape

    def latents(self, clips: np.ndarray | None = None) -> RoundedLatents:
        """Latents of some clips, or of all; key-frames have none.

        Args:
            clips: (n,) rows of the clip table, ascending; None is all of them.

        Raises:
            PackError: they are damaged, a block being named by its video and clip; or the network has none.
        """
        shape = self.latent_shape
        if shape is None:
            raise PackError(f"{self.path}: its {self.description.backend} stores no latents")
        with _naming(self.path):
            per_clip = self.frames.latents_per_clip()
            reader = LatentReader(self.reader, shape, per_clip, self._name_block, self.num_networks)
            blocks = reader.select(clips)
            self._check_expansion("latents", reader.num_bytes(blocks), SMALL_LATENT_BYTES)
            return RoundedLatents(reader.read(blocks), reader.grid)

    def name_keyframe(self, row: int) -> str:
        """A row of the key-frame table in words."""
        keys = self.index.keys
        return f"the key-frame at frame {keys.frame[row]} of {self.index.videos[keys.video[row]].name}"

    def _name_block(self, row: int) -> str:
        """The latents of a row of the clip table in words."""
        clips = self.index.clips
        return f"the latents from frame {clips.first_frame[row]} of {self.index.videos[clips.video[row]].name}"

    def _open_keyframes(self) -> tuple[BlobReader | None, bytes]:
        """The key-frames' bytes, and the template they share; None where the network uses none."""
        num_keys = len(self.index.keys)
        if self.description.key_interval is None:
            if num_keys:
                raise PackError(f"it lists {num_keys} key-frames, but its {self.description.backend} uses none")
            return None, b""
        if not num_keys:
            raise PackError(f"it lists no key-frame, but its {self.description.backend} needs some")
        check_codec_available(self.description.keyframe_codec)
        stored = BlobReader(self.reader, "keyframes", self.name_keyframe)
        if len(stored) != num_keys:
            raise PackError(f"{len(stored)} key-frames are stored, where the index has {num_keys}")
        num_bytes = self.reader.num_bytes("keyframes.template")
        if num_bytes > MAX_TEMPLATE_BYTES:
            raise PackError(f"keyframes.template has {num_bytes} bytes, where {MAX_TEMPLATE_BYTES} are allowed")
        return stored, self.reader.tensor("keyframes.template").tobytes()

    def _check_expansion(self, what: str, num_bytes: int, always_allowed: int = SMALL_BYTES) -> None:
        limit = max(always_allowed, MAX_EXPANSION * self.size_bytes)
        if num_bytes > limit:
            raise PackError(
                f"its {what} would take {num_bytes} bytes of memory; a file of {self.size_bytes} bytes may take {limit}"
            )

    def _outline(self, *, with_encoder: bool = False) -> Backend:
        """The backend without memory for its weights: a stranger's record is not yet to be trusted."""
        try:
            with torch.device("meta"):
                outline = self._build(with_encoder=with_encoder)
        except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
            raise PackError(f"no network can be built from its configuration: {error}") from error
        for name, parameter in outline.named_parameters():
            if not parameter.numel():
                raise PackError(f"the parameter {name} has no weights: the network's record is impossible")
        return outline

    def _build(self, *, with_encoder: bool) -> Backend:
        """The untrained network, or stack, without the parameters that only packing needs."""
        description = self.description
        network = build_backend(description.backend, description.config, description.network)
        strip_parameters(network, keep_encoder=with_encoder)
        return network if self.num_networks is None else stack_networks(network, self.num_networks)


@contextmanager
def _naming(thing: object) -> Iterator[None]:
    """Put a name, such as the pack's path, before what is wrong with it, where it is not said already."""
    try:
        yield
    except PackError as error:
        if str(thing) in str(error):
            raise
        raise type(error)(f"{thing}: {error}") from error
