"""Videos added to a pack without training: what stays as it was, what comes new, and what is refused."""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import neuralloader
from neuralloader import Pack, PackError, PackSettings, SourceError
from neuralloader.backends import select_units
from neuralloader.backends.precision import autocast
from neuralloader.cli import main
from neuralloader.container.layout import RESERVED_MANIFEST_KEYS
from neuralloader.container.writer import write_pack
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.settings import Resize
from neuralloader.loading.decode import Decoder
from neuralloader.metrics.quality import psnr_db
from neuralloader.packfile import verify_pack
from neuralloader.training.append import AppendResult

CPU = torch.device("cpu")
OLD = {"left/a.avi": 9, "right/b.avi": 3}
# a new class that sorts before the old ones, whose first video has the frames of left/a.avi; and one more of an old one
NEW = {"back/copy.avi": 9, "right/c.avi": 10}
MORE = {"up/d.avi": 2}
FIRST_NUMBER = {"back/copy.avi": 0, "right/c.avi": 600, "up/d.avi": 700}
# and for how many epochs they are trained: until their latents tell frames apart
KINDS: dict[tuple[str, tiny.Config], int] = {
    ("dnerv", "fast"): 20,
    ("hnerv", "fast"): 20,
    ("hnerv", "paper"): 20,
    ("cnerv", "paper"): 10,
}


@dataclass(frozen=True)
class Appended:
    """A pack before and after.

    Attributes:
        old, new: the packs.
        old_source, new_source: the videos of the old one, and those that were added.
        result: what ``append`` gave.
        reports: what it reported.
    """

    old: Pack
    new: Pack
    old_source: Path
    new_source: Path
    result: AppendResult
    reports: list[tuple[str, float]]


@pytest.fixture(scope="module")
def old_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, and one that is none."""
    folder = tiny.write_corpus(tmp_path_factory.mktemp("old"), OLD)
    (folder / "left" / "bad.avi").write_bytes(b"RIFF no video")
    return folder


@pytest.fixture(scope="module")
def new_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("new"), NEW)


@pytest.fixture(scope="module")
def more_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("more"), MORE)


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def appended(
    request: pytest.FixtureRequest, old_source: Path, new_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Appended:
    """The new videos, added to a pack of every kind that can take them: without latents on a grid, and with."""
    backend, config = request.param
    folder = tmp_path_factory.mktemp("appended")
    old = tiny.pack_tiny(
        old_source,
        folder / "old.nvpack",
        config,
        backend=backend,
        epochs=KINDS[backend, config],
        faithful=True,
        appendable=True,
        on_error="skip",
    )
    reports: list[tuple[str, float]] = []
    result = neuralloader.append(
        old.path,
        new_source,
        folder / "new.nvpack",
        device=CPU,
        report=lambda stage, done, note: reports.append((stage, done)),
    )
    return Appended(old, Pack(result.path), old_source, new_source, result, reports)


@pytest.fixture(scope="module")
def appendable(old_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack that videos can be added to, the quickest to make."""
    path = tmp_path_factory.mktemp("appendable") / "old.nvpack"
    tiny.pack_tiny(old_source, path, "fast", backend="hnerv", appendable=True, on_error="skip")
    return path


def _write(folder: Path, videos: dict[str, int]) -> Path:
    for name, length in videos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_mjpeg_avi(folder / name, tiny.draw_frames(length, FIRST_NUMBER[name]), tiny.SOURCE_RATE)
    return folder


def _decode(pack: Pack, rows: np.ndarray) -> Tensor:
    return Decoder(pack, CPU).decode(rows)


def _originals(*sources: Path) -> Tensor:
    """(num_frames, 3, H, W): the frames of some folders, as they are read."""
    frames = []
    for source in sources:
        with ingest(find_videos(source).sources, frame_rate=None, size=tiny.SIZE, on_error="skip") as corpus:
            frames.append(torch.from_numpy(np.array(corpus.frames)))
    return torch.cat(frames).permute(0, 3, 1, 2)


# --- what stays -----------------------------------------------------------------------------------------------------


