"""The one dial: how a budget is parted between network, key-frames and latents.

    budget --less index and header--> every (interval, width, bits, quality) that fits, the rest to the latents
           --what each is worth in dB--> the best of them

Each part buys decibels with falling returns. What each is worth is measured (docs/experiments.md, "One dial"), in dB of
a corpus's mean PSNR: network and latents so many for each doubling of their bytes, key-frames by what a probe of this
very corpus says. What a user has chosen by name is kept, and the rest adapts. Nothing here is trained.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neuralloader.metrics.rate import bits_per_pixel
from neuralloader.training.budget import Budget
from neuralloader.training.keyframe_probe import HIGHEST_QUALITY, INTERVALS, LOWEST_QUALITY, KeyframeProbe
from neuralloader.training.rate_control import TYPICAL_BITS_PER_SYMBOL
from neuralloader.training.sizes import CorpusSize, NetworkSize, Outline, PartBytes

WIDTHS = (*range(8, 64, 4), *range(64, 128, 8), *range(128, 256, 16), *range(256, 513, 32))  # that are tried
MAX_WIDTH = 4096  # where the width is all that can be chosen

# dB lost by rounding weights to so many bits (docs/experiments.md, "Bits of a weight")
ROUNDING_LOSS_DB = {8: 0.0, 7: 0.01, 6: 0.03, 5: 0.13, 4: 0.42}
KEYFRAME_SHARE = 0.35  # a frame between key-frames is worth so much of their PSNR, and for the rest that of their blend
PARAMETERS_PER_FRAME = 24  # trained on: networks up to that were better than narrower ones

MIN_BITS_PER_SYMBOL, MAX_BITS_PER_SYMBOL = 0.1, 3.5  # of a latent: more are not learnt to be read
GRID_BITS_SPARED = 0.5  # of the bits of latents on an even grid, by entropy coding
KEYFRAME_SLACK = 0.97  # of what is there for key-frames, where no latents could make up for an error of the probe
FILLED = 0.98  # of a budget: less is told as a miss
RETRY_SHARE = 0.25  # of the latents: so much may key-frames take more or less than was thought


@dataclass(frozen=True)
class Worth:
    """What a doubling of a part's bytes gives, in dB."""

    weights_db: float
    latents_db: float


WORTH = {
    ("dnerv", "fast"): Worth(weights_db=0.5, latents_db=0.3),
    ("cnerv", "fast"): Worth(weights_db=0.75, latents_db=0.75),  # latents do the work of key-frames, too
    ("hnerv", "fast"): Worth(weights_db=0.75, latents_db=0.75),
}
WORTH_OF_OTHERS = Worth(weights_db=0.5, latents_db=0.0)


@dataclass(frozen=True)
class Choice:
    """What a budget is spent on.

    Attributes:
        width: of the network.
        weight_bits: of a weight's code.
        key_interval, keyframe_quality: None where the network has no key-frames.
        sizes: what each part is expected to take; together at most the budget.
        num_latents: frames that store a latent.
        latents_are_steered: whether training brings the latents to their bytes.
        budget_bytes: the most that the file may take.
        shortfall: why the file will be smaller than the budget; None where it will be filled.
    """

    width: str | int
    weight_bits: int
    key_interval: int | None
    keyframe_quality: int | None
    sizes: PartBytes
    num_latents: int
    latents_are_steered: bool
    budget_bytes: int
    shortfall: str | None = None

    @property
    def latent_bits_per_frame(self) -> float:
        """What training is to bring latents to (``RateController``); 0 where no frame stores any."""
        return 8 * self.sizes.latents / max(1, self.num_latents)

    def settle(self, keyframe_bytes: int) -> "Choice | None":
        """The same once the key-frames are encoded: what they took more or less goes to the latents.

        Args:
            keyframe_bytes: of all of them, as ``stored_bytes`` counts them.

        Returns:
            None where the latents cannot bear it: choose again, with ``KeyframeProbe.scaled_to``.
        """
        sizes = replace(self.sizes, keyframes=keyframe_bytes)
        spare = self.budget_bytes - sizes.total
        if self.latents_are_steered and self.shortfall is None:
            bearable = RETRY_SHARE * sizes.latents
            if not -bearable <= spare <= bearable + (1 - FILLED) * self.budget_bytes:
                return None
            sizes = replace(sizes, latents=sizes.latents + (spare if self.num_latents else 0))
        return replace(self, sizes=sizes) if sizes.total <= self.budget_bytes else None


def trainable_parameters(*, seconds: float, seconds_per_frame: float) -> int:
    """The largest network worth training for a time.

    Args:
        seconds: the time.
        seconds_per_frame: that a training step takes for each of its frames.
    """
    return math.floor(PARAMETERS_PER_FRAME * seconds / seconds_per_frame)


