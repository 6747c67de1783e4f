"""Pack a corpus: the whole run, in reading order."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from neuralloader.backends import BACKENDS, Backend, Scope, network_of
from neuralloader.clips import index_corpus, index_frames, index_units
from neuralloader.codecs.keyframes import KeyframeCodec, check_codec_available
from neuralloader.container.index import PackIndex, index_to_tensors
from neuralloader.container.writer import check_writable
from neuralloader.corpus.cache import Ingested, ingest
from neuralloader.corpus.find import find_videos
from neuralloader.packfile import PackDescription, RoundedLatents, build_backend, round_latents, save_pack
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Duration, Progress, encode_latents, fit
from neuralloader.training.keyframes import encode_to_files
from neuralloader.training.memory import keep_freed_memory
from neuralloader.training.recipes import KEY_INTERVALS, RECIPES
from neuralloader.training.rounding import round_in_place
from neuralloader.training.videos import fit_videos

FRAMES_PER_CLIP = 8  # the paper's; its networks have it in their weights
WEIGHT_BITS = 8
MAX_SEED = 2**63 - 1
UNITS_PER_BATCH = 64  # while encoding latents

Stage = Literal["read videos", "encode key-frames", "train", "encode latents", "measure"]
Report = Callable[[Stage, float, str], None]  # stage, share of it that is done, a few words to show
# pack, original frames, device, progress -> figures for the manifest. Handed in: the decoder lives in another room
Measure = Callable[[Path, np.ndarray, torch.device, Callable[[float], None]], dict[str, float]]


@dataclass(frozen=True)
class PackSettings:
    """What a user can choose about a pack.

    Attributes:
        frame_rate: frames kept per second; None keeps every frame.
        size: (height, width) that frames are resized to.
        backend, config: which network, in which configuration.
        width: size of the network: a preset, "XS" to "L", or its number of channels.
        duration: how long to train.
        seed: of everything random.
        device: where to train; None is CUDA where it is there, else the CPU.
        on_error: "raise" names all bad files and packs nothing, "skip" packs the others.
        keyframe_codec: image format of key-frames.
        keyframe_quality: 1 to 100, on the codec's own scale; None is the configuration's.
        scope: one network for the corpus, or one for each video, as NeRV and HNeRV are published (not D-NeRV).
        appendable: keep the encoder in the pack, so that ``neuralloader.append`` can add videos without training. The
            network is then trained on changed frames too (``Recipe.changes``), to know what to do with new ones.
        hold_out: keep every so-many-th frame of a video (n-1, 2n-1, ...) from training, to see how well a network does
            on frames it was not trained on; None keeps none. Key-frames and latents are stored all the same.
        overwrite: replace a pack that is there.
    """

    frame_rate: float | None = 2.0
    size: tuple[int, int] = (256, 320)
    backend: str = "dnerv"
    config: str = "fast"
    width: str | int = "S"
    duration: Duration = field(default_factory=lambda: Duration(minutes=10))
    seed: int = 0
    device: torch.device | None = None
    on_error: Literal["raise", "skip"] = "raise"
    keyframe_codec: KeyframeCodec = "avif"
    keyframe_quality: int | None = None
    scope: Scope = "corpus"
    appendable: bool = False
    hold_out: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if (self.backend, self.config) not in RECIPES:
            known = ", ".join(f"{backend} {config}" for backend, config in RECIPES)
            raise ValueError(f"there is no configuration {self.config!r} of backend {self.backend!r}; known: {known}")
        if self.keyframe_quality is not None and not 1 <= self.keyframe_quality <= 100:
            raise ValueError(f"keyframe_quality={self.keyframe_quality} must be 1 to 100")
        if self.hold_out is not None and self.hold_out < 2:
            raise ValueError(f"hold_out={self.hold_out} must be 2 or more, or None")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed={self.seed} must be 0 to {MAX_SEED}")
        network_of(self.backend, self.config, self.width, self.size)  # refuses a size that the network cannot make
        kind = BACKENDS[self.backend, self.config][1]
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope={self.scope!r} must be one of {', '.join(get_args(Scope))}")
        if self.scope == "video" and kind.uses_keyframes:
            raise ValueError(
                f"backend {self.backend!r} shares one network between all videos; scope='video' goes with nerv, cnerv "
                "and hnerv"
            )
        if self.appendable and kind.why_not_appendable:
            raise ValueError(f"appendable={self.appendable}: {kind.why_not_appendable}")
        if self.appendable and self.scope == "video":
            raise ValueError(
                "appendable=True: the network of one video cannot encode another; pack new videos by themselves, and "
                "open several packs as one"
            )


@dataclass(frozen=True)
class PackResult:
    """What came of packing.

    Attributes:
        path: the pack.
        size_bytes: its size.
        psnr_db: mean over all frames, of the pack read back.
        steps: training steps done.
    """

    path: Path
    size_bytes: int
    psnr_db: float
    steps: int


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: PackSettings,
    *,
    measure: Measure,
    report: Report,
) -> PackResult:
    """Train one network on a folder of videos and store everything in one file; see ``neuralloader.pack``."""
    output = Path(output)
    keep_freed_memory()
    check_writable(output, overwrite=settings.overwrite)
    check_codec_available(settings.keyframe_codec)
    found = find_videos(Path(source))
    with (
        tempfile.TemporaryDirectory(prefix="neuralloader-") as folder,
        ingest(
            found.sources,
            frame_rate=settings.frame_rate,
            size=settings.size,
            on_error=settings.on_error,
            progress=lambda done, total: report("read videos", done / total, f"{done} of {total}"),
        ) as corpus,
    ):
        return _pack_frames(corpus, found.classes, output, Path(folder), settings, measure, report)


def _pack_frames(
    corpus: Ingested,
    classes: tuple[str, ...],
    output: Path,
    folder: Path,
    settings: PackSettings,
    measure: Measure,
    report: Report,
) -> PackResult:
    device = settings.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quality = settings.keyframe_quality or RECIPES[settings.backend, settings.config].keyframe_quality
    key_interval = KEY_INTERVALS.get((settings.backend, settings.config))
    num_frames = np.array([video.num_frames for video in corpus.videos])
    clips, keys = index_corpus(num_frames, frames_per_clip=FRAMES_PER_CLIP, key_interval=key_interval)
    table = index_frames(clips, keys)

    index = PackIndex(tuple(corpus.videos), tuple(corpus.skipped), clips, keys)
    index_to_tensors(index)  # refuses names that no pack can hold, before hours of training

    keyframes, decoded_keyframes = encode_to_files(
        corpus.frames,
        table.key_rows,
        settings.keyframe_codec,
        quality,
        folder,
        lambda done: report("encode key-frames", done / len(keys), f"{done} of {len(keys)}"),
    )

    network = network_of(settings.backend, settings.config, settings.width, settings.size)
    with torch.device("meta"):
        outline = build_backend(settings.backend, settings.config, network)
    units = index_units(clips, outline.frames_per_unit)
    held_out = None if settings.hold_out is None else table.all.frame % settings.hold_out == settings.hold_out - 1
    data = TrainingSet(corpus.frames, decoded_keyframes, table, units, device, held_out, settings.scope)
    backend, latents, steps = _train(network, data, settings, report)

    description = PackDescription(
        backend=settings.backend,
        config=settings.config,
        network=network,
        frame_size=settings.size,
        frames_per_clip=FRAMES_PER_CLIP,
        key_interval=key_interval,
        frame_rate=settings.frame_rate,
        classes=classes,
        keyframe_codec=settings.keyframe_codec,
        keyframe_quality=quality,
        weight_bits=WEIGHT_BITS,
        training={
            "width": settings.width,
            "seed": settings.seed,
            "minutes": settings.duration.minutes,
            "epochs": settings.duration.epochs,
            "hold_out": settings.hold_out,
            "steps": steps,
        },
        quality={},
        scope=settings.scope,
    )
    trial = folder / "trial.nvpack"  # the manifest says what a reader gets
    save_pack(trial, description, index, backend, keyframes, latents, appendable=settings.appendable)
    measured = measure(trial, corpus.frames, device, lambda done: report("measure", done, ""))
    description = replace(description, quality=measured)
    size_bytes = save_pack(
        output,
        description,
        index,
        backend,
        keyframes,
        latents,
        appendable=settings.appendable,
        overwrite=settings.overwrite,
    )
    return PackResult(output, size_bytes, measured["psnr_db"], steps)


def _train(
    network: Any, data: TrainingSet, settings: PackSettings, report: Report
) -> tuple[Backend, RoundedLatents | None, int]:
    """The trained network, or the stack of all videos' networks; the latents it made; and the steps done."""

    def show(progress: Progress) -> None:
        left = (
            f"{progress.seconds_left:.0f} s" if progress.seconds_left < 600 else f"{progress.seconds_left / 60:.0f} min"
        )
        report("train", progress.done, f"{progress.psnr_db:.2f} dB, step {progress.step}, {left} left")

    def make_network() -> Backend:
        return build_backend(settings.backend, settings.config, network)

    recipe = RECIPES[settings.backend, settings.config]
    torch.manual_seed(settings.seed)
    if settings.scope == "video":
        trained = fit_videos(
            make_network,
            data,
            recipe,
            settings.duration,
            seed=settings.seed,
            weight_bits=WEIGHT_BITS,
            on_progress=show,
        )
        if trained.latents is None:
            return trained.stack, None, trained.steps
        rounded = round_latents(trained.latents, trained.stack.latent_bits, per_video=trained.per_video)
        return trained.stack, rounded, trained.steps
    backend = make_network().to(data.device)
    steps = fit(
        backend,
        data,
        recipe,
        settings.duration,
        seed=settings.seed,
        weight_bits=WEIGHT_BITS,
        on_progress=show,
        changes=recipe.changes if settings.appendable else (),
    )
    if backend.latent_shape is None:
        return backend, None, steps
    if settings.appendable:
        round_in_place(backend, WEIGHT_BITS, "encoder")  # what the pack holds encodes these frames as it will others
    report("encode latents", 0, "")
    latents = round_latents(encode_latents(backend, data, units_per_batch=UNITS_PER_BATCH), backend.latent_bits)
    report("encode latents", 1, "")
    return backend, latents, steps
