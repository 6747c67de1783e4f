"""What headers promise, also damaged and hostile ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.promise import Promise, _matroska_bytes, _vint, read_promise


@pytest.fixture
def avi(tmp_path: Path) -> Path:
    path = tmp_path / "a.avi"
    write_mjpeg_avi(path, np.zeros((7, 16, 16, 3), np.uint8), 5)
    return path


def test_avi_states_its_frames(avi: Path) -> None:
    assert read_promise(avi) == Promise(num_frames=7)


def test_avi_cut_in_the_middle_still_states_them(avi: Path) -> None:
    avi.write_bytes(avi.read_bytes()[: avi.stat().st_size // 2])
    assert read_promise(avi) == Promise(num_frames=7)


@pytest.mark.parametrize("unknown", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_avi_of_a_writer_that_did_not_finish_promises_nothing(avi: Path, unknown: bytes) -> None:
    data = bytearray(avi.read_bytes())
    start = data.find(b"strh") + 8 + 32
    data[start : start + 4] = unknown
    avi.write_bytes(data)
    assert read_promise(avi) == Promise()


@pytest.mark.parametrize(
    ("segment_size", "expected"),
    [
        (b"\x82", 4 + 1 + 3 + 4 + 1 + 2),
        (b"\x01\x00\x00\x00\x00\x00\x10\x00", 4 + 1 + 3 + 4 + 8 + 4096),
        (b"\xff", None),
        (b"\x01" + b"\xff" * 7, None),
        (b"\x00", None),
        (b"\x10\x00", None),  # cut off
    ],
)
def test_matroska_states_its_bytes(tmp_path: Path, segment_size: bytes, expected: int | None) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(b"\x1a\x45\xdf\xa3" + b"\x83abc" + b"\x18\x53\x80\x67" + segment_size)
    assert read_promise(path) == Promise(num_bytes=expected)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"hello", b"\x1a\x45\xdf\xa3"])
def test_other_files_promise_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    assert read_promise(path) == Promise()


@given(st.binary(max_size=64), st.sampled_from([b"", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67", b"RIFF\0\0\0\0AVI strh"]))
def test_hostile_headers_never_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(start + data)
    read_promise(path)
    _matroska_bytes(b"\x1a\x45\xdf\xa3" + data)


def test_vint_of_each_width() -> None:
    for width in range(1, 9):
        data = ((1 << 7 * width) + 5).to_bytes(width, "big")
        assert _vint(b"x" + data, 1) == (5, 1 + width)
