"""Plans: what their figures follow from, and how they read."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.clips import SkippedSource, VideoInfo
from neuralloader.metrics.rate import bits_per_pixel
from neuralloader.training.budget import Budget
from neuralloader.training.choice import choose, expect
from neuralloader.training.clock import Duration
from neuralloader.training.keyframe_probe import KeyframeProbe
from neuralloader.training.plan import Plan, make_plan, plan_lines
from neuralloader.training.sizes import Outline

VIDEOS = [VideoInfo(f"a/{i}.avi", 0, 17, 136, 30.0, 4.0, (240, 320)) for i in range(60)]
OUTLINE = Outline("dnerv", "fast", (128, 160), VIDEOS, [], frames_per_clip=8)
PROBE = KeyframeProbe((10, 90), (233.0, 4386.0), (31.8, 44.4), {8: 24.3, 16: 21.9, 32: 21.6})
BUDGET = Budget(bits_per_pixel=0.2)
MINUTE = Duration(minutes=1)


def _plan(outline: Outline = OUTLINE, *, budget: Budget | None = BUDGET, duration: Duration = MINUTE) -> Plan:
    if budget is not None:
        choice = choose(budget, outline, PROBE)
    elif outline.backend == "dnerv":
        choice = expect(outline, PROBE, width="S", weight_bits=8, key_interval=8, keyframe_quality=50)
    else:
        choice = expect(outline, None, width="S", weight_bits=8, key_interval=None, keyframe_quality=None)
    return make_plan(
        outline,
        choice,
        has_budget=budget is not None,
        duration=duration,
        time_step=lambda: 0.25,
        steps_per_epoch=24,
        step_bytes=350_000_000,
    )


def test_figures() -> None:
    plan = _plan(budget=None)
    network = OUTLINE.network("S")
    assert plan.corpus.num_frames == 1020
    assert plan.corpus.num_clips == 180
    assert plan.corpus.num_keyframes == 180
    assert plan.bits_per_pixel == pytest.approx(bits_per_pixel(plan.choice.sizes.total, 1020, (128, 160)))
    assert plan.memory.frames == 1020 * 128 * 160 * 3
    assert plan.memory.keyframes == 180 * 128 * 160 * 3
    assert plan.memory.network == 20 * (network.num_parameters + network.num_encoder_parameters)
    assert plan.memory.latents == 12 * 840 * 8 * 8 * 10
    assert plan.memory.total == sum(
        (plan.memory.frames, plan.memory.keyframes, plan.memory.network, plan.memory.latents, plan.memory.step)
    )
    assert plan.seconds_per_epoch == 6
    assert (plan.seconds, plan.num_epochs) == (60, 10)


@settings(max_examples=10)
@given(epochs=st.integers(1, 1000))
def test_epochs_take_the_time_of_their_steps(epochs: int) -> None:
    plan = _plan(duration=Duration(epochs=epochs))
    assert plan.seconds == 6 * epochs
    assert plan.num_epochs == epochs


def test_steps_are_timed_once() -> None:
    asked: list[int] = []
    plan = make_plan(
        OUTLINE,
        choose(BUDGET, OUTLINE, PROBE),
        has_budget=True,
        duration=MINUTE,
        time_step=lambda: asked.append(1) or 0.5,
        steps_per_epoch=10,
        step_bytes=1,
    )
    assert (asked, plan.seconds_per_step) == ([1], 0.5)


def test_text_of_settings() -> None:
    lines = plan_lines(_plan(budget=None))
    assert lines[:5] == [
        "1,020 frames of 128x160 in 60 videos, 180 clips of 8",
        "dnerv (fast) of width S: 208,369 parameters of 8 bits",
        "180 key-frames of quality 50, one every 8 frames",
        "",
        "Expected:",
    ]
    assert [line.split()[0] for line in lines[5:10]] == ["weights", "keyframes", "latents", "rest", "total"]
    assert lines[10:] == [
        "0.1905 bits per pixel",
        "",
        "Memory: 434 MB: frames 62.7 MB, key-frames 11.1 MB, network 4.22 MB, latents 6.45 MB, a step 350 MB",
        "Time: 0.25 s a step, 24 steps an epoch: 6 s an epoch, 10 epochs in 60 s",
    ]


def test_text_of_a_budget() -> None:
    lines = plan_lines(_plan())
    assert "The file is brought to the budget of 522,240 bytes." in lines
    assert any(line.startswith("0.2000 bits per pixel") for line in lines)
    large = plan_lines(_plan(budget=Budget(size_bytes=10**9)))
    assert any(line.startswith("of the budget of 1,000,000,000 bytes, about ") for line in large)
    assert not any("The file is brought" in line for line in large)


def test_text_of_a_network_for_each_video() -> None:
    outline = replace(OUTLINE, backend="nerv", num_networks=60, skipped=[SkippedSource("b.avi", "it is empty")])
    lines = plan_lines(_plan(outline, budget=None))
    assert lines[0].endswith("180 clips of 8; 1 source skipped")
    assert lines[1].startswith("nerv (fast) of width S: ")
    assert lines[1].endswith(" parameters of 8 bits in 60 networks, one for each video")
    assert not any("key-frame" in line for line in lines[2:-2])
    assert not any(line.startswith(("latents", "keyframes")) for line in lines)


def test_text_of_long_trainings() -> None:
    assert plan_lines(_plan(duration=Duration(minutes=50)))[-1].endswith("500 epochs in 50 min")
    assert plan_lines(_plan(duration=Duration(minutes=600)))[-1].endswith("6,000 epochs in 10 h")


def test_too_little_time() -> None:
    *_, time, warning = plan_lines(_plan(duration=Duration(minutes=0.05)))
    assert time.endswith("0.5 epochs in 3 s")
    assert warning.startswith("That is less than one epoch: some frames are never trained on")
