"""What several rooms' tests share.

One tiny pack a configuration, made once a run, and how PyTorch and hypothesis run.
"""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import settings

settings.register_profile("neuralloader", deadline=None)  # the time of an example depends on what else is running
settings.load_profile("neuralloader")

EPOCHS = {"fast": 80, "paper": 32}  # until every counter can be read with room to spare


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny networks gain nothing from threads, and lose much where other work runs beside them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``tiny.CORPUS``: two classes, four videos."""
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def fast_pack(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyPack:
    """The tiny corpus in the fast configuration, every frame stored."""
    return _pack(tiny_corpus, tmp_path_factory.mktemp("fast"), "fast")


@pytest.fixture(scope="session")
def paper_pack(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyPack:
    """The tiny corpus in the paper configuration, every frame stored."""
    return _pack(tiny_corpus, tmp_path_factory.mktemp("paper"), "paper")


@pytest.fixture(scope="session", params=["fast", "paper"])
def any_pack(request: pytest.FixtureRequest) -> tiny.TinyPack:
    """Each of the two in turn."""
    return request.getfixturevalue(f"{request.param}_pack")


def _pack(source: Path, folder: Path, config: tiny.Config) -> tiny.TinyPack:
    path = folder / f"{config}.nvpack"
    tiny.pack_tiny(source, path, config, epochs=EPOCHS[config], faithful=True)
    lengths = tiny.CORPUS.values()
    return tiny.TinyPack(
        path,
        config,
        numbers=np.concatenate([100 * place + np.arange(length) for place, length in enumerate(lengths)]),
        originals=np.concatenate([tiny.draw_frames(length, 100 * place) for place, length in enumerate(lengths)]),
    )
