"""Readers of the same clips, measured in turns: rows for ``neuralloader bench``.

A turn of a reader, of which every round has one:

    open, first pass over all batches   "cold": files to open, weights, latents and key-frames to decode
    second pass, every batch timed      "warm"
    close

Figures are medians over the rounds, so that a machine that slows down slows all readers. A rehearsal before the first
round loads libraries, fills the system's file cache and measures what needs no clock. Memory is measured apart, in a
process for each reader.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from neuralloader.corpus.rivals import PreparedRivals
from neuralloader.metrics.memory import measure_memory
from neuralloader.metrics.quality import psnr_db
from neuralloader.metrics.speed import seconds_of
from neuralloader.report.batches import BatchReader, Clip, read_all
from neuralloader.report.bench_result import ReaderRow

Progress = Callable[[str, float, str], None]  # stage, share of it that is done, a few words


@dataclass(frozen=True)
class Contestant:
    """A reader that takes part.

    Attributes:
        name: the reader, and what it reads.
        reader: gives batches of clips.
        bytes_per_frame: of its files, over the stored frames in them.
    """

    name: str
    reader: BatchReader
    bytes_per_frame: float


@dataclass(frozen=True)
class Rehearsal:
    """What needs no clock; as in ``ReaderRow``."""

    useful_share: float | None
    psnr_db: float | None
    worst_psnr_db: float | None


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn: the first pass with opening, and each batch of the second."""

    cold_seconds: float
    batch_seconds: list[float]


def rehearse(contestant: Contestant, batches: Sequence[Sequence[Clip]], prepared: PreparedRivals | None) -> Rehearsal:
    """Read every batch once, from opening to closing, and look at the frames.

    Args:
        contestant: the reader.
        batches: of clips.
        prepared: the frames that were packed; None leaves out the PSNR.
    """
    reader = contestant.reader
    decoded_before, num_useful, psnr = reader.frames_decoded or 0, 0, []
    try:
        for batch in batches:
            videos = reader.read(batch)  # (B, T, 3, H, W)
            num_useful += len({(clip.video, frame) for clip in batch for frame in clip.frames.tolist()})
            if prepared is not None:
                rows = np.stack([prepared.first_row[clip.video] + clip.frames for clip in batch])  # (B, T)
                originals = torch.from_numpy(prepared.decoded.frames[rows.ravel()]).permute(0, 3, 1, 2)
                psnr.append(psnr_db(videos.flatten(0, 1), originals.to(videos.device)).cpu())
        decoded = reader.frames_decoded
    finally:
        reader.close()
    return Rehearsal(
        useful_share=None if decoded is None else num_useful / (decoded - decoded_before),
        psnr_db=float(torch.cat(psnr).mean()) if psnr else None,
        worst_psnr_db=float(torch.cat(psnr).min()) if psnr else None,
    )


def measure_readers(
    contestants: Sequence[Contestant],
    rehearsals: Sequence[Rehearsal],
    batches: Sequence[Sequence[Clip]],
    num_rounds: int,
    device: torch.device,
    report: Progress,
) -> list[ReaderRow]:
    """Give each reader its turn in every round, then measure its memory.

    Args:
        contestants: the pack first.
        rehearsals: of each.
        batches: of clips, all of one shape.
        num_rounds: turns of each.
        device: a CUDA device to wait for.
        report: called with the stage, the share of it that is done, and the reader's name.

    Returns:
        A row for each.
    """
    turns: list[list[Turn]] = [[] for _ in contestants]
    for number in range(num_rounds):
        for place, each in enumerate(contestants):
            report("read in turns", (number + place / len(contestants)) / num_rounds, each.name)
            turns[place].append(_take_turn(each.reader, batches, device))
    report("read in turns", 1.0, "")
    rows: list[ReaderRow] = []
    for place, each in enumerate(contestants):
        report("measure memory", place / len(contestants), each.name)
        speed = _clips_per_second(turns[place], batches)
        batch_ms = 1e3 * np.array([turn.batch_seconds for turn in turns[place]])
        rows.append(
            ReaderRow(
                name=each.name,
                clips_per_second=speed,
                frames_per_second=speed * len(batches[0][0].frames),
                cold_clips_per_second=_num_clips(batches) / statistics.median(t.cold_seconds for t in turns[place]),
                to_the_pack=speed / _clips_per_second(turns[0], batches),
                batch_ms=float(np.median(batch_ms)),
                batch_ms_95=float(np.percentile(batch_ms, 95)),
                useful_share=rehearsals[place].useful_share,
                memory=measure_memory(partial(read_all, each.reader, batches)),
                bytes_per_frame=each.bytes_per_frame,
                psnr_db=rehearsals[place].psnr_db,
                worst_psnr_db=rehearsals[place].worst_psnr_db,
            )
        )
    report("measure memory", 1.0, "")
    return rows


def _take_turn(reader: BatchReader, batches: Sequence[Sequence[Clip]], device: torch.device) -> Turn:
    cold = seconds_of(partial(read_all, reader, batches), device=device)
    warm = [seconds_of(partial(reader.read, batch), device=device) for batch in batches]
    reader.close()
    return Turn(cold, warm)


def _clips_per_second(turns: Sequence[Turn], batches: Sequence[Sequence[Clip]]) -> float:
    return _num_clips(batches) / statistics.median(sum(turn.batch_seconds) for turn in turns)


def _num_clips(batches: Sequence[Sequence[Clip]]) -> int:
    return sum(len(batch) for batch in batches)
