"""A training's state on the disk: tensors and a few numbers in one safetensors file, replaced whole. Never a pickle.

    metadata "neuralloader.checkpoint"          JSON: version, the numbers, and the sha256 of each tensor
             "neuralloader.checkpoint.sha256"   of that text
    tensors                                     by name

A file that is damaged, cut short or made by somebody else gives a CheckpointError, and nothing is taken from it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from neuralloader.container.replace import replacing

VERSION = 1
METADATA_KEY = "neuralloader.checkpoint"
SHA256_KEY = "neuralloader.checkpoint.sha256"
MAX_COUNT = 2**53  # of steps, seconds and the like


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. It takes one text."""


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to go on.

    What was read may be that of another network, or a stranger's: the methods give what they are asked for, or raise
    a CheckpointError that tells what is there instead.

    Attributes:
        tensors: by name, on the CPU.
        numbers: JSON values.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]

    def tensors_like(self, expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors, if they are those expected: of the same names, shapes and dtypes, and no more."""
        missing = next((name for name in expected if name not in self.tensors), None)
        if missing is not None:
            raise CheckpointError(f"it is of another network or recipe: it has no tensor {missing}")
        for name, tensor in self.tensors.items():
            if name not in expected:
                raise CheckpointError(f"it is of another network or recipe: tensor {name:.200} belongs to neither")
            mine = expected[name]
            if (tensor.shape, tensor.dtype) != (mine.shape, mine.dtype):
                raise CheckpointError(
                    f"it is of another network or recipe: tensor {name} is {_describe(tensor)}, not {_describe(mine)}"
                )
        return self.tensors

    def count(self, name: str) -> int:
        """A whole number, 0 or more."""
        value = self.numbers.get(name)
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            raise CheckpointError(f"its {name} must be a whole number, not {value!r:.60}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.numbers.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and -MAX_COUNT <= value <= MAX_COUNT:
            return float(value)
        raise CheckpointError(f"its {name} must be a number, not {value!r:.60}")

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.numbers.get(name)
        if type(value) is not bool:
            raise CheckpointError(f"its {name} must be true or false, not {value!r:.60}")
        return value


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> int:
    """Write a checkpoint, which appears whole or not at all and is on the disk when this returns.

    Returns:
        The file's size in bytes.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    told = {
        "version": VERSION,
        "numbers": checkpoint.numbers,
        "sha256": {name: _sha256(tensor) for name, tensor in tensors.items()},
    }
    text = json.dumps(told, sort_keys=True)
    data = save(tensors, {METADATA_KEY: text, SHA256_KEY: hashlib.sha256(text.encode()).hexdigest()})
    with replacing(path, num_bytes=len(data), overwrite=True) as file:
        file.write(data)
    return len(data)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None if there is none.

    Raises:
        CheckpointError: it is damaged, or of another version.
        OSError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # checks that all offsets lie within the file
            told = _read_metadata(file.metadata() or {})
            names = list(file.keys())
            if set(told["sha256"]) != set(names):
                raise CheckpointError("its tensors are not those that it lists")
            tensors = {name: _read_tensor(file, name, told["sha256"][name]) for name in names}
    except CheckpointError as error:
        raise refuse(path, str(error)) from error
    except SafetensorError as error:
        raise refuse(path, f"it is no safetensors file, or cut short ({error})") from error
    return Checkpoint(tensors, told["numbers"])


def refuse(path: Path, reason: str) -> CheckpointError:
    """The error about a checkpoint that cannot be used; it names the way out."""
    return CheckpointError(f"the checkpoint {path} cannot be used: {reason}; start over with --fresh (fresh=True)")


def _read_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise CheckpointError("it is no checkpoint of a training")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get(SHA256_KEY):
        raise CheckpointError("its numbers do not match their sha256")
    try:
        told = json.loads(text)
        version = told["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError("it is no checkpoint of a training") from error
    if version != VERSION:
        raise CheckpointError(f"it has version {version!r:.40}, where this neuralloader writes {VERSION}")
    if not isinstance(told.get("numbers"), dict) or not isinstance(told.get("sha256"), dict):
        raise CheckpointError("it is no checkpoint of a training")
    return told


def _read_tensor(file: Any, name: str, sha256: Any) -> Tensor:
    """A tensor with memory of its own: the file's, in which it comes, is gone when the checkpoint is replaced."""
    tensor = file.get_tensor(name).clone()
    if _sha256(tensor) != sha256:
        raise CheckpointError(f"tensor {name:.200} does not match its sha256")
    return tensor


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _sha256(tensor: Tensor) -> str:
    """Of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
