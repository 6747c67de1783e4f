"""The tables of a run, written anew whenever there are new rows, so that a run that is cut leaves what it has."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Report = Callable[["Part"], None]  # called with a part whenever it has new rows

_MAX_TEXT = 300


@dataclass
class Part:
    """One table.

    Attributes:
        title: its heading.
        note: what the figures mean.
        rows: each the same columns, more or less; a missing one is left empty.
        words: sentences below it.
        num_failed: rows of checks that failed, and of whatever else went wrong.
        seconds: what it took.
    """

    title: str
    note: str
    rows: list[Row] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    num_failed: int = 0
    seconds: float = 0.0

    def fail(self, row: Row, reason: str | BaseException) -> None:
        """Add a row that says what went wrong."""
        self.num_failed += 1
        self.rows.append({**row, "result": f"FAILED: {describe(reason)}"})

    def table(self) -> list[str]:
        """Lines of Markdown."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [f"## {self.title}", "", self.note, ""]
        if columns:
            lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in self.rows]
        return [*lines, "", *(f"- {sentence}" for sentence in self.words), "", f"({self.seconds:.0f} s)", ""]


@dataclass
class Result:
    """All tables of a run.

    Attributes:
        folder: where ``gpu.json`` and ``gpu.md`` go.
        command: how it was called.
        machine: what it ran on.
        parts: so far.
    """

    folder: Path
    command: str
    machine: dict[str, Any]
    parts: list[Part] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        return sum(part.num_failed for part in self.parts)

    def report(self, part: Part) -> None:
        """Take in a part, or what has become of it, and write both files."""
        if all(part is not other for other in self.parts):
            self.parts.append(part)
        content = {
            "command": self.command,
            "machine": self.machine,
            "num_failed": self.num_failed,
            "parts": [vars(part) for part in self.parts],
        }
        lines = [
            "# Decoding on this device",
            "",
            f"`{self.command}`",
            "",
            "; ".join(f"{key} {value}" for key, value in self.machine.items()),
            "",
            f"{self.num_failed} failed." if self.num_failed else "Nothing failed.",
            "",
        ]
        for part in self.parts:
            lines += part.table()
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "gpu.json", json.dumps(content, indent=1, default=str) + "\n")
        _replace(self.folder / "gpu.md", "\n".join(lines))


def describe(reason: str | BaseException) -> str:
    """What went wrong, in a line, without paths."""
    text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
    first = next((line for line in text.splitlines() if line.strip()), "")
    return re.sub(r"(?:/[\w.+@-]+){2,}", lambda found: found[0].rpartition("/")[2], first)[:_MAX_TEXT]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, processor and versions; no name and no path."""
    machine = {"device": _processor()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine = {
            "device": properties.name,
            "device GB": round(properties.total_memory / 1e9),
            "multiprocessors": properties.multi_processor_count,
            "CUDA": torch.version.cuda,
            "processor": _processor(),
        }
    return machine | {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _commit() -> str:
    """Of the working tree, with a plus where it has changes; unknown where git is not there."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes.strip() else "")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)
