"""How much memory something takes: measured in a process of its own, so that nothing else is counted."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

_CHILD = [sys.executable, "-P", "-m", "neuralloader.metrics.memory"]  # -P: nothing in the current folder shadows ours
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


@dataclass(frozen=True)
class Memory:
    """What a process held, in bytes, beyond what it held once everything was imported.

    Attributes:
        peak_bytes: at most, mapped files included.
        resident_bytes: at the end.
        device_bytes: at most, of tensors on CUDA devices.
    """

    peak_bytes: int
    resident_bytes: int
    device_bytes: int


def measure_memory(work: Callable[[], object]) -> Memory | None:
    """Call a function in a fresh process.

    Args:
        work: what to call; it is pickled. What it returns is held until memory is read.

    Returns:
        None where the system does not tell (it is Linux that does), or the function fails.
    """
    if not _STATUS.exists():
        return None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
    run = subprocess.run(_CHILD, input=pickle.dumps(work), capture_output=True, env=environment, check=False)
    return Memory(**json.loads(run.stdout.splitlines()[-1])) if run.returncode == 0 else None


def _resident_and_peak_bytes() -> tuple[int, int]:
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def _main() -> None:
    work = pickle.load(sys.stdin.buffer)  # from our own parent
    _CLEAR_REFS.write_text("5")  # the peak starts anew: that of the imports does not count
    before, _ = _resident_and_peak_bytes()
    result = work()
    resident, peak = _resident_and_peak_bytes()
    torch = sys.modules.get("torch")  # not imported here: it would take memory, and seconds
    memory = Memory(
        peak_bytes=peak - before,
        resident_bytes=resident - before,
        device_bytes=torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else 0,
    )
    del result
    print(json.dumps(asdict(memory)))


if __name__ == "__main__":
    _main()
