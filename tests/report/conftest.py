"""A result of ``neuralloader bench`` with round figures."""

import pytest

from neuralloader.metrics.memory import Memory
from neuralloader.report.bench_result import BenchResult, BenchSettings, NotMeasured, ReaderRow, WaitingRow


@pytest.fixture
def bench_result() -> BenchResult:
    """Two readers, two loaders, two readers that are not there."""
    memory = Memory(peak_bytes=3_000_000, resident_bytes=2_000_000, device_bytes=0)
    return BenchResult(
        pack="a.nvpack",
        backend="dnerv",
        config="fast",
        frame_size=(48, 64),
        settings=BenchSettings(),
        device="cpu",
        threads=2,
        torch="2.14.1",
        num_videos=2,
        num_videos_in_pack=3,
        num_clips=4,
        batch_size=2,
        num_frames=32,
        num_different_frames=30,
        readers=(
            ReaderRow("pack", 10.0, 80.0, 5.0, 1.0, 100.0, 120.0, 0.5, memory, 500.0, 35.2, 31.0),
            ReaderRow("raw uint8", 25.0, 200.0, 9.0, 2.5, 10.0, 12.0, None, None, 9216.0, 100.0, 100.0),
        ),
        waiting=(WaitingRow("pack", 0, 20.0, 80.0, 0.2), WaitingRow("decord, originals", 2, 0.0, 80.0, 0.0)),
        not_measured=(NotMeasured("decord, originals", "not there"), NotMeasured("torchcodec, originals", "not there")),
    )
