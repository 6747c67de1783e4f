"""A training that starts from another pack's network, or is refused with what differs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from neuralloader.backends import Backend
from neuralloader.errors import PackError
from neuralloader.packfile import Pack, PackDescription, build_backend
from neuralloader.training.warm_start import load_network

GOLDEN = Path(__file__).parents[1] / "golden"


def _untrained(path: Path) -> tuple[Backend, PackDescription]:
    told = Pack(path).description
    torch.manual_seed(5)
    return build_backend(told.backend, told.config, told.network), told


def _values(backend: Backend) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in backend.named_parameters()}


@pytest.mark.parametrize("name", ["dnerv-fast", "dnerv-fast-appendable", "dnerv-paper", "nerv-paper", "hnerv-paper"])
def test_what_the_pack_holds_is_taken_and_the_rest_stays(name: str) -> None:
    path = GOLDEN / f"{name}.nvpack"
    backend, told = _untrained(path)
    before = _values(backend)
    load_network(backend, path, told.backend, told.config, told.network)
    pack = Pack(path)
    held = _values(pack.load_backend(with_encoder=pack.is_appendable))
    after = _values(backend)
    for key, value in after.items():
        assert torch.equal(value, held.get(key, before[key])), key
    assert (set(held) < set(after)) == name.startswith(("dnerv-fast", "hnerv")), "what prices latents stays behind"
    assert any(backend.is_encoder(key) for key in held) == (name == "dnerv-fast-appendable")
    load_network(backend, str(path), told.backend, told.config, told.network)


def test_another_network_is_refused_with_what_differs() -> None:
    path = GOLDEN / "dnerv-fast.nvpack"
    backend, told = _untrained(path)
    before = _values(backend)
    other = replace(told.network, width=told.network.width + 4)
    text = r"init: .*dnerv-fast\.nvpack has another network: width is 4, not 8\. Pack with its backend, size and width"
    with pytest.raises(ValueError, match=text):
        load_network(backend, path, told.backend, told.config, other)
    with pytest.raises(ValueError, match="another network: backend is dnerv, not nerv; config is fast, not paper"):
        load_network(backend, path, "nerv", "paper", told.network)
    assert all(torch.equal(value, before[key]) for key, value in _values(backend).items())


def test_many_differences_are_cut_short() -> None:
    backend, told = _untrained(GOLDEN / "dnerv-paper.nvpack")
    with pytest.raises(ValueError, match="init: ") as caught:
        load_network(backend, GOLDEN / "nerv-paper.nvpack", told.backend, told.config, told.network)
    assert str(caught.value).count(", not ") == 5


def test_a_network_for_each_video_is_refused() -> None:
    backend, told = _untrained(GOLDEN / "hnerv-paper-videos.nvpack")
    text = r"init: .*hnerv-paper-videos\.nvpack has a network for each video; training starts from one for a corpus"
    with pytest.raises(ValueError, match=text):
        load_network(backend, GOLDEN / "hnerv-paper-videos.nvpack", told.backend, told.config, told.network)


def test_no_pack_at_all(tmp_path: Path) -> None:
    backend, told = _untrained(GOLDEN / "dnerv-fast.nvpack")
    with pytest.raises(FileNotFoundError, match=r"missing\.nvpack"):
        load_network(backend, tmp_path / "missing.nvpack", told.backend, told.config, told.network)
    (tmp_path / "bad.nvpack").write_bytes(b"no pack")
    with pytest.raises(PackError, match=r"bad\.nvpack"):
        load_network(backend, tmp_path / "bad.nvpack", told.backend, told.config, told.network)