def test_old_videos_decode_to_the_frames_they_did(appended: Appended) -> None:
    rows = np.arange(len(appended.old.frames))
    assert len(rows) == sum(OLD.values())
    assert torch.equal(_decode(appended.new, rows), _decode(appended.old, rows))


def test_weights_and_encoder_stay_to_the_byte(appended: Appended) -> None:
    old, new = appended.old.reader, appended.new.reader
    names = [name for name in old.tensor_names if name.split(".")[0] in ("weights", "scales", "encoder")]
    assert len(names) == 6
    for name in names:
        assert new.tensor(name).tobytes() == old.tensor(name).tobytes(), name
    for key in ("weights", "encoder", "weight_levels", "network", "backend", "config"):
        assert new.manifest[key] == old.manifest[key]
    assert set(new.tensor_names) == set(old.tensor_names)


def test_latents_and_key_frames_stay(appended: Appended) -> None:
    old, new = appended.old, appended.new
    before, after = old.latents(), new.latents()
    np.testing.assert_array_equal(after.symbols[: len(before.symbols)], before.symbols)
    assert (before.grid is None) == (old.description.config == "fast")
    if before.grid is not None:
        assert after.grid is not None
        np.testing.assert_array_equal(after.grid.minimum, before.grid.minimum)
        np.testing.assert_array_equal(after.grid.scale, before.grid.scale)
    if rows := len(old.index.keys):
        assert new.keyframe_files(np.arange(rows)) == old.keyframe_files(np.arange(rows))
    assert (rows, len(new.index.keys)) == ((4, 9) if old.description.backend == "dnerv" else (0, 0))


def test_the_new_pack_is_whole(appended: Appended) -> None:
    found = verify_pack(appended.new.path)
    assert found.problems == ()
    assert found.num_clips == 2 + 1 + 2 + 2
    assert sum(appended.new.reader.ledger().values()) == Path(appended.new.path).stat().st_size


# --- what comes new -------------------------------------------------------------------------------------------------


def test_classes_are_merged_by_name(appended: Appended) -> None:
    old, new = appended.old, appended.new
    assert old.classes == ("left", "right")
    assert new.classes == ("back", "left", "right")
    assert [video.name for video in new.index.videos] == [*OLD, *NEW]
    assert [video.num_frames for video in new.index.videos] == [9, 3, 9, 10]
    assert [new.classes[video.label] for video in new.index.videos] == ["left", "right", "back", "right"]
    dataset = neuralloader.NeuralVideoDataset(new.path, frames_per_clip=10, device="cpu")
    assert dataset.samples == [(name, new.classes.index(name.split("/")[0])) for name in (*OLD, *NEW)]


def test_skipped_sources_are_kept(appended: Appended) -> None:
    assert [source.name for source in appended.old.index.skipped] == ["left/bad.avi"]
    assert appended.new.index.skipped == appended.old.index.skipped


def test_the_same_frames_under_another_name_decode_as_well(appended: Appended) -> None:
    """They go through the stored encoder and onto the stored grid as those did that the network was trained on.

    Those of a fast network have been trained further, each by an offset of its own, which new ones do not get.
    """
    first, length = sum(OLD.values()), NEW["back/copy.avi"]
    latents = appended.new.latents().symbols
    own = appended.new.frames.latent_row(np.array([0, length, first, first + length]))
    copied, original = latents[own[2] : own[3]], latents[own[0] : own[1]]
    assert len(np.unique(original)) > 3, "or any latents would do"
    copy = _decode(appended.new, np.arange(first, first + length))
    before = _decode(appended.old, np.arange(length))
    if appended.old.description.config == "paper":
        assert (copied != original).mean() < 0.02, "but for the number format, in which a batch can make a difference"
        assert psnr_db(copy, before).min() > 45
    else:
        assert np.abs(copied.astype(int) - original).max() <= 2
        assert psnr_db(copy, before).min() > psnr_db(before[1:], before[:-1]).max() + 3, "nearer than its neighbours"
    originals = _originals(appended.old_source)[:length]
    assert abs(psnr_db(copy, originals).mean() - psnr_db(before, originals).mean()) < 0.3


