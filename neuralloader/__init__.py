"""neuralloader: video corpora as one neural network, decoded on the fly inside a PyTorch training loop.

neuralloader.pack("videos/", "videos.nvpack")
dataset = neuralloader.NeuralVideoDataset("videos.nvpack")
"""

import importlib
from typing import TYPE_CHECKING, Any

from neuralloader.errors import PackError, PackVersionError, SourceError

if TYPE_CHECKING:
    from neuralloader.loading.concat import ConcatNeuralDataset
    from neuralloader.loading.dataset import NeuralVideoDataset
    from neuralloader.loading.loader import NeuralVideoLoader
    from neuralloader.loading.videos import open_videos
    from neuralloader.packfile import Pack, open_pack
    from neuralloader.packing import append, pack
    from neuralloader.training.clock import Duration
    from neuralloader.training.settings import PackSettings

__version__ = "0.1.0"

# imported when first asked for: the reader processes of ``corpus`` import this package and must start fast
_HOMES = {
    "ConcatNeuralDataset": "neuralloader.loading.concat",
    "Duration": "neuralloader.training.clock",
    "NeuralVideoDataset": "neuralloader.loading.dataset",
    "NeuralVideoLoader": "neuralloader.loading.loader",
    "Pack": "neuralloader.packfile",
    "PackSettings": "neuralloader.training.settings",
    "append": "neuralloader.packing",
    "open_pack": "neuralloader.packfile",
    "open_videos": "neuralloader.loading.videos",
    "pack": "neuralloader.packing",
}

__all__ = [
    "ConcatNeuralDataset",
    "Duration",
    "NeuralVideoDataset",
    "NeuralVideoLoader",
    "Pack",
    "PackError",
    "PackSettings",
    "PackVersionError",
    "SourceError",
    "append",
    "open_pack",
    "open_videos",
    "pack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'neuralloader' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
