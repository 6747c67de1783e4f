"""The controller against simulated trainings: latents that give way to a price by some power, late, and unsteadily."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.training import rate_control
from neuralloader.training.rate_control import MAX_FACTOR, MAX_FIRST_FACTOR, TYPICAL_BITS_PER_SYMBOL, RateController

SYMBOLS = 640


@dataclass
class Plant:
    """A training as the controller sees it.

    Attributes:
        exponent: bits fall with the price to this power.
        lag: steps until they are two thirds there.
        bits: of a latent's number, where the factor is 1.
        noise: of a batch, as a logarithm.
        true_ratio: coded bytes over estimated ones.
    """

    exponent: float
    lag: float
    bits: float = TYPICAL_BITS_PER_SYMBOL
    noise: float = 0.2
    true_ratio: float = 1.0

    def run(self, target: float, num_steps: int, *, calibrate_every: int | None = None) -> np.ndarray:
        """(num_steps,) coded bits of a frame over the target, at each step; learning rates fall as a cosine."""
        rng, controller = np.random.default_rng(0), RateController(target * SYMBOLS, SYMBOLS)
        log_bits, reached, factor = math.log(1.2), np.zeros(num_steps), controller.factor
        for step in range(num_steps):
            wanted = math.log(self.bits) - self.exponent * math.log(factor)
            learning_rate = (1 + math.cos(math.pi * step / num_steps)) / 2
            log_bits += (wanted - log_bits) * learning_rate / max(1.0, self.lag)
            bits = math.exp(log_bits) * SYMBOLS
            reached[step] = bits * self.true_ratio / (target * SYMBOLS)
            factor = controller.update(bits * math.exp(self.noise * rng.normal()), (step + 1) / num_steps)
            if calibrate_every and step % calibrate_every == 0:
                controller.calibrate(self.true_ratio)
        return reached


@pytest.mark.parametrize("target", [0.5, 1.6, 3.0])
@pytest.mark.parametrize("lag", [0, 10, 30])
@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [400, 3000])
def test_latents_come_to_the_target_and_stay(num_steps: int, exponent: float, lag: float, target: float) -> None:
    reached = Plant(exponent, lag).run(target, num_steps)
    assert reached[int(0.6 * num_steps) :].mean() == pytest.approx(1, abs=0.06)
    assert reached[int(0.95 * num_steps) :].mean() == pytest.approx(1, abs=0.06)
    assert np.log(reached[int(0.6 * num_steps) :]).std() < 0.05, "no swinging"


def test_left_alone_they_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GAIN", "PROPORTIONAL_GAIN"):
        monkeypatch.setattr(rate_control, name, 0.0)
    assert Plant(0.25, lag=10).run(0.5, 400)[380:].mean() > 1.3
    assert Plant(1.0, lag=10).run(0.5, 400)[380:].mean() < 0.7


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_a_training_of_a_hundred_steps_comes_near(exponent: float) -> None:
    for target in (0.5, 1.6, 3.0):
        assert Plant(exponent, lag=10).run(target, 100)[95:].mean() == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("true_ratio", [0.8, 1.25])
def test_estimates_that_are_off_are_corrected(true_ratio: float) -> None:
    plant = Plant(0.5, lag=10, true_ratio=true_ratio)
    assert plant.run(1.2, 1000)[950:].mean() == pytest.approx(true_ratio, abs=0.03), "left alone"
    assert plant.run(1.2, 1000, calibrate_every=200)[950:].mean() == pytest.approx(1, abs=0.03)


def test_an_unreachable_target_ends_at_the_bound() -> None:
    controller = RateController(1.0, SYMBOLS)
    factors = [controller.update(1000.0, step / 3000) for step in range(3001)]
    assert factors[-1] == pytest.approx(MAX_FACTOR)
    for step in range(100):  # and comes back at once, as nothing has run up beyond it
        controller.update(0.1, 0.3 + step / 1000)
    assert controller.factor < MAX_FACTOR / 2


def test_it_begins_where_the_target_lies() -> None:
    usual = TYPICAL_BITS_PER_SYMBOL * SYMBOLS
    assert RateController(usual, SYMBOLS).factor == pytest.approx(1)
    assert 2 < RateController(usual / 2, SYMBOLS).factor < 4
    assert RateController(usual * 1e6, SYMBOLS).factor == pytest.approx(1 / MAX_FIRST_FACTOR)


def test_what_tells_nothing_changes_nothing() -> None:
    controller = RateController(700.0, SYMBOLS)
    controller.update(900.0, 0.3)
    factor = controller.factor
    for bits in (0.0, -1.0, math.nan, math.inf):
        assert controller.update(bits, 0.4) == factor
    controller = RateController(700.0, SYMBOLS)
    assert controller.update(9e9, 0.04) == controller.factor == RateController(700.0, SYMBOLS).factor, "too early"


@given(
    bits=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    ratio=st.floats(0.1, 10),
)
def test_it_goes_on_from_its_state(bits: list[float], cut: int, ratio: float) -> None:
    whole, first = RateController(500.0, SYMBOLS), RateController(500.0, SYMBOLS)
    second = RateController(500.0, SYMBOLS)
    cut = min(cut, len(bits))
    for place, value in enumerate(bits):
        done = (place + 1) / len(bits)
        if place == cut:
            whole.calibrate(ratio)
            first.calibrate(ratio)
            second.load_state(json.loads(json.dumps(first.state())))
        expected = whole.update(value, done)
        controller = first if place < cut else second
        assert controller.update(value, done) == expected
        assert abs(math.log(expected)) <= math.log(MAX_FACTOR) + 1e-9


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_values(value: float) -> None:
    with pytest.raises(ValueError, match=f"bits_per_frame={value} must be above 0"):
        RateController(value, SYMBOLS)
    with pytest.raises(ValueError, match="symbols_per_frame=0 must be above 0"):
        RateController(1.0, 0)
    with pytest.raises(ValueError, match=f"coded_over_estimated={value} must be above 0"):
        RateController(1.0, SYMBOLS).calibrate(value)
