"""Key-frames in files while packing: the same as all at once, and read from the disk when asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from neuralloader.codecs.keyframes import KeyframeCodec, decode_keyframes, encode_keyframes, pack_keyframes
from neuralloader.training import keyframes as module
from neuralloader.training.keyframes import EncodedKeyframes, encode_to_files

ROWS = np.array([0, 3, 4, 9, 10])


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return tiny.draw_frames(11, 0, (32, 48))


def _ignore(done: int) -> None:
    pass


@pytest.mark.parametrize("codec", ["avif", "webp", "jpeg", "png"])
@pytest.mark.parametrize("per_batch", [2, 5, 64])
def test_they_are_those_encoded_in_one_go(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: KeyframeCodec, per_batch: int
) -> None:
    monkeypatch.setattr(module, "KEYFRAMES_PER_BATCH", per_batch)
    done: list[int] = []
    files, pixels = encode_to_files(frames, ROWS, codec, 70, tmp_path, done.append)
    expected = encode_keyframes(list(frames[ROWS]), codec, 70)
    assert list(files) == expected
    assert [files[i] for i in reversed(range(len(files)))] == expected[::-1], "in any order"
    assert len(files) == len(ROWS)
    np.testing.assert_array_equal(pixels, decode_keyframes(expected, codec, (32, 48)))
    assert done == [*range(per_batch, len(ROWS), per_batch), len(ROWS)]
    # what the packer does with them
    assert pack_keyframes(files, codec)[0] == pack_keyframes(expected, codec)[0]
    assert list(pack_keyframes(files, codec)[1]) == list(pack_keyframes(expected, codec)[1])


def test_frames_may_be_mapped(frames: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    (tmp_path / "out").mkdir()
    files, pixels = encode_to_files(mapped, ROWS, "png", 100, tmp_path / "out", _ignore)
    assert list(files) == encode_keyframes(list(frames[ROWS]), "png", 100)
    np.testing.assert_array_equal(pixels, frames[ROWS])


def test_nothing_is_held_in_memory(frames: np.ndarray, tmp_path: Path) -> None:
    """What is on the disk is what is given, also when it changes there."""
    files, pixels = encode_to_files(frames, ROWS, "jpeg", 70, tmp_path, _ignore)
    assert {path.name for path in tmp_path.iterdir()} == {"keyframes.files", "keyframes.pixels"}
    assert (tmp_path / "keyframes.pixels").stat().st_size == pixels.nbytes == len(ROWS) * 32 * 48 * 3
    assert (tmp_path / "keyframes.files").stat().st_size == sum(map(len, files))
    assert isinstance(pixels, np.memmap)
    other = bytes(reversed((tmp_path / "keyframes.files").read_bytes()))
    lengths = [len(file) for file in files]
    (tmp_path / "keyframes.files").write_bytes(other)
    assert b"".join(files) == other
    assert [len(file) for file in files] == lengths


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


def test_files_of_no_and_of_few_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcdef")
    assert list(EncodedKeyframes(tmp_path / "f", [1, 0, 3, 2])) == [b"a", b"", b"bcd", b"ef"]
    assert list(EncodedKeyframes(tmp_path / "f", [])) == []


def test_places_beyond_two_gigabytes(tmp_path: Path) -> None:
    """Sizes of one batch are small, places in the file of a large corpus are not."""
    with open(tmp_path / "f", "wb") as file:
        file.truncate(3 << 30)  # a hole: takes no disk
        file.seek(3 << 30)
        file.write(b"end")
    files = EncodedKeyframes(tmp_path / "f", [1 << 30, 1 << 30, 1 << 30, 3])
    assert files[3] == b"end"


def test_the_folder_may_go_while_pixels_are_mapped(frames: np.ndarray, tmp_path: Path) -> None:
    """A run that ends early removes its folder first; what still reads the pixels must not crash."""
    folder = tmp_path / "run"
    folder.mkdir()
    files, pixels = encode_to_files(frames, ROWS, "png", 70, folder, _ignore)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(pixels, frames[ROWS])
    with pytest.raises(FileNotFoundError, match=r"keyframes\.files"):
        files[0]
