"""The part of a run between frames and latents: when it stops, where it starts from, what it logs."""

import json
import re
from pathlib import Path

import pytest
import tiny

from neuralloader.packfile import Pack


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("source"), {"a/x.avi": 9, "b/y.avi": 8})


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    path = tmp_path_factory.mktemp("trained") / "a.nvpack"
    return tiny.pack_tiny(source, path, "fast", epochs=40, appendable=True)


def _log(pack: Path) -> list[dict]:
    return [json.loads(line) for line in (pack.with_name(f"{pack.name}.run") / "log.jsonl").read_text().splitlines()]


def test_it_stops_at_the_first_evaluation_that_reaches_the_target(source: Path, out: Path, trained: Pack) -> None:
    evaluations = [line["psnr_db"] for line in _log(Path(trained.path))]
    target = min(evaluations) + 0.3 * (max(evaluations) - min(evaluations))
    pack = tiny.pack_tiny(source, out / "a.nvpack", "fast", epochs=40, appendable=True, target_psnr_db=target)
    steps, most = pack.description.training["steps"], trained.description.training["steps"]
    assert isinstance(steps, int)
    assert isinstance(most, int)
    assert steps < most
    reached = [line["psnr_db"] >= target for line in _log(out / "a.nvpack")]
    assert reached == [False] * (len(reached) - 1) + [True]


def test_a_target_that_is_never_reached_changes_nothing(source: Path, out: Path) -> None:
    for name, target in (("a", None), ("b", 59.0)):
        tiny.pack_tiny(source, out / f"{name}.nvpack", "fast", epochs=2, target_psnr_db=target)
    assert (out / "a.nvpack").read_bytes() == (out / "b.nvpack").read_bytes()


def test_from_another_packs_network_training_starts_better(source: Path, out: Path, trained: Pack) -> None:
    for name, init in (("cold", None), ("warm", Path(trained.path))):
        tiny.pack_tiny(source, out / f"{name}.nvpack", "fast", epochs=2, init=init)
    cold, warm = (_log(out / f"{name}.nvpack")[0]["psnr_db"] for name in ("cold", "warm"))
    assert warm > cold + 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 12}, r"init: .*a\.nvpack has another network: .*(16, not 12|width)"),
        ({"size": (32, 48)}, r"init: .*a\.nvpack has another network: frame_size is \(48, 64\), not \(32, 48\)"),
        ({"backend": "hnerv"}, r"init: .*a\.nvpack has another network: backend is dnerv, not hnerv"),
    ],
)
def test_another_network_cannot_be_started_from(
    settings: dict, text: str, source: Path, out: Path, trained: Pack
) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        tiny.pack_tiny(source, out / "b.nvpack", "fast", init=Path(trained.path), **settings)
    assert re.search(r"Pack with its backend, size and width", str(caught.value))
    assert not (out / "b.nvpack").exists()


def test_a_pack_to_start_from_must_be_there(source: Path, out: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*nowhere\.nvpack"):
        tiny.pack_tiny(source, out / "b.nvpack", "fast", init=out / "nowhere.nvpack")
