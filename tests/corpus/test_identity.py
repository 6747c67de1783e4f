"""A source is known again until it changes."""

import os
from pathlib import Path

from neuralloader.corpus.identity import Identity, identify


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert identify(path) == Identity(-1, -1)
    path.write_bytes(b"four")
    os.utime(path, ns=(1, 7_000_000_001))
    assert identify(path) == Identity(4, 7_000_000_001)


def test_folder_of_images_changes_with_each_of_them(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"png")
        os.utime(tmp_path / f"{number}.png", ns=(1, 1000 + number))
    os.utime(tmp_path, ns=(1, 1001))
    assert identify(tmp_path) == Identity(9, 1002)
    os.utime(tmp_path / "0.png", ns=(1, 5000))
    assert identify(tmp_path) == Identity(9, 5000)
    (tmp_path / "1.png").unlink()
    assert identify(tmp_path).size_bytes == 6
