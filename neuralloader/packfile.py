"""A corpus as one file: joins backends, codecs and container. Saving and opening stand side by side.

    manifest      backend, configuration, classes, sizes, the table of weights, how it was trained, how good it is
    tables        videos, skipped sources, clips, key-frames (``container.index``)
    weights.*     8-bit codes of all stored parameters behind one another, compressed; scales.* to go with them
    latents.*     a block for each clip that has any, and the probability tables (``codecs.rans``)
    keyframes.*   image files less what they share (``codecs.keyframes``)

The network runs elsewhere (``loading``); nothing here decodes a frame.
"""

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralloader.backends import BACKENDS, Backend
from neuralloader.clips import FrameTable, UnitTable, index_frames, index_units
from neuralloader.codecs.keyframes import KeyframeCodec, check_codec_available, decode_keyframes, unpack_keyframe
from neuralloader.codecs.keyframes import pack_keyframes as share_template
from neuralloader.codecs.quantize import QuantizedTensor, dequantize, quantize
from neuralloader.codecs.rans import LatentTables, decode_blocks, encode_blocks, fit_tables
from neuralloader.codecs.zstd import compress_bytes, decompress_bytes
from neuralloader.container.blobs import BlobReader, blob_to_tensors
from neuralloader.container.index import PackIndex, index_from_tensors, index_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError

MAX_SIDE = 16384  # pixels of a frame's side
MAX_SETTING = 1 << 20  # any number in a backend's configuration
MAX_FRAMES_PER_CLIP = 256
MAX_STATE_BYTES = 64 << 30  # weights or latents, decoded
MAX_UNSTORED_BYTES = 256 << 20  # weights that only packing needs, but that the network has all the same


@dataclass(frozen=True)
class PackDescription:
    """What the manifest says about a pack, beside its tensors.

    Attributes:
        backend: name of the backend, such as "dnerv".
        config: name of its configuration, "fast" or "paper".
        network: the frozen record that its network is built from.
        frame_size: (height, width) of every frame in pixels.
        frames_per_clip: frames in a clip.
        key_interval: frames between key-frames.
        frame_rate: stored frames per second that were asked for; None is every frame of the source.
        classes: class names that labels index.
        keyframe_codec, keyframe_quality: how key-frames are compressed.
        weight_bits: bits of a weight's code.
        training: how it was trained, as plain JSON values.
        quality: measured on the finished file, as plain JSON values; empty until then.
    """

    backend: str
    config: str
    network: Any
    frame_size: tuple[int, int]
    frames_per_clip: int
    key_interval: int
    frame_rate: float | None
    classes: tuple[str, ...]
    keyframe_codec: KeyframeCodec
    keyframe_quality: int
    weight_bits: int
    training: Mapping[str, Any]
    quality: Mapping[str, Any]


def weight_axis(shape: tuple[int, ...]) -> int | None:
    """The axis whose every index has its own scale: output channels of a weight; none for a bias or a short vector."""
    return 0 if len(shape) >= 2 else None


def build_backend(backend: str, config: str, network: Any) -> Backend:
    """The untrained network of a record."""
    return BACKENDS[backend, config][1](network)


def stored_parameters(backend: Backend) -> dict[str, torch.nn.Parameter]:
    """The parameters that decoding needs, in the network's order."""
    return {name: p for name, p in backend.named_parameters() if backend.is_stored(name)}


# --- saving ---------------------------------------------------------------------------------------------------------


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
    weight_table, tensors = _weights_to_tensors(backend, description.weight_bits)
    template, payloads = share_template(keyframes, description.keyframe_codec)
    tensors |= blob_to_tensors("keyframes", payloads)
    tensors["keyframes.template"] = np.frombuffer(template, np.uint8)
    if latents is not None:
        tables = fit_tables(latents)
        per_clip = latents_per_clip(index_frames(index.clips, index.keys), len(index.clips))
        blocks = encode_blocks(latents, per_clip[per_clip > 0], tables)
        tensors |= blob_to_tensors("latents", blocks)
        tensors |= {"latents.offset": tables.offset, "latents.frequencies": tables.frequencies}
    tensors |= index_to_tensors(index)
    manifest = dataclasses.asdict(description) | {"weights": weight_table}
    return write_pack(path, manifest, tensors, overwrite=overwrite)


