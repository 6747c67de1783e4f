"""docs/format.md is enough: a reader of 60 lines, written from it alone, gives what the library gives, to the bit.

The reader is ``format_reader``. Its last part, behind the lines that count, decodes the latents, and reads what only
some packs tell about their videos.
"""

import hashlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import format_reader
import numpy as np
import pytest
import tiny
from PIL import features

from neuralloader.clips import UNLABELLED, KeyframeTable
from neuralloader.codecs.keyframes import KeyframeCodec, encode_keyframes
from neuralloader.packfile import Pack, Part, RoundedLatents, save_pack, stored_parameters

GOLDEN = {path.stem: path for path in sorted((Path(__file__).parent / "golden").glob("*.nvpack"))}
MAX_LINES = 64
CODECS = {codec: "jpg" if codec == "jpeg" else codec for codec in get_args(KeyframeCodec)}
AVAILABLE = [codec for codec, feature in CODECS.items() if codec == "png" or features.check(feature)]


def _assert_same(path: Path) -> None:
    """Read a pack with both readers and compare all that they give."""
    reader, pack = format_reader.Reader(str(path)), Pack(path)
    for name, (_, shape, digest) in reader.manifest["tensors"].items():
        assert list(reader.tensors[name].shape) == shape, name
        assert hashlib.sha256(reader.tensors[name].tobytes()).hexdigest() == digest, name

    assert reader.videos() == [
        (v.name, v.num_frames, v.label, None if v.label == UNLABELLED else pack.classes[v.label])
        for v in pack.index.videos
    ]
    assert format_reader.more_about_videos(reader) == [
        (v.num_nominal_frames, [name for i, name in enumerate(pack.splits) if v.splits >> i & 1], v.problem)
        for v in pack.index.videos
    ]

    if pack.description.key_interval is None:
        assert "keyframes.data" not in reader.tensors
    else:
        images = [reader.keyframe(item) for item in reader.blob("keyframes")]
        assert {image.dtype for image in images} == {np.dtype(np.uint8)}
        np.testing.assert_array_equal(images, pack.keyframes(np.arange(len(pack.index.keys))))

    assert ("encoder" in reader.manifest) == pack.is_appendable
    backend = pack.load_backend(with_encoder=pack.is_appendable)
    parts: tuple[Part, ...] = ("weights", "encoder") if pack.is_appendable else ("weights",)
    for part in parts:
        weights, parameters = reader.weights(part), stored_parameters(backend, part)
        assert set(weights) == set(parameters)
        for name, values in weights.items():
            assert values.dtype == np.float32, name
            np.testing.assert_array_equal(values, parameters[name].numpy(), err_msg=name)

    if pack.latent_shape is None:
        assert "latents.data" not in reader.tensors
    else:
        latents = pack.latents()
        expected = latents.symbols.astype(np.float32)
        if latents.grid is not None:
            minimum, scale = (a.astype(np.float32)[..., None, None] for a in (latents.grid.minimum, latents.grid.scale))
            if pack.description.scope == "video":
                counts = [video.num_frames for video in pack.index.videos]
                minimum, scale = (np.repeat(a, counts, axis=0) for a in (minimum, scale))
            expected = minimum + scale * (expected + 128)
        blocks = format_reader.latents(reader)
        np.testing.assert_array_equal(np.concatenate([np.empty((0, *pack.latent_shape)), *blocks]), expected)
        per_clip = [len(pack.latents(np.array([clip])).symbols) for clip in range(len(pack.index.clips))]
        assert [len(block) for block in blocks] == [count for count in per_clip if count]


def _save_again(pack: Pack, path: Path, codec: KeyframeCodec, latents: RoundedLatents) -> list[bytes]:
    """Save what a pack holds with key-frames of another codec, and with other latents; gives the key-frames' files."""
    files = encode_keyframes(pack.keyframes(np.arange(len(pack.index.keys))), codec, 60)
    description = replace(pack.description, keyframe_codec=codec)
    save_pack(path, description, pack.index, pack.load_backend(), files, latents)
    return files


