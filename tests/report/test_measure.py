"""What is told about a pack: every key of it, and figures that belong to the file."""

import json
import math
from collections import Counter
from pathlib import Path

import fuzz
import numpy as np
import pytest
import tiny
import torch
from split_pack import with_splits

from neuralloader import cli
from neuralloader.container.reader import PackReader
from neuralloader.packfile import Pack
from neuralloader.report.measure import describe_pack, info_lines, measure_quality

KEYS = {
    *("path", "backend", "config", "network", "num_videos", "num_clips", "num_frames", "num_keyframes"),
    *("num_parameters", "classes", "frame_size", "frame_rate", "frames_per_clip", "key_interval", "keyframe_codec"),
    *("keyframe_quality", "weight_bits", "size_bytes", "bits_per_pixel", "psnr_db", "worst_psnr_db", "ledger"),
    *("training", "skipped", "weight_entropy_bits", "papers_would_count", "splits", "partial"),
}


def test_a_description(any_pack: tiny.TinyPack) -> None:
    facts = describe_pack(Pack(any_pack.path))
    assert json.loads(json.dumps(facts, allow_nan=False)) == json.loads(json.dumps(facts)), "plain JSON"
    assert set(facts) >= KEYS
    assert facts["backend"] == "dnerv"
    assert facts["config"] == any_pack.config
    assert (facts["num_videos"], facts["num_clips"], facts["num_frames"]) == (4, 6, 32)
    assert facts["classes"] == ["left", "right"]
    assert facts["frame_size"] == list(tiny.SIZE)
    assert facts["frame_rate"] is None
    assert (facts["skipped"], facts["partial"], facts["splits"]) == ([], [], {})
    size_bytes = any_pack.path.stat().st_size
    assert facts["size_bytes"] == sum(facts["ledger"].values()) == size_bytes
    assert facts["bits_per_pixel"] == pytest.approx(size_bytes * 8 / (32 * tiny.SIZE[0] * tiny.SIZE[1]))
    assert set(facts["ledger"]) == {"header", "tables", "scales", "weights", "encoder", "latents", "keyframes"}
    assert (facts["ledger"]["latents"] > 0) == (any_pack.config == "fast")
    assert min(facts["ledger"][name] for name in ("header", "tables", "scales", "weights", "keyframes")) > 0
    assert 10 < facts["worst_psnr_db"] < facts["psnr_db"] < 100


def test_lines_for_people(any_pack: tiny.TinyPack) -> None:
    facts = describe_pack(Pack(any_pack.path))
    text = "\n".join(info_lines(facts))
    for words in (
        f"dnerv ({any_pack.config})",
        "4 videos, 2 classes: left, right",
        "32 frames of 48x64 at every frame, in 6 clips of 8",
        f"{facts['psnr_db']:.2f} dB",
        f"{facts['bits_per_pixel']:.4f} bits per pixel",
        f"{facts['size_bytes']:,} bytes  100.0%",
    ):
        assert words in text
    assert not any(words in text for words in ("skipped", "in part", "split"))

    facts = {**facts, "skipped": [{"path": "a/b.avi", "reason": "no video"}], "classes": [], "frame_rate": 2.5}
    text = "\n".join(info_lines(facts))
    assert text.endswith("\n\n1 source skipped:\n  a/b.avi: no video")
    assert "no classes" in text
    assert "at 2.5 frames/s" in text


