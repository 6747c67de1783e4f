"""Packs of every network, without training and without a video: drawn key-frames, random latents, seeded weights.

Untrained, a network would warp key-frames to noise and give grey frames. So flows are made small, and the last layer of
networks without key-frames is scaled until their frames have the contrast of pictures: differences in grey levels then
mean what they mean for real packs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.setting import FRAMES_PER_CLIP, Network, Sizes
from neuralloader.backends import BACKENDS, Backend, describe_units, network_of
from neuralloader.backends.base import Units
from neuralloader.backends.blocks import BottleneckHead
from neuralloader.clips import FrameTable, VideoInfo, index_corpus, index_frames
from neuralloader.codecs.keyframes import KeyframeCodec, check_codec_available, encode_keyframes
from neuralloader.container.index import PackIndex
from neuralloader.packfile import PackDescription, RoundedLatents, build_backend, round_latents, save_pack

NUM_IMAGES = 32  # drawn and encoded, over and over
NUM_CLASSES = 4
FLOW_SHARE = 0.1  # of a new network's flow
CONTRAST = 0.2  # standard deviation of a frame's values, in 0..1
QUALITY = 60


def make_packs(folder: Path, sizes: Sizes) -> dict[Network, Path]:
    """A pack of every network; they are compressed side by side, which is what takes the time."""
    saves = {network: _prepare_pack(folder, network, sizes) for network in BACKENDS}
    with ThreadPoolExecutor() as pool:
        return dict(zip(saves, pool.map(lambda save: save(), saves.values()), strict=True))


def _prepare_pack(folder: Path, network: Network, sizes: Sizes) -> Callable[[], Path]:
    """What writes the pack of a network."""
    backend_name, config = network
    num_videos = sizes.num_videos_paper if config == "paper" else sizes.num_videos
    uses_keyframes = BACKENDS[network][1].uses_keyframes
    interval = FRAMES_PER_CLIP if uses_keyframes else None
    clips, keys = index_corpus(
        np.full(num_videos, sizes.frames_per_video), frames_per_clip=FRAMES_PER_CLIP, key_interval=interval
    )
    videos = [
        VideoInfo(f"{i}.avi", i % NUM_CLASSES, sizes.frames_per_video, sizes.frames_per_video, 25.0, 25.0, sizes.frame)
        for i in range(num_videos)
    ]
    record = network_of(backend_name, config, sizes.width, sizes.frame)
    torch.manual_seed(0)
    backend = build_backend(backend_name, config, record)
    codec = _choose_codec()
    frames = index_frames(clips, keys)
    latents = _draw_latents(backend, frames)
    _make_lifelike(backend, frames, latents)
    files = encode_keyframes(draw_images(sizes.frame), codec, QUALITY) if uses_keyframes else []
    description = PackDescription(
        backend=backend_name,
        config=config,
        network=record,
        frame_size=sizes.frame,
        frames_per_clip=FRAMES_PER_CLIP,
        key_interval=interval,
        frame_rate=None,
        classes=tuple(f"class {i}" for i in range(NUM_CLASSES)),
        keyframe_codec=codec,
        keyframe_quality=QUALITY,
        weight_bits=8,
        training={},
        quality={},
    )
    path = folder / f"{backend_name}-{config}.nvpack"
    stored = [files[i % len(files)] for i in range(len(keys))]
    save = partial(save_pack, path, description, PackIndex(tuple(videos), (), clips, keys), backend, stored, latents)
    return lambda: (save(), path)[1]


def draw_images(size: tuple[int, int]) -> np.ndarray:
    """(NUM_IMAGES, H, W, 3) uint8: soft waves and some edges, each image other ones."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]] / 24.0
    images = []
    for _ in range(NUM_IMAGES):
        fx, fy, phase = rng.uniform(0.3, 1.5, (3, 3))
        grey = 128 + 70 * np.sin(x[..., None] * fx + phase) * np.cos(y[..., None] * fy - phase)  # (H, W, 3)
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        grey[top : top + size[0] // 3, left : left + size[1] // 3] += rng.uniform(-40, 40, 3)
        images.append(grey.clip(0, 255).astype(np.uint8))
    return np.stack(images)


def _choose_codec() -> KeyframeCodec:
    """AVIF, the product's default; JPEG where this Pillow cannot."""
    try:
        check_codec_available("avif")
    except ImportError:
        return "jpeg"
    return "avif"


def _draw_latents(backend: Backend, frames: FrameTable) -> RoundedLatents | None:
    if backend.latent_shape is None:
        return None
    count = int(frames.latents_per_clip().sum())
    values = np.random.default_rng(1).standard_normal((count, *backend.latent_shape), dtype=np.float32)
    return round_latents(values, backend.latent_bits)


@torch.no_grad()
def _make_lifelike(backend: Backend, frames: FrameTable, latents: RoundedLatents | None) -> None:
    for module in backend.modules():
        if isinstance(module, BottleneckHead) and module[-1].weight.shape[0] == 4:  # type: ignore[union-attr]
            for parameter in module[-1].parameters():
                parameter.mul_(FLOW_SHARE)
    last = _last_layer(backend)
    if backend.uses_keyframes:
        nn.init.normal_(last.weight, std=0.05)  # zeros, as a new fast D-NeRV has them, would prove little
        return
    described = describe_units(frames, np.arange(4)[:, None])
    columns = (described.keys, described.phase, described.time, described.network_time)
    units = Units(*(torch.from_numpy(column) for column in columns))
    symbols = None if latents is None else torch.from_numpy(latents.symbols[:4]).float()
    if symbols is not None and latents is not None and latents.grid is not None:
        scale = torch.from_numpy(latents.grid.scale.astype(np.float32))[:, None, None]
        symbols = (symbols + 128) * scale + torch.from_numpy(latents.grid.minimum.astype(np.float32))[:, None, None]
    last.weight.mul_(CONTRAST / backend.decode((), units, symbols).std())


def _last_layer(backend: Backend) -> nn.Conv2d:
    """The convolution that gives RGB."""
    found = [m for name, m in backend.named_modules() if isinstance(m, nn.Conv2d) and not name.startswith("encoder.")]
    return found[-1]
