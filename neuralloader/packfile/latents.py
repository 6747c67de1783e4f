"""The latents of a corpus's frames: rounded, as tensors of a pack, and back.

latents.offset, .frequencies   probability tables of the entropy coder (``codecs.rans``)
latents.data, .size, .crc32    a block for each clip that has a frame with a latent: its int8 symbols, frame by frame
latents.minimum, .scale        float16, a value for each channel, where latents are rounded to an even grid:
                               value = minimum + scale * (symbol + 128). Without them, value = symbol. Where every video
                               has a network of its own, it has such a row of its own, too

Every frame that is no key-frame has one latent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from neuralloader.codecs.quantize import quantize
from neuralloader.codecs.rans import LatentTables, decode_blocks, encode_blocks, fit_tables
from neuralloader.container.blobs import BlobReader, blob_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import ByteStream
from neuralloader.errors import PackError

MAX_SYMBOL = 127
SYMBOL_OF_CODE_0 = -128  # of an even grid
FIRST_DEAD_ZONE = 1 / 16  # tried while trimming; as much takes 5% off the bytes of a usual pack
CLOSE_ENOUGH = 0.998  # of the bytes that trimmed latents may take
MAX_HALVINGS = 16  # of the dead zones between one that is too narrow and one that is wide enough


@dataclass(frozen=True)
class LatentGrid:
    """What the symbols of rounded latents stand for: minimum + scale * (symbol + 128).

    Attributes:
        minimum, scale: (channels,) float16, or (num_videos, channels) where every video has a network of its own.
    """

    minimum: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class RoundedLatents:
    """Latents as they are stored.

    Attributes:
        symbols: (num_latents, channels, height, width) int8.
        grid: what they stand for; None is themselves.
    """

    symbols: np.ndarray
    grid: LatentGrid | None


def round_latents(
    values: np.ndarray, bits: int | None, *, per_video: np.ndarray | None = None, grid: LatentGrid | None = None
) -> RoundedLatents:
    """Round latents to whole numbers, or to an even grid of 2^bits levels for each channel.

    Args:
        values: (num_latents, channels, height, width) float32.
        bits: 2 to 8; None is whole numbers, which are clipped to -127 to 127.
        per_video: (num_videos,) latents of each video, where every video gets a grid of its own.
        grid: of the latents that these are added to, (channels,); values beyond it are clipped. None makes one.

    Raises:
        ValueError: values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("latents must be finite; training went wrong")
    if bits is None:
        return RoundedLatents(np.rint(values).clip(-MAX_SYMBOL, MAX_SYMBOL).astype(np.int8), None)
    if grid is not None:
        codes = _codes_on_grid(values, bits, grid)
    elif per_video is None:
        quantized = quantize(values, bits=bits, axis=1)
        codes, grid = quantized.codes, LatentGrid(quantized.minimum.ravel(), quantized.scale.ravel())
    else:
        parts = [quantize(part, bits=bits, axis=1) for part in np.split(values, np.cumsum(per_video)[:-1])]
        codes = np.concatenate([part.codes for part in parts])
        grid = LatentGrid(
            np.stack([part.minimum.ravel() for part in parts]), np.stack([part.scale.ravel() for part in parts])
        )
    return RoundedLatents((codes.astype(np.int16) + SYMBOL_OF_CODE_0).astype(np.int8), grid)


def _codes_on_grid(values: np.ndarray, bits: int, grid: LatentGrid) -> np.ndarray:
    minimum, scale = (part.astype(np.float32).reshape(-1, 1, 1) for part in (grid.minimum, grid.scale))
    steps = (values - minimum) / np.where(scale == 0, np.inf, scale)  # a grid without steps has the one code 0
    return np.clip(np.rint(steps), 0, 2**bits - 1).astype(np.uint8)


def trim_latents(values: np.ndarray, per_clip: np.ndarray, max_bytes: int) -> RoundedLatents:
    """Round latents to whole numbers, and toward zero just as far as it takes to stay within some bytes.

    A value becomes sign(x) * floor(|x| + 0.5 - d): those nearest to the next smaller number go there first, which
    changes frames least for the bits it saves. d, the dead zone, is searched for by coding the latents again and again.

    Args:
        values: (num_latents, channels, height, width) float32.
        per_clip: as ``FrameTable.latents_per_clip`` gives it.
        max_bytes: of their tensors in all (``latent_bytes``).

    Raises:
        ValueError: values that are not finite, or more bytes than that when all of them are 0.
    """
    best, size = round_latents(values, None), 0
    if latent_bytes(best, per_clip) <= max_bytes:
        return best
    narrow, wide = 0.0, FIRST_DEAD_ZONE
    while (size := latent_bytes(best := _round_toward_zero(values, wide), per_clip)) > max_bytes:
        if not best.symbols.any():
            raise ValueError(f"max_bytes={max_bytes}: latents take at least {size} bytes, even if all of them are 0")
        narrow, wide = wide, 2 * wide
    for _ in range(MAX_HALVINGS):
        if size >= CLOSE_ENOUGH * max_bytes:
            break
        middle = (narrow + wide) / 2
        tried = _round_toward_zero(values, middle)
        tried_size = latent_bytes(tried, per_clip)
        if tried_size > max_bytes:
            narrow = middle
        else:
            best, size, wide = tried, tried_size, middle
    return best


