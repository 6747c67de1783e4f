"""How fast a pack gives clips, beside its rivals: ``neuralloader bench``, from the pack to the rows of its tables.

choose videos and clips > prepare the rivals > read in turns (``turns``) > train in turns (``waiting``)
"""

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from neuralloader.clips import VideoInfo
from neuralloader.corpus.clip_readers import DecordReader
from neuralloader.corpus.rivals import PreparedRivals, failure_reason, prepare_rivals
from neuralloader.packfile import Pack
from neuralloader.report.batches import Clip, DatasetSettings, PackReader, RivalReader, choose_clips
from neuralloader.report.bench_result import BenchResult, BenchSettings, NotMeasured, WaitingRow
from neuralloader.report.consumer import Consumer
from neuralloader.report.turns import Contestant, Progress, Rehearsal, measure_readers, rehearse
from neuralloader.report.waiting import measure_loaders, pack_loader, rival_loader

PACK = "pack"  # the name of its rows
WORKERS_OF_RIVALS = (0, 2)  # of their DataLoaders in training
MAX_TRAINING_ROUNDS = 3  # a step takes a second and more on a CPU


def run_bench(
    path: str | os.PathLike[str],
    settings: BenchSettings,
    *,
    device: torch.device,
    against: Path | None = None,
    report: Progress = lambda stage, done, note: None,
) -> BenchResult:
    """Measure a pack, and its rivals where the originals are given. Takes minutes, and leaves no file behind.

    Args:
        path: the pack.
        settings: what to measure.
        device: where the pack is decoded, the frames end up, and the consumer is trained.
        against: the folder that was packed; None measures the pack alone.
        report: called with the stage, the share of it that is done, and a note.

    Raises:
        FileNotFoundError: there is no such pack or folder.
        PackError: the pack is damaged.
        ValueError: an original is not in the folder.
        SourceError: an original cannot be decoded, or is another than the one that was packed.
        OSError: there is no room for the rivals' files.
    """
    pack = Pack(path)
    videos = _choose_videos(pack, settings)
    dataset = DatasetSettings(
        path=path,
        videos=tuple(video.name for video in videos),
        sampler=settings.sampler,
        frames_per_clip=settings.frames_per_clip,
        seed=settings.seed,
        device=device,
    )
    clips = choose_clips(dataset, settings.num_clips)
    batch_size = min(settings.batch_size, len(clips))
    batches = [clips[start : start + batch_size] for start in range(0, len(clips) - batch_size + 1, batch_size)]
    contestants = [Contestant(PACK, PackReader(dataset), pack.size_bytes / len(pack.frames))]
    not_measured: list[NotMeasured] = []
    with tempfile.TemporaryDirectory(prefix="neuralloader-bench-") as folder:
        prepared = None
        if against is not None:
            prepared = prepare_rivals(
                against,
                videos,
                frame_rate=pack.description.frame_rate,
                size=pack.frame_size,
                folder=Path(folder),
                progress=partial(report, "prepare the rivals"),
            )
            not_measured += [NotMeasured(each.name, each.why_not) for each in prepared.rivals if each.reader is None]
            contestants += [
                Contestant(each.name, RivalReader(each.reader, device), each.size_bytes / len(prepared.decoded.frames))
                for each in prepared.rivals
                if each.reader is not None
            ]
        contestants, rehearsals, failed = _rehearse_all(contestants, batches, prepared, report)
        readers = measure_readers(contestants, rehearsals, batches, settings.num_rounds, device, report)
        waiting = _train_in_turns(pack, settings, dataset, contestants, batches, Path(folder), device, report)
    frames = [clip.frames for batch in batches for clip in batch]
    return BenchResult(
        pack=str(path),
        backend=pack.description.backend,
        config=pack.description.config,
        frame_size=pack.frame_size,
        settings=settings,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        num_videos=len(videos),
        num_videos_in_pack=len(pack.index.videos),
        num_clips=len(frames),
        batch_size=batch_size,
        num_frames=sum(len(each) for each in frames),
        num_different_frames=sum(len(np.unique(each)) for each in frames),
        readers=tuple(readers),
        waiting=tuple(waiting),
        not_measured=(*not_measured, *failed),
    )


def _choose_videos(pack: Pack, settings: BenchSettings) -> list[VideoInfo]:
    """A random few of the pack's videos, in its order."""
    order = np.random.default_rng(settings.seed).permutation(len(pack.index.videos))
    return [pack.index.videos[row] for row in sorted(order[: settings.num_videos].tolist())]


def _rehearse_all(
    contestants: Sequence[Contestant],
    batches: Sequence[Sequence[Clip]],
    prepared: PreparedRivals | None,
    report: Progress,
) -> tuple[list[Contestant], list[Rehearsal], list[NotMeasured]]:
    """Those that can read all clips, what their rehearsals gave, and those that cannot."""
    able, rehearsals, failed = [], [], []
    for number, each in enumerate(contestants):
        report("rehearse", number / len(contestants), each.name)
        try:
            rehearsals.append(rehearse(each, batches, prepared))
            able.append(each)
        except Exception as error:
            if each.name == PACK:
                raise
            failed.append(NotMeasured(each.name, failure_reason(error)))
    report("rehearse", 1.0, "")
    return able, rehearsals, failed


def _train_in_turns(
    pack: Pack,
    settings: BenchSettings,
    dataset: DatasetSettings,
    contestants: Sequence[Contestant],
    batches: Sequence[Sequence[Clip]],
    folder: Path,
    device: torch.device,
    report: Progress,
) -> list[WaitingRow]:
    """Train from the pack, and from decord with and without workers."""
    if settings.consumer is None:
        return []
    clips = [clip for batch in batches for clip in batch]
    makers = {(PACK, 0): partial(pack_loader, dataset, clips, len(batches[0]))}
    for each in contestants:
        if isinstance(each.reader, RivalReader) and isinstance(each.reader.clip_reader, DecordReader):
            for num_workers in WORKERS_OF_RIVALS:
                make = partial(rival_loader, each.reader.clip_reader, clips, len(batches[0]), num_workers, folder)
                makers[each.name, num_workers] = make
    consumer = Consumer(settings.consumer, len(pack.classes), settings.frames_per_clip, device)
    return measure_loaders(makers, consumer, min(settings.num_rounds, MAX_TRAINING_ROUNDS), device, report)
