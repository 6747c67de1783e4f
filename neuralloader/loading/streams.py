"""A CUDA stream for decoding, so that it runs beside the consumer's work. On a CPU, nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class DecodeStream:
    """Work on a stream of its own, and the handing over of what it made.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run what is called within on the stream."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def call(self, function: Callable[[], Tensor]) -> Tensor:
        """Run a function on the stream, and hand what it makes over to the caller's."""
        with self.working():
            made = function()
            mark = self.mark()
        self.hand_over(mark, made)
        return made

    def mark(self) -> torch.cuda.Event | None:
        """A mark behind the work so far."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    @staticmethod
    def hand_over(mark: torch.cuda.Event | None, *tensors: Tensor) -> None:
        """Make the caller's stream wait for a mark, on the device alone, and keep tensors until it has used them."""
        if mark is None:
            return
        stream = torch.cuda.current_stream(mark.device)  # not of the tensors: there may be none, or some on the host
        stream.wait_event(mark)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(stream)


def on_current_device(items: Iterator[Item]) -> Iterator[Item]:
    """The same, advanced with the CUDA device that is current now: a thread begins with the first one."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def advance() -> Iterator[Item]:
        if device is not None:
            torch.cuda.set_device(device)
        yield from items

    return advance()
