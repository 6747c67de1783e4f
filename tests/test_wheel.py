"""The wheel builds, holds every file of the package, and runs where the checkout is not."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_installs_and_runs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("neuralloader/")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "neuralloader").rglob("*.py")}
    assert packed == sources | {"neuralloader/py.typed"}

    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    where = "import neuralloader; print(neuralloader.__file__); neuralloader.NeuralVideoDataset"
    for command in (["-c", where], ["-m", "neuralloader", "--help"]):
        done = subprocess.run(
            [sys.executable, "-P", *command],
            cwd=tmp_path,
            env={"PYTHONPATH": str(site)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert str(site) in done.stdout or "usage: neuralloader" in done.stdout
