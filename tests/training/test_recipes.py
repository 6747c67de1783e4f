"""The schedule: up in a line, down in a cosine, at 0 in the end."""

from dataclasses import replace

import pytest

from neuralloader.backends import BACKENDS
from neuralloader.training.losses import LOSSES
from neuralloader.training.recipes import FAST, KEY_INTERVALS, PAPER, RECIPES


@pytest.mark.parametrize("recipe", [FAST, PAPER])
def test_warm_up_and_cosine(recipe) -> None:
    factors = [recipe.rate_factor(i / 1000) for i in range(1001)]
    peak = round(recipe.warmup * 1000)
    assert factors[0] == pytest.approx(recipe.warmup_start)
    assert factors[peak] == pytest.approx(1)
    assert max(factors) <= 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[(peak + 1000) // 2] == pytest.approx(0.5, abs=0.01)
    assert factors[1000] == pytest.approx(0, abs=1e-9)


def test_the_schedule_of_the_paper() -> None:
    """Linear from 0.1 to 1 over a fifth, then a cosine; AdamW at 5e-4 with the loss of the published code."""
    assert [PAPER.rate_factor(p) for p in (0, 0.1, 0.2, 0.6)] == pytest.approx([0.1, 0.55, 1, 0.5])
    assert (PAPER.learning_rate, PAPER.matrix_learning_rate, PAPER.loss) == (5e-4, None, "l2_ssim")
    assert (PAPER.clips_per_step, PAPER.max_gradient_norm) == (32, None)
    assert KEY_INTERVALS["dnerv", "paper"] == 8


def test_the_recipes_of_nerv_and_hnerv() -> None:
    nerv, hnerv = RECIPES["nerv", "paper"], RECIPES["hnerv", "paper"]
    assert RECIPES["cnerv", "paper"] == nerv
    assert (nerv.loss, nerv.learning_rate, nerv.betas, nerv.warmup, nerv.frames_per_step) == (
        "l1_ssim",
        5e-4,
        (0.5, 0.999),
        0.2,
        1,
    )
    assert (hnerv.loss, hnerv.learning_rate, hnerv.betas, hnerv.warmup, hnerv.frames_per_step) == (
        "l2",
        1e-3,
        (0.9, 0.999),
        0.1,
        2,
    )


def test_no_warm_up() -> None:
    assert replace(PAPER, warmup=0.0).rate_factor(0) == 1


def test_every_backend_has_a_recipe() -> None:
    assert set(RECIPES) == set(BACKENDS)
    assert set(KEY_INTERVALS) == {name for name, (_, network) in BACKENDS.items() if network.uses_keyframes}
    for recipe in RECIPES.values():
        assert recipe.loss in LOSSES
        assert 1 <= recipe.keyframe_quality <= 100
        assert 2 <= recipe.weight_bits <= 8
        assert 0 <= recipe.offset_share <= 1
        assert 0 <= recipe.rounding_share <= 1


def test_offsets_learn_evenly_for_half_of_their_share_and_then_ever_less() -> None:
    recipe = replace(FAST, offset_share=0.4, offset_learning_rate=0.1)
    rates = [recipe.offset_rate(p) for p in (0.6, 0.7, 0.8, 0.9, 0.95, 1.0)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.025, 0])
    assert replace(FAST, offset_share=0.0).offset_rate(1.0) == 0