def test_added_latents_are_what_the_stored_encoder_makes_of_the_frames(appended: Appended) -> None:
    """By hand, of the video that the network has never seen."""
    pack, frames = appended.new, _originals(appended.new_source)[NEW["back/copy.avi"] :]
    rows = np.arange(len(pack.frames) - len(frames), len(pack.frames))[:, None]
    keys, units = select_units(pack.frames, rows)
    keyframes = torch.from_numpy(pack.keyframes(keys)).permute(0, 3, 1, 2) if len(keys) else torch.empty(0)
    backend = pack.load_backend(with_encoder=True)
    with autocast(CPU) if backend.latent_bits is None else nullcontext():
        values = backend.encode_latents(frames.unsqueeze(1), keyframes, units).numpy()
    stored, is_key = pack.latents(), pack.frames.at(rows[:, 0]).is_key
    symbols = stored.symbols[-(~is_key).sum() :].astype(np.float32)
    if stored.grid is None:
        wanted = values
    else:
        minimum, scale = (part.astype(np.float32)[:, None, None] for part in (stored.grid.minimum, stored.grid.scale))
        wanted = ((values - minimum) / np.where(scale == 0, np.inf, scale)).clip(0, 63) - 128
    is_rounded = np.abs(symbols - wanted[~is_key]) < 0.51
    assert is_rounded.mean() > 0.98, "all but for the number format, in which a batch can make a difference"
    assert len(np.unique(symbols)) > 3, "or any encoder would do"


@pytest.mark.parametrize("appended", [("dnerv", "fast")], indirect=True, ids="-".join)
def test_key_frames_look_like_their_originals(appended: Appended) -> None:
    """However little the network was trained, they are stored as images."""
    pack, originals = appended.new, _originals(appended.old_source, appended.new_source)
    rows = pack.frames.key_rows
    assert rows.tolist() == [0, 8, 9, 11, 12, 20, 21, 29, 30]
    decoded = _decode(pack, rows)
    assert psnr_db(decoded, originals[rows]).min() > 22
    assert psnr_db(decoded, originals[rows - 1]).max() < 18, "a neighbour fits as well: this would prove nothing"


def test_the_result_tells_the_truth(appended: Appended) -> None:
    result, rows = appended.result, np.arange(sum(OLD.values()), len(appended.new.frames))
    assert result.path == appended.new.path
    assert result.size_bytes == Path(appended.new.path).stat().st_size
    assert result.added_bytes == result.size_bytes - Path(appended.old.path).stat().st_size
    assert (result.num_videos, result.num_frames) == (2, 19)
    measured = psnr_db(_decode(appended.new, rows), _originals(appended.new_source))
    assert result.psnr_db == pytest.approx(float(measured.mean()), abs=1e-2)


def test_the_manifest_tells_the_quality_of_all_frames(appended: Appended) -> None:
    """Measured again from outside, over the old frames and the new ones."""
    before, after = appended.old.description, appended.new.description
    rows = np.arange(len(appended.new.frames))
    measured = psnr_db(_decode(appended.new, rows), _originals(appended.old_source, appended.new_source))
    assert after.quality["psnr_db"] == pytest.approx(float(measured.mean()), abs=1e-2)
    assert after.quality["worst_psnr_db"] == pytest.approx(float(measured.min()), abs=1e-2)
    assert after.quality["appended_psnr_db"] == appended.result.psnr_db
    assert "appended_psnr_db" not in before.quality
    added = {"appended_videos": 2, "appended_frames": 19}
    assert after.training == {**before.training, **added}


