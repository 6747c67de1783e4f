"""What a budget decides: met by the finished file, chosen once in a run, and kept over an interruption."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import neuralloader
from neuralloader import Duration, Pack, PackSettings
from neuralloader.training import fit as fit_module
from neuralloader.training import spending as spending_module
from neuralloader.training.budget import Budget
from neuralloader.training.choice import Choice
from neuralloader.training.finish import Contents
from neuralloader.training.keeper import Interrupted
from neuralloader.training.recipes import RECIPES
from neuralloader.training.sizes import PartBytes
from neuralloader.training.spending import Spending, by_settings, most_parameters, of_choice

CHOICE = Choice(24, 5, 16, 61, PartBytes(1000, 2000, 300, 400), 14, latents_are_steered=True, budget_bytes=3800)
ROOM = 24_000  # bytes that the corpus below fills


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("source"), {"a/x.avi": 17, "b/y.avi": 24})


def _settings(**more: Any) -> PackSettings:
    return PackSettings(
        **{"frame_rate": None, "size": tiny.SIZE, "duration": Duration(epochs=2), "budget": Budget(size_bytes=ROOM)}
        | more
    )


def _no_probe(*arguments: object, **settings: object) -> None:
    raise AssertionError("it was chosen already")


# --- without a run --------------------------------------------------------------------------------------------------


def test_without_a_budget_settings_decide_and_else_the_recipe() -> None:
    recipe = RECIPES["dnerv", "fast"]
    assert by_settings(PackSettings()) == Spending("S", recipe.weight_bits, 8, recipe.keyframe_quality)
    asked = PackSettings(width=20, weight_bits=7, key_interval=16, keyframe_quality=33)
    assert by_settings(asked) == Spending(20, 7, 16, 33)
    assert by_settings(PackSettings(backend="hnerv")).key_interval is None
    assert by_settings(asked).latent_bits_per_frame is None


def test_latents_are_steered_by_a_budget_only_where_they_can_be() -> None:
    assert of_choice(_settings(), CHOICE).latent_bits_per_frame == 8 * 300 / 14
    still = Choice(**{**vars(CHOICE), "latents_are_steered": False})
    assert of_choice(_settings(), still).latent_bits_per_frame is None


def test_a_choice_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "choice.json"
    spending_module._write(path, CHOICE)
    assert spending_module._read_choice(path) == CHOICE


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"sizes": {}}', b"[" * 100_000])
def test_a_damaged_choice_is_named_with_the_way_out(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "choice.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"choice\.json is damaged \(.*\); start over with --fresh \(fresh=True\)"):
        spending_module._read_choice(path)


def test_epochs_need_no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending_module, "probe_steps", _no_probe)
    settings = _settings(duration=Duration(epochs=10))
    frames = tiny.draw_frames(2, 0)
    device = torch.device("cpu")
    assert most_parameters(settings, frames, 200, device) == 2 * most_parameters(settings, frames, 100, device)


# --- whole runs -----------------------------------------------------------------------------------------------------


def test_a_budget_is_met_and_told(source: Path, out: Path) -> None:
    result = neuralloader.pack(source, out / "a.nvpack", _settings())
    assert result.size_bytes == (out / "a.nvpack").stat().st_size
    assert 0.98 * ROOM <= result.size_bytes <= ROOM
    assert result.notes == ()
    pack = Pack(result.path)
    assert pack.description.training["budget"] == f"{ROOM}B"
    assert pack.description.quality["psnr_db"] == result.psnr_db
    assert [path.name for path in (out / "a.nvpack.run").iterdir()] == ["log.jsonl"]


def test_what_is_chosen_by_name_is_kept(source: Path, out: Path) -> None:
    """And where it leaves nothing to fill the budget with, that is told."""
    asked = _settings(width=12, weight_bits=7, keyframe_quality=40, key_interval=16, budget=Budget(size_bytes=90_000))
    result = neuralloader.pack(source, out / "a.nvpack", asked)
    told = Pack(result.path).description
    assert (told.training["width"], told.weight_bits) == (12, 7)
    assert (told.keyframe_quality, told.key_interval) == (40, 16)
    (note,) = result.notes
    assert note.startswith("of the budget of 90,000 bytes, about ")
    assert "a network of width 12, key-frames of quality 40" in note


def test_a_budget_that_is_missed_is_told(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(contents: Contents, budget_bytes: int, *, save: Callable[[Contents], int], **more: object) -> Contents:
        save(contents)
        return contents

    monkeypatch.setattr("neuralloader.training.packer.meet_budget", leave)
    asked = _settings(width=12, weight_bits=7, key_interval=16, budget=Budget(size_bytes=41_000))
    result = neuralloader.pack(source, out / "a.nvpack", asked)
    assert result.size_bytes > 41_000
    assert result.notes == (f"the budget of 41,000 bytes is missed: {result.size_bytes:,} bytes",)


def test_the_impossible_is_refused_with_the_least_possible(source: Path, out: Path) -> None:
    with pytest.raises(ValueError, match=r"budget.* bytes") as caught:
        neuralloader.pack(source, out / "a.nvpack", _settings(budget=Budget(size_bytes=500)))
    assert "500" in str(caught.value)
    assert not (out / "a.nvpack").exists()


def test_a_choice_is_kept_over_an_interruption(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = neuralloader.pack(source, out / "whole.nvpack", _settings())
    step = fit_module._Training.step

    def stop(self: fit_module._Training, done: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        step(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Training, "step", stop)
        with pytest.raises(Interrupted):
            neuralloader.pack(source, out / "a.nvpack", _settings())
    kept = json.loads((out / "a.nvpack.run" / "choice.json").read_text())
    assert kept["budget_bytes"] == ROOM
    with monkeypatch.context() as patch:
        patch.setattr(spending_module, "choose_by", _no_probe)
        patch.setattr(spending_module, "probe_corpus", _no_probe)
        neuralloader.pack(source, out / "a.nvpack", _settings())
    assert (out / "a.nvpack").read_bytes() == whole.path.read_bytes()
