"""The processes that train one network together, as ``torchrun`` starts them. A process alone is a group of one.

All of them do the same steps on parts of the same batches, and so hold the same network. Nothing else in ``training``
knows torch.distributed.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Others may read videos or write a pack for hours while a process waits; one that died is noticed by its lost
# connection, and by torchrun.
_PATIENCE = timedelta(days=30)
_BUCKET_VALUES = 1 << 22  # gradients that travel together


@dataclass(frozen=True)
class Group:
    """A process's place among those that train together.

    Attributes:
        rank: its number, 0 to size - 1.
        size: processes in all.
        local_rank: its number on its machine: which GPU it takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process does what only one should do: write, measure, print."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over the group of a few numbers. Waits for all."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        self._reduce(summed)
        return summed.tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their sums over the group; a missing one counts as 0. Waits for all."""
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            together = torch.cat([_gradient(p).flatten().float() for p in bucket])
            self._reduce(together)
            for parameter, part in zip(bucket, together.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Replace a float32 tensor by its sum over the group. Waits for all."""
        if self.size > 1 and tensor.numel():
            self._reduce(tensor)
        return tensor

    def part(self, length: int) -> slice:
        """This process's share of so many things, none of them another's; of a few, the first processes get one."""
        start, end = (-(-length * rank // self.size) for rank in (self.rank, self.rank + 1))
        return slice(start, end)

    def device(self, wanted: torch.device | None) -> torch.device:
        """Where this process trains: where it is told to, else on CUDA if it is there; each on a GPU of its own."""
        device = wanted or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.size > 1 and device.type == "cuda":
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        return device

    def wait(self) -> None:
        """Until all have come here."""
        self.sum([0.0])

    def _reduce(self, tensor: Tensor) -> None:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.size} lost another one while training together; its own message tells "
                f"why, and the same command resumes: {str(error).splitlines()[0]}"
            ) from error


ALONE = Group()


@contextmanager
def joined_group() -> Iterator[Group]:
    """The group that torchrun started this process in, or a group of one. Leaves it in the end.

    Raises:
        ValueError: torchrun's variables are there in part, or make no sense.
    """
    group = _read_environment()
    if group.size == 1 or dist.is_initialized():  # whoever has joined already also leaves
        yield group
        return
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, timeout=_PATIENCE)
    try:
        yield group
    finally:
        dist.destroy_process_group()


def _read_environment() -> Group:
    if os.environ.get("WORLD_SIZE", "1") == "1":  # clusters set this for single processes too, and not the others
        return ALONE
    values = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        rank, size, local_rank = (int(value or "") for value in values.values())
        if not (0 <= rank < size and local_rank >= 0):
            raise ValueError
    except ValueError:
        told = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(
            f"torchrun sets RANK, WORLD_SIZE and LOCAL_RANK, the ranks counted from 0; here are {told}: start several "
            "processes by torchrun, or unset WORLD_SIZE"
        ) from None
    return Group(rank, size, local_rank)


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Some millions of values at a time."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > _BUCKET_VALUES:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
