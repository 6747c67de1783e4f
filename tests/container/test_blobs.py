"""Items of a blob are found, checked one by one, and their tables must fit the blob."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.container.blobs import BlobReader, blob_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError


@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(max_size=20), max_size=10))
def test_items_come_back(tmp_path_factory, items):
    path = tmp_path_factory.getbasetemp() / "blob.nvpack"
    write_pack(path, {}, blob_to_tensors("latents", items), overwrite=True)
    with PackReader(path) as reader:
        blob = BlobReader(reader, "latents")
        assert len(blob) == len(items)
        assert list(blob) == items
        with pytest.raises(IndexError, match=f"latents has items 0 to {len(items) - 1}, not {len(items)}"):
            blob[len(items)]
        with pytest.raises(IndexError, match="not -1"):
            blob[-1]


def test_several_items_are_read_in_one_go_and_none_twice(tmp_path, monkeypatch):
    items = [b"%d" % i * i for i in range(20)]
    write_pack(tmp_path / "a.nvpack", {}, blob_to_tensors("latents", items))
    asked = []
    read = PackReader.read
    monkeypatch.setattr(PackReader, "read", lambda self, name, ranges: asked.append(ranges) or read(self, name, ranges))
    blob = BlobReader(PackReader(tmp_path / "a.nvpack"), "latents")
    asked.clear()
    assert blob.items([7, 3, 7, 0, 19]) == [items[7], items[3], items[7], b"", items[19]]
    assert [len(ranges) for ranges in asked] == [4]
    assert blob.items(np.array([2, 1])) == [items[2], items[1]]  # type: ignore[arg-type]
    assert blob.items([]) == []
    with pytest.raises(IndexError, match="latents has items 0 to 19, not 20"):
        blob.items([1, 20])


def test_sizes_take_two_bytes_where_they_fit():
    for num_bytes, dtype in ((65535, np.uint16), (65536, np.uint32)):
        size = blob_to_tensors("a", [bytes(num_bytes), b"abc"])["a.size"]
        assert isinstance(size, np.ndarray)
        assert size.dtype == dtype
        assert size.tolist() == [num_bytes, 3]


class _HugeItem(bytes):
    def __len__(self):
        return 2**32


def test_an_item_of_4_gib_is_refused():
    with pytest.raises(ValueError, match="item 1 of a has 4294967296 bytes; it must be below 4 GiB"):
        blob_to_tensors("a", [b"", _HugeItem()])


def test_a_damaged_item_is_named_and_the_others_are_read(tiny_pack):
    data = tiny_pack.read_bytes()
    tiny_pack.write_bytes(data.replace(b"third!", b"thirD!"))
    blob = pickle.loads(pickle.dumps(BlobReader(PackReader(tiny_pack), "keyframes")))
    assert blob[0] == b"first"
    with pytest.raises(PackError, match=r"tiny.nvpack: item 2 of keyframes is damaged: its CRC32 is wrong"):
        blob[2]


def test_a_damaged_item_is_put_in_words(tiny_pack):
    tiny_pack.write_bytes(tiny_pack.read_bytes().replace(b"third!", b"thirD!"))
    blob = BlobReader(PackReader(tiny_pack), "keyframes", lambda row: f"frame {10 * row} of a.avi")
    assert blob.items([0, 1]) == [b"first", b""]
    with pytest.raises(
        PackError, match=r"item 2 of keyframes is damaged: its CRC32 is wrong \(frame 20 of a\.avi\)$"
    ) as error:
        blob.items([0, 2])
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a.size": np.array([1, 2], np.uint16)}, "a.size sums to 3, but a.data has 4 bytes"),
        ({"a.size": np.array([2**32 - 1, 5], np.uint32)}, "a.size sums to 4294967300, but a.data has 4 bytes"),
        ({"a.size": np.array([-1, 5], np.int16)}, "a.size must be one row of uint16 or uint32, not int16"),
        ({"a.size": np.array([[2, 2]], np.uint16)}, r"a.size must be one row of .*, not uint16 \(1, 2\)"),
        ({"a.crc32": np.zeros(3, np.uint32)}, r"a.crc32 must be uint32 \(2,\), not uint32 \(3,\)"),
        ({"a.crc32": np.zeros(2, np.uint16)}, r"a.crc32 must be uint32 \(2,\), not uint16 \(2,\)"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, changed, message):
    write_pack(tmp_path / "a.nvpack", {}, {**blob_to_tensors("a", [b"ab", b"cd"]), **changed})
    with pytest.raises(PackError, match=message):
        BlobReader(PackReader(tmp_path / "a.nvpack"), "a")


def test_a_missing_table_is_named(tiny_pack):
    with pytest.raises(PackError, match=r"the pack has no tensor 'latents.size'"):
        BlobReader(PackReader(tiny_pack), "latents")
