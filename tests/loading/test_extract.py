"""Extraction: every frame a PNG, in the folder of its video, and never into a folder in use."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from neuralloader.loading.decode import Decoder
from neuralloader.loading.extract import extract_frames
from neuralloader.packfile import open_pack

CPU = torch.device("cpu")


def test_every_frame_is_written_once(every_pack: tiny.TinyPack, tmp_path: Path) -> None:
    pack = open_pack(every_pack.path)
    done: list[float] = []
    folder = tmp_path / "new" / "frames"
    assert extract_frames(pack, folder, CPU, done.append) == 32
    assert done == sorted(done)
    assert done[-1] == 1
    expected = {f"{name}/{k:06d}.png" for name, length in tiny.CORPUS.items() for k in range(length)}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == expected

    decoded = Decoder(pack, CPU).decode(np.arange(32)).permute(0, 2, 3, 1).numpy()
    row = 0
    for name, length in tiny.CORPUS.items():
        for k in range(length):
            with Image.open(folder / name / f"{k:06d}.png") as image:
                np.testing.assert_array_equal(np.asarray(image), decoded[row])
            row += 1


def test_an_empty_folder_is_fine(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    assert extract_frames(open_pack(fast_pack.path), tmp_path, CPU) == 32


def test_a_folder_in_use_is_left_alone(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(FileExistsError, match=r"exists and is no empty folder; choose another -o"):
            extract_frames(open_pack(fast_pack.path), folder, CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
