"""A pack's network, made ready for a device: dequantised and cast once, called in its fast format, compiled on request.

Weights of convolutions and linear layers are stored in the format they run in, which is what autocast would cast them
to at every call; all else (warps, norms, GTMLP's matrices) stays float32.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neuralloader.backends import Backend, KeyFeatures, Units
from neuralloader.backends.precision import fast_dtype
from neuralloader.backends.stacked import StackedConv2d, StackedLinear, decode_with, select_networks
from neuralloader.loading.graphs import DecodeFunction, GraphedDecode
from neuralloader.loading.output import finish_frames

# Numbers of units, types and devices that may be compiled, in all engines of a process; torch's own limit of 8 is soon
# reached, and past it everything would run uncompiled without a word.
RECOMPILE_LIMIT = 256
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Engine:
    """Calls a backend.

    Args:
        backend: with its weights; it is changed in place.
        frame_size: (height, width) of its frames.
        device: where it runs.
        precision: float32, bfloat16 or float16; None is bfloat16 where the device is fast at it, else float32.
        size: (height, width) that frames are resized to, after the network has spared what work it can; None leaves
            them.
        compile: run through ``torch.compile``. Where that fails, a warning says why, and decoding goes on without.
        cuda_graphs: replay a recorded graph for each number of units; CUDA only, with the same fallback.

    Raises:
        ValueError: an unknown precision, or CUDA graphs elsewhere.
    """

    def __init__(
        self,
        backend: Backend,
        frame_size: tuple[int, int],
        device: torch.device,
        *,
        precision: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
    ):
        check_precision(precision)
        if cuda_graphs and device.type != "cuda":
            raise ValueError(f"cuda_graphs=True needs a CUDA device, not {device}")
        self.device, self.precision = device, precision or fast_dtype(device.type)
        if size is not None:
            shrink_towards(backend, frame_size, size)
        self.backend = _cast_layers(backend.to(device), self.precision)
        self._size = size
        self._eager: DecodeFunction = functools.partial(_decode_and_finish, self.backend, size)
        self._fast: DecodeFunction | None = None
        if (compile or cuda_graphs) and backend.num_networks is not None:
            _warn_uncompiled("networks of single videos are put together anew for every batch")
            compile = cuda_graphs = False
        if compile:
            try:
                self._fast = _with_limit(torch.compile(self._eager, dynamic=False))
            except RuntimeError as error:  # none for this Python or system
                _warn_uncompiled(error)
        if cuda_graphs:
            self._fast = GraphedDecode(self._fast or self._eager)

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may decode at once: eagerly, on a CPU, one network (the weights of a stack are put in
        and out of one module)."""
        return self._fast is None and self.device.type == "cpu" and self.backend.num_networks is None

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Without gradients, in the engine's precision."""
        enabled = self.precision != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.precision if enabled else None, enabled=enabled),
        ):
            yield

    def encode_keyframes(self, images: Tensor) -> KeyFeatures:
        """``Backend.encode_keyframes``; float features in the engine's precision, which loses nothing."""
        features = self.backend.encode_keyframes(images)
        return tuple(f.to(self.precision) if f.is_floating_point() else f for f in features)

    def decode(
        self,
        features: KeyFeatures,
        units: Units,
        latents: Tensor | None,
        networks: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Finished frames of n units.

        Args:
            features: rows that ``units.keys`` counts.
            units: n units of T frames, on the device.
            latents: (n * T, ...), or None.
            networks: (V,) int64 rows of a stack of networks, or None.
            dtype: of the frames.

        Returns:
            (n, T, 3, H, W), as ``finish_frames`` makes them.
        """
        if networks is not None:
            weights = select_networks(self.backend, networks)
            return finish_frames(decode_with(self.backend, weights, units, latents), dtype, self._size)
        tensors = (*features, units.keys, units.phase, units.time, units.network_time)
        if self._fast is not None:
            try:
                return self._decode_padded(self._fast, tensors, len(features), latents, dtype)
            except Exception as error:  # compilers raise whatever they run into
                self._fast = None
                _warn_uncompiled(error)
        return self._eager(tensors, len(features), latents, dtype)

    def _decode_padded(
        self,
        decode: DecodeFunction,
        tensors: Sequence[Tensor],
        num_features: int,
        latents: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Decode a power of two of units, of which there are few: each number is compiled or recorded once."""
        num_units = len(tensors[num_features])
        padded = 1 << (num_units - 1).bit_length()
        more = padded - num_units
        units = [_pad(t, more) for t in tensors[num_features:]]
        frames_per_unit = self.backend.frames_per_unit
        latents = None if latents is None else _pad(latents, more * frames_per_unit)
        return decode((*tensors[:num_features], *units), num_features, latents, dtype)[:num_units]


def check_precision(precision: torch.dtype | None) -> None:
    """Refuse, with a ValueError, a precision that networks do not run in."""
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision={precision} must be one of {', '.join(map(str, PRECISIONS))}, or None")


def _with_limit(compiled: DecodeFunction) -> DecodeFunction:
    """A compiled function that may be compiled for many shapes, and raises when it no longer is."""

    def call(tensors: Sequence[Tensor], num_features: int, latents: Tensor | None, dtype: torch.dtype) -> Tensor:
        with torch._dynamo.config.patch(
            recompile_limit=RECOMPILE_LIMIT,
            accumulated_recompile_limit=RECOMPILE_LIMIT,
            fail_on_recompile_limit_hit=True,
        ):
            return compiled(tensors, num_features, latents, dtype)

    return call


def _warn_uncompiled(reason: str | Exception) -> None:
    if isinstance(reason, Exception):
        lines = str(reason).strip().splitlines()
        reason = f"{type(reason).__name__}: {lines[0] if lines else ''}"
    warnings.warn(f"decoding goes on uncompiled: {reason}", stacklevel=3)


def _decode_and_finish(
    backend: Backend,
    size: tuple[int, int] | None,
    tensors: Sequence[Tensor],
    num_features: int,
    latents: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Frames from features, then the fields of ``Units``, in one list."""
    features, units = tuple(tensors[:num_features]), Units(*tensors[num_features:])
    return finish_frames(backend.decode(features, units, latents), dtype, size)


def shrink_towards(backend: Backend, frame_size: tuple[int, int], size: tuple[int, int]) -> None:
    """Let a network that can give smaller frames give the smallest that still hold the size that is wanted."""
    factors = [
        f for f in backend.shrink_factors if all(s <= full // f for s, full in zip(size, frame_size, strict=True))
    ]
    if factors:
        backend.shrink(factors[-1])


def _cast_layers(backend: Backend, dtype: torch.dtype) -> Backend:
    for layer in backend.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | StackedConv2d | StackedLinear):
            layer.to(dtype)
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return backend


def _pad(tensor: Tensor, more: int) -> Tensor:
    """Repeat the last row so many times."""
    return torch.cat([tensor, tensor[-1:].expand(more, *tensor.shape[1:])]) if more else tensor
