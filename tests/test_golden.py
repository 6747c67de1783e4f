"""Packs of format 1 in ``tests/golden`` stay readable to the bit, and what is written today is what was written then.

Their content is drawn here again, with integer and IEEE arithmetic only, so that it is the same on every machine and
with every version of numpy, PyTorch and Pillow. ``PYTHONPATH=. python tests/test_golden.py`` writes those that are not
there. One that is there is never written again: whoever has to has broken the format.
"""

import json
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import features

from neuralloader.backends import DNeRVConfig, FastDNeRVConfig, HNeRVConfig, NeRVConfig, Scope
from neuralloader.backends.stacked import stack_networks
from neuralloader.clips import UNLABELLED, SkippedSource, VideoInfo, index_corpus
from neuralloader.codecs.keyframes import KeyframeCodec, encode_keyframe
from neuralloader.codecs.lossless import compress_bytes, decompress_bytes
from neuralloader.codecs.quantize import dequantize
from neuralloader.container.index import PackIndex
from neuralloader.container.reader import PackReader
from neuralloader.packfile import (
    Pack,
    PackDescription,
    Part,
    build_backend,
    quantize_parameter,
    round_latents,
    save_pack,
    stored_parameters,
    verify_pack,
    weights,
)

GOLDEN = Path(__file__).parent / "golden"
AVIF_TOLERANCE = 2.0  # mean error of a key-frame in grey levels, at quality 90; 1.0 with libavif of today
NUM_FRAMES = (10, 1, 17)  # two clips; one frame; three clips, the last of them one key-frame and no more


@dataclass(frozen=True)
class Golden:
    """What a golden pack was made with, beside the content that all of them share.

    Attributes:
        backend, config, network: as ``PackDescription`` has them.
        key_interval: None in a pack without key-frames.
        weight_bits: bits of a weight's code.
        codec: of the key-frames.
        scope: as ``PackDescription`` has it.
        appendable: whether it holds its encoder.
        splits: as ``PackDescription`` has them. Where there are some, videos tell what their sources promised, too, and
            one of them was kept in part.
        is_retired: whether its record of the network has other names than today's (one that no network has any more, or
            not yet one that has a default since), so that it is only read.
    """

    backend: str
    config: str
    network: Any
    key_interval: int | None
    weight_bits: int
    codec: KeyframeCodec = "png"
    scope: Scope = "corpus"
    appendable: bool = False
    splits: tuple[str, ...] = ()
    is_retired: bool = False


_FAST = FastDNeRVConfig((32, 16), width=4, content_channels=(2, 4, 4), latent_channels=6)
_COARSE = replace(_FAST, coarse_factor=3, coarse_convs=2)
_HNERV = HNeRVConfig((32, 48), channels=(8, 8, 6, 4), strides=(2, 2, 2), latent_channels=5, encoder_channels=8)
GOLDENS = {
    "dnerv-fast": Golden("dnerv", "fast", _FAST, 16, weight_bits=6, is_retired=True),
    "dnerv-fast-appendable": Golden("dnerv", "fast", _FAST, 16, weight_bits=6, appendable=True, is_retired=True),
    "dnerv-fast-avif": Golden("dnerv", "fast", _FAST, 16, weight_bits=6, codec="avif", is_retired=True),
    "dnerv-fast-coarse": Golden("dnerv", "fast", _COARSE, 16, weight_bits=6, appendable=True),
    "dnerv-paper": Golden(
        "dnerv",
        "paper",
        DNeRVConfig((16, 32), 4, (2, 2, 2), key_channels=4, min_channels=4, stem_width=16, pe_levels=4),
        8,
        weight_bits=4,
    ),
    "hnerv-paper": Golden("hnerv", "paper", _HNERV, None, weight_bits=5),
    "hnerv-paper-splits": Golden("hnerv", "paper", _HNERV, None, weight_bits=5, splits=("train", "prüfen", "3")),
    "hnerv-paper-videos": Golden("hnerv", "paper", _HNERV, None, weight_bits=5, scope="video"),
    "nerv-paper": Golden(
        "nerv",
        "paper",
        NeRVConfig((32, 48), channels=(8, 8, 8, 6), strides=(4, 2, 2), stem_width=16, pe_levels=8),
        None,
        weight_bits=8,
    ),
}
PARTS: tuple[Part, ...] = ("weights", "encoder")
REMADE = [name for name, golden in GOLDENS.items() if golden.codec == "png" and not golden.is_retired]


# --- what they hold -------------------------------------------------------------------------------------------------


