"""Tiny corpora and packs: real AVI files with a counter in their pixels, packed by the real packer with small networks.

Every frame's number is 100 * (its video's place in CORPUS) + its frame in the source, so a decoded frame tells where it
comes from. What is left to the tests: which numbers they expect where.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import counter
import numpy as np
import pytest

import neuralloader
from neuralloader.backends import CNeRVConfig, DNeRVConfig, HNeRVConfig, NeRVConfig, Scope, network_of
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.packfile import Pack
from neuralloader.training import packer
from neuralloader.training.recipes import FAST, RECIPES

Config = Literal["fast", "paper"]

SIZE = (48, 64)  # height and width differ, so that mixing them up shows
SOURCE_RATE = 10
WIDTH = 16  # of the networks
# one frame; a full clip; a full clip and one frame; padding; in the order that a packer finds them
CORPUS = {"left/eight.avi": 8, "left/one.avi": 1, "right/fourteen.avi": 14, "right/nine.avi": 9}


@dataclass(frozen=True)
class TinyPack:
    """A pack and what its decoder must give.

    Attributes:
        path: the .nvpack file.
        backend: "dnerv" or another.
        config: "fast" or "paper".
        numbers: (num_frames,) int64, the counter that each stored frame carries, in the pack's order.
        originals: (num_frames, H, W, 3) uint8, the stored frames before JPEG, key-frame codec and network.
    """

    path: Path
    backend: str
    config: Config
    numbers: np.ndarray
    originals: np.ndarray


class MakePack(Protocol):
    """The fixture ``make_pack``: the tiny corpus, packed with any backend."""

    def __call__(self, backend: str, config: Config, scope: Scope = "corpus") -> TinyPack: ...


def draw_frames(num_frames: int, first_number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(num_frames, H, W, 3) uint8: soft moving waves, each frame with its number burnt in."""
    y, x = np.mgrid[: size[0], : size[1]] / 16
    frames = []
    for k in range(num_frames):
        grey = (110 + 60 * np.sin(x + 0.3 * k) * np.cos(y - 0.2 * k)).astype(np.uint8)
        frames.append(counter.burn(np.stack([grey, 255 - grey, grey // 2], axis=-1), first_number + k))
    return np.stack(frames)


def write_corpus(folder: Path, num_frames: Mapping[str, int] = CORPUS, size: tuple[int, int] = SIZE) -> Path:
    """Write the videos, name to length, at SOURCE_RATE; gives the folder."""
    for place, (name, length) in enumerate(num_frames.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mjpeg_avi(path, draw_frames(length, 100 * place, size), SOURCE_RATE)
    return folder


def pack_tiny(
    source: Path,
    output: Path,
    config: Config,
    *,
    backend: str = "dnerv",
    epochs: int = 1,
    frame_rate: float | None = None,
    seed: int = 0,
    faithful: bool = False,
    **settings: Any,
) -> neuralloader.Pack:
    """Pack with a small network.

    Args:
        source: what to pack.
        output: the file.
        config: "fast" or "paper".
        backend: "dnerv" or another.
        epochs: how long to train.
        frame_rate: frames per second to store; None keeps every frame.
        seed: of everything random.
        faithful: train with one quick recipe for all, which spares no bytes, so that the pixels come out right.
        settings: more of ``PackSettings``.
    """
    settings = {"size": SIZE, "width": WIDTH, "keyframe_quality": 80, **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packer, "network_of", _small_network)
        if faithful:
            recipe = replace(FAST, rate_weight=0.0)
            if (backend, config) == ("cnerv", "paper"):  # the published waves are small and much alike
                recipe = replace(recipe, matrix_learning_rate=0.1)
            patch.setitem(RECIPES, (backend, config), recipe)
        neuralloader.pack(
            source,
            output,
            neuralloader.PackSettings(
                frame_rate=frame_rate,
                backend=backend,
                config=config,
                duration=neuralloader.Duration(epochs=epochs),
                seed=seed,
                **settings,
            ),
        )
    return Pack(output)


def small_paper_config(frame_size: tuple[int, int] = SIZE, **fields: Any) -> DNeRVConfig:
    """The paper's network, every width cut down."""
    small = {
        "base_channels": 16,
        "strides": (2, 2, 2, 2),
        "key_channels": 16,
        "min_channels": 16,
        "stem_width": 64,
        "pe_levels": 40,
    }
    return DNeRVConfig(frame_size, **{**small, **fields})


def _small_network(backend: str, config: str, width: str | int, frame_size: tuple[int, int]) -> Any:
    """The network asked for; where it has parts that no width makes smaller, they are cut down."""
    network = network_of(backend, config, width, frame_size)
    if (backend, config) == ("hnerv", "fast"):
        return replace(network, encoder_width=16)
    if config == "fast":
        return network
    if backend == "nerv":
        return replace(NeRVConfig.of_width(16, frame_size, min_channels=16), stem_width=64)
    if backend == "cnerv":
        return replace(CNeRVConfig.of_width(16, frame_size, min_channels=16), latent_channels=16)
    if backend == "hnerv":
        return replace(HNeRVConfig.of_width(16, frame_size), encoder_channels=16)
    return small_paper_config(frame_size)
