"""The log of a training: JSON lines in the run's folder, and TensorBoard where it is asked for."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def open_log(path: Path, *, tensorboard: bool) -> Callable[[Mapping[str, Any]], None]:
    """What to call with each line: JSON values by name.

    Args:
        path: one JSON object a line is added to it; TensorBoard's files go to the folder ``tensorboard`` beside it.
        tensorboard: whether to write these.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """
    if not tensorboard:
        return lambda line: _add_line(path, line)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs TensorBoard: pip install 'neuralloader[tensorboard]', or pip install tensorboard"
        ) from error
    writer = SummaryWriter(str(path.parent / "tensorboard"))

    def write(line: Mapping[str, Any]) -> None:
        _add_line(path, line)
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step" and "step" in line:
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write


def _add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line; JSON has no NaN, so null stands for it."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")
