"""Key-frames in files while packing: the same as all at once, made once, and read from the disk when asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from training_case import SIZE

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes, encode_keyframes, pack_keyframes
from neuralloader.training import keyframes as module
from neuralloader.training.group import Group
from neuralloader.training.keyframes import EncodedKeyframes, encode_to_files

ROWS = np.array([0, 3, 4, 9, 10])


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return tiny.draw_frames(11, 0, SIZE)


def _ignore(done: int) -> None:
    pass


@pytest.mark.parametrize("codec", ["avif", "webp", "jpeg", "png"])
@pytest.mark.parametrize(("per_batch", "per_block"), [(2, 1024), (5, 2), (2, 3), (64, 1024)])
def test_they_are_those_encoded_in_one_go(
    frames: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codec: KeyframeCodec,
    per_batch: int,
    per_block: int,
) -> None:
    monkeypatch.setattr(module, "KEYFRAMES_PER_BATCH", per_batch)
    monkeypatch.setattr(module, "KEYFRAMES_PER_BLOCK", per_block)
    done: list[int] = []
    files, pixels = encode_to_files(frames, ROWS, codec, 70, tmp_path, done.append)
    expected = encode_keyframes(list(frames[ROWS]), codec, 70)
    assert list(files) == expected
    assert [files[i] for i in reversed(range(len(files)))] == expected[::-1], "in any order"
    assert len(files) == len(ROWS)
    np.testing.assert_array_equal(pixels, decode_keyframes(expected, codec, (32, 48)))
    assert done == sorted(done)
    assert set(done) >= set(range(per_batch, min(len(ROWS), per_block), per_batch))
    assert done[-1] == len(ROWS)
    # what the packer does with them
    assert pack_keyframes(files, codec)[0] == pack_keyframes(expected, codec)[0]
    assert list(pack_keyframes(files, codec)[1]) == list(pack_keyframes(expected, codec)[1])


def test_frames_may_be_mapped(frames: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    files, pixels = encode_to_files(mapped, ROWS, "png", 100, tmp_path / "out", _ignore)
    assert list(files) == encode_keyframes(list(frames[ROWS]), "png", 100)
    np.testing.assert_array_equal(pixels, frames[ROWS])


def test_nothing_is_held_in_memory(frames: np.ndarray, tmp_path: Path) -> None:
    """What is on the disk is what is given, also when it changes there."""
    files, pixels = encode_to_files(frames, ROWS, "jpeg", 70, tmp_path, _ignore)
    assert {path.name for path in tmp_path.iterdir()} == {"block-0", "pixels", "made-of.json"}
    assert (tmp_path / "pixels").stat().st_size == pixels.nbytes == len(ROWS) * 32 * 48 * 3
    sizes = 8 * len(ROWS)
    block = (tmp_path / "block-0").read_bytes()
    assert np.frombuffer(block[:sizes], "<u8").tolist() == [len(file) for file in files]
    assert len(block) == sizes + sum(map(len, files))
    assert isinstance(pixels, np.memmap)
    other = bytes(reversed(block[sizes:]))
    (tmp_path / "block-0").write_bytes(block[:sizes] + other)
    assert b"".join(files) == other


def test_no_key_frames_at_all(frames: np.ndarray, tmp_path: Path) -> None:
    done: list[int] = []
    files, pixels = encode_to_files(frames, ROWS[:0], "avif", 70, tmp_path, done.append)
    assert list(files) == []
    assert pixels.shape == (0, 32, 48, 3)
    assert pixels.dtype == np.uint8
    assert done == []
    assert list(tmp_path.iterdir()) == [], "a file of no bytes cannot be mapped"


@pytest.mark.parametrize("index", [5, -1, 10**12])
def test_what_is_not_there(frames: np.ndarray, tmp_path: Path, index: int) -> None:
    files, _ = encode_to_files(frames, ROWS, "png", 70, tmp_path, _ignore)
    with pytest.raises(IndexError, match=f"there are key-frames 0 to 4, not {index}"):
        files[index]


def _write_block(path: Path, sizes: list[int]) -> None:
    """A block whose files are a hole: it takes no disk."""
    with open(path, "wb") as file:
        file.write(np.array(sizes, "<u8").tobytes())
        file.truncate(8 * len(sizes) + sum(sizes))


def test_files_of_no_and_of_few_bytes(tmp_path: Path) -> None:
    (tmp_path / "block-0").write_bytes(np.array([1, 0, 3, 2], "<u8").tobytes() + b"abcdef")
    assert list(EncodedKeyframes(tmp_path, 4)) == [b"a", b"", b"bcd", b"ef"]
    assert list(EncodedKeyframes(tmp_path, 0)) == []


def test_places_beyond_two_gigabytes(tmp_path: Path) -> None:
    """Sizes of one batch are small, places in the file of a large corpus are not."""
    _write_block(tmp_path / "block-0", [1 << 30, 1 << 30, 1 << 30, 3])
    with open(tmp_path / "block-0", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"end")
    assert EncodedKeyframes(tmp_path, 4)[3] == b"end"


def test_the_folder_may_go_while_pixels_are_mapped(frames: np.ndarray, tmp_path: Path) -> None:
    """A run that ends early removes its folder first; what still reads the pixels must not crash."""
    folder = tmp_path / "run"
    files, pixels = encode_to_files(frames, ROWS, "png", 70, folder, _ignore)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(pixels, frames[ROWS])
    with pytest.raises(FileNotFoundError, match=r"block-0"):
        files[0]


# --- made once ------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of 2; the number of key-frames in each call of the encoder."""
    calls: list[int] = []
    original = encode_keyframes

    def count(images: Any, codec: KeyframeCodec, quality: int) -> list[bytes]:
        calls.append(len(images))
        return original(images, codec, quality)

    monkeypatch.setattr(module, "KEYFRAMES_PER_BLOCK", 2)
    monkeypatch.setattr(module, "encode_keyframes", count)
    return calls


