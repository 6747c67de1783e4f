"""The command line: arguments, one call for each command, printing. ``neuralloader COMMAND --help`` tells the rest."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from neuralloader.errors import PackError, SourceError

EXIT_FAILED, EXIT_BAD_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 for a failure told in one line, 2 for bad usage, 130 for an interrupt."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # so that temporary files are removed on the way out
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, ImportError, SourceError, RuntimeError) as error:
        print(f"neuralloader {options.command}: {_message(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt as interrupt:
        print(f"neuralloader {options.command}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


class _Parser(argparse.ArgumentParser):
    """Bad usage is told in one line, without the usage of every option before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="neuralloader", description="Video corpora as one neural network, decoded inside the training loop."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pack = commands.add_parser(
        "pack",
        help="train a network on videos and store everything in one file",
        description="Train a network on videos and store everything in one file. A run that was interrupted goes on "
        "when it is started again. "
        "Several processes: torchrun --nproc-per-node N -m neuralloader pack ...",
    )
    _add_source(pack)
    _add_corpus(pack)
    _add_network(pack)
    _add_training(pack)
    _add_device(pack)
    pack.add_argument("--dry-run", action="store_true", help="tell what this would take and make, and do nothing")
    pack.set_defaults(run=_pack)

    append = commands.add_parser("append", help="add videos to a pack without training")
    append.add_argument("pack", help="a .nvpack file, or its URL, that was packed with --appendable")
    _add_source(append)
    _add_device(append)
    append.set_defaults(run=_append)

    info = commands.add_parser("info", help="what is in a pack, and what every part of it costs")
    _add_pack(info)
    info.add_argument("--json", action="store_true", help="one JSON object")
    info.set_defaults(run=_info)

    verify = commands.add_parser("verify", help="check every byte of a pack, and name what is damaged")
    _add_pack(verify)
    verify.set_defaults(run=_verify)

    bench = commands.add_parser("bench", help="how fast a pack gives clips, beside video decoders and frames on disk")
    _add_pack(bench)
    bench.add_argument(
        "--against", type=Path, metavar="SRC", help="the folder that was packed, for the rivals (default: no rivals)"
    )
    bench.add_argument(
        "--sampler",
        default="windows",
        choices=["windows", "random", "regular", "segments"],
        help="how clips are chosen (default: windows)",
    )
    bench.add_argument("--frames", type=int, default=8, metavar="T", help="frames in a clip (default: 8)")
    bench.add_argument("--batch", type=int, default=8, metavar="N", help="clips in a batch (default: 8)")
    bench.add_argument("--clips", type=int, default=64, metavar="N", help="clips to read in a pass (default: 64)")
    bench.add_argument(
        "--videos",
        type=int,
        default=20,
        metavar="N",
        help="videos to draw them from; only windows give several clips of one (default: 20)",
    )
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each reader (default: 5)")
    bench.add_argument(
        "--consumer",
        default="resnet18",
        choices=["resnet18", "resnet50", "none"],
        help="the network that is trained from the loaders (default: resnet18)",
    )
    bench.add_argument("--seed", type=int, default=0, help="of the choice of videos and clips")
    bench.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the figures; needs matplotlib")
    bench.add_argument("--json", action="store_true", help="one JSON object")
    _add_device(bench)
    bench.set_defaults(run=_bench)

    extract = commands.add_parser("extract", help="decode a pack to PNG files")
    _add_pack(extract)
    extract.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    _add_device(extract)
    extract.set_defaults(run=_extract)

    demo = commands.add_parser("demo", help="the whole story on a generated corpus, in a few minutes")
    demo.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    demo.add_argument("--minutes", type=float, default=2.5, metavar="M", help="how long to train (default: 2.5)")
    demo.set_defaults(run=_demo)
    return parser


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pack", help="a .nvpack file, or its URL")


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Videos to be packed, and where to."""
    parser.add_argument(
        "source",
        type=Path,
        help="a folder with one folder per class, a flat folder, one video, folders of numbered images, or a list file",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.nvpack")
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=["raise", "skip", "keep-partial"],
        help="bad videos: list them all and stop (the default), leave them out, or keep what decodes of them",
    )
    parser.add_argument(
        "--annotations",
        action="append",
        default=[],
        metavar="[NAME=]LIST",
        help="pack the videos that a list names, with its labels, as a split of this name; may be given several times "
        "(UCF101, HMDB51, Kinetics, or lines of `path label`)",
    )
    parser.add_argument("--force", action="store_true", help="replace a pack that is there")


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    """How videos become frames."""
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--frame-rate", type=_frame_rate, default=2.0, metavar="F", help="frames per second, or native (default: 2)"
    )
    group.add_argument("--size", type=_size, default=(256, 320), metavar="HxW", help="frame size (default: 256x320)")
    group.add_argument(
        "--resize",
        default="squash",
        choices=["squash", "crop", "pad"],
        help="how frames of another shape get to that size (default: squash)",
    )
    group.add_argument(
        "--image-frame-rate", type=float, default=30.0, metavar="F", help="of folders of images (default: 30)"
    )
    group.add_argument("--cache", type=Path, metavar="DIR", help="keep decoded frames here, for other runs too")


def _add_network(parser: argparse.ArgumentParser) -> None:
    """What is stored of them."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--backend", default="dnerv", choices=["dnerv", "nerv", "cnerv", "hnerv"], help="the network (default: dnerv)"
    )
    group.add_argument("--config", default="fast", choices=["fast", "paper"], help="its configuration (default: fast)")
    group.add_argument(
        "--scope",
        default="corpus",
        choices=["corpus", "video"],
        help="one network for all videos (the default), or one for each",
    )
    group.add_argument(
        "--appendable", action="store_true", help="keep the encoder, so that videos can be added without training"
    )
    group.add_argument(
        "--budget",
        type=_budget,
        metavar="SIZE",
        help="what the file may take, as in 0.08bpp or 20MB; chooses what is not given below",
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--preset", choices=["XS", "S", "M", "L"], help="its size (default: S, or the budget's)")
    size.add_argument("--width", type=int, metavar="C", help="the same as a number of channels")
    group.add_argument("--bits", type=int, metavar="B", help="of a weight, 2 to 8 (default: the configuration's)")
    group.add_argument("--keyframe-quality", type=int, metavar="Q", help="1 to 100 (default: the configuration's)")
    group.add_argument("--keyframe-codec", default="avif", choices=["avif", "webp", "jpeg", "png"])
    group.add_argument("--key-interval", type=int, metavar="N", help="frames between key-frames, a multiple of 8")


def _add_training(parser: argparse.ArgumentParser) -> None:
    """How long, and what happens on the way."""
    group = parser.add_argument_group("training")
    duration = group.add_mutually_exclusive_group()
    duration.add_argument("--minutes", type=float, metavar="M", help="how long to train (default: 10)")
    duration.add_argument("--epochs", type=int, metavar="E", help="the same in passes over the corpus; repeatable")
    group.add_argument("--target-psnr", type=float, metavar="DB", help="stop earlier, once a sample reaches it")
    group.add_argument("--init", metavar="PACK", help="start from the network of another pack")
    group.add_argument("--hold-out", type=int, metavar="N", help="do not train on every Nth frame of a video")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--fresh", action="store_true", help="throw away what an interrupted run left")
    group.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (default: 60)"
    )
    group.add_argument("--tensorboard", action="store_true", help="write the log for TensorBoard too")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


# --- commands -------------------------------------------------------------------------------------------------------


def _pack(options: argparse.Namespace) -> None:
    from neuralloader.packing import pack
    from neuralloader.training.clock import Duration
    from neuralloader.training.dry_run import plan_run
    from neuralloader.training.plan import plan_lines
    from neuralloader.training.settings import PackSettings

    if options.minutes is None and options.epochs is None:
        options.minutes = 10.0
    settings = PackSettings(
        frame_rate=options.frame_rate,
        size=options.size,
        resize=options.resize,
        annotations=tuple(options.annotations),
        image_frame_rate=options.image_frame_rate,
        on_error=options.on_error,
        backend=options.backend,
        config=options.config,
        budget=options.budget,
        width=options.preset if options.width is None else options.width,
        weight_bits=options.bits,
        duration=Duration(minutes=options.minutes, epochs=options.epochs),
        target_psnr_db=options.target_psnr,
        seed=options.seed,
        device=_device(options.device),
        keyframe_codec=options.keyframe_codec,
        keyframe_quality=options.keyframe_quality,
        key_interval=options.key_interval,
        scope=options.scope,
        appendable=options.appendable,
        hold_out=options.hold_out,
        init=options.init,
        overwrite=options.force,
        fresh=options.fresh,
        cache=options.cache,
        checkpoint_seconds=options.checkpoint_every,
        tensorboard=options.tensorboard,
    )
    with StageBars() as bars:
        if options.dry_run:
            plan = plan_run(options.source, settings, report=bars.report)
        else:
            result = pack(options.source, options.output, settings, report=bars.report)
    if options.dry_run:
        print("\n".join(plan_lines(plan)))
        return
    if not result.is_writer:
        return  # another process tells
    for note in result.notes:
        print(f"note: {note}")
    print(f"{result.path}: {result.size_bytes:,} bytes, {result.psnr_db:.2f} dB after {result.steps} steps")


def _append(options: argparse.Namespace) -> None:
    from neuralloader.packing import append

    with StageBars() as bars:
        result = append(
            options.pack,
            options.source,
            options.output,
            device=_device(options.device),
            annotations=options.annotations,
            on_error=options.on_error,
            overwrite=options.force,
            report=bars.report,
        )
    print(
        f"{result.path}: {result.size_bytes:,} bytes, {result.added_bytes:,} of them for {result.num_videos} added "
        f"videos of {result.num_frames} frames, {result.psnr_db:.2f} dB"
    )


def _info(options: argparse.Namespace) -> None:
    from neuralloader.packfile import Pack
    from neuralloader.report.measure import describe_pack, info_lines

    facts = describe_pack(Pack(options.pack))
    print(json.dumps(facts) if options.json else "\n".join(info_lines(facts)))


def _verify(options: argparse.Namespace) -> None:
    from neuralloader.packfile import verify_pack

    with StageBars() as bars:
        found = verify_pack(options.pack, lambda done: bars.report("verify", done, ""))
    if found.problems:
        raise PackError("\n  ".join([f"{options.pack} is damaged:", *found.problems]))
    print(
        f"{options.pack} is whole: {found.num_tensors} tensors, {found.num_keyframes} key-frames and "
        f"{found.num_clips} clips checked"
    )


def _bench(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from neuralloader.report.bench import run_bench
    from neuralloader.report.bench_result import BenchSettings
    from neuralloader.report.bench_table import bench_lines
    from neuralloader.report.plots import check_can_draw, draw_bench

    settings = BenchSettings(
        sampler=options.sampler,
        frames_per_clip=options.frames,
        batch_size=options.batch,
        num_clips=options.clips,
        num_videos=options.videos,
        num_rounds=options.rounds,
        consumer=None if options.consumer == "none" else options.consumer,
        seed=options.seed,
    )
    if options.chart:
        check_can_draw(options.chart)
    with StageBars() as bars:
        result = run_bench(
            options.pack, settings, device=_device(options.device), against=options.against, report=bars.report
        )
    print(json.dumps(asdict(result)) if options.json else "\n".join(bench_lines(result)))
    if options.chart:
        draw_bench(result, options.chart)


def _extract(options: argparse.Namespace) -> None:
    from neuralloader.loading.extract import extract_frames
    from neuralloader.packfile import Pack

    with StageBars() as bars:
        num_frames = extract_frames(
            Pack(options.pack),
            options.output,
            _device(options.device),
            lambda done: bars.report("extract frames", done, ""),
        )
    print(f"{num_frames} frames in {options.output}")


def _demo(options: argparse.Namespace) -> None:
    from neuralloader.demo import run_demo

    with StageBars() as bars:
        lines = run_demo(options.output, minutes=options.minutes, report=bars.report)
    print("\n".join(lines))


# --- values ---------------------------------------------------------------------------------------------------------


def _budget(text: str):
    """A budget, for argparse."""
    from neuralloader.training.budget import parse_budget

    try:
        return parse_budget(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _frame_rate(text: str) -> float | None:
    if text == "native":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of frames per second above 0, or 'native'")
    return rate


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, such as 256x320")
    return int(height), int(width)


def _device(name: str):
    """A torch device by name; "auto" is CUDA where it is there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r} must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: there is no CUDA device here; use --device cpu")
    return device


def _message(error: BaseException) -> str:
    """An error in words; what is not ours to word also gets its type."""
    known = isinstance(error, PackError | SourceError | ValueError | FileNotFoundError | FileExistsError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class StageBars:
    """A progress bar for each stage of a longer command, one after the other."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._stage = ""

    def report(self, stage: str, done: float, note: str) -> None:
        """Show a stage's share that is done, 0 to 1, and a few words."""
        if stage != self._stage:
            self._close()
            self._stage = stage
            layout = "{desc:<18} {percentage:3.0f}%|{bar:30}| {elapsed} {postfix}"
            # miniters: a run that goes on jumps at first, and tqdm would then wait for another such jump
            self._bar = tqdm(total=1.0, desc=stage, bar_format=layout, file=sys.stderr, mininterval=0.2, miniters=0)
        assert self._bar is not None
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(min(done, 1.0) - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
