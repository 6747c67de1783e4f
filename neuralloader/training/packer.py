"""Pack a corpus: the whole run, in reading order. Started again after an interruption, it goes on where it stopped.

    find --> read (``frames/``) --> encode key-frames (``keyframes/``) --> train (``checkpoint``) --> measure --> pack

All but the pack lies in the run's folder beside it (``run_folder``). Several processes share reading, key-frames and
training; the first of them writes.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neuralloader.backends import BACKENDS, network_of
from neuralloader.clips import ClipTable, FrameTable, KeyframeTable, index_corpus, index_frames, index_units
from neuralloader.codecs.keyframes import check_codec_available
from neuralloader.container.index import PackIndex, index_to_tensors
from neuralloader.container.writer import check_writable
from neuralloader.corpus.cache import Ingested
from neuralloader.corpus.find import find_sources
from neuralloader.corpus.frames import FrameFiles
from neuralloader.corpus.source import FoundCorpus
from neuralloader.packfile import PackDescription, build_backend, save_pack
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.finish import Contents, meet_budget
from neuralloader.training.group import Group, joined_group
from neuralloader.training.growth import Grown, grow_keyframes
from neuralloader.training.keyframes import encode_to_files
from neuralloader.training.memory import keep_freed_memory
from neuralloader.training.reading import Source, keep_arrays, read_frames, source_id
from neuralloader.training.run_folder import RunFolder
from neuralloader.training.settings import FRAMES_PER_CLIP, PackSettings
from neuralloader.training.spending import Encoded, Spending, by_settings, probe_corpus, spend_budget
from neuralloader.training.stages import Report, Stage
from neuralloader.training.train import Trained, train

# pack, original frames, device, progress -> figures for the manifest. Handed in: the decoder lives in another room
Measure = Callable[[Path, np.ndarray | FrameFiles, torch.device, Callable[[float], None]], dict[str, float]]


@dataclass(frozen=True)
class PackResult:
    """What came of packing.

    Attributes:
        path: the pack.
        size_bytes: its size.
        psnr_db: mean over all frames, of the pack read back.
        steps: training steps done.
        notes: what else is worth telling, such as videos that are there twice.
        is_writer: whether this process wrote it: one of several does.
    """

    path: Path
    size_bytes: int
    psnr_db: float
    steps: int
    notes: tuple[str, ...] = ()
    is_writer: bool = True


def pack(
    source: Source, output: str | os.PathLike[str], settings: PackSettings, *, measure: Measure, report: Report
) -> PackResult:
    """Train one network on a corpus and store everything in one file; see ``neuralloader.pack``."""
    output = Path(output)
    keep_freed_memory()
    with joined_group() as group, ExitStack() as stack:
        if group.is_first:
            check_writable(output, overwrite=settings.overwrite)
        check_codec_available(settings.keyframe_codec)
        if isinstance(source, str | os.PathLike):
            found = find_sources(Path(source), settings.annotations)  # before a folder is made: it may be a wrong path
        run = RunFolder(output)
        if group.is_first:
            stack.enter_context(run.open(settings.request(), fresh=settings.fresh))
        else:
            report = _keep_quiet
        group.wait()
        if not isinstance(source, str | os.PathLike):
            found = keep_arrays(source, run, settings, group)
        return _Run(output, settings, run, group, found, measure, report).pack()


@dataclass(frozen=True)
class _Run:
    """A run of the packer, of which every process of a group has one."""

    output: Path
    settings: PackSettings
    folder: RunFolder
    group: Group
    found: FoundCorpus
    measure: Measure
    report: Report

    def pack(self) -> PackResult:
        settings, device = self.settings, self.group.device(self.settings.device)
        corpus = read_frames(
            self.found,
            self.folder,
            settings,
            self.group,
            lambda done, total: self.report("read videos", done / total, f"{done} of {total}"),
        )
        spending, (keyframes, decoded) = self._spend(corpus, device)
        clips, keys, table = _tables(corpus, spending.key_interval)
        index = PackIndex(tuple(corpus.videos), tuple(corpus.skipped), clips, keys)
        index_to_tensors(index)  # refuses names that no pack can hold, before hours of training

        network = network_of(settings.backend, settings.config, spending.width, settings.size)
        with torch.device("meta"):
            outline = build_backend(settings.backend, settings.config, network)
        units = index_units(clips, outline.frames_per_unit)
        held_out = None if settings.hold_out is None else table.all.frame % settings.hold_out == settings.hold_out - 1
        data = TrainingSet(corpus.frames, decoded, table, units, device, held_out, settings.scope)
        trained = train(network, data, spending, self.folder, settings, self.group, self.report)
        if not self.group.is_first:
            return self._share_result(0, 0.0, trained.steps, spending)
        description = PackDescription(
            backend=settings.backend,
            config=settings.config,
            network=network,
            frame_size=settings.size,
            frames_per_clip=FRAMES_PER_CLIP,
            key_interval=spending.key_interval,
            frame_rate=settings.frame_rate,
            classes=self.found.classes,
            splits=self.found.splits,
            keyframe_codec=settings.keyframe_codec,
            keyframe_quality=spending.keyframe_quality,
            weight_bits=spending.weight_bits,
            training=self._describe_training(spending, trained.steps),
            quality={},
            scope=settings.scope,
        )
        contents = Contents(keyframes, spending.keyframe_quality, trained.latents)
        size_bytes, psnr_db = self._write(description, index, table, corpus, trained, contents, spending, device)
        self.folder.finish()
        return self._share_result(size_bytes, psnr_db, trained.steps, spending)

    def _spend(self, corpus: Ingested, device: torch.device) -> tuple[Spending, Encoded]:
        """What is decided about network and key-frames, and these encoded."""

        def encode(spending: Spending) -> Encoded:
            _, keys, table = _tables(corpus, spending.key_interval)
            return encode_to_files(
                corpus.frames,
                table.key_rows,
                self.settings.keyframe_codec,
                spending.keyframe_quality,
                self.folder.keyframes,
                lambda done: self.report("encode key-frames", done / len(keys), f"{done} of {len(keys)}"),
                group=self.group,
                source_id=source_id(self.settings, self.found, corpus),
            )

        if self.settings.budget is not None:
            return spend_budget(self.settings, corpus, self.folder.choice, device, self.group, encode)
        spending = by_settings(self.settings)
        return spending, encode(spending)

    def _write(
        self,
        description: PackDescription,
        index: PackIndex,
        table: FrameTable,
        corpus: Ingested,
        trained: Trained,
        contents: Contents,
        spending: Spending,
        device: torch.device,
    ) -> tuple[int, float]:
        """Write the pack by way of a trial file, so that the manifest says what a reader gets; its bytes and PSNR."""
        trial = self.folder.path / "trial.nvpack"

        def save(contents: Contents, path: Path = trial, overwrite: bool = True) -> int:
            return save_pack(
                path,
                replace(description, keyframe_quality=contents.keyframe_quality),
                index,
                trained.backend,
                contents.keyframes,
                contents.latents,
                appendable=self.settings.appendable,
                overwrite=overwrite,
            )

        choice = spending.choice
        if choice is None:
            save(contents)
        else:
            self.report("meet the budget", 0, "")
            contents = meet_budget(
                contents,
                choice.budget_bytes,
                save=save,
                latent_values=trained.latent_values,
                latents_per_clip=table.latents_per_clip(),
                grow=self._grow(contents, table, corpus) if choice.shortfall is None else None,
            )
            self.report("meet the budget", 1, "")
        measured = self.measure(trial, corpus.frames, device, lambda done: self.report("measure", done, ""))
        description = replace(description, quality=measured)
        return save(contents, self.output, self.settings.overwrite), measured["psnr_db"]

    def _grow(self, contents: Contents, table: FrameTable, corpus: Ingested) -> Callable[[int], Grown] | None:
        """Better key-frames for more bytes, unless the user has chosen their quality."""
        uses_keyframes = BACKENDS[self.settings.backend, self.settings.config][1].uses_keyframes
        if not uses_keyframes or self.settings.keyframe_quality is not None:
            return None

        def grow(more_bytes: int) -> Grown:
            return grow_keyframes(
                corpus.frames,
                table.key_rows,
                contents.keyframes,
                self.settings.keyframe_codec,
                contents.keyframe_quality,
                probe_corpus(corpus, self.settings),
                more_bytes=more_bytes,
                folder=self.folder.path,
                on_progress=lambda done: self.report("meet the budget", 0, f"key-frame {done}"),
            )

        return grow

    def _describe_training(self, spending: Spending, steps: int) -> dict[str, str | int | float | None]:
        settings = self.settings
        told: dict[str, str | int | float | None] = {
            "width": spending.width,
            "resize": settings.resize,
            "seed": settings.seed,
            "minutes": settings.duration.minutes,
            "epochs": settings.duration.epochs,
            "hold_out": settings.hold_out,
            "steps": steps,
        }
        return told if settings.budget is None else told | {"budget": str(settings.budget)}

    def _share_result(self, size_bytes: int, psnr_db: float, steps: int, spending: Spending) -> PackResult:
        """Every process returns what the first one made."""
        total_bytes, psnr_db = self.group.sum([size_bytes, psnr_db])
        notes, choice = self.found.notes, spending.choice
        if choice is not None and choice.shortfall is not None:
            notes = (*notes, choice.shortfall)
        elif choice is not None and not 0.98 <= total_bytes / choice.budget_bytes <= 1.0:
            notes = (*notes, f"the budget of {choice.budget_bytes:,} bytes is missed: {total_bytes:,.0f} bytes")
        return PackResult(self.output, int(total_bytes), psnr_db, steps, notes, self.group.is_first)


def _tables(corpus: Ingested, key_interval: int | None) -> tuple[ClipTable, KeyframeTable, FrameTable]:
    num_frames = np.array([video.num_frames for video in corpus.videos])
    clips, keys = index_corpus(num_frames, frames_per_clip=FRAMES_PER_CLIP, key_interval=key_interval)
    return clips, keys, index_frames(clips, keys)


def _keep_quiet(stage: Stage, done: float, note: str) -> None:
    """The report of all processes but the first."""
