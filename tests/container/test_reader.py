"""A reader gives back what was written, notices every damaged bit, and travels between processes without its file."""

import os
import pickle

import numpy as np
import pytest

from neuralloader.container import reader as reader_module
from neuralloader.container.blobs import BlobReader
from neuralloader.container.reader import PackReader
from neuralloader.container.source import LocalFile
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError


def _read_all(path):
    """Everything a pack holds, every check made."""
    with PackReader(path) as reader:
        tensors = {}
        for name in reader.tensor_names:
            array = reader.tensor(name)
            tensors[name] = (array.dtype.str, array.shape, array.tobytes())
        return reader.manifest, tensors, list(BlobReader(reader, "keyframes"))


def test_manifest_and_tensors_come_back(tiny_pack, tiny_manifest, tiny_tensors):
    reader = PackReader(tiny_pack)
    assert reader.manifest["backend"] == {"name": "none", "widths": [1, 2]}
    assert reader.manifest["classes"] == tiny_manifest["classes"]
    assert set(reader.manifest["tensors"]) == set(reader.tensor_names) == set(tiny_tensors)
    step = reader.tensor("scales.step")
    assert (step.dtype, step.tolist()) == (np.float16, [[0.5], [2.0]])
    assert reader.tensor("tables.rate").shape == ()
    step[0] = 9  # a copy of the caller's own
    assert reader.tensor("scales.step")[0] == 0.5


def test_parts_of_a_tensor_are_read_and_not_checked(tiny_pack):
    tiny_pack.write_bytes(tiny_pack.read_bytes().replace(b"third!", b"thirD!"))
    reader = PackReader(tiny_pack)
    assert reader.num_bytes("keyframes.data") == 11
    assert reader.read("keyframes.data", [(5, 11), (0, 5), (3, 3)]) == [b"thirD!", b"first", b""]
    for start, end in ((-1, 3), (3, 12), (4, 3)):
        with pytest.raises(ValueError, match=rf"bytes {start} to {end} are not within the 11 bytes of keyframes.data"):
            reader.read("keyframes.data", [(start, end)])
    for read in (reader.num_bytes, reader.check_tensor, lambda name: reader.read(name, [])):
        with pytest.raises(PackError, match=r"tiny.nvpack: the pack has no tensor 'weights.other'"):
            read("weights.other")


def test_a_tensor_is_checked_in_small_parts(tmp_path, monkeypatch):
    path = tmp_path / "a.nvpack"
    blob = np.random.default_rng(0).integers(0, 256, 10_001).astype(np.uint8)
    write_pack(path, {}, {"keyframes.data": blob, "a.empty": blob[:0]})
    monkeypatch.setattr(reader_module, "_CHUNK_BYTES", 1000)
    asked = []
    read = LocalFile.read
    monkeypatch.setattr(LocalFile, "read", lambda self, ranges, **o: asked.extend(ranges) or read(self, ranges, **o))
    reader = PackReader(path)
    asked.clear()
    reader.check_tensor("keyframes.data")
    reader.check_tensor("a.empty")
    assert [end - start for start, end in asked] == [*[1000] * 10, 1]

    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackError, match=r"a.nvpack: tensor keyframes.data is damaged: its bytes do not match its sha"):
        reader.check_tensor("keyframes.data")


def test_the_ledger_sums_to_the_file(tiny_pack):
    reader = PackReader(tiny_pack)
    ledger = reader.ledger()
    assert sum(ledger.values()) == reader.size_bytes == tiny_pack.stat().st_size
    assert ledger == {
        "header": reader.size_bytes - 52,
        "tables": 4 + 8,
        "scales": 4,
        "weights": 7,
        "encoder": 0,
        "latents": 0,
        "keyframes": 11 + 3 * 2 + 3 * 4,
    }


def test_every_truncation_is_refused(tiny_pack, tmp_path):
    data = tiny_pack.read_bytes()
    damaged = tmp_path / "damaged.nvpack"
    damaged.write_bytes(data)
    for size in reversed(range(len(data))):
        os.truncate(damaged, size)
        with pytest.raises(PackError, match=r"damaged.nvpack: .*(too short|truncated|should be|declares a header)"):
            PackReader(damaged)
    damaged.write_bytes(data + b"\0")
    with pytest.raises(PackError, match=r"should be .* bytes long"):
        PackReader(damaged)


