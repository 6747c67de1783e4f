"""What several rooms' tests share.

One tiny pack for each backend and configuration, made once a run, and how PyTorch and hypothesis run.
"""

import functools
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import settings

from neuralloader.backends import Scope

settings.register_profile("neuralloader", deadline=None)  # the time of an example depends on what else is running
settings.load_profile("neuralloader")

# epochs until every counter can be read with room to spare
EPOCHS: dict[tuple[str, tiny.Config, Scope], int] = {
    ("dnerv", "fast", "corpus"): 80,
    ("dnerv", "paper", "corpus"): 32,
    ("nerv", "fast", "corpus"): 30,
    ("nerv", "paper", "corpus"): 26,
    ("cnerv", "fast", "corpus"): 20,
    ("cnerv", "paper", "corpus"): 28,
    ("hnerv", "fast", "corpus"): 26,
    ("hnerv", "paper", "corpus"): 18,
    ("nerv", "fast", "video"): 60,
    ("nerv", "paper", "video"): 60,
    ("cnerv", "fast", "video"): 50,
    ("cnerv", "paper", "video"): 60,
    ("hnerv", "fast", "video"): 60,
    ("hnerv", "paper", "video"): 30,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny networks gain nothing from threads, and lose much where other work runs beside them."""
    torch.set_num_threads(1)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, to see that none stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder to write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def keep_signals() -> Iterator[None]:
    """``cli.main`` takes over SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``tiny.CORPUS``: two classes, four videos."""
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def make_pack(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tiny.MakePack:
    """Packs the tiny corpus, every frame stored; a second time, it gives the same pack again."""

    @functools.cache
    def make(backend: str, config: tiny.Config, scope: Scope) -> tiny.TinyPack:
        return _pack(tiny_corpus, tmp_path_factory.mktemp(config), backend, config, scope)

    def make_once(backend: str, config: tiny.Config, scope: Scope = "corpus") -> tiny.TinyPack:
        return make(backend, config, scope)  # the cache tells a default from the same value given

    return make_once


@pytest.fixture(scope="session")
def fast_pack(make_pack: tiny.MakePack) -> tiny.TinyPack:
    """The tiny corpus in the fast configuration of D-NeRV."""
    return make_pack("dnerv", "fast")


@pytest.fixture(scope="session")
def paper_pack(make_pack: tiny.MakePack) -> tiny.TinyPack:
    """The tiny corpus in the paper configuration of D-NeRV."""
    return make_pack("dnerv", "paper")


@pytest.fixture(scope="session", params=["fast", "paper"])
def any_pack(request: pytest.FixtureRequest) -> tiny.TinyPack:
    """Each of the two in turn: with key-frames."""
    return request.getfixturevalue(f"{request.param}_pack")


@pytest.fixture(scope="session", params=EPOCHS, ids="-".join)
def every_pack(request: pytest.FixtureRequest, make_pack: tiny.MakePack) -> tiny.TinyPack:
    """The tiny corpus in every backend, configuration and scope in turn."""
    return make_pack(*request.param)


def _pack(source: Path, folder: Path, backend: str, config: tiny.Config, scope: Scope) -> tiny.TinyPack:
    path, epochs = folder / f"{config}.nvpack", EPOCHS[backend, config, scope]
    tiny.pack_tiny(source, path, config, backend=backend, epochs=epochs, scope=scope, faithful=True)
    lengths = tiny.CORPUS.values()
    return tiny.TinyPack(
        path,
        backend,
        config,
        numbers=np.concatenate([100 * place + np.arange(length) for place, length in enumerate(lengths)]),
        originals=np.concatenate([tiny.draw_frames(length, 100 * place) for place, length in enumerate(lengths)]),
    )