def draw_golden(golden: Golden) -> dict[str, Any]:
    """Everything that ``save_pack`` takes, and ``images``: the key-frames, (k, H, W, 3) uint8."""
    # RandomState is the generator whose numbers numpy never changes; products are the same on every machine.
    random = np.random.RandomState(1)

    def draw(*shape: int) -> np.ndarray:
        """float32, -1 to 1, most of it small, as weights and latents are."""
        x = 2 * random.random_sample(shape) - 1
        return (x * x * x).astype(np.float32)

    clips, keys = index_corpus(np.array(NUM_FRAMES), frames_per_clip=8, key_interval=golden.key_interval)
    backend = build_backend(golden.backend, golden.config, golden.network)
    if golden.scope == "video":
        backend = stack_networks(backend, len(NUM_FRAMES))
    with torch.no_grad():
        for part in PARTS if golden.appendable else PARTS[:1]:
            for parameter in stored_parameters(backend, part).values():
                parameter.copy_(torch.from_numpy(draw(*parameter.shape)))
    latents = None
    if backend.latent_shape is not None:
        values = draw(sum(NUM_FRAMES) - len(keys), *backend.latent_shape)
        values[:, 0] = 0.25  # a channel that takes no part in the coding
        per_video = np.array(NUM_FRAMES) if golden.scope == "video" else None
        values = values if backend.latent_bits else 150 * values
        latents = round_latents(values, backend.latent_bits, per_video=per_video)
    images = np.stack([_draw_image(k, golden.network.frame_size) for k in range(len(keys))]) if len(keys) else None
    videos = (
        VideoInfo("Laufen/ä.avi", 0, NUM_FRAMES[0], 300, 29.97, 10.0, (480, 640)),
        VideoInfo("other.mp4", UNLABELLED, NUM_FRAMES[1], 1, 25.0, 10.0, (1080, 1920)),
        VideoInfo("跳/two words.avi", 1, NUM_FRAMES[2], 70000, 1e-3, 10.0, (2, 3)),
    )
    if golden.splits:
        videos = (
            replace(videos[0], num_nominal_frames=300, splits=0b101),
            replace(videos[1], num_nominal_frames=250, splits=0b010, problem="it ends after frame 1: Dateiende 跳"),
            videos[2],  # in no split, and nothing was promised
        )
    return {
        "description": PackDescription(
            backend=golden.backend,
            config=golden.config,
            network=golden.network,
            frame_size=golden.network.frame_size,
            frames_per_clip=8,
            key_interval=golden.key_interval,
            frame_rate=10.0,
            classes=("Laufen", "跳"),
            keyframe_codec=golden.codec,
            keyframe_quality=90,
            weight_bits=golden.weight_bits,
            training={"seed": 1, "minutes": None, "rate": 0.1},
            quality={"psnr_db": 31.25, "worst_psnr_db": 22.5},
            scope=golden.scope,
            splits=golden.splits,
        ),
        "index": PackIndex(
            videos=videos,
            skipped=(SkippedSource("Laufen/bad.avi", "no video in it"),),
            clips=clips,
            keys=keys,
        ),
        "backend": backend,
        "keyframes": [] if images is None else [_encode(image, golden.codec) for image in images],
        "latents": latents,
        "appendable": golden.appendable,
        "images": images,
    }