def test_splits_and_problems(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    path = with_splits(
        fast_pack.path,
        tmp_path / "split.nvpack",
        {"train": ["left/one.avi", "right/nine.avi"], "test": ["right/nine.avi"], "none": []},
        problems={"right/nine.avi": "it ends in mid-frame", "left/one.avi": "frame 1 is damaged"},
    )
    facts = describe_pack(Pack(path))
    assert facts["splits"] == {"train": 2, "test": 1, "none": 0}
    assert facts["partial"][0] == {
        "path": "left/one.avi",
        "problem": "frame 1 is damaged",
        "num_frames": 1,
        "num_source_frames": 1,
        "num_nominal_frames": facts["partial"][0]["num_nominal_frames"],
    }
    lines = info_lines(facts)
    assert lines[1:3] == [
        "4 videos, 2 classes: left, right",
        "3 splits, with their videos: train 2, test 1, none 0",
    ]
    assert lines[-4:] == [
        "",
        "2 sources kept in part:",
        "  left/one.avi: frame 1 is damaged",
        "  right/nine.avi: it ends in mid-frame",
    ]
    one = "\n".join(info_lines({**facts, "splits": {"\x1b[2J": 1}}))
    assert "1 split, with their videos: \\x1b[2J 1\n" in one


def test_the_first_of_many_problems(fast_pack: tiny.TinyPack) -> None:
    facts = describe_pack(Pack(fast_pack.path))
    for kind, words in (("skipped", "skipped"), ("partial", "kept in part")):
        listed = [{"path": f"{n}.avi", "reason": "no video", "problem": "no video"} for n in range(7)]
        for count, rest in ((5, []), (7, ["  and 2 more; --json has all of them"])):
            told = info_lines({**facts, kind: listed[:count]})
            expected = [f"{count} sources {words}:", *(f"  {n}.avi: no video" for n in range(5)), *rest]
            assert told[-len(expected) :] == expected


def test_quality_of_known_originals(fast_pack: tiny.TinyPack) -> None:
    """Against its own output a pack is perfect; one frame changed by one grey level is the worst."""
    device = torch.device("cpu")
    pack = Pack(fast_pack.path)
    from neuralloader.loading.decode import Decoder

    decoded = Decoder(pack, device).decode(np.arange(32)).permute(0, 2, 3, 1).numpy()
    shares: list[float] = []
    assert measure_quality(fast_pack.path, decoded, device, shares.append) == {"psnr_db": 100.0, "worst_psnr_db": 100.0}
    assert shares[-1] == 1
    decoded[17] ^= 1
    quality = measure_quality(fast_pack.path, decoded, device, shares.append)
    assert quality["worst_psnr_db"] == pytest.approx(48.1308)
    assert quality["psnr_db"] == pytest.approx(100 - (100 - 48.1308) / 32, abs=1e-3)


def test_a_pack_not_measured_yet_can_be_described(tmp_path: Path, fast_pack: tiny.TinyPack) -> None:
    """The trial pack that the packer measures is one."""
    from neuralloader.container.layout import RESERVED_MANIFEST_KEYS
    from neuralloader.container.reader import PackReader
    from neuralloader.container.writer import write_pack

    reader = PackReader(fast_pack.path)
    manifest = {name: value for name, value in reader.manifest.items() if name not in RESERVED_MANIFEST_KEYS}
    path = tmp_path / "trial.nvpack"
    write_pack(path, {**manifest, "quality": {}}, {name: reader.tensor(name) for name in reader.tensor_names})
    facts = describe_pack(Pack(path))
    assert facts["psnr_db"] is None
    assert "PSNR not measured" in "\n".join(info_lines(facts))


def test_what_the_papers_would_count(any_pack: tiny.TinyPack) -> None:
    """Counted again from the bytes of the file."""
    reader = PackReader(any_pack.path)
    codes = fuzz.unpack_codes(reader.tensor("weights.codes").tobytes())
    bits_per_weight = Pack(any_pack.path).description.weight_bits
    if bits_per_weight == 8:  # 257 levels: two bytes a code, all low ones before all high ones
        codes = list(zip(codes[: len(codes) // 2], codes[len(codes) // 2 :], strict=True))
    counts = Counter(codes)
    bits = sum(-count * math.log2(count / len(codes)) for count in counts.values())
    stored = [name for name in reader.tensor_names if name.split(".")[0] in ("latents", "keyframes")]
    size_bytes = bits / 8 + sum(reader.num_bytes(name) for name in stored)

    facts = describe_pack(Pack(any_pack.path))
    assert facts["num_parameters"] == len(codes)
    assert facts["weight_entropy_bits"] == pytest.approx(bits / len(codes))
    papers = facts["papers_would_count"]
    assert papers["size_bytes"] == pytest.approx(size_bytes, abs=1)
    assert papers["bits_per_pixel"] == pytest.approx(size_bytes * 8 / (32 * 48 * 64), rel=1e-4)
    assert papers["size_bytes"] < facts["size_bytes"]
    line = info_lines(facts)[-1]
    assert line.startswith(
        f"The papers would count {papers['size_bytes']:,} bytes, {papers['bits_per_pixel']:.4f} bits"
    )
    assert f"parameters x {bits_per_weight} bits x {bits / len(codes) / bits_per_weight:.3f} (entropy)" in line


def test_json_and_text_tell_the_same(any_pack: tiny.TinyPack, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(any_pack.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads(json.dumps(describe_pack(Pack(any_pack.path))))
    assert cli.main(["info", str(any_pack.path)]) == 0
    assert capsys.readouterr().out.splitlines() == info_lines(facts)


def test_texts_of_strangers_cannot_command_a_terminal(fast_pack: tiny.TinyPack) -> None:
    facts = describe_pack(Pack(fast_pack.path))
    facts["classes"] = ["\x1b[2Jleft", "rechts ä 跳"]
    facts["skipped"] = [{"path": "a\nb.avi", "reason": "\x07bad"}]
    text = "\n".join(info_lines(facts))
    assert "\\x1b[2Jleft, rechts ä 跳" in text
    assert "a\\nb.avi: \\x07bad" in text
    assert not {"\x1b", "\x07"} & set(text)


def test_the_first_line_tells_of_networks_and_of_what_can_be_added(make_pack: tiny.MakePack, tmp_path: Path) -> None:
    path = make_pack("hnerv", "fast", "video").path
    facts = describe_pack(Pack(path))
    assert (facts["scope"], facts["num_networks"], facts["is_appendable"]) == ("video", 4, False)
    assert info_lines(facts)[0] == (
        f"{path}: hnerv (fast), {facts['num_parameters']:,} parameters in 4 networks, one for each video"
    )
    source = tiny.write_corpus(tmp_path / "source", {"a/b.avi": 2})
    pack = tiny.pack_tiny(source, tmp_path / "a.nvpack", "fast", appendable=True)
    facts = describe_pack(pack)
    assert (facts["scope"], facts["num_networks"], facts["is_appendable"]) == ("corpus", 1, True)
    assert facts["ledger"]["encoder"] > 0
    assert info_lines(facts)[0].endswith(f"dnerv (fast), {facts['num_parameters']:,} parameters; videos can be added")
