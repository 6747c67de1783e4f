"""The commands as typed.

What they print, their exit codes, one clear line for every failure, and nothing left behind.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import counter
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from neuralloader import cli
from neuralloader.cli import main
from neuralloader.container import replace
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.report import turns

QUICK = ["--size", "48x64", "--width", "16", "--epochs", "1"]


pytestmark = pytest.mark.usefixtures("keep_signals")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tiny.write_corpus(tmp_path / "videos", {"hop/a.avi": 3, "run/b.avi": 12})


def _run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def _error_line(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """The one line that tells of a failure, less the command's name; progress bars aside."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    prefix = f"neuralloader {command}: "
    lines = [line for line in re.split(r"[\r\n]+", captured.err) if line.startswith(prefix)]
    assert len(lines) == 1, captured.err
    return lines[0].removeprefix(prefix)


def _assert_only_pack_and_log(path: Path) -> None:
    """What a run leaves in its folder when it is done."""
    folder = path.with_name(f"{path.name}.run")
    assert sorted(path.parent.iterdir()) == [path, folder]
    assert [entry.name for entry in folder.iterdir()] == ["log.jsonl"]


# --- pack: what can go wrong ----------------------------------------------------------------------------------------


def _nothing(tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


def _empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def _folder_without_videos(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "thesis.pdf").write_bytes(b"%PDF")
    return folder


def _file_that_is_no_video(tmp_path: Path) -> Path:
    path = tmp_path / "thesis.pdf"
    path.write_bytes(b"%PDF")
    return path


def _undecodable_among_good_ones(tmp_path: Path) -> Path:
    folder = tiny.write_corpus(tmp_path / "mixed", {"a/good.avi": 2, "b/good.avi": 2})
    (folder / "b" / "holiday.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and then nothing")
    return folder


def _videos_beside_classes(tmp_path: Path) -> Path:
    return tiny.write_corpus(tmp_path / "beside", {"a/good.avi": 1, "loose.avi": 1})


@pytest.mark.parametrize(
    ("make_source", "text"),
    [
        (_nothing, r"no file or folder at .*nowhere"),
        (_empty_folder, r"the folder .*empty is empty; put videos there, or folders of videos, one per class"),
        (_folder_without_videos, r"the folder .*papers holds no video, only files such as 'thesis\.pdf'; the suffixes"),
        (_file_that_is_no_video, r".*thesis\.pdf is no video and no list; the suffixes known"),
        (_videos_beside_classes, r"'loose\.avi' lies beside class folders such as 'a', so it has no class; move it"),
    ],
)
def test_sources_that_cannot_be_packed(
    make_source: Callable[[Path], Path],
    text: str,
    tmp_path: Path,
    out: Path,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run("pack", make_source(tmp_path), "-o", out / "a.nvpack", *QUICK) == 1
    assert re.match(text, _error_line(capsys, "pack"))
    assert list(out.iterdir()) == list(temporary.iterdir()) == []


def test_an_undecodable_video_is_named_with_the_way_out(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _undecodable_among_good_ones(tmp_path)
    assert _run("pack", source, "-o", out / "a.nvpack", *QUICK) == 1
    error = capsys.readouterr().err
    assert "neuralloader pack: 1 of 3 videos cannot be decoded" in error
    assert "'b/holiday.mp4': " in error
    assert not (out / "a.nvpack").exists()
    assert re.search("--on-error skip|on_error=.skip", error)

    assert _run("pack", source, "-o", out / "a.nvpack", *QUICK, "--on-error", "skip") == 0
    capsys.readouterr()
    assert _run("info", out / "a.nvpack", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_videos"] == 2
    assert [source["path"] for source in facts["skipped"]] == ["b/holiday.mp4"]
    assert facts["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "100x100"], "frame size 100x100: height and width must be multiples of 16; the nearest is 96x96"),
        (["--size", "100x100", "--config", "paper"], "frame size 100x100: height and width must be multiples of 16"),
        (["--size", "0x0"], "size=(0, 0) must be (height, width) in pixels, each 1 to 16384"),
        (["--size", "16x99999984"], "size="),
        (["--width", "0"], "width 0 must be 8 to 4096 channels"),
        (["--keyframe-quality", "0"], "keyframe_quality=0 must be 1 to 100"),
        (["--seed", "-1"], "seed=-1 must be 0 to"),
        (["--device", "cuda"], "--device cuda: there is no CUDA device here; use --device cpu"),
        (["--device", "abacus"], "--device 'abacus' must be auto, cpu, cuda or cuda:N"),
        (["--device", "meta"], "--device 'meta' must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_impossible_settings(
    videos: Path,
    out: Path,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    quick = [] if "--size" in arguments or "--width" in arguments else QUICK[:4]
    assert _run("pack", videos, "-o", out / "a.nvpack", "--epochs", 1, *quick, *arguments) == 1
    assert _error_line(capsys, "pack").startswith(text)
    assert list(out.iterdir()) == list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--minutes", "0"], r"minutes=0\.0 must be above 0"),
        (["--minutes", "-3"], r"minutes=-3\.0 must be above 0"),
        (["--minutes", "nan"], "minutes=nan must be above 0"),
        (["--epochs", "0"], "epochs=0 must be above 0"),
    ],
)
def test_impossible_durations(
    videos: Path, out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert _run("pack", videos, "-o", out / "a.nvpack", *arguments) == 1
    assert re.match(text, _error_line(capsys, "pack"))
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "big"], "argument --size: 'big' must be HEIGHTxWIDTH, such as 256x320"),
        (["--size", "-16x16"], "argument --size"),
        (
            ["--frame-rate", "0"],
            "argument --frame-rate: '0' must be a number of frames per second above 0, or 'native'",
        ),
        (["--frame-rate", "nan"], "argument --frame-rate: 'nan' must be a number"),
        (["--frame-rate", "often"], "argument --frame-rate: 'often' must be a number"),
        (["--minutes", "1", "--epochs", "1"], "not allowed with argument --minutes"),
        (["--config", "slow"], "argument --config: invalid choice: 'slow'"),
        (["--preset", "XXL"], "argument --preset: invalid choice: 'XXL'"),
        (["--on-error", "shrug"], "argument --on-error: invalid choice: 'shrug'"),
    ],
)
def test_arguments_that_cannot_be_read(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as caught:
        _run("pack", "videos", "-o", "a.nvpack", *arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_the_output_folder_must_exist(
    videos: Path, out: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("pack", videos, "-o", out / "missing" / "a.nvpack", *QUICK) == 1
    assert re.match(
        r"the folder .*missing does not exist; create it, then pack into .*a\.nvpack", _error_line(capsys, "pack")
    )
    assert list(out.iterdir()) == list(temporary.iterdir()) == []


def test_the_output_must_be_no_folder(videos: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("pack", videos, "-o", out, *QUICK) == 1
    assert re.search(r"out is a folder; name a file in it, such as .*corpus\.nvpack", _error_line(capsys, "pack"))


def test_a_read_only_output(
    videos: Path, out: Path, temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    if os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(replace, "_create_temporary", refuse)
    out.chmod(0o500)
    try:
        assert _run("pack", videos, "-o", out / "a.nvpack", *QUICK) == 1
    finally:
        out.chmod(0o700)
    assert re.search(
        r"cannot write to the folder of .*a\.nvpack: Permission denied; choose another -o", _error_line(capsys, "pack")
    )
    assert list(out.iterdir()) == list(temporary.iterdir()) == []


def test_a_pack_that_is_there_is_kept(videos: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "a.nvpack"
    path.write_bytes(b"weeks of work")
    assert _run("pack", videos, "-o", path, *QUICK) == 1
    assert re.search(r"a\.nvpack exists already; --force", _error_line(capsys, "pack"))
    assert path.read_bytes() == b"weeks of work"
    assert _run("pack", videos, "-o", path, *QUICK, "--force") == 0
    assert path.read_bytes()[8:9] == b"{"
    _assert_only_pack_and_log(path)


def test_an_interrupt(
    videos: Path, out: Path, temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neuralloader.training.train.fit", interrupt)
    assert _run("pack", videos, "-o", out / "a.nvpack", *QUICK) == 130
    assert _error_line(capsys, "pack") == "interrupted"
    assert not (out / "a.nvpack").exists()
    assert list(temporary.iterdir()) == []


def test_a_terminated_run_leaves_a_checkpoint_that_the_same_command_goes_on_from(
    videos: Path, out: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "a.nvpack"
    arguments = ["pack", videos, "-o", path, "--minutes", 0.2, *QUICK[:4]]
    with subprocess.Popen(
        [sys.executable, "-m", "neuralloader", *map(str, arguments)],
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        cwd=Path(cli.__file__).parents[1],
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        seen = b""
        while b"step" not in seen:  # it trains
            seen += (part := os.read(process.stderr.fileno(), 4096))
            assert part, seen.decode()
        process.terminate()
        rest = process.stderr.read().decode()
    assert process.returncode == 130
    assert "neuralloader pack: interrupted; the training so far is kept, and the same command goes on from" in rest
    assert "Traceback" not in rest
    assert [entry.name for entry in out.iterdir()] == ["a.nvpack.run"]
    assert (out / "a.nvpack.run" / "checkpoint-0").stat().st_size > 0
    assert list(temporary.iterdir()) == []

    assert _run(*arguments, "--seed", 1) == 1
    assert "holds a training that was asked for differently: seed was 0 and is 1" in _error_line(capsys, "pack")
    folder = out / "a.nvpack.run"
    assert _run(*arguments) == 0
    assert '"resumed"' in (folder / "log.jsonl").read_text()
    _assert_only_pack_and_log(path)


# --- pack, info, extract: what goes right ---------------------------------------------------------------------------


def test_pack_and_info(videos: Path, out: Path, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "a.nvpack"
    assert _run("pack", videos, "-o", path, *QUICK, "--frame-rate", "5", "--seed", "3") == 0
    captured = capsys.readouterr()
    assert re.fullmatch(rf"{path}: [\d,]+ bytes, \d+\.\d\d dB after \d+ steps\n", captured.out)
    for stage in ("read videos", "encode key-frames", "train", "encode latents", "measure"):
        assert stage in captured.err
    assert "dB, step" in captured.err
    _assert_only_pack_and_log(path)
    assert list(temporary.iterdir()) == []

    assert _run("info", path) == 0
    text = capsys.readouterr().out
    assert "2 videos, 2 classes: hop, run" in text
    assert "8 frames of 48x64 at 5 frames/s" in text

    assert _run("info", path, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    facts = json.loads(captured.out)
    assert {
        *("backend", "config", "num_videos", "num_clips", "num_frames", "classes", "size_bytes", "bits_per_pixel"),
        *("psnr_db", "ledger", "skipped"),
    } <= set(facts)
    assert (facts["backend"], facts["config"]) == ("dnerv", "fast")
    assert (facts["num_videos"], facts["num_clips"], facts["num_frames"]) == (2, 2, 8)
    assert facts["classes"] == ["hop", "run"]
    assert sum(facts["ledger"].values()) == facts["size_bytes"] == path.stat().st_size
    assert facts["bits_per_pixel"] == pytest.approx(path.stat().st_size * 8 / (8 * 48 * 64))
    assert 5 < facts["psnr_db"] < 100
    assert facts["skipped"] == []
    assert facts["training"]["seed"] == 3


def test_a_pack_without_key_frames(
    tiny_corpus: Path, out: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "a.nvpack"
    assert _run("pack", tiny_corpus, "-o", path, *QUICK, "--backend", "hnerv", "--frame-rate", "native") == 0
    captured = capsys.readouterr()
    assert re.fullmatch(rf"{path}: [\d,]+ bytes, \d+\.\d\d dB after \d+ steps\n", captured.out)
    assert "encode latents" in captured.err
    assert "encode key-frames" not in captured.err
    _assert_only_pack_and_log(path)
    assert list(temporary.iterdir()) == []

    assert _run("info", path) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{path}: hnerv (fast)")
    assert "in 6 clips of 8; no key-frames" in text
    assert _run("info", path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["backend"], facts["num_frames"], facts["num_keyframes"]) == ("hnerv", 32, 0)
    assert facts["key_interval"] is None
    assert facts["ledger"]["keyframes"] == 0 < facts["ledger"]["latents"]
    assert _run("verify", path) == 0
    assert "0 key-frames" in capsys.readouterr().out


def test_the_same_command_gives_the_same_bytes(videos: Path, out: Path) -> None:
    for name in ("a", "b"):
        assert _run("pack", videos, "-o", out / f"{name}.nvpack", *QUICK, "--seed", "5") == 0
    assert (out / "a.nvpack").read_bytes() == (out / "b.nvpack").read_bytes()


def test_one_video_alone_at_its_native_rate(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mjpeg_avi(tmp_path / "one.avi", tiny.draw_frames(11, 0), 10)
    assert _run("pack", tmp_path / "one.avi", "-o", out / "one.nvpack", *QUICK, "--frame-rate", "native") == 0
    capsys.readouterr()
    assert _run("info", out / "one.nvpack", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_videos"], facts["num_frames"], facts["classes"], facts["frame_rate"]) == (1, 11, [], None)


def test_extract(any_pack: tiny.TinyPack, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = out / "frames"
    assert _run("extract", any_pack.path, "-o", folder, "--device", "cpu") == 0
    assert capsys.readouterr().out == f"32 frames in {folder}\n"
    numbers = []
    for name, length in tiny.CORPUS.items():
        paths = sorted((folder / name).iterdir())
        assert [path.name for path in paths] == [f"{k:06d}.png" for k in range(length)]
        for path in paths:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 48))
                numbers.append(counter.read(np.asarray(image)))
    assert numbers == any_pack.numbers.tolist()

    assert _run("extract", any_pack.path, "-o", folder) == 1
    assert re.search("exists and is no empty folder; choose another -o", _error_line(capsys, "extract"))


def test_bench(
    fast_pack: tiny.TinyPack,
    temporary: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "measure_memory", lambda work: None)  # a process for each reader takes seconds
    quick = ["--clips", "2", "--batch", "2", "--rounds", "1", "--consumer", "none", "--device", "cpu"]
    assert _run("bench", fast_pack.path, *quick, "--sampler", "segments", "--chart", out / "a.png") == 0
    captured = capsys.readouterr()
    assert "4 of 4 videos; 2 clips of 8 frames (segments), 2 in a batch" in captured.out
    assert re.search(r"^pack +[\d.]+ +\d+ +1\.00 ", captured.out, re.MULTILINE)
    for stage in ("rehearse", "read in turns", "measure memory"):
        assert stage in captured.err
    with Image.open(out / "a.png") as chart:
        assert chart.format == "PNG"

    assert _run("bench", fast_pack.path, *quick, "--frames", "3", "--videos", "2", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["readers"]] == ["pack"]
    assert (facts["settings"]["frames_per_clip"], facts["num_videos"], facts["num_frames"]) == (3, 2, 6)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--clips", "0"], "num_clips=0 must be 1 or more"),
        (["--against", "nowhere"], "no file or folder at nowhere"),
        (["--chart", "a.jpg"], r"the chart a\.jpg must be a \.png file"),
        (["--device", "cuda"], "--device cuda: there is no CUDA device here"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, --device cuda is possible")
def test_impossible_bench(
    arguments: list[str], text: str, fast_pack: tiny.TinyPack, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("bench", fast_pack.path, *arguments) == 1
    assert re.match(text, _error_line(capsys, "bench"))
    assert list(temporary.iterdir()) == []


def test_bench_without_matplotlib(
    fast_pack: tiny.TinyPack, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _run("bench", fast_pack.path, "--chart", out / "a.png") == 1
    assert "`pip install 'neuralloader[report]'` provides it" in _error_line(capsys, "bench")


# --- what is no pack ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "extract", "bench"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"there is no pack at .*x\.nvpack"),
        (b"", r".*x\.nvpack: the file is too short for a pack"),
        (b"\xff\xd8\xff\xe0 a picture of something", r".*x\.nvpack: this is no pack"),
        (bytes(100), r".*x\.nvpack: the header is damaged"),
        ("folder", r".*x\.nvpack is no regular file, so it is no pack"),
    ],
)
def test_what_is_no_pack(
    command: str, content: bytes | str | None, text: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "x.nvpack"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    more = ["-o", out / "frames"] if command == "extract" else []
    assert _run(command, path, *more) == 1
    assert re.match(text, _error_line(capsys, command))
    assert not (out / "frames").exists()


def test_a_truncated_pack(fast_pack: tiny.TinyPack, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "half.nvpack"
    path.write_bytes(fast_pack.path.read_bytes()[:-1000])
    assert _run("info", path) == 1
    assert re.search(
        r"half\.nvpack: the pack should be \d+ bytes long, but the file has \d+", _error_line(capsys, "info")
    )


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["pack"], ["info"], ["extract"], ["bench"], ["demo"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: neuralloader")
    options = {
        "pack": ("--frame-rate", "--size", "--preset", "--config", "--minutes", "--epochs", "--seed", "--device",
                 "--on-error", "--force"),
        "info": ("--json",),
        "extract": ("-o", "--device"),
        "bench": ("--against", "--sampler", "--batch", "--clips", "--videos", "--rounds", "--consumer", "--chart",
                  "--json", "--device"),
    }  # fmt: skip
    for option in options.get(command[0] if command else "", ()):
        assert option in text


def test_no_command_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "neuralloader", "info", "nowhere.nvpack"],
        capture_output=True,
        text=True,
        cwd=Path(cli.__file__).parents[1],
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "neuralloader info: there is no pack at nowhere.nvpack\n"


def test_a_reader_that_has_seen_enough_is_no_error(fast_pack: tiny.TinyPack) -> None:
    """As with ``neuralloader info PACK | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "neuralloader", "info", str(fast_pack.path)]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (0, b"")
