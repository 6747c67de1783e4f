"""Add videos to a pack without training: its own encoder makes their latents, and its network stays as it is.

    old pack --weights, encoder, key-frames, latents as they stand--+
    videos --read, key-frames--> frames --the pack's encoder--> latents --+--> new pack

Old videos decode to the frames they decoded to before: nothing they are made of changes.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from neuralloader.backends import BACKENDS
from neuralloader.clips import (
    VideoTable,
    index_corpus,
    index_frames,
    index_units,
    join_splits,
    join_tables,
    join_videos,
    relabel,
    resplit,
)
from neuralloader.container.index import PackIndex, index_to_tensors
from neuralloader.container.writer import check_writable
from neuralloader.corpus.cache import Ingested, ingest
from neuralloader.corpus.find import find_sources
from neuralloader.corpus.source import FoundCorpus
from neuralloader.packfile import Pack, PackDescription, RoundedLatents, round_latents, save_with_weights
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import encode_latents
from neuralloader.training.keyframes import KEYFRAMES_PER_BATCH, encode_to_files
from neuralloader.training.packer import Measure
from neuralloader.training.settings import OnError, Resize
from neuralloader.training.stages import Report
from neuralloader.training.train import UNITS_PER_BATCH


@dataclass(frozen=True)
class AppendResult:
    """What came of adding videos.

    Attributes:
        path: the new pack.
        size_bytes: its size.
        added_bytes: what it has more than the old pack.
        num_videos, num_frames: what was added.
        psnr_db: mean over the added frames, of the pack read back.
    """

    path: Path
    size_bytes: int
    added_bytes: int
    num_videos: int
    num_frames: int
    psnr_db: float


def append(
    pack: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    device: torch.device | None,
    annotations: Sequence[str],
    on_error: OnError,
    overwrite: bool,
    measure: Measure,
    report: Report,
) -> AppendResult:
    """Write a pack with more videos; see ``neuralloader.append``."""
    output = Path(output)
    old = Pack(pack)
    check_appendable(old)
    check_writable(output, overwrite=overwrite)
    found = find_sources(Path(source), annotations)
    _check_new([video.name for video in found.sources], old)
    with (
        tempfile.TemporaryDirectory(prefix="neuralloader-") as folder,
        ingest(
            found.sources,
            frame_rate=old.description.frame_rate,
            size=old.frame_size,
            resize=_resize_of(old),
            on_error=on_error,
            progress=lambda done, total: report("read videos", done / total, f"{done} of {total}"),
        ) as corpus,
    ):
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return _append_frames(old, corpus, found, output, Path(folder), device, overwrite, measure, report)


def check_appendable(pack: Pack) -> None:
    """Refuse, with a ValueError that gives the reason, a pack whose network cannot encode new videos."""
    description = pack.description
    reason = BACKENDS[description.backend, description.config][1].why_not_appendable
    if description.scope == "video":
        reason = "each of its networks knows one video; pack the new ones by themselves, and open several packs as one"
    elif reason is None and not pack.is_appendable:
        reason = "it holds no encoder: it was packed without --appendable"
    if reason is not None:
        raise ValueError(f"{pack.path}: no videos can be added to it: {reason}")


def _append_frames(
    old: Pack,
    corpus: Ingested,
    found: FoundCorpus,
    output: Path,
    folder: Path,
    device: torch.device,
    overwrite: bool,
    measure: Measure,
    report: Report,
) -> AppendResult:
    all_classes = tuple(sorted({*old.classes, *found.classes}))
    all_splits = join_splits([old.splits, found.splits])
    videos = resplit(relabel(corpus.videos, found.classes, all_classes), found.splits, all_splits)
    clips, keys = index_corpus(
        np.array([video.num_frames for video in videos]),
        frames_per_clip=old.description.frames_per_clip,
        key_interval=old.description.key_interval,
    )
    added = PackIndex(videos, tuple(corpus.skipped), clips, keys)
    index = _join(old, added, all_classes, all_splits)
    index_to_tensors(index)  # refuses names that no pack can hold, before any work

    table = index_frames(clips, keys)
    keyframes, decoded_keyframes = encode_to_files(
        corpus.frames,
        table.key_rows,
        old.description.keyframe_codec,
        old.description.keyframe_quality,
        folder,
        lambda done: report("encode key-frames", done / len(keys), f"{done} of {len(keys)}"),
    )
    report("encode latents", 0, "")
    backend = old.load_backend(with_encoder=True).to(device)
    units = index_units(clips, backend.frames_per_unit)
    data = TrainingSet(corpus.frames, decoded_keyframes, table, units, device)
    stored = old.latents()
    values = encode_latents(backend, data, units_per_batch=UNITS_PER_BATCH)
    latents = round_latents(values, backend.latent_bits, grid=stored.grid)
    report("encode latents", 1, "")

    weights, alone = old.weight_parts(), folder / "added.nvpack"  # the added videos by themselves, to be measured
    described = replace(old.description, classes=all_classes, splits=all_splits)
    save_with_weights(alone, described, added, *weights, keyframes, latents)
    measured = measure(alone, corpus.frames, device, lambda done: report("measure", done, ""))
    size_bytes = save_with_weights(
        output,
        _describe(described, len(old.frames), len(videos), len(corpus.frames), measured),
        index,
        *weights,
        _KeyframeFiles(old, keyframes),
        RoundedLatents(np.concatenate([stored.symbols, latents.symbols]), stored.grid),
        overwrite=overwrite,
    )
    return AppendResult(
        path=output,
        size_bytes=size_bytes,
        added_bytes=size_bytes - old.size_bytes,
        num_videos=len(videos),
        num_frames=len(corpus.frames),
        psnr_db=measured["psnr_db"],
    )


def _join(old: Pack, added: PackIndex, classes: tuple[str, ...], splits: tuple[str, ...]) -> PackIndex:
    """The old videos, then the added ones. A source that was skipped once may have come by now, or be skipped again."""
    index = old.index
    come = {video.name for video in added.videos} | {source.name for source in added.skipped}
    skipped = (*(source for source in index.skipped if source.name not in come), *added.skipped)
    clips, keys = join_tables(
        [(index.clips, index.keys), (added.clips, added.keys)], [len(index.videos), len(added.videos)]
    )
    before = resplit(relabel(index.videos, old.classes, classes), old.splits, splits)
    return PackIndex(join_videos([before, VideoTable.of(added.videos)]), skipped, clips, keys)


def _resize_of(old: Pack) -> Resize:
    """How its frames were resized; packs of before that was a choice do not tell."""
    resize = old.description.training.get("resize", "squash")
    if resize not in get_args(Resize):
        raise ValueError(
            f"{old.path}: its frames were resized by {resize!r:.40}, which this neuralloader does not know"
        )
    return resize


def _check_new(names: Sequence[str], pack: Pack) -> None:
    held = {video.name for video in pack.index.videos}
    twice = next((name for name in names if name in held), None)
    if twice is not None:
        raise ValueError(f"{pack.path} has a video {twice} already; rename the new one, or leave it out")


def _describe(
    description: PackDescription, num_old_frames: int, num_videos: int, num_frames: int, measured: dict[str, float]
) -> PackDescription:
    """The manifest's part: old frames keep their quality, so that the whole's follows from the two."""
    training: dict[str, Any] = dict(description.training)
    for name, count in (("appended_videos", num_videos), ("appended_frames", num_frames)):
        before = training.get(name)  # for information, so that whatever stands there was read
        training[name] = count + (before if type(before) is int and before > 0 else 0)
    quality = dict(description.quality)
    if "psnr_db" in quality:
        share = num_frames / (num_old_frames + num_frames)
        quality["psnr_db"] = round((1 - share) * quality["psnr_db"] + share * measured["psnr_db"], 4)
        share = num_frames / training["appended_frames"]
        appended = quality.get("appended_psnr_db", 0.0)
        quality["appended_psnr_db"] = round((1 - share) * appended + share * measured["psnr_db"], 4)
    if "worst_psnr_db" in quality:
        quality["worst_psnr_db"] = min(quality["worst_psnr_db"], measured["worst_psnr_db"])
    return replace(description, training=training, quality=quality)


class _KeyframeFiles(Sequence[bytes]):
    """The key-frames of a pack as they stand in it, then others; read some at a time."""

    def __init__(self, old: Pack, added: Sequence[bytes]):
        self._old, self._added = old, added
        self._num_old = len(old.index.keys)
        self._first, self._read = 0, list[bytes]()  # what was read last, and where it starts

    def __len__(self) -> int:
        return self._num_old + len(self._added)

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        if index >= self._num_old:
            return self._added[index - self._num_old]
        if not self._first <= index < self._first + len(self._read):
            self._first = index
            self._read = self._old.keyframe_files(np.arange(index, min(index + KEYFRAMES_PER_BATCH, self._num_old)))
        return self._read[index - self._first]
