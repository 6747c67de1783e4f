"""Kill a packing run again and again, and see what it costs: ``python benchmarks/interruptions.py corpus-ut -o DIR``.

The same pack is made twice: in one go, and killed with SIGKILL at random moments and started again each time. Printed
are what every start went on from, how many steps had been done since that checkpoint when the process was killed (these
were trained twice), how long SIGTERM takes to leave a checkpoint, and the PSNR of both packs.
"""

import argparse
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from neuralloader.packfile import Pack

STEP = re.compile(rb"step (\d+)")


@dataclass(frozen=True)
class Attempt:
    """One start of the packer.

    Attributes:
        seconds: it lived.
        first_step, last_step: first and last step that it told of; None where it came to no step.
        status: as ``Popen.returncode`` has it.
    """

    seconds: float
    first_step: int | None
    last_step: int | None
    status: int


def attempt(command: list[str], seconds: float | None, number: int = signal.SIGKILL) -> tuple[Attempt, float]:
    """Start the packer; after so many seconds, send it a signal. Gives also the seconds from signal to end."""
    start = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stderr is not None
    told: list[bytes] = []
    reader = threading.Thread(target=lambda: told.extend(iter(lambda: process.stderr.read1(4096), b"")))  # type: ignore
    reader.start()
    sent = time.monotonic()
    if seconds is not None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            sent = time.monotonic()
            process.send_signal(number)
    process.wait()
    ended = time.monotonic()
    reader.join()
    steps = [int(step) for step in STEP.findall(b"".join(told))]
    first, last = (steps[0], steps[-1]) if steps else (None, None)
    return Attempt(ended - start, first, last, process.returncode), ended - sent


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--checkpoint-every", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args()
    options.output.mkdir(parents=True, exist_ok=True)
    chance = random.Random(options.seed)

    def command(name: str) -> list[str]:
        every = str(options.checkpoint_every)
        told = ["--minutes", str(options.minutes), "--checkpoint-every", every, "--force", *more]
        start = [sys.executable, "-m", "neuralloader", "pack", str(options.corpus), "-o"]
        return [*start, str(options.output / name), *told]

    whole, _ = attempt([*command("whole.nvpack"), "--fresh"], None)
    print(f"in one go: {whole.seconds:.0f} s, {whole.last_step} steps, exit status {whole.status}")
    print("\n| start | killed after s | went on from step | came to step | steps done twice |\n|---|---|---|---|---|")
    killed, twice, number = command("killed.nvpack"), 0, 0
    before: int | None = None
    while True:
        number += 1
        wait = None if number > options.kills else chance.uniform(3, 8)
        got, _ = attempt(killed, wait)
        lost = max(0, (before or 0) - (got.first_step or before or 0) + 1) if before is not None else 0
        twice += lost
        ended = "finished" if got.status == 0 else f"{got.seconds:.1f}"
        print(f"| {number} | {ended} | {got.first_step} | {got.last_step} | {lost} |", flush=True)
        before = before if got.last_step is None else got.last_step
        if got.status == 0 or wait is None:
            break
    term, seconds = attempt([*command("terminated.nvpack"), "--fresh"], 20.0, signal.SIGTERM)
    print(f"\nSIGTERM in step {term.last_step}: ended after {seconds:.2f} s with status {term.status}")
    psnr = [Pack(options.output / name).description.quality["psnr_db"] for name in ("whole.nvpack", "killed.nvpack")]
    print(f"steps done twice: {twice} in {number} starts; PSNR in one go {psnr[0]:.2f} dB, killed {psnr[1]:.2f} dB")


if __name__ == "__main__":
    main()
