"""A few training steps, timed: a step of full size whatever the corpus, and no more steps than asked for."""

import pytest
import tiny
import torch

from neuralloader.backends import network_of
from neuralloader.packfile import build_backend
from neuralloader.training import fit as fit_module
from neuralloader.training.recipes import RECIPES
from neuralloader.training.settings import FRAMES_PER_CLIP
from neuralloader.training.step_probe import WARM_UP_STEPS, StepCost, probe_steps

CPU = torch.device("cpu")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One entry for each step that is trained."""
    done: list[float] = []
    step = fit_module._Training.step

    def count(self: fit_module._Training, share: float) -> None:
        done.append(share)
        step(self, share)

    monkeypatch.setattr(fit_module._Training, "step", count)
    return done


def _probe(backend: str, num_frames: int, **settings: float) -> StepCost:
    network = build_backend(backend, "fast", network_of(backend, "fast", 8, tiny.SIZE))
    frames = tiny.draw_frames(num_frames, 0)
    return probe_steps(network, frames, RECIPES[backend, "fast"], 6, CPU, **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("num_frames", [1, 20])
def test_a_step_has_its_full_size_however_few_frames_there_are(num_frames: int, steps: list[float]) -> None:
    recipe = RECIPES["dnerv", "fast"]
    cost = _probe("dnerv", num_frames, num_steps=3)
    held = min(num_frames, FRAMES_PER_CLIP)  # by a clip; others are padding
    assert held * recipe.clips_per_step * 0.5 <= cost.num_frames <= FRAMES_PER_CLIP * recipe.clips_per_step
    assert cost.seconds > 0
    assert cost.seconds_per_frame == cost.seconds / cost.num_frames
    assert cost.num_bytes >= 0
    assert len(steps) == WARM_UP_STEPS + 3 + 1


def test_networks_of_single_frames_are_probed_too() -> None:
    assert _probe("hnerv", 20, num_steps=2).num_frames == RECIPES["hnerv", "fast"].frames_per_step


def test_slow_steps_end_early(steps: list[float]) -> None:
    cost = _probe("dnerv", 20, num_steps=50, most_seconds=0.0)
    assert len(steps) == WARM_UP_STEPS + 1
    assert cost.seconds > 0
