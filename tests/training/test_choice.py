"""The dial: what it parts stays within the budget, what was chosen by name is kept, and more buys more."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.clips import VideoInfo
from neuralloader.metrics.rate import bits_per_pixel
from neuralloader.training.budget import Budget, parse_budget
from neuralloader.training.choice import FILLED, Choice, choose, expect, trainable_parameters
from neuralloader.training.keyframe_probe import INTERVALS, KeyframeProbe
from neuralloader.training.rate_control import RateController
from neuralloader.training.sizes import Outline

SIZE = (128, 160)
# of 60 real videos at 4 frames/s
PROBE = KeyframeProbe(
    qualities=(10, 30, 50, 70, 90),
    bytes_per_keyframe=(233.0, 460.0, 1059.0, 2025.0, 4386.0),
    psnr_db=(31.8, 34.8, 38.3, 41.1, 44.4),
    between_psnr_db={8: 24.3, 16: 21.9, 32: 21.6},
)
STILL = replace(PROBE, between_psnr_db=dict.fromkeys(INTERVALS, 40.0))


def _outline(backend: str = "dnerv", config: str = "fast", num_videos: int = 60, length: int = 17) -> Outline:
    videos = [VideoInfo(f"a/{i}.avi", 0, length, 8 * length, 30.0, 4.0, (240, 320)) for i in range(num_videos)]
    return Outline(backend, config, SIZE, videos, [], frames_per_clip=8)


OUTLINE = _outline()


def _choose(
    budget: str | Budget, outline: Outline = OUTLINE, probe: KeyframeProbe | None = PROBE, **given: Any
) -> Choice:
    return choose(parse_budget(budget) if isinstance(budget, str) else budget, outline, probe, **given)


# --- a budget is kept, and used -------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(bpp=st.floats(0.12, 0.45), width=st.sampled_from([None, 24, "S"]), bits=st.sampled_from([None, 8, 5]))
def test_parts_add_up_to_the_budget(bpp: float, width: int | str | None, bits: int | None) -> None:
    choice = _choose(Budget(bits_per_pixel=bpp), width=width, weight_bits=bits)
    assert 0.995 * choice.budget_bytes <= choice.sizes.total <= choice.budget_bytes
    assert choice.budget_bytes == Budget(bits_per_pixel=bpp).num_bytes(OUTLINE.num_frames, SIZE)
    assert choice.shortfall is None
    network, corpus = OUTLINE.network(choice.width), OUTLINE.corpus(choice.key_interval)
    assert choice.sizes.weights == OUTLINE.weight_bytes(network, choice.weight_bits)
    assert choice.sizes.rest == OUTLINE.rest_bytes(corpus, network)
    keyframe_bytes = corpus.num_keyframes * PROBE.bytes_at(choice.keyframe_quality or 0)
    assert choice.sizes.keyframes == pytest.approx(keyframe_bytes, abs=1)
    assert choice.num_latents == corpus.num_latents
    assert choice.latent_bits_per_frame == pytest.approx(8 * choice.sizes.latents / corpus.num_latents)
    RateController(choice.latent_bits_per_frame, network.symbols_per_latent)


def test_more_buys_more_of_everything() -> None:
    choices = [_choose(f"{bpp}bpp") for bpp in (0.05, 0.1, 0.2, 0.4)]
    for less, more in pairwise(choices):
        assert more.sizes.keyframes > less.sizes.keyframes
        assert more.sizes.latents > less.sizes.latents
        assert OUTLINE.network(more.width).num_parameters >= OUTLINE.network(less.width).num_parameters
    assert OUTLINE.network(choices[-1].width).num_parameters > 3 * OUTLINE.network(choices[0].width).num_parameters


def test_the_shares_that_were_measured_to_be_good() -> None:
    """0.22 bpp of 60 videos: 62% key-frames, 17% weights of 6 bits, 19% latents were 0.45 dB better than thirds."""
    choice = _choose("0.2195bpp")
    shares = {name: getattr(choice.sizes, name) / choice.sizes.total for name in ("keyframes", "weights", "latents")}
    assert 0.5 < shares["keyframes"] < 0.7
    assert 0.12 < shares["weights"] < 0.3
    assert 0.1 < shares["latents"] < 0.25
    assert choice.key_interval == 8


def test_a_large_corpus_has_bytes_for_a_network_of_any_size() -> None:
    outline = _outline(num_videos=2000, length=80)
    choice = _choose("0.1bpp", outline)
    assert outline.network(choice.width).num_parameters > 2_000_000
    assert choice.weight_bits >= 5
    limited = _choose("0.1bpp", outline, most_parameters=500_000)
    assert outline.network(limited.width).num_parameters <= 500_000
    assert limited.sizes.total >= 0.995 * limited.budget_bytes, "the rest goes elsewhere"
    assert limited.sizes.keyframes > choice.sizes.keyframes


def test_still_videos_need_few_key_frames() -> None:
    outline = _outline(num_videos=20, length=200)
    assert _choose("0.1bpp", outline).key_interval == 8
    assert _choose("0.1bpp", outline, probe=STILL).key_interval == 32


def test_where_a_network_takes_no_part_of_the_bytes_rounding_it_gains_nothing() -> None:
    assert _choose("0.1bpp", _outline(num_videos=2000, length=80), most_parameters=100_000).weight_bits == 8


@pytest.mark.parametrize(("seconds", "seconds_per_frame", "at_least"), [(60, 0.005, 250_000), (120, 0.0035, 800_000)])
def test_what_can_be_trained_was_measured(seconds: float, seconds_per_frame: float, at_least: int) -> None:
    assert trainable_parameters(seconds=seconds, seconds_per_frame=seconds_per_frame) >= at_least
    assert trainable_parameters(seconds=1, seconds_per_frame=1) < 100


def test_without_time_it_is_the_smallest_network() -> None:
    assert _choose("0.2bpp", most_parameters=1).width == 8


# --- what was chosen is kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_by_name",
    [
        {"width": 24},
        {"width": "S"},
        {"weight_bits": 8},
        {"weight_bits": 3},
        {"key_interval": 16},
        {"key_interval": 64},
        {"keyframe_quality": 50},
        {"keyframe_quality": 1},
        {"width": 24, "weight_bits": 8, "key_interval": 8, "keyframe_quality": 40},
    ],
)
def test_what_was_chosen_by_name(given_by_name: dict[str, Any]) -> None:
    choice = _choose("0.2bpp", **given_by_name)
    assert {name: getattr(choice, name) for name in given_by_name} == given_by_name
    assert choice.sizes.total <= choice.budget_bytes


def test_a_width_that_was_chosen_needs_no_time() -> None:
    assert _choose("0.2bpp", width="S", most_parameters=1).width == "S"


# --- budgets that cannot be met -------------------------------------------------------------------------------------


def test_too_small() -> None:
    with pytest.raises(ValueError, match="a budget of 2,611 bytes is too small: 1020 frames of 128x160") as raised:
        _choose("0.001bpp")
    text = str(raised.value)
    assert "in dnerv fast; give more, or fewer or smaller frames" in text
    told = re.search(r"at least about ([\d,]+) bytes \(([\d.]+)bpp\)", text)
    assert told is not None
    least = int(told[1].replace(",", ""))
    assert float(told[2]) == pytest.approx(bits_per_pixel(least, OUTLINE.num_frames, SIZE), abs=1e-4)
    assert _choose(Budget(size_bytes=least)).sizes.total <= least
    with pytest.raises(ValueError, match="is too small"):
        _choose(Budget(size_bytes=least - 2))


def test_too_small_for_what_was_chosen() -> None:
    with pytest.raises(ValueError, match=r"in dnerv fast with width=96, keyframe_quality=50; give more, .* or leave"):
        _choose("0.1bpp", width=96, keyframe_quality=50)


def test_more_than_can_be_bought() -> None:
    choice = _choose("5bpp", most_parameters=500_000)
    assert choice.sizes.total < FILLED * choice.budget_bytes
    assert choice.shortfall is not None
    assert choice.shortfall.startswith(
        f"of the budget of {choice.budget_bytes:,} bytes, about {choice.sizes.total:,} can"
    )
    assert (
        f"a network of width {choice.width}, key-frames of quality 95, latents of 3.5 bits a number" in choice.shortfall
    )
    assert choice.keyframe_quality == 95
    assert OUTLINE.network(choice.width).num_parameters > 400_000
    assert choice.weight_bits == 8


# --- other networks -------------------------------------------------------------------------------------------------


def test_latents_alone() -> None:
    outline = _outline("cnerv")
    choice = _choose("0.2bpp", outline, probe=None)
    assert (choice.key_interval, choice.keyframe_quality, choice.sizes.keyframes) == (None, None, 0)
    assert choice.sizes.total == pytest.approx(choice.budget_bytes, rel=0.005)
    assert choice.num_latents == outline.num_frames
    assert 0.35 < choice.sizes.weights / choice.sizes.total < 0.65
    assert _choose("0.2bpp", outline, probe=PROBE) == choice, "a probe of key-frames that there are none of"


def test_nothing_but_weights() -> None:
    outline = _outline("nerv")
    for bpp in (0.05, 0.2, 0.8):
        choice = _choose(f"{bpp}bpp", outline, probe=None, weight_bits=8)
        assert isinstance(choice.width, int)
        assert choice.sizes.total <= choice.budget_bytes
        wider = outline.network(choice.width + 1)
        assert outline.weight_bytes(wider, 8) + choice.sizes.rest > choice.budget_bytes, "the largest that fits"
        assert choice.sizes.latents == choice.sizes.keyframes == choice.num_latents == 0
        assert choice.shortfall is not None
        assert f"about {choice.sizes.total:,} can be spent at most: there is only the network" in choice.shortfall
    limited = _choose("0.8bpp", outline, probe=None, most_parameters=100_000)
    assert outline.network(limited.width).num_parameters <= 100_000


def test_key_frames_alone() -> None:
    """The paper's D-NeRV: key-frames get what the network leaves, with room for an error of the probe."""
    outline = _outline("dnerv", "paper")
    choice = _choose("0.8bpp", outline)
    assert choice.shortfall is None
    assert choice.sizes.latents == 0
    assert 0.9 * choice.budget_bytes < choice.sizes.total < choice.budget_bytes
    assert choice.settle(round(1.01 * choice.sizes.keyframes)) is not None
    assert choice.settle(round(1.5 * choice.sizes.keyframes)) is None
    assert choice.settle(round(0.5 * choice.sizes.keyframes)) is not None, "it grows after training"
    fixed = _choose("0.8bpp", outline, keyframe_quality=20)
    assert fixed.keyframe_quality == 20
    assert _choose("20bpp", outline, most_parameters=2_000_000).shortfall is not None


