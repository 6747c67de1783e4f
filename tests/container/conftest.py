"""A tiny pack, the same in every test of this room."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralloader.container.blobs import blob_to_tensors
from neuralloader.container.writer import ByteStream, write_pack


@pytest.fixture
def tiny_manifest() -> dict[str, Any]:
    return {"backend": {"name": "none", "widths": (1, 2)}, "classes": ["Hug", "Kick"]}


@pytest.fixture
def tiny_tensors() -> dict[str, np.ndarray | ByteStream]:
    return {
        "weights.codes": np.arange(7, dtype=np.uint8),
        "scales.step": np.array([[0.5], [2.0]], np.float16),
        "keys.frame": np.array([0, 300], np.uint16),
        "tables.rate": np.array(29.97),
        **blob_to_tensors("keyframes", [b"first", b"", b"third!"]),
    }


@pytest.fixture
def tiny_pack(tmp_path: Path, tiny_manifest, tiny_tensors) -> Path:
    path = tmp_path / "tiny.nvpack"
    write_pack(path, tiny_manifest, tiny_tensors)
    return path
