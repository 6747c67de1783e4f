"""Packs behind URLs: what is fetched, how often and in which order, and every way in which a server may fail."""

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.container import reader as reader_module
from neuralloader.container import remote
from neuralloader.container.blobs import BlobReader, blob_to_tensors
from neuralloader.container.reader import PackReader
from neuralloader.container.remote import RemoteFile, is_url
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError

KIB = 1 << 10
DATA = np.random.default_rng(0).integers(0, 256, 300 * KIB).astype(np.uint8).tobytes()
ITEMS = [DATA[i : i + 4000 + i] for i in range(100)]  # 4000 to 4099 bytes each


@pytest.fixture
def file(range_server):
    """DATA behind a URL."""
    range_server.files["a.bin"] = DATA
    file = RemoteFile(f"{range_server.url}/a.bin")
    range_server.forget()
    return file


@pytest.fixture
def pack(tmp_path):
    """A pack whose weights and key-frames are far bigger than what is fetched first."""
    path = tmp_path / "a.nvpack"
    tensors = {
        "weights.codes": np.frombuffer(DATA[: 100 * KIB], np.uint8),
        "keys.frame": np.arange(100, dtype=np.uint16),
        "keyframes.template": np.arange(50, dtype=np.uint8),
        **blob_to_tensors("keyframes", ITEMS),
    }
    write_pack(path, {"classes": ["Hug"]}, tensors)
    return path


@pytest.fixture
def url(range_server, pack):
    range_server.files["a.nvpack"] = pack.read_bytes()
    return f"{range_server.url}/a.nvpack"


# --- what is fetched ------------------------------------------------------------------------------------------------


def test_opening_fetches_all_but_the_blob(range_server, url, pack):
    size = pack.stat().st_size
    local = PackReader(pack)
    reader = PackReader(url)
    assert range_server.requests == [(0, 1), (0, 64 * KIB)]
    assert reader.path == url
    assert (reader.size_bytes, reader.ledger(), reader.manifest) == (size, local.ledger(), local.manifest)
    range_server.forget()
    for name in reader.tensor_names:
        if name != "keyframes.data":
            assert np.array_equal(reader.tensor(name), local.tensor(name))
    assert len(BlobReader(reader, "keyframes")) == 100
    data_start = local.ledger()["header"]
    blob_bytes = sum(map(len, ITEMS))
    assert sorted(range_server.requests) == [(data_start, size - 50 - blob_bytes), (size - 50, size)]
    assert range_server.num_sent_bytes == size - data_start - blob_bytes


def test_items_are_fetched_alone_and_once(range_server, url):
    blob = BlobReader(PackReader(url), "keyframes")
    range_server.forget()
    assert blob[70] == ITEMS[70]
    assert range_server.num_sent_bytes == len(ITEMS[70])
    assert blob[70] == ITEMS[70]
    assert len(range_server.requests) == 1
    range_server.forget()
    assert blob.items([72, 70, 71, 40, 72]) == [ITEMS[72], ITEMS[70], ITEMS[71], ITEMS[40], ITEMS[72]]
    assert len(range_server.requests) == 2  # neighbours together, and one far away
    assert range_server.num_sent_bytes == len(ITEMS[71]) + len(ITEMS[72]) + len(ITEMS[40])


def test_a_small_pack_comes_in_one_piece(range_server, tiny_pack):
    range_server.files["tiny.nvpack"] = tiny_pack.read_bytes()
    with PackReader(f"{range_server.url}/tiny.nvpack") as reader:
        for name in reader.tensor_names:
            assert np.array_equal(reader.tensor(name), PackReader(tiny_pack).tensor(name))
        assert list(BlobReader(reader, "keyframes")) == [b"first", b"", b"third!"]
    assert range_server.requests == [(0, 1), (0, tiny_pack.stat().st_size)]