def _round_toward_zero(values: np.ndarray, dead_zone: float) -> RoundedLatents:
    magnitude = np.floor(np.abs(values) + (0.5 - dead_zone)).clip(0, MAX_SYMBOL)
    return RoundedLatents((np.sign(values) * magnitude).astype(np.int8), None)


def latent_bytes(latents: RoundedLatents, per_clip: np.ndarray) -> int:
    """Bytes of the tensors of the latents.

    Args: as ``latents_to_tensors``.
    """
    tensors = latents_to_tensors(latents, per_clip).values()
    return sum(tensor.num_bytes if isinstance(tensor, ByteStream) else tensor.nbytes for tensor in tensors)


def latents_to_tensors(latents: RoundedLatents, per_clip: np.ndarray) -> dict[str, Any]:
    """The tensors of the latents.

    Args:
        latents: of all frames that have one, in frame order.
        per_clip: as ``FrameTable.latents_per_clip`` gives it.
    """
    tables = fit_tables(latents.symbols)
    blocks = encode_blocks(latents.symbols, per_clip[per_clip > 0], tables)
    tensors: dict[str, Any] = blob_to_tensors("latents", blocks)
    tensors |= {"latents.offset": tables.offset, "latents.frequencies": tables.frequencies}
    if latents.grid is not None:
        tensors |= {"latents.minimum": latents.grid.minimum, "latents.scale": latents.grid.scale}
    return tensors


class LatentReader:
    """The latents of an opened pack, block by block.

    Args:
        reader: the opened pack.
        shape: (channels, height, width) of a frame's latent.
        per_clip: as ``FrameTable.latents_per_clip`` gives it.
        name_of_clip: puts a row of the clip table in words, for errors.
        num_networks: one for each video, or None.

    Raises:
        PackError: tables that are damaged or do not fit.
    """

    def __init__(
        self,
        reader: PackReader,
        shape: tuple[int, int, int],
        per_clip: np.ndarray,
        name_of_clip: Callable[[int], str],
        num_networks: int | None = None,
    ):
        self._shape = shape
        self._clip = np.flatnonzero(per_clip)  # of each block
        self._num_frames = per_clip[self._clip]
        self._name_of_clip = name_of_clip
        self._blocks = BlobReader(reader, "latents", lambda block: name_of_clip(int(self._clip[block])))
        if len(self._blocks) != len(self._clip):
            raise PackError(f"{len(self._blocks)} blocks of latents are stored, where {len(self._clip)} belong")
        self._tables = LatentTables(reader.tensor("latents.offset"), reader.tensor("latents.frequencies"))
        self.grid = _read_grid(reader, shape[:1] if num_networks is None else (num_networks, shape[0]))

    def select(self, clips: np.ndarray | None) -> np.ndarray:
        """The blocks of some clips, ascending, or of all."""
        return np.arange(len(self._clip)) if clips is None else np.flatnonzero(np.isin(self._clip, clips))

    def num_bytes(self, blocks: np.ndarray) -> int:
        """Bytes of their symbols."""
        return int(self._num_frames[blocks].sum()) * prod(self._shape)

    def read(self, blocks: np.ndarray) -> np.ndarray:
        """Symbols of some blocks, (num_latents, *shape) int8.

        Raises:
            PackError: a block is damaged.
        """
        items = self._blocks.items(blocks.tolist())
        num_frames = self._num_frames[blocks]
        try:
            return decode_blocks(items, num_frames, self._shape, self._tables)
        except PackError:
            for block, item, count in zip(blocks, items, num_frames, strict=True):
                try:
                    decode_blocks([item], np.array([count]), self._shape, self._tables)
                except PackError as error:
                    raise PackError(f"{self._name_of_clip(int(self._clip[block]))}: {error}") from error
            raise


def _read_grid(reader: PackReader, shape: tuple[int, ...]) -> LatentGrid | None:
    names = ("latents.minimum", "latents.scale")
    present = [name in reader.tensor_names for name in names]
    if not any(present):
        return None
    minimum, scale = (reader.tensor(name) for name in names)
    for name, values in zip(names, (minimum, scale), strict=True):
        if values.dtype != np.float16 or values.shape != shape or not np.isfinite(values).all():
            wanted = " x ".join(map(str, shape))
            raise PackError(f"{name} must be {wanted} finite float16, not {values.dtype} {values.shape}")
    return LatentGrid(minimum, scale)