def test_the_reader_is_short_and_knows_nothing_of_the_library() -> None:
    source = inspect.getsource(format_reader)
    counted, latents, _ = source.partition("\n\ndef latents(")
    assert latents
    assert len(counted.splitlines()) <= MAX_LINES
    assert max(len(line) for line in source.splitlines()) <= 120
    assert "import neuralloader" not in source
    assert "from neuralloader" not in source


def test_it_reads_packs_of_the_packer(any_pack: tiny.TinyPack) -> None:
    _assert_same(any_pack.path)


@pytest.mark.parametrize("name", GOLDEN)
def test_it_reads_the_golden_packs(name: str) -> None:
    """Among them weights of two bytes a code, latents on a grid, and splits."""
    if "avif" in name and "avif" not in AVAILABLE:
        pytest.skip("this Pillow cannot read AVIF")
    _assert_same(GOLDEN[name])


@pytest.mark.parametrize("codec", AVAILABLE)
def test_it_reads_key_frames_of_every_codec(
    codec: KeyframeCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(GOLDEN["dnerv-fast"])
    path = tmp_path / "again.nvpack"
    files = _save_again(pack, path, codec, pack.latents())
    reader = format_reader.Reader(str(path))
    assert (len(reader.tensors["keyframes.template"]) > 0) == (codec == "avif")
    assert reader.manifest["keyframe_codec"] == codec
    _assert_same(path)

    opened: list[bytes] = []  # Pillow overlooks a wrong length; the files must be whole all the same
    monkeypatch.setattr(format_reader.Image, "open", lambda file, formats: opened.append(file.read()))
    for item in reader.blob("keyframes"):
        reader.keyframe(item)
    assert opened == files


def test_it_reads_blocks_without_bytes(tmp_path: Path) -> None:
    pack = Pack(GOLDEN["dnerv-fast"])
    path = tmp_path / "again.nvpack"
    _save_again(pack, path, "png", RoundedLatents(np.full_like(pack.latents().symbols, -5), None))
    reader = format_reader.Reader(str(path))
    assert set(reader.blob("latents")) == {b""}
    assert {float(value) for block in format_reader.latents(reader) for value in block.flat} == {-5.0}
    _assert_same(path)


def test_a_key_frame_has_no_latent_even_if_no_clip_leans_on_it(tmp_path: Path) -> None:
    pack = Pack(GOLDEN["dnerv-fast"])
    index, latents = pack.index, pack.latents()
    assert index.keys.frame.tolist() == [0, 9, 0, 0, 16]
    keys = KeyframeTable(np.insert(index.keys.video, 4, 2), np.insert(index.keys.frame, 4, 5))
    start_key, end_key = (rows + (rows >= 4) for rows in (index.clips.start_key, index.clips.end_key))
    index = replace(index, keys=keys, clips=replace(index.clips, start_key=start_key, end_key=end_key))
    images = encode_keyframes(pack.keyframes(np.array([0, 1, 2, 3, 0, 4])), "png", 60)
    path = tmp_path / "again.nvpack"
    latents = RoundedLatents(latents.symbols[:-1], latents.grid)
    save_pack(path, pack.description, index, pack.load_backend(), images, latents)
    assert [len(block) for block in format_reader.latents(format_reader.Reader(str(path)))] == [7, 1, 6, 8]
    _assert_same(path)


@pytest.mark.parametrize("tensor", ["keyframes.data", "latents.data"])
def test_it_finds_damage(tensor: str, tmp_path: Path) -> None:
    """Its checks are real: the numbers in the text are those of the file."""
    data = bytearray(GOLDEN["dnerv-fast"].read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    data[start + header[tensor]["data_offsets"][1] - 1] ^= 1
    path = tmp_path / "damaged.nvpack"
    path.write_bytes(data)
    section = tensor.split(".")[0]
    with pytest.raises(AssertionError, match=f"an item of {section} is damaged"):
        format_reader.Reader(str(path)).blob(section)