def test_a_header_beyond_what_is_fetched_first(range_server, tmp_path):
    names = [f"a.tensor_{i:04}" for i in range(1000)]
    write_pack(tmp_path / "a.nvpack", {}, {name: np.array([i % 256], np.uint8) for i, name in enumerate(names)})
    range_server.files["a.nvpack"] = (tmp_path / "a.nvpack").read_bytes()
    reader = PackReader(f"{range_server.url}/a.nvpack")
    data_start = reader.ledger()["header"]
    assert data_start > 64 * KIB
    assert range_server.requests == [(0, 1), (0, 64 * KIB), (64 * KIB, data_start)]
    range_server.forget()
    assert [int(reader.tensor(name)[0]) for name in names] == [i % 256 for i in range(1000)]
    assert range_server.requests == [(data_start, data_start + 1000)]


def test_what_exceeds_the_bound_is_fetched_tensor_by_tensor(range_server, url, pack, monkeypatch):
    monkeypatch.setattr(reader_module, "_MAX_PREFETCH_BYTES", 100 * KIB)
    reader = PackReader(url)
    reader.tensor("keys.frame")
    range_server.forget()
    assert np.array_equal(reader.tensor("weights.codes"), PackReader(pack).tensor("weights.codes"))
    assert range_server.num_sent_bytes == 100 * KIB


def test_checking_a_tensor_goes_in_parts_which_are_not_kept(range_server, url, monkeypatch):
    monkeypatch.setattr(reader_module, "_CHUNK_BYTES", 50_000)
    reader = PackReader(url)
    for _ in range(2):
        range_server.forget()
        reader.check_tensor("keyframes.data")
        assert range_server.num_sent_bytes == sum(map(len, ITEMS))
        assert max(end - start for start, end in range_server.requests) == 50_000


def test_a_damaged_remote_pack_is_named(range_server, url):
    data = bytearray(range_server.files["a.nvpack"])
    data[-51] ^= 1  # the last byte of the key-frames
    data[-1] ^= 1  # the last byte of the template
    range_server.files["a.nvpack"] = bytes(data)
    reader = PackReader(url)
    with pytest.raises(PackError, match=rf"{url}: item 99 of keyframes is damaged"):
        BlobReader(reader, "keyframes").items([0, 99])
    with pytest.raises(PackError, match=rf"{url}: tensor keyframes.template is damaged"):
        reader.tensor("keyframes.template")
    range_server.files["a.nvpack"] = bytes(data[:5000])
    with pytest.raises(PackError, match=rf"{url}: the pack should be"):
        PackReader(url)


# --- merging and keeping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "requests"),
    [
        ([(0, 10), (10, 20)], [(0, 20)]),
        ([(100, 110), (0, 10)], [(0, 110)]),
        ([(0, 10), (16 * KIB + 9, 20 * KIB)], [(0, 20 * KIB)]),
        ([(0, 10), (16 * KIB + 10, 20 * KIB)], [(0, 10), (16 * KIB + 10, 20 * KIB)]),
        ([(0, 50 * KIB), (5, 9), (49 * KIB, 51 * KIB), (80 * KIB, 81 * KIB)], [(0, 51 * KIB), (80 * KIB, 81 * KIB)]),
        ([(5, 5), (9, 9)], []),
    ],
)
def test_ranges_that_nearly_touch_are_one_request(range_server, file, ranges, requests):
    assert file.read(ranges) == [DATA[start:end] for start, end in ranges]
    assert sorted(range_server.requests) == requests


def test_what_was_read_is_kept_up_to_a_bound(range_server):
    range_server.files["a.bin"] = DATA
    file = RemoteFile(f"{range_server.url}/a.bin", 100)
    first, second, third = (0, 60), (20_000, 20_040), (40_000, 40_001)

    def num_requests(*ranges, **options):
        range_server.forget()
        assert file.read(ranges, **options) == [DATA[start:end] for start, end in ranges]
        return len(range_server.requests)

    assert num_requests(first) == 1
    assert num_requests(second) == 1
    assert num_requests(first, second) == 0  # 100 bytes
    assert num_requests(first) == 0
    assert num_requests(third) == 1  # in place of the second, which was used longest ago
    assert num_requests(first, third) == 0
    assert num_requests(second) == 1
    assert num_requests((0, 101)) == 1
    assert num_requests((0, 101)) == 1  # never fits
    assert num_requests(second) == 0
    assert num_requests((70_000, 70_050), keep=False) == 1
    assert num_requests((70_000, 70_050), keep=False) == 1


