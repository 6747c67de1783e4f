"""Decoding on a GPU, from correctness to a training loop, in one run that ends in time.

    python -m benchmarks.gpu -o DIR [--device cuda] [--small] [--minutes 8.5]

Run it from the repository's root, on a machine with torch >= 2.11, torchvision, numpy, safetensors, zstandard, fsspec
and Pillow; ``pip install -e . --no-deps`` or ``PYTHONPATH=.`` will do. Neither a video library nor a network is needed:
key-frames are drawn, networks untrained (speed does not depend on it) and saved as real packs in a temporary folder.

    1  frames against the CPU's; frames while other work runs
    2  the ladder: D-NeRV from the paper's network as published to the fast one, compiled and recorded
    3  all backends
    4  ceilings of the device, and the rungs' shares of them
    5  a training step fed by the loader

DIR/gpu.md and DIR/gpu.json are written anew whenever there are new rows, so a run that is cut leaves its tables. A part
that runs out of its time leaves rows out and says so. The exit code is 1 where something failed. ``--small`` takes
seconds on a CPU; rows that need CUDA say so there.
"""

import argparse
import faulthandler
import gc
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.ceilings import analyse
from benchmarks.gpu.correctness import check_parity, check_races
from benchmarks.gpu.ladder import climb, compare_backends
from benchmarks.gpu.packs import make_packs
from benchmarks.gpu.result import Part, Report, Result, describe_machine
from benchmarks.gpu.setting import SMALL, Setting, Sizes
from benchmarks.gpu.training import feed_consumer
from neuralloader.loading.decode import checked_device

# (name, function, share of the time): what a part leaves goes to those behind it
Step = tuple[str, Callable[[Setting, Report], Part], float]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of gpu.md and gpu.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--minutes", type=float, default=8.5, help="to end in")
    options = parser.parse_args(arguments)
    device = checked_device(options.device)
    command = f"python -m benchmarks.gpu -o DIR --device {device.type} --minutes {options.minutes:g}"
    result = Result(options.output, command + " --small" * options.small, describe_machine(device))
    end = time.monotonic() + 60 * options.minutes
    faulthandler.dump_traceback_later(60 * options.minutes + 20, exit=True)  # rather than hang
    torch._dynamo.config.recompile_limit = 64  # more shapes and networks are compiled here than in any training
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, SMALL if options.small else Sizes(), {}, Path(folder))
        _run(setting, result, end)
    faulthandler.cancel_dump_traceback_later()
    print(f"{result.num_failed} failed" if result.num_failed else "nothing failed")
    return 1 if result.num_failed else 0


def _run(setting: Setting, result: Result, end: float) -> None:
    ladder = Part("", "")

    def climb_and_keep(setting: Setting, report: Report) -> Part:
        nonlocal ladder
        ladder = climb(setting, report)
        return ladder

    steps: list[Step] = [
        ("packs", _make_packs, 0.08),
        ("parity", check_parity, 0.07),
        ("races", check_races, 0.20),
        ("ladder", climb_and_keep, 0.30),
        ("backends", compare_backends, 0.12),
        ("ceilings", lambda setting, report: analyse(setting, ladder, report), 0.10),
        ("training", feed_consumer, 0.13),
    ]
    for number, (name, run, _) in enumerate(steps):
        left = end - time.monotonic()
        share = steps[number][2] / sum(share for _, _, share in steps[number:])
        setting.deadline = time.monotonic() + share * left
        start, num_before = time.monotonic(), len(result.parts)
        print(f"{name}: {share * left:.0f} s", flush=True)
        try:
            part = run(setting, result.report)
        except Exception as error:  # the other parts can still tell something
            part = result.parts[-1] if len(result.parts) > num_before else Part(name, "")
            part.fail({}, error)
        part.seconds = time.monotonic() - start
        result.report(part)
        print("\n".join(part.table()), flush=True)
        gc.collect()
        if setting.is_cuda:
            torch.cuda.empty_cache()


def _make_packs(setting: Setting, report: Report) -> Part:
    part = Part("Packs", "Untrained networks of every backend, saved as packs; what follows reads these.")
    setting.packs = make_packs(setting.folder, setting.sizes)
    for network, path in setting.packs.items():
        part.rows.append({"network": " ".join(network), "bytes": path.stat().st_size})
    return part


if __name__ == "__main__":
    warnings.simplefilter("default")
    raise SystemExit(main())