def _make(frames: np.ndarray, folder: Path, rows: np.ndarray = ROWS, **changes: Any) -> tuple[list[bytes], np.ndarray]:
    """Make them, and check that they are the right ones."""
    settings: dict[str, Any] = {"codec": "png", "quality": 70, "source_id": "one", **changes}
    codec, quality = settings["codec"], settings["quality"]
    files, pixels = encode_to_files(frames, rows, codec, quality, folder, _ignore, source_id=settings["source_id"])
    expected = encode_keyframes(list(frames[rows]), codec, quality)
    assert list(files) == expected
    np.testing.assert_array_equal(pixels, decode_keyframes(expected, codec, frames.shape[1:3]))
    return list(files), pixels


def test_the_same_ones_are_not_made_again(frames: np.ndarray, tmp_path: Path, encoded: list[int]) -> None:
    _make(frames, tmp_path)
    assert encoded == [2, 2, 1]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    _make(frames, tmp_path)
    assert encoded == [2, 2, 1]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_interrupted_it_goes_on_with_the_next_block(
    frames: np.ndarray, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(files: Any, codec: str, size: Any) -> np.ndarray:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return decode_keyframes(files, codec, size)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode_keyframes", fail)
        with pytest.raises(KeyboardInterrupt):
            _make(frames, tmp_path)
    assert encoded == [2, 2]
    _make(frames, tmp_path)
    assert encoded == [2, 2, 2, 1], "the first block is there, the second was not whole"


@pytest.mark.parametrize(
    "tear",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:16],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\xff" * 16 + data[16:],
        lambda data: np.array([2**64 - 1, len(data) - 16 + 1], "<u8").tobytes() + data[16:],
        None,
    ],
)
def test_a_block_that_is_not_whole_is_made_again(
    frames: np.ndarray, tmp_path: Path, encoded: list[int], tear: Callable[[bytes], bytes] | None
) -> None:
    _make(frames, tmp_path)
    block = tmp_path / "block-1"
    if tear is None:
        block.unlink()
    else:
        block.write_bytes(tear(block.read_bytes()))
    _make(frames, tmp_path)
    assert encoded == [2, 2, 1, 2]


@pytest.mark.parametrize(
    "changes",
    [{"codec": "jpeg"}, {"quality": 60}, {"source_id": "two"}, {"rows": ROWS[::-1].copy()}, {"rows": ROWS[:4]}],
)
def test_other_ones_are_made_anew(
    frames: np.ndarray, tmp_path: Path, encoded: list[int], changes: dict[str, Any]
) -> None:
    _make(frames, tmp_path)
    (tmp_path / "mine").write_bytes(b"another's")
    encoded.clear()
    _make(frames, tmp_path, **changes)
    assert sum(encoded) == len(changes.get("rows", ROWS))
    assert len(list(tmp_path.glob("block-*"))) == len(encoded)
    assert (tmp_path / "mine").read_bytes() == b"another's", "the folder may hold more"


def test_frames_of_another_size_are_made_anew(frames: np.ndarray, tmp_path: Path, encoded: list[int]) -> None:
    _make(frames, tmp_path)
    encoded.clear()
    _make(np.ascontiguousarray(frames[:, :16]), tmp_path)
    assert encoded == [2, 2, 1]


@pytest.mark.parametrize("text", [None, "", "{", '{"codec": "png"}'])
def test_without_a_word_of_what_they_are_they_are_made_anew(
    frames: np.ndarray, tmp_path: Path, encoded: list[int], text: str | None
) -> None:
    _make(frames, tmp_path)
    told = tmp_path / "made-of.json"
    assert json.loads(told.read_text())["source"] == "one"
    if text is None:
        told.unlink()
    else:
        told.write_text(text)
    _make(frames, tmp_path)
    assert encoded == [2, 2, 1, 2, 2, 1]


@pytest.mark.parametrize("size", [None, 0, 100])
def test_without_whole_pixels_they_are_made_anew(
    frames: np.ndarray, tmp_path: Path, encoded: list[int], size: int | None
) -> None:
    _make(frames, tmp_path)
    if size is None:
        (tmp_path / "pixels").unlink()
    else:
        (tmp_path / "pixels").write_bytes(bytes(size))
    _make(frames, tmp_path)
    assert encoded == [2, 2, 1, 2, 2, 1]


def test_several_processes_share_the_blocks(
    frames: np.ndarray, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one first, as far as it comes without the other; ``test_group`` has real processes."""
    monkeypatch.setattr(Group, "wait", lambda self: None)
    _make(frames, tmp_path)
    for path in tmp_path.glob("block-*"):
        path.unlink()
    encoded.clear()
    with pytest.raises(OSError, match=r"block-0 is not whole: something else writes to that folder"):
        encode_to_files(frames, ROWS, "png", 70, tmp_path, _ignore, Group(1, 2), source_id="one")
    assert encoded == [2]
    encode_to_files(frames, ROWS, "png", 70, tmp_path, _ignore, Group(0, 2), source_id="one")
    assert encoded == [2, 2, 1]


def test_a_disk_that_is_too_small_is_told_before_any_work(
    frames: np.ndarray, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"the key-frames in .* need 0\.02304 MB, 0\.001 MB are free; make room"):
        _make(frames, tmp_path)
    assert encoded == []
