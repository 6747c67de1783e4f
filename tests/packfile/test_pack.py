"""What is saved is what is opened, to the bit; and whatever a stranger writes into a manifest ends in a PackError."""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuralloader
from neuralloader.backends import network_of
from neuralloader.clips import SkippedSource, VideoInfo, index_corpus
from neuralloader.codecs.keyframes import decode_keyframes, encode_keyframes
from neuralloader.codecs.quantize import dequantize
from neuralloader.container.index import PackIndex
from neuralloader.container.layout import RESERVED_MANIFEST_KEYS, canonical_json
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import write_pack
from neuralloader.errors import PackError, PackVersionError
from neuralloader.loading.decode import Decoder
from neuralloader.packfile import (
    Pack,
    PackDescription,
    RoundedLatents,
    build_backend,
    open_pack,
    quantize_parameter,
    save_pack,
    stored_parameters,
)

LENGTHS = (14, 1, 9)


# --- saving and opening ---------------------------------------------------------------------------------------------


def _inputs(config: tiny.Config, *, seed: int = 0) -> dict[str, Any]:
    """Everything that ``save_pack`` takes, random."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = tiny.small_paper_config() if config == "paper" else network_of("dnerv", "fast", 16, tiny.SIZE)
    key_interval = 8 if config == "paper" else 16
    clips, keys = index_corpus(np.array(LENGTHS), frames_per_clip=8, key_interval=key_interval)
    backend = build_backend("dnerv", config, network)
    latents = None
    if backend.latent_shape is not None:
        num_latents = sum(LENGTHS) - len(keys)
        symbols = rng.integers(-3, 4, (num_latents, *backend.latent_shape)).astype(np.int8)
        latents = RoundedLatents(symbols, None)
    images = rng.integers(0, 256, (len(keys), *tiny.SIZE, 3), dtype=np.uint8)
    videos = tuple(
        VideoInfo(f"c/ä{i}.avi", i % 2, length, 3 * length, 29.97, 10.0, (480, 640)) for i, length in enumerate(LENGTHS)
    )
    return {
        "description": PackDescription(
            backend="dnerv",
            config=config,
            network=network,
            frame_size=tiny.SIZE,
            frames_per_clip=8,
            key_interval=key_interval,
            frame_rate=10.0,
            classes=("Laufen", "跳"),
            keyframe_codec="png",
            keyframe_quality=50,
            weight_bits=8,
            training={"preset": "XS", "seed": 0, "minutes": None, "epochs": 3},
            quality={"psnr_db": 31.25, "worst_psnr_db": 22.5},
        ),
        "index": PackIndex(videos, (SkippedSource("c/bad.avi", "no video in it"),), clips, keys),
        "backend": backend,
        "keyframes": encode_keyframes(list(images), "png", 50),
        "latents": latents,
    }


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_everything_comes_back(config: tiny.Config, tmp_path: Path) -> None:
    saved = _inputs(config)
    path = tmp_path / "a.nvpack"
    size_bytes = save_pack(path, **saved)
    pack = Pack(path)

    assert pack.size_bytes == size_bytes == path.stat().st_size
    assert pack.description == saved["description"]
    assert type(pack.description.network) is type(saved["description"].network)
    assert (pack.index.videos, pack.index.skipped) == (saved["index"].videos, saved["index"].skipped)
    for table in ("clips", "keys"):
        for field in fields(getattr(pack.index, table)):
            column = getattr(getattr(pack.index, table), field.name)
            np.testing.assert_array_equal(column, getattr(getattr(saved["index"], table), field.name))

    rows = np.array([3, 0, 3])
    images = decode_keyframes([saved["keyframes"][row] for row in rows], "png", tiny.SIZE)
    np.testing.assert_array_equal(pack.keyframes(rows), images)

    backend = pack.load_backend()
    assert not backend.training
    assert not any(p.requires_grad for p in backend.parameters())
    expected = {
        name: torch.from_numpy(dequantize(quantize_parameter(saved["backend"], name, p, 8)))
        for name, p in stored_parameters(saved["backend"]).items()
    }
    got = stored_parameters(backend)
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert torch.equal(got[name], values), name
    assert pack.num_parameters == sum(values.numel() for values in expected.values())
    if saved["latents"] is not None:
        np.testing.assert_array_equal(pack.latents().symbols, saved["latents"].symbols)
        assert pack.latents().grid is None


def test_splits_and_problems_come_back(tmp_path: Path) -> None:
    saved = _inputs("fast")
    save_pack(tmp_path / "plain.nvpack", **saved)
    assert "splits" not in PackReader(tmp_path / "plain.nvpack").manifest
    assert Pack(tmp_path / "plain.nvpack").splits == ()

    videos = [
        replace(video, splits=1 << place % 2, num_nominal_frames=7 * place, problem="it is cut" * (place == 1))
        for place, video in enumerate(saved["index"].videos)
    ]
    saved["index"] = replace(saved["index"], videos=tuple(videos))
    saved["description"] = replace(saved["description"], splits=("Übung", "test"))
    save_pack(tmp_path / "told.nvpack", **saved)
    pack = Pack(tmp_path / "told.nvpack")
    assert pack.splits == pack.description.splits == ("Übung", "test")
    assert pack.index.videos == videos


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_the_same_input_gives_the_same_bytes(config: tiny.Config, tmp_path: Path) -> None:
    first, second = _inputs(config), _inputs(config)
    description = second["description"]
    second["description"] = replace(description, training=dict(reversed(description.training.items())))
    save_pack(tmp_path / "a.nvpack", **first)
    save_pack(tmp_path / "b.nvpack", **second)
    save_pack(tmp_path / "c.nvpack", **_inputs(config, seed=1))
    data = (tmp_path / "a.nvpack").read_bytes()
    assert data == (tmp_path / "b.nvpack").read_bytes()
    assert data != (tmp_path / "c.nvpack").read_bytes()


def test_the_manifest_is_canonical_and_tells_nothing_of_the_machine(any_pack: tiny.TinyPack) -> None:
    data = any_pack.path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = header["__metadata__"]["neuralloader"]
    manifest = json.loads(text)
    assert text == canonical_json(manifest)
    assert manifest["format"] == "nvpack"
    assert manifest["version"] == 1
    for word in (str(any_pack.path.parent), "/tmp", "/home", torch.__version__):
        assert word not in text


def test_what_is_not_needed_to_decode_is_not_stored(fast_pack: tiny.TinyPack) -> None:
    stored = [name for name, _, _ in PackReader(fast_pack.path).manifest["weights"]]
    network = build_backend("dnerv", "fast", Pack(fast_pack.path).description.network)
    assert set(stored) < {name for name, _ in network.named_parameters()}
    assert not any(name.startswith("encoder.") for name in stored)


def test_overwriting_must_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.nvpack"
    saved = _inputs("paper")
    save_pack(path, **saved)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.nvpack exists already; --force"):
        save_pack(path, **_inputs("paper", seed=1))
    assert path.read_bytes() == before
    save_pack(path, **_inputs("paper", seed=1), overwrite=True)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_a_pack_pickles_without_its_file_open(any_pack: tiny.TinyPack) -> None:
    pack = Pack(any_pack.path)
    keyframes = pack.keyframes(np.array([0, 2]))
    data = pickle.dumps(pack)
    assert len(data) < any_pack.path.stat().st_size / 2, "weights and key-frames stay in the file"
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy.keyframes(np.array([0, 2])), keyframes)
    assert copy.description == pack.description


def test_public_names() -> None:
    assert issubclass(neuralloader.PackError, ValueError)
    assert issubclass(neuralloader.PackVersionError, neuralloader.PackError)
    assert neuralloader.open_pack is open_pack
    for name in neuralloader.__all__:
        assert getattr(neuralloader, name) is not None
    with pytest.raises(AttributeError, match="module 'neuralloader' has no attribute 'unpack'"):
        neuralloader.unpack  # noqa: B018


# --- damage ---------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*none\.nvpack"):
        Pack(tmp_path / "none.nvpack")


@pytest.mark.parametrize("content", [b"", b"RIFF", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_a_file_that_is_no_pack_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "holiday.nvpack"
    path.write_bytes(content)
    with pytest.raises(PackError, match=r"holiday\.nvpack: "):
        Pack(path)


def _use(path: Path) -> None:
    """All that reading a pack can run into."""
    pack = Pack(path)
    Decoder(pack, torch.device("cpu")).decode(np.arange(len(pack.frames)))


def test_flipped_bits_never_end_in_another_error(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    """Every section gets its share; weights, latents and key-frames all carry checksums."""
    data = bytearray(any_pack.path.read_bytes())
    path = tmp_path / "damaged.nvpack"
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    positions = [*rng.integers(0, header, 10), *rng.integers(header, len(data), 15), len(data) - 1]
    for position in positions:
        data[position] ^= 0x10
        path.write_bytes(data)
        data[position] ^= 0x10
        with pytest.raises(PackError, match=r"damaged\.nvpack"):
            _use(path)


def _rewrite(
    source: Path,
    target: Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """A pack with some manifest fields or tensors replaced, None for taken out, every checksum right."""
    reader = PackReader(source)
    new_manifest = {**reader.manifest, **(manifest or {})}
    new_manifest = {
        name: value for name, value in new_manifest.items() if name not in RESERVED_MANIFEST_KEYS and value is not ...
    }
    new_tensors = {**{name: reader.tensor(name) for name in reader.tensor_names}, **(tensors or {})}
    write_pack(target, new_manifest, {name: array for name, array in new_tensors.items() if array is not None})
    return target


def test_rewriting_alone_changes_nothing(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    assert _rewrite(any_pack.path, tmp_path / "a.nvpack").read_bytes() == any_pack.path.read_bytes()


MISSING = ...
HUGE = 2**63


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("backend", MISSING, "backend of the manifest must be str, not None"),
        ("backend", 7, "backend of the manifest must be str, not 7"),
        ("backend", "hinerv", r"the pack needs the backend 'hinerv' \((fast|paper)\); this version knows dnerv fast"),
        ("config", "slow", r"the pack needs the backend 'dnerv' \(slow\); this version knows"),
        ("config", ["fast"], "config of the manifest must be str"),
        ("frame_size", [48], "frame_size of the manifest must be two numbers from 1 to 16384, not"),
        ("frame_size", [48, 0], "frame_size of the manifest must be two numbers"),
        ("frame_size", [48, HUGE], "frame_size of the manifest must be two numbers"),
        ("frame_size", [48.0, 64.0], "frame_size of the manifest must be two numbers"),
        ("frame_size", "48x64", "frame_size of the manifest must be list"),
        ("frame_size", [48, 80], r"frame_size \(48, 80\) is not that of the network, \(48, 64\)"),
        ("frames_per_clip", 0, "frames_per_clip 0 must be 1 to 256"),
        ("frames_per_clip", HUGE, f"frames_per_clip {HUGE} must be 1 to 256"),
        ("frames_per_clip", True, "frames_per_clip of the manifest must be int, not True"),
        ("frames_per_clip", 8.0, "frames_per_clip of the manifest must be int, not 8.0"),
        ("key_interval", "often", "key_interval 'often' must be a multiple of the 8 frames of a clip"),
        ("key_interval", 0, "key_interval 0 must be a multiple of the 8 frames of a clip"),
        ("key_interval", -8, "key_interval -8 must be a multiple"),
        ("key_interval", True, "key_interval True must be a multiple"),
        ("key_interval", 12, "key_interval 12 must be a multiple"),
        ("key_interval", None, "key_interval None does not go with the backend dnerv"),
        ("frame_rate", "fast", "frame_rate 'fast' must be above 0, or null"),
        ("frame_rate", 0, "frame_rate 0 must be above 0, or null"),
        ("frame_rate", -2.5, r"frame_rate -2\.5 must be above 0, or null"),
        ("frame_rate", True, "frame_rate True must be above 0, or null"),
        ("frame_rate", HUGE, "frame_rate .* must be above 0, or null"),
        ("classes", {"a": 1}, "classes of the manifest must be list"),
        ("classes", [1, 2], "classes must be texts, each of them once"),
        ("classes", ["left", "left"], "classes must be texts, each of them once"),
        ("classes", [], r"videos\.label\[0\] = 0 must be -1 to -1"),
        ("splits", None, "splits of the manifest must be list, not None"),
        ("splits", "train", "splits of the manifest must be list, not 'train'"),
        ("splits", ["train", 1], "splits must be texts, each of them once"),
        ("splits", ["train", "train"], "splits must be texts, each of them once"),
        ("splits", ["\ud800"], "splits must be valid Unicode"),
        ("splits", [str(i) for i in range(64)], "splits of the manifest has 64 names, where 63 are allowed"),
        ("keyframe_codec", "heic", "key-frame codec 'heic' is unknown; this version knows"),
        ("keyframe_codec", None, "keyframe_codec of the manifest must be str, not None"),
        ("keyframe_quality", 1000, "keyframe_quality 1000 must be"),
        ("scope", "video", "scope 'video' does not go with the backend dnerv, which has one network for the corpus"),
        ("scope", "clip", "scope 'clip': this version reads packs with one network for the corpus, or one for each"),
        ("scope", None, "scope None: this version reads packs with one network for the corpus, or one for each"),
        ("weight_bits", 0, "weight_bits 0 must be"),
        ("weight_bits", None, "weight_bits of the manifest must be int, not None"),
        ("training", [], r"training of the manifest must be dict, not \[\]"),
        ("quality", None, "quality of the manifest must be dict, not None"),
        ("quality", {"psnr_db": "good"}, "quality of the manifest must hold numbers, not 'good'"),
        ("quality", {"ledger": {"weights": 1}}, "quality of the manifest must hold numbers, not"),
        ("network", [], r"network of the manifest must be dict, not \[\]"),
        ("network", {}, r"the network's record has \[\], where \["),
        ("weights", MISSING, "weights of the manifest must be list, not None"),
        ("weights", [], "its weights do not fit its (fast|paper) dnerv"),
        ("weights", [["stem.weight"]], r"\['stem.weight'\] is no row of the table of weights"),
        ("weights", [["stem.weight", [3]]], r"\['stem.weight', \[3\]\] is no row of the table of weights"),
        ("weights", [["stem.weight", [-1], None]], "has no shape of at most 8 whole numbers"),
        ("weights", [["stem.weight", [1.5], None]], "has no shape of at most 8 whole numbers"),
        ("weights", [["stem.weight", [1] * 9, None]], "has no shape of at most 8 whole numbers"),
        ("weights", [["stem.weight", [2, 2], 2]], "has neither an axis of its shape nor null"),
        ("weights", [["stem.weight", [2, 2], -1]], "has neither an axis of its shape nor null"),
        ("weights", [["stem.weight", [2, 2], True]], "has neither an axis of its shape nor null"),
        ("weights", [["stem.weight", [HUGE, HUGE], None]], "its weights do not fit its (fast|paper) dnerv"),
        ("weight_levels", MISSING, "weight_levels None must be 2 to 257"),
        ("weight_levels", 1, "weight_levels 1 must be 2 to 257"),
        ("weight_levels", 258, "weight_levels 258 must be 2 to 257"),
        ("weight_levels", True, "weight_levels True must be 2 to 257"),
        ("weight_levels", "256", "weight_levels '256' must be 2 to 257"),
        (
            "weight_levels",
            17,
            r"weights\.codes holds the code \d+; the last of its levels is 16|declares \d+ bytes of content",
        ),
        ("weights", 5, "weights of the manifest must be list, not 5"),
    ],
)
def test_a_hostile_manifest(any_pack: tiny.TinyPack, tmp_path: Path, field: str, value: Any, text: str) -> None:
    path = _rewrite(any_pack.path, tmp_path / "hostile.nvpack", manifest={field: value})
    with pytest.raises(PackError, match=text) as caught:
        _use(path)
    assert "hostile.nvpack" in str(caught.value), "which of a user's packs it is"
    assert len(str(caught.value)) < 2000


def _network(path: Path) -> dict[str, Any]:
    return dict(PackReader(path).manifest["network"])


@pytest.mark.parametrize("value", [None, True, "8", -1, HUGE, 1e300, [], [1] * 17, [[1]], {}])
def test_a_hostile_network_record(any_pack: tiny.TinyPack, tmp_path: Path, value: Any) -> None:
    """Every field in turn, with every kind of nonsense."""
    network = _network(any_pack.path)
    for name, before in network.items():
        if isinstance(before, float) and value == -1:
            continue  # a negative float is no nonsense by itself
        path = tmp_path / f"{name}.nvpack"
        _rewrite(any_pack.path, path, manifest={"network": {**network, name: value}})
        with pytest.raises(PackError, match=rf"{name}.*{name}|{name}"):
            _use(path)
        path.unlink()


def test_a_network_record_with_a_field_too_many_or_too_few(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    network = _network(any_pack.path)
    path = _rewrite(any_pack.path, tmp_path / "a.nvpack", manifest={"network": {**network, "tricks": 3}})
    with pytest.raises(PackError, match=r"the network's record has \[.*'tricks'.*\], where \["):
        _use(path)
    del network["frame_size"]
    path = _rewrite(any_pack.path, tmp_path / "b.nvpack", manifest={"network": network})
    with pytest.raises(PackError, match=r"the network's record has \[.*\], where \[.*'frame_size'"):
        _use(path)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # a network of so few channels has empty layers
@pytest.mark.parametrize("value", [1, 3, 4096, 1 << 20])
def test_a_network_of_another_width_takes_no_memory(any_pack: tiny.TinyPack, tmp_path: Path, value: int) -> None:
    """Each whole number of the record in turn: the table of weights then disagrees, or no such network exists.

    What only packing needs may differ and decode all the same, but must not take a terabyte either.
    """
    network = _network(any_pack.path)
    for name, before in network.items():
        if not isinstance(before, int) or before == value:
            continue
        path = tmp_path / f"{name}.nvpack"
        _rewrite(any_pack.path, path, manifest={"network": {**network, name: value}})
        try:
            _use(path)
        except PackError as error:
            assert str(path) in str(error)  # noqa: PT017  either outcome is allowed
        else:
            assert value < before, f"{name}={value} of the network made no difference"
        path.unlink()


def test_positional_encoding_that_overflows(paper_pack: tiny.TinyPack, tmp_path: Path) -> None:
    network = _network(paper_pack.path)
    manifest = {"network": {**network, "pe_base": 1000.0, "pe_levels": 5000}}
    path = _rewrite(paper_pack.path, tmp_path / "a.nvpack", manifest=manifest)
    with pytest.raises(PackError, match="no network can be built from its configuration"):
        _use(path)


def test_a_weight_named_twice(any_pack: tiny.TinyPack, tmp_path: Path) -> None:
    table = PackReader(any_pack.path).manifest["weights"]
    path = _rewrite(any_pack.path, tmp_path / "a.nvpack", manifest={"weights": [*table, table[0]]})
    with pytest.raises(PackError, match=rf"{re.escape(table[0][0])}.* comes twice"):
        _use(path)


def _change(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[PackReader], dict[str, Any]]:
    return lambda reader: {name: change(reader.tensor(name))}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_change("scales.scale", lambda a: a[:-1]), r"scales of shape \(\d+,\) and \(\d+,\), where \d+ belong"),
        (_change("scales.minimum", lambda a: np.append(a, a[:1])), r"scales of shape .* where \d+ belong"),
        (_change("scales.scale", lambda a: a.astype(np.float32)), "scale of quantised codes must be float16"),
        (_change("scales.scale", lambda a: np.full_like(a, np.nan)), "scale of quantised codes must be finite"),
        (_change("scales.minimum", lambda a: np.full_like(a, np.inf)), "minimum of quantised codes must be finite"),
        (_change("scales.scale", lambda a: -1 - a), "scale of quantised codes must not be negative"),
        (_change("scales.scale", lambda a: a[:, None]), r"scales of shape .* where \d+ belong"),
        (lambda reader: {"scales.scale": None}, r"the pack has no tensor 'scales\.scale'"),
        (lambda reader: {"weights.codes": None}, r"the pack has no tensor 'weights\.codes'"),
        (_change("weights.codes", lambda a: a[:-9]), "compressed data is damaged"),
        (_change("weights.codes", lambda a: a[:0]), r"0 compressed bytes cannot hold \d+ bytes of content"),
        (lambda reader: {"weights.codes": np.zeros(64, np.uint8)}, "compressed data is damaged"),
        (lambda reader: {"clips.video": np.zeros(0, np.uint8)}, r"clips\."),
        (_change("clips.start_key", lambda a: a + 200), r"clips\.start_key\[0\] = "),
        (_change("keys.frame", lambda a: a[:-1]), r"keys\.frame has shape"),
        (lambda reader: {"keyframes.template": None}, r"the pack has no tensor 'keyframes\.template'"),
        (_change("keyframes.size", lambda a: a[:-1]), r"keyframes\.(crc32|size) "),
        (_change("keyframes.crc32", lambda a: a ^ 1), "item 0 of keyframes is damaged"),
        (_change("keyframes.template", lambda a: a[:40]), "key-frame"),
    ],
)
def test_hostile_tensors(
    any_pack: tiny.TinyPack, tmp_path: Path, change: Callable[[PackReader], dict[str, Any]], text: str
) -> None:
    path = _rewrite(any_pack.path, tmp_path / "hostile.nvpack", tensors=change(PackReader(any_pack.path)))
    with pytest.raises(PackError, match=text) as caught:
        _use(path)
    assert "hostile.nvpack" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda reader: {"latents.offset": None}, r"the pack has no tensor 'latents\.offset'"),
        (_change("latents.offset", lambda a: a.astype(np.int32)), "latent tables must be int16 and uint16"),
        (_change("latents.offset", lambda a: a[:-1]), r"latent tables must have shapes"),
        (_change("latents.frequencies", lambda a: a + 1), "latent frequencies of channel 0 sum to"),
        (_change("latents.frequencies", np.zeros_like), "latent frequencies of channel 0 sum to 0"),
        (_change("latents.crc32", lambda a: a ^ 1), "item 0 of latents is damaged"),
        (_change("latents.size", lambda a: a[:-1]), r"latents\.(crc32|size) "),
    ],
)
def test_hostile_latents(
    fast_pack: tiny.TinyPack, tmp_path: Path, change: Callable[[PackReader], dict[str, Any]], text: str
) -> None:
    path = _rewrite(fast_pack.path, tmp_path / "hostile.nvpack", tensors=change(PackReader(fast_pack.path)))
    with pytest.raises(PackError, match=text) as caught:
        _use(path)
    assert "hostile.nvpack" in str(caught.value)


def test_latents_of_too_few_channels(fast_pack: tiny.TinyPack, tmp_path: Path) -> None:
    reader = PackReader(fast_pack.path)
    cut = {name: reader.tensor(name)[:-1] for name in ("latents.offset", "latents.frequencies")}
    path = _rewrite(fast_pack.path, tmp_path / "hostile.nvpack", tensors=cut)
    with pytest.raises(PackError, match=r"hostile\.nvpack: .*latent tables have \d+ channels, where \d+ belong"):
        _use(path)


def test_a_pack_without_videos(paper_pack: tiny.TinyPack, tmp_path: Path) -> None:
    reader = PackReader(paper_pack.path)
    tables = [name for name in reader.tensor_names if name.split(".")[0] in ("videos", "clips", "keys")]
    tensors = {
        name: reader.tensor(name)[:0] for name in [*tables, "keyframes.size", "keyframes.crc32", "keyframes.data"]
    }
    path = _rewrite(paper_pack.path, tmp_path / "empty.nvpack", tensors=tensors)
    with pytest.raises(PackError, match=r"empty\.nvpack: it holds no video"):
        Pack(path)


def test_a_newer_version_is_refused_by_name(paper_pack: tiny.TinyPack, tmp_path: Path) -> None:
    data = paper_pack.path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    manifest = json.loads(header["__metadata__"]["neuralloader"]) | {"version": 2}
    text = canonical_json(manifest)
    header["__metadata__"] = {
        "neuralloader": text,
        "neuralloader.sha256": __import__("hashlib").sha256(text.encode()).hexdigest(),
    }
    new = canonical_json(header).encode()
    new += b" " * (-len(new) % 8)
    path = tmp_path / "newer.nvpack"
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])
    with pytest.raises(
        PackVersionError, match=r"newer\.nvpack: the pack has format version 2, this neuralloader reads"
    ):
        Pack(path)
