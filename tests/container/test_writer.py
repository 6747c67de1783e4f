"""Packs are the same bytes for the same content, plain safetensors, and appear whole or not at all."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import neuralloader
from neuralloader.container import writer
from neuralloader.container.layout import DTYPES
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import ByteStream, check_writable, write_pack

GOLDEN_SHA256 = "8635b239b5e75125b44dac6037414534eb70dc916a687d2293f73ba89bcbb358"


def test_golden_bytes(tiny_pack):
    assert hashlib.sha256(tiny_pack.read_bytes()).hexdigest() == GOLDEN_SHA256


def test_the_order_of_tensors_and_keys_changes_nothing(tiny_pack, tiny_manifest, tiny_tensors, tmp_path):
    other = tmp_path / "other.nvpack"
    size = write_pack(other, dict(reversed(tiny_manifest.items())), dict(reversed(tiny_tensors.items())))
    assert other.read_bytes() == tiny_pack.read_bytes()
    assert size == tiny_pack.stat().st_size


def test_wide_tensors_come_first_and_keyframes_last(tiny_pack):
    names = PackReader(tiny_pack).tensor_names
    assert names[0] == "tables.rate"
    assert names[-2:] == ("weights.codes", "keyframes.data")


def test_safetensors_reads_the_same(tiny_pack):
    reader = PackReader(tiny_pack)
    with safetensors.safe_open(tiny_pack, "numpy") as file:
        assert set(file.keys()) == set(reader.tensor_names)
        for name in reader.tensor_names:
            theirs, ours = file.get_tensor(name), reader.tensor(name)
            assert theirs.dtype == ours.dtype
            assert np.array_equal(theirs, ours)
        assert set(file.metadata()) == {"neuralloader", "neuralloader.sha256"}


_DTYPES = st.sampled_from(list(DTYPES.values()))
_ARRAYS = _DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
_NAMES = st.from_regex(r"(weights|latents|keys)\.[a-z0-9_]{1,8}", fullmatch=True)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(_NAMES, _ARRAYS, max_size=5))
def test_any_tensors_come_back_aligned(tmp_path_factory, tensors):
    path = tmp_path_factory.getbasetemp() / "any.nvpack"
    size = write_pack(path, {}, tensors, overwrite=True)
    reader = PackReader(path)
    assert sum(reader.ledger().values()) == size == path.stat().st_size
    assert set(reader.tensor_names) == set(tensors)
    for name, array in tensors.items():
        read = reader.tensor(name)
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
    with safetensors.safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(tensors)


def test_strided_and_big_endian_arrays_are_stored_plainly(tmp_path):
    array = np.arange(12, dtype=">u2").reshape(3, 4).T[::2]
    write_pack(tmp_path / "a.nvpack", {}, {"a.b": array})
    assert np.array_equal(PackReader(tmp_path / "a.nvpack").tensor("a.b"), array)


def test_arrays_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_CHUNK_BYTES", 10)
    array = np.arange(101, dtype=np.int16)
    write_pack(tmp_path / "a.nvpack", {}, {"a.b": array})
    assert np.array_equal(PackReader(tmp_path / "a.nvpack").tensor("a.b"), array)


def test_streams_are_written_chunk_by_chunk(tmp_path):
    stream = ByteStream(6, (bytes([i]) * i for i in range(4)))
    write_pack(tmp_path / "a.nvpack", {}, {"keyframes.data": stream})
    assert PackReader(tmp_path / "a.nvpack").tensor("keyframes.data").tolist() == [1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("manifest", "tensors", "message"),
    [
        ({}, {"a": np.zeros(1)}, "tensor name 'a' must be 2 or more words"),
        ({}, {"a.b": np.zeros(1, np.complex64)}, "tensor a.b: dtype complex64 must be one of"),
        ({}, {"a.b": np.zeros((1,) * 9)}, "tensor a.b has 9 axes, where 8 are allowed"),
        ({}, {"a.b": ByteStream(3, [b"ab"])}, "tensor a.b was announced with 3 bytes, but 2 came"),
        ({"a": float("inf")}, {}, "manifest.a is inf"),
        ({"format": "x"}, {}, "manifest keys format are filled in by the writer"),
    ],
)
def test_what_no_pack_can_hold_is_refused_and_leaves_nothing(tmp_path, manifest, tensors, message):
    with pytest.raises(ValueError, match=message):
        write_pack(tmp_path / "a.nvpack", manifest, tensors)
    assert list(tmp_path.iterdir()) == []


def _failing_chunks():
    yield b"a"
    raise RuntimeError("the disk is full")


def test_a_failure_in_the_middle_leaves_the_old_pack_or_nothing(tmp_path, tiny_pack):
    before = tiny_pack.read_bytes()
    stream = ByteStream(2, _failing_chunks())
    with pytest.raises(RuntimeError, match="the disk is full"):
        write_pack(tiny_pack, {}, {"a.b": stream}, overwrite=True)
    assert list(tmp_path.iterdir()) == [tiny_pack]
    assert tiny_pack.read_bytes() == before
    with pytest.raises(RuntimeError, match="the disk is full"):
        write_pack(tmp_path / "new.nvpack", {}, {"a.b": ByteStream(2, _failing_chunks())})
    assert list(tmp_path.iterdir()) == [tiny_pack]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stream_that_fails_is_no_full_disk(tmp_path, overwrite):
    def chunks():
        yield b"a"
        raise OSError(errno.EIO, "Input/output error", "source.avi")

    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error: 'source.avi'$"):
        write_pack(tmp_path / "a.nvpack", {}, {"a.b": ByteStream(2, chunks())}, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_pack_is_kept_unless_forced(tiny_pack):
    before = tiny_pack.read_bytes()
    for call in (check_writable, lambda path: write_pack(path, {}, {})):
        with pytest.raises(
            FileExistsError, match=r"tiny.nvpack exists already; --force \(overwrite=True\) replaces it"
        ):
            call(tiny_pack)
    assert tiny_pack.read_bytes() == before
    check_writable(tiny_pack, overwrite=True)
    write_pack(tiny_pack, {"note": "new"}, {}, overwrite=True)
    assert PackReader(tiny_pack).manifest["note"] == "new"


def test_a_pack_that_appeared_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.nvpack"

    def chunks():
        path.write_bytes(b"another run's")
        yield b"a"

    with pytest.raises(FileExistsError, match="exists already"):
        write_pack(path, {}, {"a.b": ByteStream(1, chunks())})
    assert path.read_bytes() == b"another run's"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_targets_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist; create it"):
        check_writable(tmp_path / "missing" / "a.nvpack")
    with pytest.raises(IsADirectoryError, match=r"is a folder; name a file in it, such as .*corpus.nvpack"):
        check_writable(tmp_path, overwrite=True)
    check_writable(tmp_path / "a.nvpack")
    assert list(tmp_path.iterdir()) == []


# Growth of the peak is measured from /proc: what getrusage gives includes the parent that the child was forked from.
_CHILD = """
import sys
from pathlib import Path
import numpy as np
from neuralloader.container.writer import ByteStream, write_pack

def peak_bytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])

NUM_ITEMS, ITEM_BYTES = 32 << 10, 2 << 10
before = peak_bytes()
items = (i.to_bytes(4, "little") * (ITEM_BYTES // 4) for i in range(NUM_ITEMS))
stream = ByteStream(NUM_ITEMS * ITEM_BYTES, items if sys.argv[2] == "streamed" else list(items))
write_pack(sys.argv[1], {}, {"keyframes.data": stream, "keys.frame": np.arange(NUM_ITEMS)})
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory from /proc")
def test_a_section_of_64_mib_is_written_in_little_memory(tmp_path):
    def growth(kind):
        command = [sys.executable, "-c", _CHILD, tmp_path / f"{kind}.nvpack", kind]
        environment = {**os.environ, "PYTHONPATH": str(Path(neuralloader.__file__).parents[1])}
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    assert growth("streamed") < 12 << 20
    assert growth("held") > 64 << 20  # the measure sees what is held
    assert (tmp_path / "streamed.nvpack").read_bytes() == (tmp_path / "held.nvpack").read_bytes()
