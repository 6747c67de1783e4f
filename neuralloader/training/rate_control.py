"""Steers the price of the latents while training, so that they come to cost what a budget has left for them.

    bits of a step's batch --/ target--> error (a logarithm) --smoothed, summed up--> factor on the price --> next step

An integral controller: as long as latents cost too much, their price rises. How much they give way to a price is known
only roughly (docs/experiments.md), so everything is a logarithm, and slow beside a training's own pace. What it leaves
is a few percent, which trimming takes off exactly (``packfile.latents.trim_latents``).
"""

import math
from collections.abc import Mapping

TYPICAL_BITS_PER_SYMBOL = 1.6  # of a training at the recipe's own price: 1.1 to 2.0 were measured
PRICE_EXPONENT = 1.5  # latents of half the bits want about three times the price
MAX_FIRST_FACTOR = 8.0
MAX_FACTOR = 256.0  # and one over it: beyond, latents do not answer, and the factor would only run away

START = 0.05  # of the training, before which estimates are those of an untrained encoder
SMOOTHING = 0.02  # of the training, over which errors are averaged
GAIN = 30.0  # a training's worth of an error of 1 changes the price by e to this
MAX_GAIN_PER_STEP = 0.1  # in a training of few steps, latents follow their price too late for more
PROPORTIONAL_GAIN = 0.5  # damps: answers an error that is growing before its sum does
HOLD_FROM = 0.7  # of the training; from then on learning rates are low, and the price moves less and less


class RateController:
    """A factor on ``Recipe.rate_weight``, step by step.

    Args:
        bits_per_frame: that the latents of a frame which has some shall take, coded, in the mean over the corpus.
        symbols_per_frame: numbers in a frame's latent; tells where to begin.

    Raises:
        ValueError: either is not above 0.
    """

    def __init__(self, bits_per_frame: float, symbols_per_frame: int):
        for name, value in (("bits_per_frame", bits_per_frame), ("symbols_per_frame", symbols_per_frame)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be above 0")
        self._target = bits_per_frame
        first = PRICE_EXPONENT * math.log(TYPICAL_BITS_PER_SYMBOL * symbols_per_frame / bits_per_frame)
        self._sum = _clip(first, math.log(MAX_FIRST_FACTOR))
        self._error = self._ratio = self._done = 0.0  # error and ratio are logarithms

    @property
    def factor(self) -> float:
        """What the price of the next step is multiplied with."""
        return math.exp(_clip(self._sum + PROPORTIONAL_GAIN * self._error, math.log(MAX_FACTOR)))

    def update(self, bits_per_frame: float, done: float) -> float:
        """Take in a step.

        Args:
            bits_per_frame: estimated bits of a latent, in the mean over those of the step's batch. A step that tells
                nothing (0 bits, or no number) changes nothing.
            done: share of the training that is behind us with it, 0 to 1.

        Returns:
            The new ``factor``.
        """
        elapsed, self._done = max(0.0, done - self._done), done
        if not 0 < bits_per_frame < math.inf or done < START:
            return self.factor
        error = math.log(bits_per_frame / self._target) + self._ratio
        self._error += (error - self._error) * min(1.0, elapsed / SMOOTHING)
        pace = min(1.0, max(0.0, 1 - done) / (1 - HOLD_FROM))
        change = min(GAIN * elapsed, MAX_GAIN_PER_STEP) * pace * _clip(self._error, 1.0)
        self._sum = _clip(self._sum + change, math.log(MAX_FACTOR))
        return self.factor

    def calibrate(self, coded_over_estimated: float) -> None:
        """Correct the estimates from now on.

        Args:
            coded_over_estimated: bytes that some latents took when they were rounded and coded, over those estimated
                for them.

        Raises:
            ValueError: it is not above 0.
        """
        if not 0 < coded_over_estimated < math.inf:
            raise ValueError(f"coded_over_estimated={coded_over_estimated} must be above 0")
        ratio = math.log(coded_over_estimated)
        self._error += ratio - self._ratio  # what was averaged so far, too
        self._ratio = ratio

    def state(self) -> dict[str, float]:
        """All that later steps depend on, for a checkpoint."""
        return {"sum": self._sum, "error": self._error, "ratio": self._ratio, "done": self._done}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from what ``state`` gave. Another target is taken over from now on, not from the state."""
        self._sum, self._error, self._ratio, self._done = (state[name] for name in ("sum", "error", "ratio", "done"))


def _clip(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))
