"""A decoding function as CUDA graphs: recorded once for each shape, then replayed, all operators in one launch."""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (features, then the fields of ``Units``; how many are features; latents; dtype) -> frames
DecodeFunction = Callable[[Sequence[Tensor], int, Tensor | None, torch.dtype], Tensor]


class GraphedDecode:
    """A decoding function recorded as a CUDA graph for each shape and dtype, then replayed.

    Features are read where they stand; all else is copied into the graph's own inputs. What it gives is the graph's own
    output, good until the next call: the caller copies.
    """

    WARM_UP_CALLS = 3
    _recording = threading.Lock()  # of one graph at a time: it begins by waiting for the device, which breaks another

    def __init__(self, decode: DecodeFunction):
        self._decode = decode
        self._pool = torch.cuda.graph_pool_handle()  # one for all: no two run at once, and outputs are copied
        self._recorded: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(
        self, tensors: Sequence[Tensor], num_features: int, latents: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        features, given = tensors[:num_features], [*tensors[num_features:], *([] if latents is None else [latents])]
        key = (dtype, *((tuple(t.shape), t.dtype) for t in given), *(f.data_ptr() for f in features))
        if key not in self._recorded:
            self._recorded[key] = self._record(features, given, num_features, latents is not None, dtype)
        graph, inputs, output = self._recorded[key]
        for own, new in zip(inputs, given, strict=True):
            own.copy_(new)
        graph.replay()
        return output

    def _record(
        self,
        features: Sequence[Tensor],
        given: Sequence[Tensor],
        num_features: int,
        has_latents: bool,
        dtype: torch.dtype,
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        inputs = [t.clone() for t in given]
        units, latents = (inputs[:-1], inputs[-1]) if has_latents else (inputs, None)
        for _ in range(self.WARM_UP_CALLS):
            self._decode((*features, *units), num_features, latents, dtype)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with (
            self._recording,
            torch.inference_mode(False),  # a first graph makes tensors for random numbers that everybody's graphs share
            torch.cuda.graph(  # others may allocate meanwhile
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ),
            torch.inference_mode(),
        ):
            output = self._decode((*features, *units), num_features, latents, dtype)
        return graph, inputs, output