def _weights_to_tensors(backend: Backend, bits: int) -> tuple[list[list[Any]], dict[str, Any]]:
    """The manifest's table of weights, [name, shape] each, and their tensors."""
    table: list[list[Any]] = []
    parts: list[QuantizedTensor] = []
    for name, parameter in stored_parameters(backend).items():
        values = parameter.detach().float().cpu().contiguous().numpy()
        parts.append(quantize(values, bits=bits, axis=weight_axis(values.shape)))
        table.append([name, list(values.shape)])
    return table, {
        "weights.codes": np.frombuffer(compress_bytes(b"".join(p.codes.tobytes() for p in parts)), np.uint8),
        "scales.minimum": np.concatenate([p.minimum.ravel() for p in parts]),
        "scales.scale": np.concatenate([p.scale.ravel() for p in parts]),
    }


def latents_per_clip(frames: FrameTable, num_clips: int) -> np.ndarray:
    """(num_clips,) int64: frames of each clip that store a latent."""
    return np.bincount(frames.clip[~frames.is_key], minlength=num_clips)


# --- opening --------------------------------------------------------------------------------------------------------


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
            self.description = _read_description(self.reader.manifest)
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
                    f"its network has {unstored} bytes of weights beside those stored; the limit is {MAX_UNSTORED_BYTES}"
                )
            weights = self._read_weights(shapes)
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
            _check_state_bytes("latents", int(per_block.sum()) * prod(shape))
            blocks = BlobReader(self.reader, "latents")
            if len(blocks) != len(per_block):
                raise PackError(f"{len(blocks)} blocks of latents are stored, where {len(per_block)} belong")
            tables = LatentTables(self.reader.tensor("latents.offset"), self.reader.tensor("latents.frequencies"))
            return decode_blocks([blocks[i] for i in range(len(blocks))], per_block, shape, tables)

    def _outline(self) -> Backend:
        """The network without memory for its weights: a stranger's configuration is not yet to be trusted."""
        description = self.description
        try:
            with torch.device("meta"):
                return build_backend(description.backend, description.config, description.network)
        except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
            raise PackError(f"no network can be built from its configuration: {error}") from error

    def _weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape, as the manifest has it."""
        shapes = {}
        for row in _field(self.reader.manifest, "weights", list):
            if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], list)):
                raise PackError(f"{row!r:.200} is no row of the table of weights")
            if not all(type(side) is int and side >= 0 for side in row[1]):
                raise PackError(f"{row!r:.200} has no shape of whole numbers")
            if row[0] in shapes:
                raise PackError(f"{row[0]!r:.200} comes twice in the table of weights")
            shapes[row[0]] = tuple(row[1])
        return shapes

    def _read_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Dequantised weights; the shapes are those of the network by now, so they can be trusted."""
        num_codes = sum(prod(shape) for shape in shapes.values())
        _check_state_bytes("weights", 4 * num_codes)
        codes = np.frombuffer(decompress_bytes(self.reader.view("weights.codes").tobytes(), num_codes), np.uint8)
        minimum, scale = self.reader.tensor("scales.minimum"), self.reader.tensor("scales.scale")
        num_scales = sum(shape[0] if weight_axis(shape) == 0 else 1 for shape in shapes.values())
        if minimum.shape != (num_scales,) or scale.shape != (num_scales,):
            raise PackError(f"scales of shape {minimum.shape} and {scale.shape}, where {num_scales} belong")
        weights, code, row = {}, 0, 0
        for name, shape in shapes.items():
            per_channel = weight_axis(shape) == 0
            scale_shape = (shape[0],) + (1,) * (len(shape) - 1) if per_channel else ()
            stop, row_stop = code + prod(shape), row + (shape[0] if per_channel else 1)
            quantized = QuantizedTensor(
                codes=codes[code:stop].reshape(shape),
                minimum=minimum[row:row_stop].reshape(scale_shape),
                scale=scale[row:row_stop].reshape(scale_shape),
            )
            weights[name] = torch.from_numpy(dequantize(quantized))
            code, row = stop, row_stop
        return weights


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the pack's path before what is wrong with it, where it is not said already."""
    try:
        yield
    except PackError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _check_state_bytes(what: str, num_bytes: int) -> None:
    if num_bytes > MAX_STATE_BYTES:
        raise PackError(f"its {what} would take {num_bytes} bytes; the limit is {MAX_STATE_BYTES}")


