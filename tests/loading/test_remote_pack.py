"""A pack behind a URL: what is told, checked and decoded is what the local file gives."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from container import conftest
from container.conftest import RangeServer

from neuralloader import NeuralVideoDataset, cli, open_pack
from neuralloader.container.reader import PackReader
from neuralloader.packfile import verify_pack

range_server = conftest.range_server  # the fixture


def _serve(server: RangeServer, path: Path, name: str = "a.nvpack") -> str:
    server.files[name] = path.read_bytes()
    return f"{server.url}/{name}"


def test_the_same_frames(every_pack: tiny.TinyPack, range_server: RangeServer) -> None:
    url = _serve(range_server, every_pack.path)
    local, remote = (NeuralVideoDataset(path, device="cpu", return_info=True) for path in (every_pack.path, url))
    assert remote.samples == local.samples
    assert remote.classes == local.classes
    for (a, label, info), (b, own_label, own_info) in zip(local, remote, strict=True):  # type: ignore[call-overload]
        assert torch.equal(a, b)
        assert label == own_label
        assert torch.equal(info["pts_seconds"], own_info["pts_seconds"])
    assert range_server.num_sent_bytes < 2 * every_pack.path.stat().st_size, "nothing is fetched many times"


def test_a_local_and_a_remote_pack_together(
    any_pack: tiny.TinyPack,
    range_server: RangeServer,
    tmp_path: Path,
) -> None:
    source = tiny.write_corpus(tmp_path / "videos", {"left/other.avi": 3})
    tiny.pack_tiny(source, tmp_path / "b.nvpack", "fast")
    url = _serve(range_server, tmp_path / "b.nvpack")
    joined = NeuralVideoDataset([any_pack.path, url], device="cpu")
    alone = NeuralVideoDataset(tmp_path / "b.nvpack", device="cpu")
    assert joined.classes == ["left", "right"]
    assert torch.equal(joined[-1][0], alone[0][0])


def test_info(every_pack: tiny.TinyPack, range_server: RangeServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = _serve(range_server, every_pack.path)
    facts = []
    for path in (str(every_pack.path), url):
        assert cli.main(["info", path, "--json"]) == 0
        facts.append(json.loads(capsys.readouterr().out))
    assert facts[1].pop("path") == url
    assert facts[0].pop("path") == str(every_pack.path)
    assert facts[0] == facts[1]
    assert cli.main(["info", url]) == 0
    assert capsys.readouterr().out.startswith(f"{url}: {every_pack.backend} ({every_pack.config})")


def test_verify(any_pack: tiny.TinyPack, range_server: RangeServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = _serve(range_server, any_pack.path)
    assert verify_pack(url) == verify_pack(any_pack.path)
    assert cli.main(["verify", url]) == 0
    assert capsys.readouterr().out.startswith(f"{url} is whole: ")

    data = bytearray(any_pack.path.read_bytes())
    header = PackReader(any_pack.path)._header
    data[header.data_start + header.tensors["keyframes.data"].end - 1] ^= 1  # of the last key-frame
    range_server.files["bad.nvpack"] = bytes(data)
    assert cli.main(["verify", f"{range_server.url}/bad.nvpack"]) == 1
    error = capsys.readouterr().err
    assert f"{range_server.url}/bad.nvpack is damaged:" in error
    assert "item 7 of keyframes is damaged: its CRC32 is wrong (the key-frame at frame 8 of right/nine.avi)" in error


def test_what_is_not_there(range_server: RangeServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{range_server.url}/none.nvpack"
    with pytest.raises(FileNotFoundError, match="there is no pack at http"):
        open_pack(url)
    for command in ("info", "verify"):
        assert cli.main([command, url]) == 1
        assert f"neuralloader {command}: there is no pack at {url}" in capsys.readouterr().err