def test_latents_on_a_grid_take_what_they_take() -> None:
    outline = _outline("hnerv", "paper")
    choice = _choose("0.4bpp", outline, probe=None)
    symbols = choice.num_latents * outline.network(choice.width).symbols_per_latent
    assert choice.num_latents == outline.num_frames
    assert 5 < 8 * choice.sizes.latents / symbols < 6
    assert isinstance(choice.width, int)
    wider = outline.weight_bytes(outline.network(choice.width + 1), choice.weight_bits)
    assert choice.width > 8
    assert wider + choice.sizes.latents + choice.sizes.rest > choice.budget_bytes, "the largest that fits"
    assert not choice.latents_are_steered


def test_a_network_for_each_video() -> None:
    outline = replace(_outline("nerv", num_videos=4), num_networks=4)
    choice = _choose("1bpp", outline, probe=None)
    assert choice.sizes.weights == pytest.approx(
        4 * outline.network(choice.width).num_parameters * choice.weight_bits / 8, abs=1
    )


def test_a_probe_is_needed() -> None:
    with pytest.raises(ValueError, match="dnerv fast has key-frames: choosing needs a probe of them"):
        _choose("0.2bpp", probe=None)


# --- settling, expecting --------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(error=st.floats(-0.2, 0.2))
def test_latents_bear_what_key_frames_took_more_or_less(error: float) -> None:
    choice = _choose("0.2bpp")
    real = choice.sizes.keyframes + round(error * choice.sizes.latents)
    settled = choice.settle(real)
    assert settled is not None
    assert settled.sizes.keyframes == real
    assert settled.sizes.total == choice.budget_bytes
    assert replace(settled, sizes=choice.sizes) == choice