def _read_description(manifest: Mapping[str, Any]) -> PackDescription:
    """Check the manifest's part, field by field."""
    backend, config = _field(manifest, "backend", str), _field(manifest, "config", str)
    if (backend, config) not in BACKENDS:
        known = ", ".join(f"{b} {c}" for b, c in BACKENDS)
        raise PackError(f"the pack needs the backend {backend!r:.200} ({config:.200}); this version knows {known}")
    frame_size = _pair(manifest, "frame_size", MAX_SIDE)
    network = _read_network(BACKENDS[backend, config][0], _field(manifest, "network", dict))
    if network.frame_size != frame_size:
        raise PackError(f"frame_size {frame_size} is not that of the network, {network.frame_size}")
    frame_rate = manifest.get("frame_rate")
    if frame_rate is not None and not (type(frame_rate) in (int, float) and 0 < frame_rate < 1e6):
        raise PackError(f"frame_rate {frame_rate!r:.200} must be above 0, or null")
    classes = _field(manifest, "classes", list)
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        raise PackError("classes must be texts, each of them once")
    frames_per_clip = _number(manifest, "frames_per_clip", 1, MAX_FRAMES_PER_CLIP)
    if getattr(network, "frames_per_clip", frames_per_clip) != frames_per_clip:
        raise PackError(f"frames_per_clip {frames_per_clip} is not that of the network, {network.frames_per_clip}")
    key_interval = _field(manifest, "key_interval", int)
    if key_interval < 1 or key_interval % frames_per_clip:
        raise PackError(f"key_interval {key_interval} must be a multiple of the {frames_per_clip} frames of a clip")
    codec = _field(manifest, "keyframe_codec", str)
    if codec not in typing.get_args(KeyframeCodec):
        known = ", ".join(typing.get_args(KeyframeCodec))
        raise PackError(f"key-frame codec {codec!r:.200} is unknown; this version knows {known}")
    quality = _field(manifest, "quality", dict)
    for name, value in quality.items():
        if type(value) not in (int, float):
            raise PackError(f"quality of the manifest must hold numbers, not {value!r:.200} for {name!r:.200}")
    return PackDescription(
        backend=backend,
        config=config,
        network=network,
        frame_size=frame_size,
        frames_per_clip=frames_per_clip,
        key_interval=key_interval,
        frame_rate=frame_rate,
        classes=tuple(classes),
        keyframe_codec=typing.cast(KeyframeCodec, codec),
        keyframe_quality=_number(manifest, "keyframe_quality", 0, 100),
        weight_bits=_number(manifest, "weight_bits", 2, 8),
        training=_field(manifest, "training", dict),
        quality=quality,
    )


def _read_network(record: type[Any], values: Mapping[str, Any]) -> Any:
    """The record of a network from JSON: every field there, of its type, and no number out of bounds."""
    hints = typing.get_type_hints(record)
    names = sorted(field.name for field in dataclasses.fields(record))
    if sorted(values) != names:
        raise PackError(f"the network's record has {sorted(values)!r:.400}, where {names} belong")
    settings = {name: _setting(name, value, hints[name]) for name, value in values.items()}
    try:
        return record(**settings)
    except ValueError as error:
        raise PackError(f"the network's record is impossible: {error}") from error


def _setting(name: str, value: Any, hint: Any) -> Any:
    """One value of a configuration: an int, a float, or a tuple of them."""
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list) or not 1 <= len(value) <= 16:
            raise PackError(f"{name} of the network must be a short list, not {value!r:.200}")
        if kinds[-1] is not Ellipsis and len(kinds) != len(value):
            raise PackError(f"{name} of the network must have {len(kinds)} numbers, not {len(value)}")
        return tuple(_setting(name, part, kinds[0]) for part in value)
    is_number = isinstance(value, int) or (hint is float and isinstance(value, float))
    if not is_number or isinstance(value, bool) or not abs(value) <= MAX_SETTING or (hint is int and value < 1):
        raise PackError(f"{name} of the network must be 1 to {MAX_SETTING}, not {value!r:.200}")
    return hint(value)


def _field(manifest: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = manifest.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PackError(f"{name} of the manifest must be {kind.__name__}, not {value!r:.200}")
    return value


def _number(manifest: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = _field(manifest, name, int)
    if not least <= value <= most:
        raise PackError(f"{name} {value} must be {least} to {most}")
    return value


def _pair(manifest: Mapping[str, Any], name: str, most: int) -> tuple[int, int]:
    value = _field(manifest, name, list)
    if len(value) != 2 or not all(type(side) is int and 1 <= side <= most for side in value):
        raise PackError(f"{name} of the manifest must be two numbers from 1 to {most}, not {value!r:.200}")
    return value[0], value[1]