def _draw_image(number: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: slopes, another for each number."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([2 * x + 3 * y + number, 200 - 3 * x, 90 + 2 * y - 10 * number], axis=-1).astype(np.uint8)


def _encode(image: np.ndarray, codec: KeyframeCodec) -> bytes:
    return _encode_plain_png(image) if codec == "png" else encode_keyframe(image, codec, 90)


def _encode_plain_png(image: np.ndarray) -> bytes:
    """A PNG whose pixels are not compressed: a compressor's bytes change with the version of its library."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # filter 0
    length = len(rows).to_bytes(2, "little")
    stored = b"\x78\x01\x01" + length + bytes(255 - byte for byte in length) + rows + zlib.adler32(rows).to_bytes(4)
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", stored), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks
    )


def _save(path: Path, content: dict[str, Any]) -> None:
    save_pack(path, **{name: part for name, part in content.items() if name != "images"})


def add_missing_packs() -> None:
    """Write the golden packs that are not there yet."""
    for name, golden in GOLDENS.items():
        if not (GOLDEN / f"{name}.nvpack").exists():
            _save(GOLDEN / f"{name}.nvpack", draw_golden(golden))


# --- tests ----------------------------------------------------------------------------------------------------------


def _needs_avif(name: str) -> Any:
    no_avif = GOLDENS[name].codec == "avif" and not features.check("avif")
    return pytest.param(name, marks=pytest.mark.skipif(no_avif, reason="this Pillow cannot read AVIF"))


def test_no_golden_pack_is_lost_or_nameless() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(f"{name}.nvpack" for name in GOLDENS)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_packs_have_format_1(name: str) -> None:
    data = (GOLDEN / f"{name}.nvpack").read_bytes()
    assert len(data) < 30_000
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    manifest = json.loads(header["__metadata__"]["neuralloader"])
    assert (manifest["format"], manifest["version"]) == ("nvpack", 1)


@pytest.mark.parametrize("name", REMADE)
def test_the_same_content_gives_the_golden_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other versions of zstandard and xz may compress to other bytes. What they are given must be the same, and what
    # they make no larger; then the bytes of then are put in place, so that all the rest of the file, hashes and offsets
    # too, is compared.
    golden = GOLDEN / f"{name}.nvpack"
    reader = PackReader(golden)
    names = [name for name in ("weights.codes", "encoder.codes") if name in reader.tensor_names]
    compressed = iter([reader.tensor(name).tobytes() for name in names])

    def compress(data: bytes) -> bytes:
        then = next(compressed)
        assert decompress_bytes(then, len(data)) == data
        assert len(compress_bytes(data)) < 1.01 * len(then)
        return then

    monkeypatch.setattr(weights, "compress_bytes", compress)
    _save(tmp_path / "new.nvpack", draw_golden(GOLDENS[name]))
    assert (tmp_path / "new.nvpack").read_bytes() == golden.read_bytes()


@pytest.mark.parametrize("name", [_needs_avif(name) for name in GOLDENS])
def test_golden_packs_are_read_to_the_bit(name: str) -> None:
    golden = GOLDENS[name]
    content = draw_golden(golden)
    pack = Pack(GOLDEN / f"{name}.nvpack")
    assert verify_pack(pack.path).problems == ()
    assert pack.description == content["description"]

    assert (pack.index.videos, pack.index.skipped) == (content["index"].videos, content["index"].skipped)
    for table in ("clips", "keys"):
        for field in fields(getattr(pack.index, table)):
            column = getattr(getattr(pack.index, table), field.name)
            np.testing.assert_array_equal(column, getattr(getattr(content["index"], table), field.name))

    assert pack.is_appendable == golden.appendable
    backend = pack.load_backend(with_encoder=golden.appendable)
    for part in PARTS if golden.appendable else PARTS[:1]:
        loaded, drawn = stored_parameters(backend, part), stored_parameters(content["backend"], part)
        assert list(loaded) == list(drawn)
        for parameter, values in drawn.items():
            quantized = quantize_parameter(content["backend"], parameter, values, golden.weight_bits)
            np.testing.assert_array_equal(loaded[parameter].numpy(), dequantize(quantized), err_msg=parameter)

    if content["latents"] is not None:
        latents = pack.latents()
        np.testing.assert_array_equal(latents.symbols, content["latents"].symbols)
        assert (latents.grid is None) == (content["latents"].grid is None)
        if latents.grid is not None:
            np.testing.assert_array_equal(latents.grid.minimum, content["latents"].grid.minimum)
            np.testing.assert_array_equal(latents.grid.scale, content["latents"].grid.scale)

    if content["images"] is not None:
        images = pack.keyframes(np.arange(len(content["images"])))
        error = np.abs(images.astype(int) - content["images"]).mean(axis=(1, 2, 3))
        assert error.max() <= (AVIF_TOLERANCE if golden.codec == "avif" else 0)


def test_golden_packs_cover_the_format() -> None:
    """What could change unseen is in at least one of them."""
    readers = [PackReader(GOLDEN / f"{name}.nvpack") for name in GOLDENS]
    tensors = {name for reader in readers for name in reader.tensor_names}
    assert {"latents.data", "latents.scale", "keyframes.data", "skipped.text", "encoder.codes"} <= tensors
    assert {reader.manifest.get("scope") for reader in readers} == {None, "video"}
    optional = {"videos.num_nominal_frames", "videos.splits", "videos.problems"}
    found = {("splits" in reader.manifest, *sorted(optional & {*reader.tensor_names})) for reader in readers}
    assert found == {(False,), (True, *sorted(optional))}
    assert {reader.tensor("weights.codes")[0] for reader in readers} == {0x28, 0xFD}  # zstandard, xz
    levels = {reader.manifest["weight_levels"] for reader in readers}
    assert max(levels) == 257
    assert min(levels) < 256
    axes = {axis for reader in readers for _, _, axis in reader.manifest["weights"]}
    assert {None, 0} < axes
    templates = [reader.tensor("keyframes.template") for reader in readers if "keyframes.data" in reader.tensor_names]
    assert {len(template) > 0 for template in templates} == {False, True}
    frequencies = np.concatenate(
        [r.tensor("latents.frequencies").max(1) for r in readers if "latents.data" in r.tensor_names]
    )
    assert 4096 in frequencies
    assert frequencies.min() < 4096


if __name__ == "__main__":
    add_missing_packs()