def choose(
    budget: Budget,
    outline: Outline,
    probe: KeyframeProbe | None,
    *,
    width: str | int | None = None,
    weight_bits: int | None = None,
    key_interval: int | None = None,
    keyframe_quality: int | None = None,
    most_parameters: int | None = None,
) -> Choice:
    """Part a budget.

    Args:
        budget: what the file may take.
        outline: what is to be packed.
        probe: of its key-frames; None where the network has none.
        width, weight_bits, key_interval, keyframe_quality: what the user has chosen; None is left to the budget.
        most_parameters: no larger network, as ``trainable_parameters`` gives it, unless the width was chosen.

    Raises:
        ValueError: a budget below the least that there can be; the text tells that.
    """
    budget_bytes = budget.num_bytes(outline.num_frames, outline.frame_size)
    asked = {
        "width": width,
        "weight_bits": weight_bits,
        "key_interval": key_interval,
        "keyframe_quality": keyframe_quality,
    }
    uses_keyframes = outline.network(width or WIDTHS[0]).uses_keyframes
    if uses_keyframes and probe is None:
        raise ValueError(f"{outline.backend} {outline.config} has key-frames: choosing needs a probe of them")
    best_rank, best, least_bytes = (False, -math.inf), None, math.inf
    for interval in (None,) if not uses_keyframes else INTERVALS if key_interval is None else (key_interval,):
        corpus = outline.corpus(interval)
        keyframes = _keyframes(probe if uses_keyframes else None, corpus, interval, keyframe_quality)
        for bits in ROUNDING_LOSS_DB if weight_bits is None else (weight_bits,):
            for network_width in _widths(outline, corpus, bits, budget_bytes, width, most_parameters):
                split = _split(outline, corpus, keyframes, network_width, bits, budget_bytes)
                least_bytes = min(least_bytes, split.least_bytes)
                if split.rank > best_rank:
                    best_rank, best = split.rank, (split, corpus, network_width, bits, interval)
    if best is None:
        raise ValueError(_too_small(outline, budget_bytes, math.ceil(least_bytes), asked))
    return _choice(outline, *best, budget_bytes)


def expect(
    outline: Outline,
    probe: KeyframeProbe | None,
    *,
    width: str | int,
    weight_bits: int,
    key_interval: int | None,
    keyframe_quality: int | None,
) -> Choice:
    """What settings will take where there is no budget; latents are those of a usual training.

    Args: as ``choose`` has them; interval and quality are None where the network has no key-frames.
    """
    network, corpus = outline.network(width), outline.corpus(key_interval)
    keyframes = _keyframes(probe, corpus, key_interval, keyframe_quality)
    bits = TYPICAL_BITS_PER_SYMBOL if network.latent_bits is None else network.latent_bits - GRID_BITS_SPARED
    sizes = PartBytes(
        weights=outline.weight_bytes(network, weight_bits),
        keyframes=round(float(keyframes.num_bytes[0])),
        latents=round(corpus.num_latents * network.symbols_per_latent * bits / 8),
        rest=outline.rest_bytes(corpus, network),
    )
    return Choice(
        width=width,
        weight_bits=weight_bits,
        key_interval=key_interval,
        keyframe_quality=keyframe_quality,
        sizes=sizes,
        num_latents=corpus.num_latents if network.latent_shape is not None else 0,
        latents_are_steered=network.latents_are_steered,
        budget_bytes=sizes.total,
    )


@dataclass(frozen=True, eq=False)
class _Keyframes:
    """Key-frames at an interval, at each quality there is to choose from; one of no bytes where there are none.

    Attributes:
        quality: (n,) int, ascending.
        num_bytes: (n,) float64, of all of them.
        worth_db: (n,) float64, PSNR of all frames as far as it depends on them.
    """

    quality: np.ndarray
    num_bytes: np.ndarray
    worth_db: np.ndarray


def _keyframes(
    probe: KeyframeProbe | None, corpus: CorpusSize, interval: int | None, chosen_quality: int | None
) -> _Keyframes:
    if probe is None or interval is None:
        return _Keyframes(np.zeros(1, int), np.zeros(1), np.zeros(1))
    quality = np.arange(LOWEST_QUALITY, HIGHEST_QUALITY + 1) if chosen_quality is None else np.array([chosen_quality])
    own = probe.psnr_at(quality)
    between = KEYFRAME_SHARE * own + (1 - KEYFRAME_SHARE) * probe.between_psnr_db.get(interval, 0.0)
    share = corpus.num_keyframes / corpus.num_frames
    return _Keyframes(quality, corpus.num_keyframes * probe.bytes_at(quality), share * own + (1 - share) * between)


def _widths(
    outline: Outline,
    corpus: CorpusSize,
    bits: int,
    budget_bytes: int,
    chosen: str | int | None,
    most_parameters: int | None,
) -> Sequence[str | int]:
    """Widths to choose from, ascending: the smallest in any case, others where there is time to train them."""
    if chosen is not None:
        return (chosen,)

    def is_trainable(width: int) -> bool:
        parameters = outline.num_networks * outline.network(width).num_parameters
        return most_parameters is None or parameters <= most_parameters

    def fits(width: int) -> bool:
        network = outline.network(width)
        others = outline.rest_bytes(corpus, network) + _latent_bounds(corpus, network)[0]
        return outline.weight_bytes(network, bits) + others <= budget_bytes

    if outline.network(WIDTHS[0]).can_fill_up:
        return (WIDTHS[0], *filter(is_trainable, WIDTHS[1:]))
    # Nothing else makes up for the steps of width: the largest one that fits
    widths = range(WIDTHS[0] + 1, MAX_WIDTH + 1)
    too_large = bisect_left(widths, True, key=lambda width: not (fits(width) and is_trainable(width)))
    return tuple(dict.fromkeys((WIDTHS[0], WIDTHS[0] + too_large)))