def test_parts_of_what_was_prefetched_need_no_request(range_server, file):
    file.prefetch([(0, 1000), (50_000, 60_000)])
    assert sorted(range_server.requests) == [(0, 1000), (50_000, 60_000)]
    range_server.forget()
    file.prefetch([(10, 20), (50_000, 60_000)])
    assert file.read([(0, 1000), (990, 1000), (55_000, 56_000)]) == [DATA[:1000], DATA[990:1000], DATA[55_000:56_000]]
    assert range_server.requests == []
    assert file.read([(990, 1001)]) == [DATA[990:1001]]
    assert range_server.requests == [(990, 1001)]


def test_prefetching_more_than_fits_is_left_out(range_server):
    range_server.files["a.bin"] = DATA
    file = RemoteFile(f"{range_server.url}/a.bin", 100)
    range_server.forget()
    file.prefetch([(0, 60), (1000, 1060)])
    assert range_server.requests == []
    file.prefetch([(0, 60)])
    assert file.read([(1000, 1060), (0, 10)]) == [DATA[1000:1060], DATA[:10]]
    assert len(range_server.requests) == 2
    assert file.read([(0, 10)]) == [DATA[:10]]
    assert range_server.requests[2:] == [(0, 10)]  # what was prefetched has made room


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 300 * KIB), st.integers(0, 20 * KIB)), max_size=6)),
        max_size=6,
    ),
    st.integers(0, 60 * KIB),
)
def test_whatever_is_read_is_right_and_little_is_kept(rounds, cache_bytes):
    fsspec.filesystem("memory").pipe("/test/a.bin", DATA)
    file = RemoteFile("memory://test/a.bin", cache_bytes)
    for is_hint, spans in rounds:
        ranges = [(start, min(start + size, len(DATA))) for start, size in spans]
        if is_hint:
            file.prefetch(ranges)
        assert file.read(ranges) == [DATA[start:end] for start, end in ranges]
        connection = file._connection
        assert connection is not None
        kept = sum(len(data) for data in connection.kept.values())
        assert kept == connection.num_kept_bytes <= cache_bytes
        assert connection.regions <= connection.kept.keys()


def test_requests_run_together(range_server, file):
    together = threading.Barrier(4, timeout=20)

    def wait_for_the_others(handler, data, start, end):
        together.wait()
        handler.answer_range(data, start, end)

    range_server.RequestHandlerClass.answer_together = wait_for_the_others
    range_server.behaviour = "together"
    ranges = [(i * 50 * KIB, i * 50 * KIB + 9) for i in range(4)]
    assert file.read(ranges) == [DATA[start:end] for start, end in ranges]


