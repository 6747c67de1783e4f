"""The command line: arguments, one call for each command, printing. ``neuralloader COMMAND --help`` tells the rest."""

import argparse
import json
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
    except (OSError, ValueError, ImportError, SourceError, RuntimeError) as error:
        print(f"neuralloader {options.command}: {_message(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"neuralloader {options.command}: interrupted", file=sys.stderr)
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

    pack = commands.add_parser("pack", help="train a network on videos and store everything in one file")
    _add_source(pack)
    pack.add_argument(
        "--frame-rate", type=_frame_rate, default=2.0, metavar="F", help="frames per second, or native (default: 2)"
    )
    pack.add_argument("--size", type=_size, default=(256, 320), metavar="HxW", help="frame size (default: 256x320)")
    pack.add_argument(
        "--backend", default="dnerv", choices=["dnerv", "nerv", "cnerv", "hnerv"], help="the network (default: dnerv)"
    )
    pack.add_argument("--config", default="fast", choices=["fast", "paper"], help="its configuration (default: fast)")
    pack.add_argument(
        "--scope",
        default="corpus",
        choices=["corpus", "video"],
        help="one network for all videos (the default), or one for each",
    )
    pack.add_argument(
        "--appendable", action="store_true", help="keep the encoder, so that videos can be added without training"
    )
    size = pack.add_mutually_exclusive_group()
    size.add_argument("--preset", default="S", choices=["XS", "S", "M", "L"], help="its size (default: S)")
    size.add_argument("--width", type=int, metavar="C", help="the same as a number of channels")
    duration = pack.add_mutually_exclusive_group()
    duration.add_argument("--minutes", type=float, metavar="M", help="how long to train (default: 10)")
    duration.add_argument("--epochs", type=int, metavar="E", help="the same in passes over the corpus; repeatable")
    pack.add_argument("--keyframe-quality", type=int, metavar="Q", help="1 to 100 (default: the configuration's)")
    pack.add_argument("--keyframe-codec", default="avif", choices=["avif", "webp", "jpeg", "png"])
    pack.add_argument("--hold-out", type=int, metavar="N", help="do not train on every Nth frame of a video")
    pack.add_argument("--seed", type=int, default=0)
    _add_device(pack)
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
    parser.add_argument("source", type=Path, help="a folder with one folder per class, a flat folder, or one video")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.nvpack")
    parser.add_argument("--on-error", default="raise", choices=["raise", "skip"], help="what to do about bad videos")
    parser.add_argument("--force", action="store_true", help="replace a pack that is there")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


# --- commands -------------------------------------------------------------------------------------------------------


def _pack(options: argparse.Namespace) -> None:
    from neuralloader.packing import pack
    from neuralloader.training.fit import Duration
    from neuralloader.training.packer import PackSettings

    if options.minutes is None and options.epochs is None:
        options.minutes = 10.0
    settings = PackSettings(
        frame_rate=options.frame_rate,
        size=options.size,
        backend=options.backend,
        config=options.config,
        width=options.preset if options.width is None else options.width,
        duration=Duration(minutes=options.minutes, epochs=options.epochs),
        seed=options.seed,
        device=_device(options.device),
        on_error=options.on_error,
        keyframe_codec=options.keyframe_codec,
        keyframe_quality=options.keyframe_quality,
        scope=options.scope,
        appendable=options.appendable,
        hold_out=options.hold_out,
        overwrite=options.force,
    )
    with StageBars() as bars:
        result = pack(options.source, options.output, settings, report=bars.report)
    print(f"{result.path}: {result.size_bytes:,} bytes, {result.psnr_db:.2f} dB after {result.steps} steps")


def _append(options: argparse.Namespace) -> None:
    from neuralloader.packing import append

    with StageBars() as bars:
        result = append(
            options.pack,
            options.source,
            options.output,
            device=_device(options.device),
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
            self._bar = tqdm(total=1.0, desc=stage, bar_format=layout, file=sys.stderr, mininterval=0.2)
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