@dataclass(frozen=True)
class _Split:
    """A budget parted for one network.

    Attributes:
        least_bytes: that a file with this network takes, with the worst key-frames and the least latents.
        worth_db: of the best way to part what is left; minus infinity where nothing fits.
        is_filled: whether it uses the budget up, or better key-frames will.
        quality: of its key-frames.
        sizes: what its parts take.
    """

    least_bytes: float
    worth_db: float
    is_filled: bool
    quality: int
    sizes: PartBytes

    @property
    def rank(self) -> tuple[bool, float]:
        """A budget is to be met first, and well spent then."""
        return self.is_filled, self.worth_db


def _split(
    outline: Outline, corpus: CorpusSize, keyframes: _Keyframes, width: str | int, bits: int, budget_bytes: int
) -> _Split:
    network = outline.network(width)
    weights, rest = outline.weight_bytes(network, bits), outline.rest_bytes(corpus, network)
    least_latents, most_latents = _latent_bounds(corpus, network)
    keyframe_bytes = keyframes.num_bytes / (1 if network.latents_are_steered else KEYFRAME_SLACK)
    left = budget_bytes - weights - rest - keyframe_bytes  # (n,)
    latents = np.clip(left, least_latents, most_latents)
    worth = WORTH.get((outline.backend, outline.config), WORTH_OF_OTHERS)
    worth_db = keyframes.worth_db + worth.latents_db * np.log2(np.maximum(latents, 1))
    worth_db += worth.weights_db * math.log2(network.num_parameters) - ROUNDING_LOSS_DB.get(bits, 0.0)
    place = int(np.where(left >= least_latents, worth_db, -np.inf).argmax())
    fits = bool(left[place] >= least_latents)
    sizes = PartBytes(weights, round(keyframes.num_bytes[place]), math.floor(latents[place]), rest)
    can_grow = network.uses_keyframes and place < len(keyframes.quality) - 1
    return _Split(
        least_bytes=weights + rest + least_latents + keyframe_bytes.min(),
        worth_db=float(worth_db[place]) if fits else -math.inf,
        is_filled=fits and (can_grow or sizes.total >= FILLED * budget_bytes),
        quality=int(keyframes.quality[place]),
        sizes=sizes,
    )


def _latent_bounds(corpus: CorpusSize, network: NetworkSize) -> tuple[float, float]:
    """Least and most bytes of the latents."""
    symbols = corpus.num_latents * network.symbols_per_latent
    if network.latent_bits is not None:
        fixed = symbols * (network.latent_bits - GRID_BITS_SPARED) / 8
        return fixed, fixed
    return symbols * MIN_BITS_PER_SYMBOL / 8, symbols * MAX_BITS_PER_SYMBOL / 8


def _choice(
    outline: Outline,
    split: _Split,
    corpus: CorpusSize,
    width: str | int,
    bits: int,
    interval: int | None,
    budget_bytes: int,
) -> Choice:
    network, sizes = outline.network(width), split.sizes
    choice = Choice(
        width=width,
        weight_bits=bits,
        key_interval=interval,
        keyframe_quality=None if interval is None else split.quality,
        sizes=sizes,
        num_latents=corpus.num_latents if network.latent_shape is not None else 0,
        latents_are_steered=network.latents_are_steered,
        budget_bytes=budget_bytes,
    )
    about = f"of the budget of {budget_bytes:,} bytes, about {sizes.total:,} can be spent"
    if not network.can_fill_up:
        return replace(
            choice, shortfall=f"{about} at most: there is only the network, whose size goes in steps of its width"
        )
    if split.is_filled:
        return choice
    parts = [f"a network of width {width}"]
    if network.uses_keyframes:
        parts.append(f"key-frames of quality {split.quality}")
    if network.latents_are_steered:
        parts.append(f"latents of {MAX_BITS_PER_SYMBOL} bits a number")
    return replace(choice, shortfall=f"{about}: {', '.join(parts)} are the most that there is to buy")


def _too_small(outline: Outline, budget_bytes: int, least_bytes: int, asked: Mapping[str, object]) -> str:
    height, width = outline.frame_size
    least_bpp = bits_per_pixel(least_bytes, outline.num_frames, outline.frame_size)
    chosen = ", ".join(f"{name}={value}" for name, value in asked.items() if value is not None)
    with_these = f" with {chosen}" if chosen else ""
    or_leave = ", or leave the others to the budget" if chosen else ""
    return (
        f"a budget of {budget_bytes:,} bytes is too small: {outline.num_frames} frames of {height}x{width} take at "
        f"least about {least_bytes:,} bytes ({least_bpp:.4f}bpp) in {outline.backend} {outline.config}{with_these}; "
        f"give more, or fewer or smaller frames{or_leave}"
    )