def test_progress_is_told_stage_by_stage(appended: Appended) -> None:
    stages = list(dict.fromkeys(stage for stage, _ in appended.reports))
    keyframes = ["encode key-frames"] * (appended.old.description.key_interval is not None)
    assert stages == ["read videos", *keyframes, "encode latents", "measure"]
    for stage in stages:
        shares = [done for each, done in appended.reports if each == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1


# --- again and in other ways ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("appended", [("dnerv", "fast")], indirect=True, ids="-".join)
def test_adding_to_what_was_added_to(appended: Appended, more_source: Path, out: Path) -> None:
    """In place this time: the new pack is written over the one that it is made from."""
    path = out / "a.nvpack"
    path.write_bytes(Path(appended.new.path).read_bytes())
    with pytest.raises(FileExistsError, match=r"a\.nvpack exists already; --force \(overwrite=True\) replaces it"):
        neuralloader.append(path, more_source, path, device=CPU)
    assert path.read_bytes() == Path(appended.new.path).read_bytes()
    result = neuralloader.append(str(path), str(more_source), str(path), device=CPU, overwrite=True)
    assert list(out.iterdir()) == [path]
    pack = Pack(path)
    assert [video.name for video in pack.index.videos] == [*OLD, *NEW, *MORE]
    assert pack.classes == ("back", "left", "right", "up")
    assert [pack.classes[video.label] for video in pack.index.videos] == ["left", "right", "back", "right", "up"]
    rows = np.arange(len(appended.new.frames))
    assert torch.equal(_decode(pack, rows), _decode(appended.new, rows))
    assert verify_pack(path).problems == ()

    before, after = appended.new.description, pack.description
    assert (after.training["appended_videos"], after.training["appended_frames"]) == (3, 21)
    quality = {name: before.quality[name] for name in ("psnr_db", "appended_psnr_db")}
    assert after.quality["psnr_db"] == pytest.approx((31 * quality["psnr_db"] + 2 * result.psnr_db) / 33, abs=2e-4)
    assert after.quality["appended_psnr_db"] == pytest.approx(
        (19 * quality["appended_psnr_db"] + 2 * result.psnr_db) / 21, abs=2e-4
    )
    assert after.quality["worst_psnr_db"] <= before.quality["worst_psnr_db"]
    assert result.added_bytes == path.stat().st_size - Path(appended.new.path).stat().st_size
    assert abs(result.psnr_db - quality["psnr_db"]) > 0.1, "or the means would tell nothing"


def test_a_video_without_a_class(appendable: Path, more_source: Path, out: Path) -> None:
    """One file by itself: it has no label, whatever classes the pack has."""
    neuralloader.append(appendable, more_source / "up" / "d.avi", out / "a.nvpack", device=CPU)
    pack = Pack(out / "a.nvpack")
    assert pack.classes == ("left", "right")
    assert [(video.name, video.label) for video in pack.index.videos] == [
        ("left/a.avi", 0),
        ("right/b.avi", 1),
        ("d.avi", -1),
    ]


def test_frames_are_resampled_and_resized_as_the_packs_are(tmp_path: Path, out: Path) -> None:
    source = tiny.write_corpus(tmp_path / "old", {"a.avi": 4})
    tiny.pack_tiny(source, out / "old.nvpack", "fast", backend="cnerv", appendable=True, frame_rate=5.0)
    larger = tiny.write_corpus(tmp_path / "new", {"b.avi": 8}, size=(96, 80))
    neuralloader.append(out / "old.nvpack", larger, out / "new.nvpack", device=CPU)
    pack = Pack(out / "new.nvpack")
    assert pack.frame_size == tiny.SIZE
    assert (pack.classes, [video.label for video in pack.index.videos]) == ((), [-1, -1])
    added = pack.index.videos[1]
    assert (added.num_frames, added.num_source_frames, added.frame_rate) == (4, 8, 5.0)
    assert added.source_size == (96, 80)


def test_bad_videos_can_be_left_out(appendable: Path, out: Path, tmp_path: Path, temporary: Path) -> None:
    source = _write(tmp_path / "mixed", MORE)
    (source / "up" / "worse.avi").write_bytes(b"RIFF no video either")
    path = out / "a.nvpack"
    with pytest.raises(SourceError, match=r"1 of 2 videos cannot be decoded"):
        neuralloader.append(appendable, source, path, device=CPU)
    assert list(out.iterdir()) == list(temporary.iterdir()) == []
    result = neuralloader.append(appendable, source, path, device=CPU, on_error="skip")
    assert (result.num_videos, result.num_frames) == (1, 2)
    assert [skipped.name for skipped in Pack(path).index.skipped] == ["left/bad.avi", "up/worse.avi"]
    assert list(temporary.iterdir()) == []


# --- refusals -------------------------------------------------------------------------------------------------------


def _refuse(error: type[Exception], text: str, pack: Path, source: Path, output: Path, **settings: Any) -> None:
    """An error whose message fits, and nothing that is left at the output."""
    before = set(output.parent.iterdir()) if output.parent.exists() else set()
    with pytest.raises(error, match=text):
        neuralloader.append(pack, source, output, device=CPU, **settings)
    assert (set(output.parent.iterdir()) if output.parent.exists() else set()) == before


@pytest.mark.parametrize(
    ("backend", "config", "reason"),
    [
        ("hnerv", "fast", "it holds no encoder: it was packed without --appendable"),
        ("nerv", "fast", "NeRV stores nothing for a frame but its network, which every new video would have to be"),
        ("dnerv", "paper", r"D-NeRV as published stores no latents: .*; the fast configuration can encode new ones"),
    ],
    ids=["hnerv", "nerv", "dnerv-paper"],
)
def test_packs_that_no_videos_can_be_added_to(
    backend: str, config: tiny.Config, reason: str, make_pack: tiny.MakePack, new_source: Path, out: Path
) -> None:
    path = make_pack(backend, config).path
    text = rf"{re.escape(str(path))}: no videos can be added to it: {reason}"
    _refuse(ValueError, text, path, new_source, out / "a.nvpack")


def test_a_pack_with_a_network_for_each_video(more_source: Path, new_source: Path, out: Path) -> None:
    path = out / "videos.nvpack"
    tiny.pack_tiny(more_source, path, "fast", backend="hnerv", scope="video")
    text = r"no videos can be added to it: each of its networks knows one video; .* open several packs as one"
    _refuse(ValueError, text, path, new_source, out / "a.nvpack")


def test_a_name_that_is_there_already(appendable: Path, out: Path, tmp_path: Path) -> None:
    source = tiny.write_corpus(tmp_path / "twice", {"left/z.avi": 1, "right/b.avi": 2})
    text = r"old\.nvpack has a video right/b\.avi already; rename the new one, or leave it out"
    _refuse(ValueError, text, appendable, source, out / "a.nvpack")
    _refuse(ValueError, text, appendable, source, out / "a.nvpack", on_error="skip")


def test_an_output_that_is_there_is_kept(appendable: Path, new_source: Path, out: Path) -> None:
    (out / "a.nvpack").write_bytes(b"weeks of work")
    _refuse(FileExistsError, r"a\.nvpack exists already; --force", appendable, new_source, out / "a.nvpack")
    assert (out / "a.nvpack").read_bytes() == b"weeks of work"


def test_files_that_are_not_there(appendable: Path, new_source: Path, out: Path, tmp_path: Path) -> None:
    path = out / "a.nvpack"
    _refuse(FileNotFoundError, r"there is no pack at .*none\.nvpack", tmp_path / "none.nvpack", new_source, path)
    _refuse(FileNotFoundError, r"no file or folder at .*nowhere", appendable, tmp_path / "nowhere", path)
    text = r"the folder .*missing does not exist; create it"
    _refuse(FileNotFoundError, text, appendable, new_source, out / "missing" / "a.nvpack")


def test_a_damaged_encoder_is_named(appendable: Path, new_source: Path, out: Path, tmp_path: Path) -> None:
    """Reading the videos of a pack does not touch it."""
    path, codes = tmp_path / "damaged.nvpack", Pack(appendable).reader.tensor("encoder.codes").tobytes()
    data = bytearray(appendable.read_bytes())
    data[data.index(codes) + len(codes) // 2] ^= 0x04
    path.write_bytes(data)
    rows = np.arange(sum(OLD.values()))
    assert torch.equal(_decode(Pack(path), rows), _decode(Pack(appendable), rows))
    text = r"damaged\.nvpack: tensor encoder\.codes is damaged: its bytes do not match its sha256"
    _refuse(PackError, text, path, new_source, out / "a.nvpack")


@pytest.mark.parametrize("stage", ["encode_latents", "save_with_weights", "encode_to_files"])
def test_nothing_stays_behind(
    appendable: Path, new_source: Path, out: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("stopped here")

    monkeypatch.setattr(f"neuralloader.training.append.{stage}", fail)
    _refuse(RuntimeError, "stopped here", appendable, new_source, out / "a.nvpack")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"backend": "nerv"}, "appendable=True: NeRV stores nothing for a frame but its network"),
        ({"backend": "nerv", "config": "paper"}, "appendable=True: NeRV stores nothing for a frame but its network"),
        ({"config": "paper"}, "appendable=True: D-NeRV as published stores no latents"),
        ({"backend": "hnerv", "scope": "video"}, "appendable=True: the network of one video cannot encode another"),
    ],
)
def test_settings_that_make_no_appendable_pack(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PackSettings(appendable=True, **settings)


def test_d_nerv_has_no_network_for_each_video() -> None:
    for config in ("fast", "paper"):
        with pytest.raises(ValueError, match="backend 'dnerv' shares one network between all videos; scope='video'"):
            PackSettings(config=config, scope="video")


# --- as typed -------------------------------------------------------------------------------------------------------


def _run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.usefixtures("keep_signals")
def test_the_command(appendable: Path, new_source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "a.nvpack"
    command = ("append", appendable, new_source, "-o", path, "--device", "cpu")
    assert _run(*command) == 0
    captured = capsys.readouterr()
    line = rf"{path}: ([\d,]+) bytes, ([\d,]+) of them for 2 added videos of 19 frames, \d+\.\d\d dB\n"
    found = re.fullmatch(line, captured.out)
    assert found, captured.out
    size, added = (int(number.replace(",", "")) for number in found.groups())
    assert size == path.stat().st_size
    assert added == size - appendable.stat().st_size
    for stage in ("read videos", "encode latents", "measure"):
        assert stage in captured.err

    first = path.read_bytes()
    assert _run(*command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"neuralloader append: .*a\.nvpack exists already; --force .*\n", captured.err)
    assert _run(*command, "--force") == 0
    assert path.read_bytes() == first, "the same command gives the same bytes"
    assert list(out.iterdir()) == [path]


@pytest.mark.usefixtures("keep_signals")
def test_a_failure_is_told_in_one_line(
    appendable: Path, old_source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("append", appendable, old_source, "-o", out / "a.nvpack") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"neuralloader append: .*old\.nvpack has a video left/a\.avi already; .*\n", captured.err)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a.nvpack", "videos"], "the following arguments are required: -o/--output"),
        (["a.nvpack", "-o", "b.nvpack"], "the following arguments are required: source"),
        (["a.nvpack", "videos", "-o", "b.nvpack", "--on-error", "shrug"], "argument --on-error: invalid choice"),
    ],
)
def test_bad_usage(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _run("append", *arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.usefixtures("keep_signals")
def test_packing_and_adding_as_typed(
    more_source: Path, new_source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--size", "48x64", "--width", "16", "--epochs", "1", "--device", "cpu"]
    assert _run("pack", more_source, "-o", out / "a.nvpack", *quick, "--appendable") == 0
    assert _run("append", out / "a.nvpack", new_source, "-o", out / "b.nvpack", "--device", "cpu") == 0
    capsys.readouterr()
    assert _run("info", out / "b.nvpack") == 0
    assert "3 videos, 3 classes: back, right, up" in capsys.readouterr().out
    assert _run("verify", out / "b.nvpack") == 0


# --- what a stranger's pack says about itself -----------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["many", -9, True, None, [1]])
def test_counts_of_added_videos_that_are_nonsense_count_as_none(claim: object, tmp_path: Path) -> None:
    source = tiny.write_corpus(tmp_path / "source", {"left/two.avi": 2})
    old = tiny.pack_tiny(source, tmp_path / "old.nvpack", "fast", appendable=True)
    manifest = {k: v for k, v in old.reader.manifest.items() if k not in RESERVED_MANIFEST_KEYS}
    manifest["training"] = {**manifest["training"], "appended_videos": claim, "appended_frames": claim}
    write_pack(tmp_path / "odd.nvpack", manifest, {name: old.reader.tensor(name) for name in old.reader.tensor_names})
    new = tiny.write_corpus(tmp_path / "new", {"up/three.avi": 3})
    neuralloader.append(tmp_path / "odd.nvpack", new, tmp_path / "new.nvpack")
    training = Pack(tmp_path / "new.nvpack").description.training
    assert (training["appended_videos"], training["appended_frames"]) == (1, 3)


def test_a_source_that_was_skipped_may_come_later_or_be_skipped_again(tmp_path: Path) -> None:
    source = tiny.write_corpus(tmp_path / "source", {"a/good.avi": 2})
    bad = source / "a" / "bad.avi"
    bad.write_bytes(b"no video")
    tiny.pack_tiny(source, tmp_path / "0.nvpack", "fast", appendable=True, on_error="skip")
    more = tiny.write_corpus(tmp_path / "more", {"a/more.avi": 2})
    (more / "a" / "bad.avi").write_bytes(b"still no video")
    neuralloader.append(tmp_path / "0.nvpack", more, tmp_path / "1.nvpack", on_error="skip")
    assert [skipped.name for skipped in Pack(tmp_path / "1.nvpack").index.skipped] == ["a/bad.avi"]
    mended = tiny.write_corpus(tmp_path / "mended", {"a/bad.avi": 3})
    neuralloader.append(tmp_path / "1.nvpack", mended, tmp_path / "2.nvpack")
    index = Pack(tmp_path / "2.nvpack").index
    assert [video.name for video in index.videos] == ["a/good.avi", "a/more.avi", "a/bad.avi"]
    assert index.skipped == ()


# --- what the pack decides, and what lists do -----------------------------------------------------------------------


def test_splits_of_one_name_are_joined_and_new_ones_added(out: Path, tmp_path: Path) -> None:
    source, more = tiny.write_corpus(tmp_path / "old", OLD), _write(tmp_path / "new", NEW)
    lists = {
        "old.txt": "left/a.avi left\nright/b.avi right\n",
        "new.txt": "back/copy.avi back\n",
        "val.txt": "right/c.avi right\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    old = tiny.pack_tiny(
        source,
        out / "old.nvpack",
        "fast",
        backend="hnerv",
        appendable=True,
        annotations=(f"train={tmp_path / 'old.txt'}",),
    )
    assert old.splits == ("train",)
    given = [f"train={tmp_path / 'new.txt'}", f"val={tmp_path / 'val.txt'}"]
    neuralloader.append(old.path, more, out / "new.nvpack", device=CPU, annotations=given)
    expected = {"train": ["left/a.avi", "right/b.avi", "back/copy.avi"], "val": ["right/c.avi"]}
    for split, names in expected.items():
        dataset = neuralloader.NeuralVideoDataset(out / "new.nvpack", device="cpu", split=split)
        assert sorted({name for name, _ in dataset.samples}) == sorted(names)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_added_videos_are_resized_as_those_of_the_pack(resize: Resize, out: Path, tmp_path: Path) -> None:
    """Seen in the frames that the added pack is measured against."""
    tiny.write_corpus(tmp_path / "old", {"a.avi": 2}, size=(48, 96))
    tiny.write_corpus(tmp_path / "new", {"b.avi": 2}, size=(96, 48))
    old = tiny.pack_tiny(tmp_path / "old", out / "a.nvpack", "fast", backend="hnerv", appendable=True, resize=resize)
    assert old.description.training["resize"] == resize
    seen: list[np.ndarray] = []

    def look(path: Path, originals: np.ndarray, *more: object) -> dict[str, float]:
        seen.append(np.array(originals[:]))
        return {"psnr_db": 30.0, "worst_psnr_db": 30.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuralloader.packing.measure_quality", look)
        neuralloader.append(old.path, tmp_path / "new", out / "b.nvpack", device=CPU)
    with ingest(find_videos(tmp_path / "new").sources, frame_rate=None, size=tiny.SIZE, resize=resize) as corpus:
        np.testing.assert_array_equal(seen[0], corpus.frames[:])
