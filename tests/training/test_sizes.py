"""Sizes told beforehand against those of real files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neuralloader.backends import network_of
from neuralloader.clips import SkippedSource, VideoInfo, index_corpus, index_frames
from neuralloader.codecs.keyframes import encode_keyframes
from neuralloader.container.index import PackIndex
from neuralloader.packfile import Pack, PackDescription, build_backend, round_latents, save_pack, stored_parameters
from neuralloader.training.keyframe_probe import stored_bytes
from neuralloader.training.sizes import Outline, PartBytes, network_size

SIZE = (48, 64)
VIDEOS = tuple(VideoInfo(f"class/video {i}.avi", 0, 5 + i % 9, 40, 30.0, 4.0, (240, 320)) for i in range(40))
SKIPPED = (SkippedSource("class/broken.avi", "it holds no frame"),)


def _outline(backend: str, config: str, *, appendable: bool = False) -> Outline:
    return Outline(backend, config, SIZE, VIDEOS, SKIPPED, frames_per_clip=8, appendable=appendable)


def _save(path: Path, outline: Outline, width: int, interval: int | None, bits: int) -> tuple[int, PartBytes]:
    """The size of an untrained pack, and its parts as they are told beforehand and, where data decides, as it is."""
    network = network_of(outline.backend, outline.config, width, SIZE)
    torch.manual_seed(0)
    backend = build_backend(outline.backend, outline.config, network)
    with torch.no_grad():  # as trained weights are distributed; fresh ones are even
        for parameter in backend.parameters():
            parameter.copy_(torch.randn_like(parameter))
    num_frames = np.array([video.num_frames for video in VIDEOS])
    clips, keys = index_corpus(num_frames, frames_per_clip=8, key_interval=interval)
    rng = np.random.default_rng(0)
    keyframes = encode_keyframes(rng.integers(100, 110, (len(keys), *SIZE, 3), np.uint8), "avif", 30)
    latents = None
    if backend.latent_shape is not None:
        values = rng.laplace(size=(num_frames.sum() - len(keys), *backend.latent_shape)).astype(np.float32)
        latents = round_latents(values, backend.latent_bits)
    description = PackDescription(
        backend=outline.backend,
        config=outline.config,
        network=network,
        frame_size=SIZE,
        frames_per_clip=8,
        key_interval=interval,
        frame_rate=4.0,
        classes=("class",),
        keyframe_codec="avif",
        keyframe_quality=30,
        weight_bits=bits,
        training={"width": width, "seed": 0, "minutes": 1.0, "steps": 100},
        quality={"psnr_db": 30.1234, "worst_psnr_db": 20.1234},
    )
    index = PackIndex(VIDEOS, SKIPPED, clips, keys)
    save_pack(path, description, index, backend, keyframes, latents, appendable=outline.appendable)
    with Pack(path).reader as reader:
        latent_data = reader.num_bytes("latents.data") if latents is not None else 0
        told_size, corpus = outline.network(width), outline.corpus(interval)
        return reader.size_bytes, PartBytes(
            weights=outline.weight_bytes(told_size, bits),
            keyframes=stored_bytes(keyframes, "avif"),
            latents=latent_data,
            rest=outline.rest_bytes(corpus, told_size),
        )


@pytest.mark.parametrize(
    ("backend", "config", "width", "interval", "appendable"),
    [
        ("dnerv", "fast", 24, 8, False),
        ("dnerv", "fast", 16, 16, True),
        ("cnerv", "fast", 16, None, False),
        ("nerv", "fast", 16, None, False),
        ("hnerv", "paper", 8, None, False),
    ],
)
def test_a_file_takes_what_was_told(
    backend: str, config: str, width: int, interval: int | None, appendable: bool, tmp_path: Path
) -> None:
    size_bytes, told = _save(
        tmp_path / "a.nvpack", _outline(backend, config, appendable=appendable), width, interval, 8
    )
    assert told.total == told.weights + told.keyframes + told.latents + told.rest
    assert abs(size_bytes - told.total) < 0.04 * told.weights + 800


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_bits_of_weights(bits: int, tmp_path: Path) -> None:
    size_bytes, told = _save(tmp_path / "a.nvpack", _outline("dnerv", "fast"), 24, 8, bits)
    assert abs(size_bytes - told.total) < 0.05 * told.weights + 800


def test_a_network_without_anything_to_make_up_for_it_is_never_larger(tmp_path: Path) -> None:
    size_bytes, told = _save(tmp_path / "a.nvpack", _outline("nerv", "fast"), 24, None, 8)
    assert size_bytes <= told.total
    told_size = network_size("nerv", "fast", 24, SIZE)
    assert told.weights == told_size.num_parameters
    assert not told_size.can_fill_up


def test_parameters_are_counted_as_they_are_stored() -> None:
    backend = build_backend("dnerv", "fast", network_of("dnerv", "fast", 24, SIZE))
    told = network_size("dnerv", "fast", 24, SIZE)
    assert told.num_parameters == sum(p.numel() for p in stored_parameters(backend).values())
    assert told.num_tensors == len(stored_parameters(backend))
    assert told.num_encoder_parameters == sum(p.numel() for p in stored_parameters(backend, "encoder").values())
    assert told.latent_shape == backend.latent_shape
    assert told.symbols_per_latent == np.prod(told.latent_shape or 0)
    assert (told.uses_keyframes, told.latents_are_steered, told.can_fill_up) == (True, True, True)
    paper = network_size("dnerv", "paper", 8, (64, 64))
    assert (paper.uses_keyframes, paper.latents_are_steered, paper.symbols_per_latent) == (True, False, 0)
    grid = network_size("hnerv", "paper", 8, SIZE)
    assert (grid.latents_are_steered, grid.can_fill_up, grid.symbols_per_latent > 0) == (False, False, True)


def test_frames_are_counted() -> None:
    outline = _outline("dnerv", "fast")
    corpus = outline.corpus(8)
    table = index_frames(*index_corpus(np.array([v.num_frames for v in VIDEOS]), frames_per_clip=8, key_interval=8))
    assert outline.num_frames == corpus.num_frames == len(table)
    assert corpus.num_keyframes == len(table.keys)
    assert corpus.num_latents == table.latents_per_clip().sum()
    assert corpus.num_latent_blocks == (table.latents_per_clip() > 0).sum()
    assert outline.corpus(16).num_keyframes < corpus.num_keyframes
    assert outline.corpus(None).num_keyframes == 0
    assert outline.corpus(None).num_latents == len(table)


def test_a_width_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="width 4 must be 8 to 4096 channels"):
        network_size("dnerv", "fast", 4, SIZE)
