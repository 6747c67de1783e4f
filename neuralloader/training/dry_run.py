"""``neuralloader pack --dry-run``: what a run would take and make, found out without reading the corpus whole.

probe of all files --> frames of each --> outline
a few videos, decoded --> probe of key-frames, 20 training steps --> sizes, memory, time
"""

import os
from pathlib import Path

import numpy as np

from neuralloader.backends import BACKENDS
from neuralloader.clips import VideoInfo
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_sources
from neuralloader.corpus.probe import probe_sources
from neuralloader.corpus.settings import ReadSettings
from neuralloader.corpus.source import Source
from neuralloader.errors import SourceError
from neuralloader.training.choice import expect
from neuralloader.training.group import ALONE
from neuralloader.training.keyframe_probe import Run, choose_runs, probe_keyframes
from neuralloader.training.plan import Plan, make_plan
from neuralloader.training.recipes import RECIPES
from neuralloader.training.samplers import items_per_step
from neuralloader.training.settings import FRAMES_PER_CLIP, PackSettings
from neuralloader.training.sizes import Outline
from neuralloader.training.spending import by_settings, choose_by, most_parameters, of_choice, time_steps
from neuralloader.training.stages import Report

NUM_STEPS = 20


def plan_run(source: str | os.PathLike[str], settings: PackSettings, *, report: Report) -> Plan:
    """Plan a run of the packer, and leave nothing behind.

    Args:
        source: as ``pack`` has it, but for videos in Python.
        settings: of the run; sources that cannot be opened are left out, and listed.
        report: as ``pack`` has it.

    Raises: as ``pack``, and
        ValueError: a network for each video, which is not planned.
    """
    if settings.scope == "video":
        raise ValueError("a dry run plans one network for the corpus; with scope='video' there is no plan")
    found = find_sources(Path(source), settings.annotations)
    read = ReadSettings(settings.frame_rate, settings.size, settings.resize, settings.image_frame_rate)
    table = probe_sources(
        found.sources, read, progress=lambda done, total: report("read videos", done / total, f"{done} of {total}")
    )
    good = np.flatnonzero(table.num_frames)
    if not len(good):
        raise SourceError(f"none of {len(table)} videos can be opened; the first: {table.skipped[0].reason}")
    sources, num_frames = [found.sources[place] for place in good], table.num_frames[good]
    outline = Outline(
        backend=settings.backend,
        config=settings.config,
        frame_size=settings.size,
        videos=[_expected_video(s, int(n)) for s, n in zip(sources, num_frames, strict=True)],
        skipped=table.skipped,
        frames_per_clip=FRAMES_PER_CLIP,
        appendable=settings.appendable,
    )
    samples = _read_runs(sources, choose_runs(num_frames), settings)
    uses_keyframes = BACKENDS[settings.backend, settings.config][1].uses_keyframes
    probe = probe_keyframes(samples, settings.keyframe_codec) if uses_keyframes else None
    device, frames = ALONE.device(settings.device), np.concatenate(samples)
    if settings.budget is None:
        spending = by_settings(settings)
        choice = expect(
            outline,
            probe,
            width=spending.width,
            weight_bits=spending.weight_bits,
            key_interval=spending.key_interval,
            keyframe_quality=spending.keyframe_quality if uses_keyframes else None,
        )
    else:
        most = most_parameters(settings, frames, int(num_frames.sum()), device)
        choice = choose_by(settings, outline, probe, most)
        spending = of_choice(settings, choice)
    report("train", 0, "a few steps")
    cost = time_steps(settings, frames, spending.width, device, num_steps=NUM_STEPS)
    report("train", 1, "")
    recipe = RECIPES[settings.backend, settings.config]
    num_items, wanted = outline.corpus(choice.key_interval).num_clips, recipe.clips_per_step
    if recipe.frames_per_step is not None:
        num_items, wanted = outline.num_frames, recipe.frames_per_step
    steps_per_epoch = -(-num_items // items_per_step(num_items, wanted))
    seconds_per_step = cost.seconds_per_frame * outline.num_frames / steps_per_epoch
    return make_plan(
        outline,
        choice,
        has_budget=settings.budget is not None,
        duration=settings.duration,
        time_step=lambda: seconds_per_step,
        steps_per_epoch=steps_per_epoch,
        step_bytes=cost.num_bytes,
    )


def _expected_video(source: Source, num_frames: int) -> VideoInfo:
    """What the index will say of a video, as far as it takes bytes."""
    return VideoInfo(source.name, source.label, num_frames, num_frames, 1.0, 1.0, (1, 1), splits=source.splits)


def _read_runs(sources: list[Source], runs: list[Run], settings: PackSettings) -> list[np.ndarray]:
    """(T, H, W, 3) uint8 each: the frames of some runs; their videos are decoded for it."""
    videos = [sources[run.video] for run in runs]
    with ingest(
        videos,
        frame_rate=settings.frame_rate,
        size=settings.size,
        resize=settings.resize,
        image_frame_rate=settings.image_frame_rate,
        on_error="keep-partial",
    ) as corpus:
        run_of = {video.name: run for video, run in zip(videos, runs, strict=True)}
        samples, row = [], 0
        for video in corpus.videos:
            run = run_of[video.name]
            first = row + min(run.first, video.num_frames - 1)
            samples.append(corpus.frames[first : min(first + run.num_frames, row + video.num_frames)])
            row += video.num_frames
    return samples
