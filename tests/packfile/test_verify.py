"""A whole pack is found whole, and whatever is damaged is named."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny

from neuralloader import cli
from neuralloader.container.reader import PackReader
from neuralloader.errors import PackError
from neuralloader.packfile import Pack, verify, verify_pack

FOURTEEN = list(tiny.CORPUS).index("right/fourteen.avi")


def _position(path: Path, name: str, offset: int) -> int:
    """Of a byte of a tensor in the file."""
    header = PackReader(path)._header
    return header.data_start + header.tensors[name].begin + offset


def _damage(source: Path, target: Path, *positions: int) -> Path:
    data = bytearray(source.read_bytes())
    for position in positions:
        data[position] ^= 0x04
    target.write_bytes(data)
    return target


def _item(path: Path, prefix: str, row: int) -> int:
    """The place of the middle byte of a blob's item in the file."""
    size = PackReader(path).tensor(f"{prefix}.size").astype(int)
    assert size[row] > 0
    return _position(path, f"{prefix}.data", int(size[:row].sum() + size[row] // 2))


def test_a_whole_pack(any_pack: tiny.TinyPack) -> None:
    pack = Pack(any_pack.path)
    shares: list[float] = []
    found = verify_pack(any_pack.path, shares.append)
    assert found.problems == ()
    assert found.num_tensors == len(pack.reader.tensor_names)
    assert (found.num_keyframes, found.num_clips) == (len(pack.index.keys), len(pack.index.clips)) == (8, 6)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1


def test_a_flipped_bit_names_its_tensor(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    """Every tensor in turn; one that all of the pack hangs on is no reason to stop before the others."""
    reader = PackReader(any_pack.path)
    for name in reader.tensor_names:
        if (size := reader.num_bytes(name)) == 0:
            continue
        path = _damage(any_pack.path, tmp_path / "damaged.nvpack", _position(any_pack.path, name, size // 2))
        problems = verify_pack(path).problems
        text = f"{path}: tensor {name} is damaged: its bytes do not match its sha256"
        assert text in problems, (name, problems)
        others = [line for line in problems if line != text]
        if not name.endswith(".data"):
            assert not others, (name, others)
        assert len(set(problems)) == len(problems)


def test_a_key_frame_is_named_by_video_and_frame(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    keys = Pack(any_pack.path).index.keys
    row = int(np.flatnonzero((keys.video == FOURTEEN) & (keys.frame == 8))[0])
    path = _damage(any_pack.path, tmp_path / "damaged.nvpack", _item(any_pack.path, "keyframes", row))
    first, second = verify_pack(path).problems
    assert "tensor keyframes.data is damaged" in first
    assert re.search(
        rf"damaged\.nvpack: item {row} of keyframes is damaged.*key-frame at frame 8 of right/fourteen", second
    )


def test_a_block_of_latents_is_named_by_video_and_clip(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    pack = Pack(fast_pack.path)
    clips, frames = pack.index.clips, pack.frames.all
    row = int(np.flatnonzero((clips.video == FOURTEEN) & (clips.first_frame == 8))[0])
    block = int(np.isin(np.arange(row), frames.clip[~frames.is_key]).sum())
    assert block < row, "a clip before it has no block: the two are not counted alike"
    path = _damage(fast_pack.path, tmp_path / "damaged.nvpack", _item(fast_pack.path, "latents", block))
    first, second = verify_pack(path).problems
    assert "tensor latents.data is damaged" in first
    assert re.search(r"damaged\.nvpack: item \d+ of latents is damaged.*latents from frame 8 of right/fourteen", second)


def test_all_damage_is_listed(fast_pack: tiny.TinyPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are read at a time."""
    places = [_item(fast_pack.path, "keyframes", 0), _item(fast_pack.path, "keyframes", 7)]
    places += [_item(fast_pack.path, "latents", 0), _position(fast_pack.path, "weights.codes", 50)]
    path = _damage(fast_pack.path, tmp_path / "damaged.nvpack", *places)
    problems = verify_pack(path).problems
    for text in (
        *("tensor weights.codes", "tensor latents.data", "tensor keyframes.data", "item 0 of keyframes"),
        *("item 7 of keyframes", "item 0 of latents"),
    ):
        assert sum(text in line for line in problems) == 1, text
    assert len(problems) == 6
    monkeypatch.setattr(verify, "KEYFRAME_BYTES_PER_STEP", 1)
    monkeypatch.setattr(verify, "CLIPS_PER_STEP", 2)
    assert verify_pack(path).problems == problems


def test_a_damaged_header(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    data = any_pack.path.read_bytes()
    at = data.index(b"frames_per_clip") + 3
    path = _damage(any_pack.path, tmp_path / "damaged.nvpack", at)
    with pytest.raises(PackError, match=r"damaged\.nvpack: the manifest is damaged: its bytes do not match its sha256"):
        verify_pack(path)


def test_a_truncated_file(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    path = tmp_path / "short.nvpack"
    path.write_bytes(any_pack.path.read_bytes()[:-1])
    with pytest.raises(PackError, match=r"short\.nvpack: the pack should be \d+ bytes long, but the file has \d+"):
        verify_pack(path)
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*none\.nvpack"):
        verify_pack(tmp_path / "none.nvpack")


def test_the_command(fast_pack: tiny.TinyPack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(fast_pack.path)]) == 0
    captured = capsys.readouterr()
    num_tensors = len(PackReader(fast_pack.path).tensor_names)
    assert captured.out == (f"{fast_pack.path} is whole: {num_tensors} tensors, 8 key-frames and 6 clips checked\n")
    path = _damage(fast_pack.path, tmp_path / "damaged.nvpack", _item(fast_pack.path, "keyframes", 3))
    assert cli.main(["verify", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    told = captured.err[captured.err.index("neuralloader verify: ") :].splitlines()
    assert told[0] == f"neuralloader verify: {path} is damaged:"
    assert [line[:2] for line in told[1:]] == ["  ", "  "]
    assert "tensor keyframes.data is damaged" in told[1]
    assert "item 3 of keyframes is damaged" in told[2]
    assert "Traceback" not in captured.err
