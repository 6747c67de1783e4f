"""The benchmark for GPUs runs, small, on a CPU: all its tables come, and what goes wrong shows in its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARGUMENTS = ["--device", "cpu", "--small"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, *command]
    return subprocess.run(run, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_every_part_leaves_a_table(tmp_path: Path) -> None:
    run = _run("-m", "benchmarks.gpu", "-o", str(tmp_path), *ARGUMENTS)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["num_failed"] == 0
    assert len(found["parts"]) == 7
    for part in found["parts"]:
        assert part["rows"], f"{part['title']} has no rows"
        results = {row.get("result", "ok") for row in part["rows"]}
        assert "ok" in results
        assert results <= {"ok", "needs CUDA"}, f"nothing may run out of time here: {part['title']}"
    ladder = found["parts"][3]["rows"]
    assert {row["rung"] for row in ladder if row["result"] == "needs CUDA"} == {
        "fast graphed",
        "fast compiled",
        "fast compiled+graphed",
    }
    assert all(row["frames/s"] > 0 for row in ladder if row["result"] == "ok")
    text = (tmp_path / "gpu.md").read_text()
    assert "Gap 1" in text
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


def test_what_fails_is_a_row_and_the_exit_code(tmp_path: Path) -> None:
    script = """
import sys
import torch
import benchmarks.gpu.__main__ as program
from benchmarks.gpu import correctness
from benchmarks.gpu.result import Part

def breaks(setting, report):
    part = Part("breaks", "")
    part.rows.append({"what": "went well", "result": "ok"})
    report(part)
    raise ValueError("of /some/where/file.py, there is none")

def decode_badly(path, device, precision, rows, decode=correctness._decode_alone):
    return decode(path, device, precision, rows) + 2 * (precision == torch.bfloat16)

correctness._decode_alone = decode_badly
program.check_races = breaks
for name in ("climb", "compare_backends", "feed_consumer"):
    setattr(program, name, lambda setting, report: Part("nothing", ""))
program.analyse = lambda setting, ladder, report: Part("nothing", "")
sys.exit(program.main(sys.argv[1:]))
"""
    run = _run("-c", script, "-o", str(tmp_path), *ARGUMENTS)
    assert run.returncode == 1, run.stdout + run.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    _, parity, broken, *_ = found["parts"]
    assert [row["precision"] for row in parity["rows"] if row["result"] != "ok"] == ["bfloat16"] * 8
    assert broken["rows"] == [
        {"what": "went well", "result": "ok"},
        {"result": "FAILED: ValueError: of file.py, there is none"},
    ]
    assert found["num_failed"] == 9