def test_latents_do_not_bear_everything() -> None:
    choice = _choose("0.2bpp")
    for error in (-0.6, 0.3):
        assert choice.settle(choice.sizes.keyframes + round(error * choice.sizes.latents)) is None
    again = _choose("0.2bpp", probe=PROBE.scaled_to(50, 1300.0))
    assert again.keyframe_quality is not None
    assert choice.keyframe_quality is not None
    assert again.keyframe_quality < choice.keyframe_quality


def test_videos_of_one_frame_are_key_frames_only() -> None:
    outline = _outline(num_videos=300, length=1)
    choice = _choose("0.7bpp", outline)
    assert (choice.num_latents, choice.sizes.latents, choice.latent_bits_per_frame) == (0, 0, 0)
    assert choice.shortfall is None, "key-frames grow after training"
    assert choice.sizes.total > 0.95 * choice.budget_bytes
    assert choice.settle(choice.sizes.keyframes) == choice
    assert choice.settle(choice.budget_bytes) is None


def test_settings_without_a_budget() -> None:
    expected = expect(OUTLINE, PROBE, width="S", weight_bits=8, key_interval=8, keyframe_quality=50)
    corpus = OUTLINE.corpus(8)
    assert expected.sizes.keyframes == pytest.approx(corpus.num_keyframes * 1059, abs=1)
    assert 0.85 < expected.sizes.weights / OUTLINE.network("S").num_parameters < 1
    assert 8 * expected.sizes.latents / (corpus.num_latents * 640) == pytest.approx(1.6, abs=0.01)
    assert (expected.budget_bytes, expected.shortfall) == (expected.sizes.total, None)
    plain = expect(_outline("nerv"), None, width=16, weight_bits=8, key_interval=None, keyframe_quality=None)
    assert (plain.sizes.keyframes, plain.sizes.latents, plain.num_latents) == (0, 0, 0)


def test_it_is_quick_enough_to_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are laid out once for each interval, however many networks are tried."""
    laid_out: list[int | None] = []
    original = Outline.corpus
    monkeypatch.setattr(Outline, "corpus", lambda self, interval: laid_out.append(interval) or original(self, interval))
    _choose("0.2bpp")
    assert laid_out == list(INTERVALS)
    assert np.isfinite(OUTLINE.num_frames)
