"""Folders of numbered images as videos: order, gaps, kinds of files, and what cannot be a frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neuralloader.corpus.images import is_numbered_image
from neuralloader.corpus.read import DecodedVideo, read_video
from neuralloader.errors import SourceError

SIZE = (8, 10)


def _write(folder: Path, *names: str, **options: Any) -> Path:
    """Images whose grey is ten times their number."""
    folder.mkdir(exist_ok=True)
    for name in names:
        number = int("".join(filter(str.isdigit, name)))
        Image.new("RGB", (SIZE[1], SIZE[0]), (10 * number,) * 3).save(folder / name, **options)
    return folder


def _read(folder: Path, **settings: Any) -> DecodedVideo:
    return read_video(folder, **{"frame_rate": None, "size": SIZE, **settings})


def _numbers(video: DecodedVideo) -> list[int]:
    return [round(frame.mean() / 10) for frame in video.frames]


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    video = _read(_write(tmp_path / "a", *(f"img_{number}.png" for number in range(8, 13))))
    assert _numbers(video) == [8, 9, 10, 11, 12]
    assert video.facts.source_size == SIZE
    assert (video.facts.num_frames, video.facts.num_source_frames, video.facts.num_nominal_frames) == (5, 5, 5)
    assert (video.facts.source_frame_rate, video.facts.frame_rate) == (30.0, 30.0)


def test_frame_rate_of_images_is_a_setting(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", *(f"{number}.png" for number in range(10)))
    video = _read(folder, frame_rate=2.0, image_frame_rate=5.0)
    assert _numbers(video) == [0, 2, 5, 7]
    assert (video.facts.source_frame_rate, video.facts.frame_rate) == (5.0, 2.0)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp"])
def test_kinds_of_files(tmp_path: Path, suffix: str) -> None:
    assert _numbers(_read(_write(tmp_path / "a", f"0001{suffix}", f"0002{suffix}"))) == [1, 2]


@pytest.mark.parametrize(("name", "is_frame"), [("1.jpg", True), ("a b-07.PNG", True), ("cover.jpg", False)])
def test_names(name: str, is_frame: bool) -> None:
    assert is_numbered_image(name) == is_frame
    assert not is_numbered_image(name + ".txt")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", "img_00001.png", "img_00002.png", "flow_x_00001.png", "flow_y_00001.png")
    Image.new("RGB", (3, 3)).save(folder / "cover.png")
    (folder / "notes1.txt").write_text("no image")
    (folder / ".hidden_1.png").write_bytes(b"")
    assert _numbers(_read(folder)) == [1, 2]


def test_gap_is_a_problem(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", "1.png", "2.png", "3.png", "5.png", "6.png")
    with pytest.raises(SourceError, match=r"^a: its images jump from number 3 to 5$"):
        _read(folder)
    video = _read(folder, keep_partial=True)
    assert _numbers(video) == [1, 2, 3]
    assert (video.facts.num_nominal_frames, video.facts.problem) == (6, "its images jump from number 3 to 5")


def test_even_steps_are_no_gaps(tmp_path: Path) -> None:
    assert _numbers(_read(_write(tmp_path / "a", "0.png", "5.png", "10.png"))) == [0, 5, 10]
    with pytest.raises(SourceError, match="jump from number 1 to 3"):
        _read(_write(tmp_path / "two", "1.png", "3.png"))


def test_two_images_of_one_number(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"images '01\.png' and '1\.png' have the same number"):
        _read(_write(tmp_path / "a", "01.png", "1.png", "2.png"))


def test_several_kinds_of_names(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"several kinds of names \('a1\.png', 'b1\.png'\); keep one kind"):
        _read(_write(tmp_path / "a", "a1.png", "b1.png"))


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(SourceError, match="a folder without numbered images"):
        _read(tmp_path / "a")


def test_damaged_image_is_named_and_what_is_before_it_kept(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", "1.png", "2.png", "3.png", "4.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    with pytest.raises(SourceError, match=r"^a: image '3\.png' is damaged, or no image$"):
        _read(folder)
    video = _read(folder, keep_partial=True)
    assert _numbers(video) == [1, 2]
    assert (video.facts.num_source_frames, video.facts.num_nominal_frames) == (2, 4)
    assert video.facts.problem == "image '3.png' is damaged, or no image"


def test_image_of_another_size(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", "1.png", "2.png")
    Image.new("RGB", (4, 3)).save(folder / "3.png")
    with pytest.raises(SourceError, match=r"image '3\.png' is 3x4 pixels, the first one 8x10"):
        _read(folder)


def test_modes_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("RGBA", SIZE[::-1], (50, 60, 70, 0)).save(folder / "1.png")
    Image.new("L", SIZE[::-1], 80).save(folder / "2.png")
    Image.fromarray(np.full(SIZE, 90 * 256, np.uint16)).save(folder / "3.png")
    Image.new("P", SIZE[::-1], 0).save(folder / "4.png")
    frames = _read(folder).frames
    assert frames[:, 0, 0].tolist() == [[50, 60, 70], [80] * 3, [90] * 3, [0] * 3]


def test_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[0] = 255  # a bright top line
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    video = _read(tmp_path / "a", size=SIZE[::-1])
    assert video.facts.source_size == SIZE[::-1]
    assert (video.frames[0, :, -1] == 255).all()
