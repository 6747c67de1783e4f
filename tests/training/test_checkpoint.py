"""Checkpoints: what is read is what was written, and a file that is anything else gives one error that says so."""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neuralloader.training.checkpoint import (
    METADATA_KEY,
    SHA256_KEY,
    Checkpoint,
    CheckpointError,
    read_checkpoint,
    write_checkpoint,
)

NUMBERS: dict[str, Any] = {"steps": 7, "seconds": 0.1 + 0.2, "is_finished": False, "nothing": None, "text": "ä\n"}


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 3, 2, 2, generator=generator)
    return {
        "float32": weights,
        "channels last": weights.to(memory_format=torch.channels_last),
        "transposed": weights.flatten(1).T,
        "float64": weights.double() / 3,
        "bfloat16": weights.bfloat16(),
        "float16": weights.half(),
        "int64": torch.tensor([2**62, -1, 0]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0),
        "empty with sides": torch.zeros(3, 0, 2),
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint"
    assert write_checkpoint(path, Checkpoint(_tensors(), NUMBERS)) == path.stat().st_size
    return path.read_bytes()


def _bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", Checkpoint(_tensors(), NUMBERS))
    read = read_checkpoint(tmp_path / "c")
    assert read is not None
    assert read.numbers == NUMBERS
    assert read.tensors.keys() == _tensors().keys()
    for name, tensor in _tensors().items():
        other = read.tensors[name]
        assert (other.dtype, other.shape, _bits(other)) == (tensor.dtype, tensor.shape, _bits(tensor)), name


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", Checkpoint({}, {}))
    assert read_checkpoint(tmp_path / "c") == Checkpoint({}, {})


def test_gradients_and_devices_are_no_part_of_it(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    write_checkpoint(tmp_path / "c", Checkpoint({"p": parameter * 2}, {}))
    read = read_checkpoint(tmp_path / "c")
    assert read is not None
    assert read.tensors["p"].tolist() == [2, 2]
    assert not read.tensors["p"].requires_grad


def test_there_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "c") is None
    assert read_checkpoint(tmp_path / "missing" / "c") is None


def test_tensors_stay_when_the_file_is_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", Checkpoint({"a": torch.arange(1000)}, {}))
    read = read_checkpoint(tmp_path / "c")
    assert read is not None
    read.tensors["a"][0] = 5
    (tmp_path / "c").write_bytes(bytes((tmp_path / "c").stat().st_size))  # in place, as a torn disk might
    assert read.tensors["a"].tolist() == [5, *range(1, 1000)]
    write_checkpoint(tmp_path / "c", Checkpoint(read.tensors, {}))
    again = read_checkpoint(tmp_path / "c")
    assert again is not None
    assert torch.equal(again.tensors["a"], read.tensors["a"])


def test_writing_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "c", Checkpoint({"a": torch.zeros(3)}, {"steps": 1}))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("neuralloader.container.replace.os.fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*c: No space left on device; it takes \d+ bytes; make room"):
        write_checkpoint(tmp_path / "c", Checkpoint({"a": torch.ones(3)}, {"steps": 2}))
    read = read_checkpoint(tmp_path / "c")
    assert read is not None
    assert read.numbers == {"steps": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


# --- damage ---------------------------------------------------------------------------------------------------------


def _refusal(path: Path, data: bytes) -> str:
    """What is said about a damaged file: always this error, the path and the way out."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(f"the checkpoint {path} cannot be used: ")
    assert text.endswith("; start over with --fresh (fresh=True)")
    assert len(text) < 1000
    return text


def _header_bytes(whole: bytes) -> int:
    return 8 + int.from_bytes(whole[:8], "little")


def test_cut_short_anywhere(whole: bytes, tmp_path: Path) -> None:
    start = _header_bytes(whole)
    ends = {0, 1, 7, 8, 9, start // 2, start - 1, start, start + 1, len(whole) - 1}
    for end in sorted(ends | set(range(start, len(whole), 101))):
        assert "it is no safetensors file, or cut short" in _refusal(tmp_path / "c", whole[:end])


def test_bytes_too_many(whole: bytes, tmp_path: Path) -> None:
    for more in (b"\0", bytes(4096), whole):
        _refusal(tmp_path / "c", whole + more)


def test_a_bit_flipped_anywhere_in_the_tensors_is_told_by_their_name(whole: bytes, tmp_path: Path) -> None:
    start = _header_bytes(whole)
    for place in range(start, len(whole), 37):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        assert re.search(r"tensor [a-z0-9 ]+ does not match its sha256", _refusal(tmp_path / "c", bytes(changed)))


def test_any_damage_is_refused_or_changes_nothing(whole: bytes, tmp_path: Path) -> None:
    """Header and all: what is read in the end is what was written, or the one error."""
    random = np.random.default_rng(0)
    header = _header_bytes(whole)
    refused: list[str] = []
    for number in range(400):
        changed = bytearray(whole)
        end = header if number % 4 else len(whole)
        start = int(random.integers(end))
        length = int(random.choice([1, 1, 2, 8, 100]))
        if number % 3:
            changed[start : start + length] = random.bytes(len(changed[start : start + length]))
        else:
            changed[start] ^= 1 << int(random.integers(8))
        path = tmp_path / "c"
        path.write_bytes(changed)
        try:
            read = read_checkpoint(path)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        assert read is not None
        assert read.numbers == NUMBERS
        assert read.tensors.keys() == _tensors().keys()
        assert all(_bits(read.tensors[name]) == _bits(tensor) for name, tensor in _tensors().items())
    assert len(refused) > 350
    assert all(text.startswith(f"the checkpoint {tmp_path / 'c'} cannot be used: ") for text in refused)


# --- files of others ------------------------------------------------------------------------------------------------


def _file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with such a header, which tells such a length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _told(**changes: Any) -> dict[str, str]:
    return _signed(json.dumps({"version": 1, "numbers": {}, "sha256": {}, **changes}))


def _signed(text: str) -> dict[str, str]:
    return {METADATA_KEY: text, SHA256_KEY: hashlib.sha256(text.encode()).hexdigest()}


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        b"PK\x03\x04" + bytes(100),
        _file({}),
        _file(b"{"),
        _file(b"[" * 100_000),
        _file(b"null"),
        _file(b"\xff\xfe"),
        _file({}, length=2**63),
        _file({}, length=2**64 - 1),
        _file({}, length=100_000_001),
        _file({"__metadata__": {}}),
        _file({"__metadata__": 3}),
        _file({"__metadata__": {METADATA_KEY: 3}}),
        *(
            _file({"__metadata__": _signed(text)})
            for text in (
                *("", "{", "null", "3", "[]", '"version"', "{}", "[" * 100_000, '{"version": 1}', "NaN"),
                *('{"version": 1, "numbers": [], "sha256": {}}', '{"version": 1, "numbers": {}, "sha256": 3}'),
                '{"version": 1, "numbers": {"a": ' + "9" * 5000 + '}, "sha256": {}}',
            )
        ),
        _file({"__metadata__": _told(sha256={"a": "0"})}),
        _file({"__metadata__": _told(), "a": _entry()}, bytes(8)),
        *(
            _file({"__metadata__": _told(sha256={"a": "0"}), "a": entry}, bytes(8))
            for entry in (
                *(_entry(), _entry(shape=[2**62]), _entry(shape=[2**62, 4]), _entry(shape=[-1]), _entry(shape="x")),
                *(_entry(dtype="C64", shape=[1]), _entry(dtype="F4", shape=[16]), _entry(dtype="U64", shape=[1])),
                *(_entry(dtype="X"), _entry(dtype=None), _entry(data_offsets=None), {}, 3),
                *(_entry(data_offsets=[0, 2**62]), _entry(data_offsets=[8, 0]), _entry(data_offsets=[4, 12])),
                *(_entry(dtype=dtype, shape=[8]) for dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "U8", "BOOL")),
            )
        ),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_files_of_others(data: bytes, tmp_path: Path) -> None:
    _refusal(tmp_path / "c", data)


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "c", {"format": "pt"})
    assert "it is no checkpoint of a training" in _refusal(tmp_path / "c", (tmp_path / "c").read_bytes())


def test_sha256_that_is_no_text(tmp_path: Path) -> None:
    for sha256 in (None, 3, [], {}):
        data = _file({"__metadata__": _told(sha256={"a": sha256}), "a": _entry()}, bytes(8))
        assert "tensor a does not match its sha256" in _refusal(tmp_path / "c", data)


@pytest.mark.parametrize(("version", "told"), [(2, "2"), (0, "0"), ("1", "'1'"), (None, "None"), ("x" * 999, "'xxx")])
def test_another_version(version: Any, told: str, tmp_path: Path) -> None:
    text = _refusal(tmp_path / "c", _file({"__metadata__": _told(version=version)}))
    assert f"it has version {told}" in text
    assert "where this neuralloader writes 1" in text


def test_reading_unpickles_nothing(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a checkpoint must not be unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", must_not_run)
    (tmp_path / "c").write_bytes(whole)
    assert read_checkpoint(tmp_path / "c") is not None


# --- what is taken from one -----------------------------------------------------------------------------------------


def test_tensors_like_others() -> None:
    kept = Checkpoint({"a": torch.zeros(2), "b": torch.zeros(3, dtype=torch.int64)}, {})
    assert kept.tensors_like({"b": torch.ones(3, dtype=torch.int64), "a": torch.ones(2)}) is kept.tensors


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({}, "tensor a belongs to neither"),
        ({"a": torch.zeros(2), "c": torch.zeros(2)}, "it has no tensor c"),
        ({"a": torch.zeros(3)}, r"tensor a is \(2,\) float32, not \(3,\) float32"),
        ({"a": torch.zeros(2, 1)}, r"tensor a is \(2,\) float32, not \(2, 1\) float32"),
        ({"a": torch.zeros(2, dtype=torch.bfloat16)}, r"tensor a is \(2,\) float32, not \(2,\) bfloat16"),
    ],
)
def test_tensors_unlike_others(expected: dict[str, Tensor], text: str) -> None:
    with pytest.raises(CheckpointError, match=f"it is of another network or recipe: {text}"):
        Checkpoint({"a": torch.zeros(2)}, {}).tensors_like(expected)


def test_numbers() -> None:
    kept = Checkpoint({}, {"steps": 3, "seconds": 2, "score": -1.5, "is_finished": True})
    assert kept.count("steps") == 3
    assert (kept.number("seconds"), kept.number("score")) == (2.0, -1.5)
    assert kept.flag("is_finished") is True


@pytest.mark.parametrize(
    ("take", "value", "text"),
    [
        (Checkpoint.count, -1, "its x must be a whole number, not -1"),
        (Checkpoint.count, 1.0, r"its x must be a whole number, not 1\.0"),
        (Checkpoint.count, True, "its x must be a whole number, not True"),
        (Checkpoint.count, 2**53 + 1, "its x must be a whole number, not 9007199254740993"),
        (Checkpoint.number, float("nan"), "its x must be a number, not nan"),
        (Checkpoint.number, float("inf"), "its x must be a number, not inf"),
        (Checkpoint.number, False, "its x must be a number, not False"),
        (Checkpoint.number, "1" * 99, f"its x must be a number, not '{'1' * 59}$"),
        (Checkpoint.flag, 1, "its x must be true or false, not 1"),
        (Checkpoint.flag, None, "its x must be true or false, not None"),
    ],
)
def test_numbers_that_are_none(take: Callable[[Checkpoint, str], Any], value: Any, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        take(Checkpoint({}, {"x": value}), "x")
    with pytest.raises(CheckpointError, match=r"its y must be .*, not None"):
        take(Checkpoint({}, {"x": value}), "y")