def test_threads_share_a_file(range_server, file):
    wrong = []

    def read_much(seed):
        for start in np.random.default_rng(seed).integers(0, 290 * KIB, 20).tolist():
            if file.read([(start, start + 1000)]) != [DATA[start : start + 1000]]:
                wrong.append(start)

    threads = [threading.Thread(target=read_much, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(range_server.requests) >= 20


# --- servers that fail ----------------------------------------------------------------------------------------------


def test_a_missing_file(range_server):
    with pytest.raises(FileNotFoundError, match=rf"there is no pack at {range_server.url}/none\.nvpack"):
        PackReader(f"{range_server.url}/none.nvpack")


def test_an_empty_file(range_server):
    range_server.files["a.nvpack"] = b""
    with pytest.raises(PackError, match=r"a\.nvpack: the file is too short for a pack: it has 0 bytes"):
        PackReader(f"{range_server.url}/a.nvpack")


def test_nobody_listens(range_server, silent_url):
    port = range_server.server_port
    range_server.socket.close()
    with pytest.raises(OSError, match=rf"cannot read http://127.0.0.1:{port}/a.nvpack: .*\(tried 3 times\)"):
        PackReader(f"http://127.0.0.1:{port}/a.nvpack")


FAILURES = [
    ("whole_file", OSError, "the server ignores byte ranges and sends the whole file; download it", 1),
    ("short_length", OSError, r"the server announced \d+ bytes, not \d+", 1),
    ("long_length", OSError, r"the server announced \d+ bytes, not \d+", 1),
    ("short_chunk", OSError, r"the server sent \d+ of \d+ bytes \(tried 3 times\)", 3),
    ("long_chunk", OSError, r"the server sent more than the \d+ bytes that were asked for", 1),
    ("endless", OSError, r"the server sent more than the \d+ bytes that were asked for", 1),
    ("other_range", OSError, r"the server sent the range 'bytes .*', not \d+-\d+", 1),
    ("no_range", OSError, r"the server sent the range '', not \d+-\d+", 1),
    ("gzip", OSError, r"the server compresses parts of files \('gzip'\)", 1),
    ("forbidden", PermissionError, "the server answers 403 Forbidden", 1),
    ("teapot", OSError, "the server answers 418", 1),
    ("busy", OSError, r"the server answers 503 Service Unavailable \(tried 3 times\)", 3),
    ("dropped", OSError, r"\(tried 3 times\)", 3),
]


@pytest.mark.parametrize(("behaviour", "kind", "message", "num_tries"), FAILURES)
def test_a_server_that_misbehaves_from_the_start(range_server, url, behaviour, kind, message, num_tries):
    range_server.behaviour = behaviour
    with pytest.raises(kind, match=rf"^cannot read {url}: .*{message}") as error:
        PackReader(url)
    assert len(range_server.requests) == num_tries
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize(("behaviour", "kind", "message", "num_tries"), FAILURES)
def test_a_server_that_misbehaves_later(range_server, file, behaviour, kind, message, num_tries):
    range_server.behaviour = behaviour
    with pytest.raises(kind, match=rf"^cannot read bytes 100 to 2000 of {file.name}: .*{message}"):
        file.read([(100, 2000)])
    assert len(range_server.requests) == num_tries
    range_server.behaviour = "range"
    assert file.read([(100, 2000)]) == [DATA[100:2000]]


@pytest.mark.parametrize("behaviour", ["whole_file", "long_length", "endless"])
def test_what_nobody_asked_for_is_not_read(range_server, file, behaviour):
    range_server.files["a.bin"] = bytes(100 << 20)
    range_server.behaviour = behaviour
    tracemalloc.start()
    with pytest.raises(OSError, match="cannot read bytes 1000 to 2000"):
        file.read([(1000, 2000)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20
    assert range_server.num_sent_bytes < 50 << 20  # what fits into the buffers between the two


def test_an_answer_in_chunks_is_fine(range_server, file):
    range_server.behaviour = "chunk"
    assert file.read([(100, 20_000)]) == [DATA[100:20_000]]


def test_a_server_that_comes_back_is_asked_again(range_server, file):
    range_server.num_failures = 2
    assert file.read([(100, 2000)]) == [DATA[100:2000]]
    assert range_server.requests == [(100, 2000)] * 3
    range_server.forget()
    range_server.num_failures = 1
    ranges = [(0, 1000), (100_000, 101_000), (200_000, 201_000)]
    assert file.read(ranges) == [DATA[start:end] for start, end in ranges]
    assert len(range_server.requests) == 4  # only the one that failed


@pytest.mark.parametrize("behaviour", ["hang", "hang_half_way", "drip"])
def test_a_server_that_hangs_ends_in_an_error(range_server, monkeypatch, behaviour):
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.2)
    range_server.files["a.bin"] = DATA
    file = RemoteFile(f"{range_server.url}/a.bin")
    range_server.behaviour = behaviour
    message = r"cannot read bytes 5 to 900 of .*a\.bin: the server was silent for 0\.2 seconds, or too slow \(tried 3"
    with pytest.raises(OSError, match=message):
        file.read([(5, 900)])


@pytest.mark.usefixtures("range_server")
def test_a_server_that_never_answers_ends_in_an_error(silent_url, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(OSError, match=rf"cannot read {silent_url}: the server was silent for 0\.2 seconds"):
        PackReader(silent_url)


def test_a_file_that_shrinks_meanwhile(range_server, file):
    range_server.files["a.bin"] = DATA[:1000]
    with pytest.raises(OSError, match=r"bytes 5000 to 6000 .*: the file has changed: .* 416 .*bytes \*/1000"):
        file.read([(5000, 6000)])
    with pytest.raises(OSError, match=r"bytes 500 to 1500 .*: the server sent the range 'bytes 500-999/1000', not"):
        file.read([(500, 1500)])


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 3), (0, len(DATA) + 1)])
def test_ranges_outside_of_the_file_are_refused(range_server, file, start, end):
    with pytest.raises(ValueError, match=rf"bytes {start} to {end} are not within the {len(DATA)} bytes of http"):
        file.read([(start, end)])
    assert range_server.requests == []


# --- processes ------------------------------------------------------------------------------------------------------


def test_readers_pickle_and_fetch_in_the_end(range_server, url):
    reader = PackReader(url)
    blob = BlobReader(reader, "keyframes")
    pickled = pickle.dumps((reader, blob))
    assert len(pickled) < 5000
    range_server.forget()
    copy, blob = pickle.loads(pickled)
    assert range_server.requests == []
    assert blob[3] == ITEMS[3]
    assert copy.path == url
    assert (64 * KIB, 65 * KIB) not in range_server.requests  # header and item, not the weights
    assert range_server.num_sent_bytes <= 1 + 64 * KIB + len(ITEMS[3])


def test_sources_pickle(range_server, file):
    copy = pickle.loads(pickle.dumps(file))
    file.close()
    assert copy.read([(5, 9)]) == [DATA[5:9]]
    with pytest.raises(ValueError, match=r"a\.bin is closed; open it again"):
        file.read([(5, 9)])


def test_a_remote_pack_replaced_meanwhile_is_not_mistaken_for_the_first(range_server, url, tmp_path):
    pickled = pickle.dumps(PackReader(url))
    write_pack(tmp_path / "b.nvpack", {}, {"keyframes.data": np.zeros(9, np.uint8)})
    range_server.files["a.nvpack"] = (tmp_path / "b.nvpack").read_bytes()
    with pytest.raises(PackError, match=rf"{url} is another pack than the one that was opened; open it again"):
        pickle.loads(pickled).tensor("keyframes.data")


def _read_in_child(pipe, blob, forgotten_row):
    gc.collect()  # what fsspec has let go of is closed now
    try:
        pipe.send([blob[5], blob[forgotten_row]])
    except BaseException as error:
        pipe.send(repr(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX only")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_in_use", [True, False])
def test_a_forked_process_reads_on_and_so_does_its_parent(range_server, url, is_in_use):
    reader = PackReader(url)
    blob = BlobReader(reader, "keyframes")
    assert blob[4] == ITEMS[4]
    if not is_in_use:  # then only fsspec holds the parent's connections, and lets go of them in the child
        blob = pickle.loads(pickle.dumps(blob))
        reader.close()
    num_connections = range_server.num_connections
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(there, blob, 4))
    child.start()
    try:
        assert here.poll(30), "the child hangs"
        assert here.recv() == [ITEMS[5], ITEMS[4]]
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
        here.close()
        there.close()
    assert range_server.num_connections == num_connections + 1  # its own
    assert blob[6] == ITEMS[6]
    assert range_server.num_connections == num_connections + 1  # its parent's are still good


SCRIPT = """
import multiprocessing, sys
from neuralloader.container.blobs import BlobReader
from neuralloader.container.reader import PackReader

def read(blob):
    print(len(blob[1]), flush=True)

reader = PackReader(sys.argv[1])
read(BlobReader(reader, "keyframes"))
if sys.version_info < (3, 12):  # later ones warn of any fork of a process with threads
    child = multiprocessing.get_context("fork").Process(target=read, args=(BlobReader(reader, "keyframes"),))
    child.start()
    child.join()
"""


def test_a_program_that_closes_nothing_ends_without_a_word(url):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", SCRIPT, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert set(run.stdout.split()) == {"4001"}
    assert run.stderr == ""


# --- schemes --------------------------------------------------------------------------------------------------------


def test_what_is_a_url():
    for url in ("https://a/b", "s3://a/b.nvpack", "hf://datasets/a", "memory://a", "file:///a", "HTTP://a"):
        assert is_url(url)
    for path in ("a.nvpack", "/a/b", r"C:\a", "C://a", "https:/a", "a b://c", "./http://a", b"http://a"):
        assert not is_url(path)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_other_schemes(scheme, tmp_path, pack):
    url = f"memory://{tmp_path}/copy.nvpack" if scheme == "memory" else f"file://{pack}"
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.pipe(path, pack.read_bytes())
    reader = PackReader(url)
    assert str(reader.path) == url
    assert np.array_equal(reader.tensor("weights.codes"), PackReader(pack).tensor("weights.codes"))
    assert BlobReader(reader, "keyframes").items([70, 3, 70]) == [ITEMS[70], ITEMS[3], ITEMS[70]]
    pickled = pickle.dumps(reader)
    assert pickle.loads(pickled).tensor("keys.frame")[7] == 7

    write_pack(tmp_path / "other.nvpack", {}, {"a.b": np.zeros(3, np.uint8)})
    filesystem.pipe(path, (tmp_path / "other.nvpack").read_bytes())
    with pytest.raises(PackError, match=r"is another pack than the one that was opened; open it again"):
        pickle.loads(pickled).tensor("keys.frame")
    filesystem.rm(path)
    with pytest.raises(FileNotFoundError, match=rf"there is no pack at {url}"):
        pickle.loads(pickled).tensor("keys.frame")
    filesystem.makedirs(path)
    with pytest.raises(PackError, match=rf"{url} is no regular file, so it is no pack"):
        PackReader(url)


def test_a_file_that_shrinks_behind_another_scheme(monkeypatch):
    monkeypatch.setattr(remote, "WAIT_SECONDS", (0.0, 0.0))
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/test/b.bin", DATA)
    file = RemoteFile("memory://test/b.bin")
    filesystem.pipe("/test/b.bin", DATA[:1000])
    message = r"cannot read bytes 900 to 1100 of memory://test/b.bin: 100 bytes came, not 200 \(tried 3 times\)"
    with pytest.raises(OSError, match=message):
        file.read([(900, 1100)])


def test_an_unknown_scheme_is_answered_with_known_ones():
    with pytest.raises(ValueError, match=r"nothing is known to read foo:// in foo://a/b; .* https://, s3:// or hf://"):
        PackReader("foo://a/b")


@pytest.mark.parametrize(
    ("url", "module", "command"),
    [
        ("https://a/b.nvpack", "neuralloader.container.http_ranges", r"pip install 'neuralloader\[remote\]'"),
        ("s3://a/b.nvpack", "s3fs", "pip install s3fs"),
        ("hf://datasets/a/b/c.nvpack", "huggingface_hub", "pip install huggingface_hub"),
        ("oss://a/b.nvpack", "ossfs", "ossfs"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch, url, module, command):
    monkeypatch.setitem(sys.modules, module, None)  # importing it now fails
    with pytest.raises(ImportError, match=rf"reading {url} needs a library that is not installed: .*{command}"):
        PackReader(url)
