"""From a pack to batches and a picture: ``python examples/quickstart.py videos.nvpack``."""

import sys

from PIL import Image
from torch.utils.data import DataLoader

from neuralloader import NeuralVideoDataset

dataset = NeuralVideoDataset(sys.argv[1], frames_per_clip=8)
loader = DataLoader(dataset, batch_size=4, shuffle=True)
videos, labels = next(iter(loader))  # (B, 8, 3, H, W) uint8, (B,) int64; the batch was decoded in one go
print(tuple(videos.shape), [dataset.classes[label] if dataset.classes else "-" for label in labels.tolist()])

rows = videos.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (B * H, T * W, 3): a clip in each row
Image.fromarray(rows.cpu().numpy()).save("batch.png")
