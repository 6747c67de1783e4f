"""The parts of a run, as they are reported to whoever waits for it."""

from collections.abc import Callable
from typing import Literal

Stage = Literal["read videos", "encode key-frames", "train", "encode latents", "meet the budget", "measure"]
Report = Callable[[Stage, float, str], None]  # stage, share of it that is done, a few words to show
