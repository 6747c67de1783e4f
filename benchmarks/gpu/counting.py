"""What a call asks of a device: arithmetic, bytes through memory, operators, kernels where a profiler sees them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_WRITES_NOTHING = ("empty", "new_empty", "detach", "lift_fresh")
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
_READS_WHAT_IT_GIVES = ("index_select", "index", "gather", "slice", "select", "embedding")


@dataclass(frozen=True)
class Counts:
    """Of one call.

    Attributes:
        flops: of matrix products and convolutions; a multiplication and an addition are two.
        bytes: read and written by all operators, each tensor once an operator.
        operators: that move bytes.
        kernels: that ran on the device; None where nothing could see them.
        launches: calls of the driver that start kernels, copies or graphs; None as above.
        largest: (operator, bytes), those that move most.
    """

    flops: int
    bytes: int
    operators: int
    kernels: int | None
    launches: int | None
    largest: tuple[tuple[str, int], ...]


def count(call: Callable[[], object], device: torch.device) -> Counts:
    """Count a call of eager operators, in this thread."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # modes see their own thread only, and decoders use others where they may have some
    try:
        with FlopCounterMode(display=False) as flops:
            call()
        with _ByteCounter() as counter:
            call()
    finally:
        torch.set_num_threads(num_threads)
    kernels, launches = count_kernels(call, device)
    return Counts(
        flops=flops.get_total_flops(),
        bytes=sum(counter.bytes.values()),
        operators=counter.operators,
        kernels=kernels,
        launches=launches,
        largest=tuple(counter.bytes.most_common(4)),
    )


def count_kernels(call: Callable[[], object], device: torch.device) -> tuple[int | None, int | None]:
    """Kernels that a call runs, and launches it takes; None without a GPU or where its profiler does not work."""
    if device.type != "cuda":
        return None, None
    torch.cuda.synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profiler:
            call()
            torch.cuda.synchronize(device)
        events = list(profiler.events() or ())
    except RuntimeError:  # no permission to trace
        return None, None
    on_device = [event.name for event in events if event.device_type == DeviceType.CUDA]
    kernels = sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)
    launches = sum(event.device_type == DeviceType.CPU and event.name.startswith(_LAUNCHES) for event in events)
    return (kernels, launches) if kernels else (None, None)


class _ByteCounter(TorchDispatchMode):
    """Adds up what every operator reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode, whole layers arrive here
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        result = func(*args, **kwargs)
        name = func.__name__.partition(".")[0]
        moved = _bytes_moved(name, func, (args, kwargs), result)
        if moved:
            self.bytes[name] += moved
            self.operators += 1
        return result


def _bytes_moved(name: str, func: Any, given: Any, result: Any) -> int:
    if name in _WRITES_NOTHING:
        return 0
    inputs = {id(t): t for t in tree_leaves(given) if isinstance(t, Tensor)}.values()
    outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    stores = {t.untyped_storage()._cdata for t in inputs}
    is_view = not func._schema.is_mutable and outputs and all(t.untyped_storage()._cdata in stores for t in outputs)
    if is_view:
        return 0
    written = sum(map(_size_bytes, outputs))
    if name in _READS_WHAT_IT_GIVES:
        return 2 * written
    if name in ("copy_", "fill_", "zero_", "index_copy_"):  # which only write what they change
        return sum(_size_bytes(t) for t in list(inputs)[1:]) * 2 if len(inputs) > 1 else written
    return written + sum(map(_size_bytes, inputs))


def _size_bytes(tensor: Tensor) -> int:
    """Of its values; those of an expanded tensor are there once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