def test_every_flipped_bit_is_found(tiny_pack, tmp_path):
    data = bytearray(tiny_pack.read_bytes())
    path = tmp_path / "damaged.nvpack"
    path.write_bytes(data)
    with open(path, "r+b", buffering=0) as file:
        for position, byte in enumerate(data):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                with pytest.raises(PackError):
                    _read_all(path)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert _read_all(path) == _read_all(tiny_pack)


def test_a_damaged_tensor_is_named_and_the_others_are_read(tiny_pack):
    data = tiny_pack.read_bytes()
    tiny_pack.write_bytes(data.replace(bytes(range(7)), bytes(range(1, 8))))
    reader = PackReader(tiny_pack)
    with pytest.raises(PackError, match=r"tiny.nvpack: tensor weights.codes is damaged: .* sha256"):
        reader.tensor("weights.codes")
    assert reader.tensor("keys.frame").tolist() == [0, 300]


def test_missing_files_folders_and_tensors_are_named(tiny_pack, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*none.nvpack"):
        PackReader(tmp_path / "none.nvpack")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(PackError, match="is no regular file, so it is no pack"):
            PackReader(path)
    with pytest.raises(PackError, match=r"the pack has no tensor 'weights.other'"):
        PackReader(tiny_pack).tensor("weights.other")


def test_readers_pickle_small_and_open_the_file_again(tmp_path):
    path = tmp_path / "a.nvpack"
    write_pack(path, {}, {"keyframes.data": np.full(100_000, 7, np.uint8)})
    reader = PackReader(path)
    pickled = pickle.dumps(reader)
    assert len(pickled) < 5000
    copy = pickle.loads(pickled)
    assert copy.path == reader.path == path
    for either in (copy, reader):
        assert either.read("keyframes.data", [(5, 8)]) == [bytes([7, 7, 7])]


@pytest.mark.parametrize("new_size", [3, 4])
def test_a_file_replaced_meanwhile_is_not_mistaken_for_the_first(tmp_path, new_size):
    path = tmp_path / "a.nvpack"
    write_pack(path, {}, {"a.b": np.zeros(3, np.uint8)})
    reader = PackReader(path)
    pickled = pickle.dumps(reader)
    write_pack(path, {}, {"a.b": np.ones(new_size, np.uint8)}, overwrite=True)
    assert reader.tensor("a.b").tolist() == [0, 0, 0]  # still open
    with pytest.raises(PackError, match=r"a.nvpack is another pack than the one that was opened; open it again"):
        pickle.loads(pickled).tensor("a.b")


def test_a_file_truncated_meanwhile_is_an_error_and_no_signal(tmp_path):
    path = tmp_path / "a.nvpack"
    write_pack(path, {}, {"keyframes.data": np.zeros(1_000_000, np.uint8)})
    reader = PackReader(path)
    os.truncate(path, 500_000)
    assert reader.read("keyframes.data", [(0, 9)]) == [bytes(9)]
    for read in (reader.tensor, reader.check_tensor, lambda name: reader.read(name, [(800_000, 800_009)])):
        with pytest.raises(PackError, match=r"a.nvpack is shorter than when it was opened: bytes .* are gone"):
            read("keyframes.data")


def test_no_file_stays_open_after_closing(tiny_pack):
    def num_open():
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(tiny_pack) for fd in os.listdir("/proc/self/fd"))

    with PackReader(tiny_pack) as reader:
        rate = reader.tensor("tables.rate")
        assert num_open() == 1
    assert num_open() == 0
    assert rate == 29.97
    for read in (reader.tensor, reader.check_tensor, lambda name: reader.read(name, [(0, 1)])):
        with pytest.raises(ValueError, match=r"the reader of .*tiny.nvpack is closed; open the pack again"):
            read("tables.rate")
    tiny_pack.write_bytes(b"nothing")
    with pytest.raises(PackError, match="too short"):
        PackReader(tiny_pack)
    assert num_open() == 0
