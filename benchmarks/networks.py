"""A batch that touches many networks: how fast are they decoded together, and by which kind of convolution?

    python benchmarks/networks.py [--sizes 32x48 64x80 128x160] [--clips 32] [--frames 1 8] [--width 8] [--device cpu]

For each backend with a network a video, each frame size and each number of frames a clip: clips from as many networks,
decoded one network after the other by plain modules ("loop"), and together by

    grouped      one grouped convolution, as ``backends.stacked`` does it
    columns      every patch a row of a matrix, and one batched product
    vmap         ``torch.func.vmap`` over a plain network

all from the same weights, to the same frames (checked), taking turns; the median over rounds. "packs" is the product
with a pack for each video, read as one; "decoder" is the product with one pack of all: both fetch weights and latents,
which the other four have at hand. Networks are untrained: speed does not depend on it. Prints Markdown.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neuralloader.backends import BACKENDS, Backend, Units, network_of
from neuralloader.backends.base import strip_parameters
from neuralloader.backends.blocks import from_groups, to_groups
from neuralloader.backends.precision import autocast
from neuralloader.backends.stacked import StackedConv2d, get_network, set_network, stack_networks
from neuralloader.clips import UNLABELLED, VideoInfo, index_corpus
from neuralloader.container.index import PackIndex
from neuralloader.loading.decode import Decoder
from neuralloader.loading.joined import open_decoder
from neuralloader.loading.output import to_uint8
from neuralloader.metrics.speed import calls_per_second
from neuralloader.packfile import Pack, PackDescription, open_pack, round_latents, save_pack
from neuralloader.training.rounding import round_in_place

BACKEND_NAMES = ("nerv", "cnerv", "hnerv")
ROUNDS = 3
Decode = Callable[[], Tensor]


def convolve_columns(self: StackedConv2d, x: Tensor) -> Tensor:
    """Instead of ``StackedConv2d.forward``, for stride 1: one batched product of patches and weights."""
    networks, out_channels, in_channels, height, width = self.weight.shape
    x = from_groups(x, self)
    padding = (height // 2, height // 2, width // 2, width // 2)
    maps = F.pad(x.permute(0, 2, 3, 1), (0, 0, *padding[2:], *padding[:2])).contiguous()
    num_maps, rows, columns, _ = maps.shape
    size = (num_maps, rows - height + 1, columns - width + 1, height, width * in_channels)
    strides = (rows * columns * in_channels, columns * in_channels, in_channels, columns * in_channels, 1)
    patches = maps.as_strided(size, strides).reshape(networks, -1, height * width * in_channels)
    matrix = self.weight.permute(0, 3, 4, 2, 1).reshape(networks, -1, out_channels)
    y = torch.baddbmm(self.bias.to(patches.dtype).unsqueeze(1), patches, matrix.to(patches.dtype))
    return to_groups(y.view(num_maps, size[1], size[2], out_channels).permute(0, 3, 1, 2), self)


def make_stack(name: str, width: int, size: tuple[int, int], num_networks: int) -> Backend:
    record = network_of(name, "fast", width, size)
    network = strip_parameters(BACKENDS[name, "fast"][1](record))
    stack = stack_networks(network, num_networks)
    for row in range(num_networks):
        set_network(stack, row, strip_parameters(BACKENDS[name, "fast"][1](record)))
    return stack.eval().requires_grad_(False)


def methods(
    name: str, width: int, size: tuple[int, int], num_networks: int, frames: int, device: torch.device, folder: Path
) -> dict[str, Decode]:
    """Each a call that decodes the batch to (V * n, 3, H, W) uint8."""
    record = network_of(name, "fast", width, size)
    stack = make_stack(name, width, size, num_networks)
    round_in_place(stack, 8)  # to decode what a pack of it does
    stack = stack.to(device)
    alone = [strip_parameters(BACKENDS[name, "fast"][1](record)).to(device).eval() for _ in range(num_networks)]
    for row, network in enumerate(alone):
        get_network(stack, row, network)
    count = num_networks * frames
    time = (torch.arange(count, dtype=torch.float64) % frames / frames).view(-1, 1)
    units = Units(torch.full((count, 2), -1), torch.zeros(count, 1), torch.zeros(count, 1), time).to(device)
    latents = None
    if stack.latent_shape is not None:
        latents = torch.randint(-3, 4, (count, *stack.latent_shape), device=device).float()

    def rows_of(units: Units, rows: Tensor | slice) -> Units:
        return Units(units.keys[rows], units.phase[rows], units.time[rows], units.network_time[rows])

    def loop() -> Tensor:
        parts = []
        for row, network in enumerate(alone):
            rows = slice(row * frames, (row + 1) * frames)
            own = None if latents is None else latents[rows]
            parts.append(to_uint8(network.decode((), rows_of(units, rows), own).flatten(0, 1)))
        return torch.cat(parts)

    def together() -> Tensor:
        return to_uint8(stack.decode((), units, latents).flatten(0, 1))

    def columns() -> Tensor:
        with mock.patch.object(StackedConv2d, "forward", convolve_columns):
            return together()

    def vmapped() -> Tensor:
        weights = {key: p.detach() for key, p in stack.named_parameters()}
        fields = (units.network_time, units.phase) if latents is None else (latents, units.phase)

        def decode_one(weights: dict[str, Tensor], main: Tensor, phase: Tensor) -> Tensor:
            own = Units(torch.empty(0), phase, phase, main if latents is None else phase.double())
            call = {f"backend.{key}": value for key, value in weights.items()}
            return torch.func.functional_call(_Plain(alone[0]), call, (own, None if latents is None else main))

        parted = [field.unflatten(0, (num_networks, frames)) for field in fields]
        # vmap knows no memory formats; without them the layers are the same
        plain = mock.patch.object(Tensor, "contiguous", lambda self, memory_format=None: self)
        with plain:
            return to_uint8(torch.func.vmap(decode_one)(weights, *parted).flatten(0, 2))

    everyone = np.arange(num_networks)
    decoder = Decoder(Pack(save(stack, everyone, name, record, size, frames, latents, folder)), device)
    one_each = [save(stack, everyone[i : i + 1], name, record, size, frames, latents, folder) for i in everyone]
    packs = open_decoder(open_pack(one_each), device)
    rows = np.arange(count)
    return {
        "loop": loop,
        "grouped": together,
        "columns": columns,
        "vmap": vmapped,
        "packs": lambda: packs.decode(rows),
        "decoder": lambda: decoder.decode(rows),
    }


def save(
    stack: Backend,
    networks: np.ndarray,
    name: str,
    record: object,
    size: tuple[int, int],
    frames: int,
    latents: Tensor | None,
    folder: Path,
) -> Path:
    """A pack of a video for each of some networks, whose latents are its part of these."""
    clips, keys = index_corpus(np.full(len(networks), frames), frames_per_clip=8, key_interval=None)
    videos = [VideoInfo(f"{i}.avi", UNLABELLED, frames, frames, 25.0, 25.0, size) for i in networks]
    description = PackDescription(
        backend=name,
        config="fast",
        network=record,
        frame_size=size,
        frames_per_clip=8,
        key_interval=None,
        frame_rate=None,
        classes=(),
        keyframe_codec="png",
        keyframe_quality=50,
        weight_bits=8,
        training={},
        quality={},
        scope="video",
    )
    own = stack_networks(strip_parameters(BACKENDS[name, "fast"][1](record)), len(networks))
    for parameter, all_of_them in zip(own.parameters(), stack.parameters(), strict=True):
        parameter.data.copy_(all_of_them[torch.from_numpy(networks).to(all_of_them.device)])
    rounded = None
    if latents is not None:
        parts = latents.cpu().numpy().reshape(-1, frames, *latents.shape[1:])
        rounded = round_latents(parts[networks].reshape(-1, *latents.shape[1:]), None)
    path = folder / f"{len(networks)}-from-{networks[0]}.nvpack"
    save_pack(path, description, PackIndex(tuple(videos), (), clips, keys), own, [], rounded)
    return path


class _Plain(torch.nn.Module):
    """``functional_call`` calls forward."""

    def __init__(self, backend: Backend):
        super().__init__()
        self.backend = backend

    def forward(self, units: Units, latents: Tensor | None) -> Tensor:
        return self.backend.decode((), units, latents)


def time_methods(calls: dict[str, Decode], device: torch.device) -> dict[str, float]:
    """Milliseconds of each, median over rounds in which all take turns; they must agree on the frames."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode(), autocast(device):
        expected = calls["loop"]().int()
        for name, call in calls.items():
            difference = (call().int() - expected).abs().float()
            assert difference.mean() < 1, f"{name} decodes other frames: {difference.mean():.2f} grey levels off"
        for _ in range(ROUNDS):
            for name, call in calls.items():
                seconds[name].append(1 / calls_per_second(call, seconds=0.5, device=device))
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["32x48", "64x80", "128x160"])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; {options.clips} networks of width")
    print(f"{options.width}, a clip each; milliseconds a batch\n")
    names = ["loop", "grouped", "columns", "vmap", "packs", "decoder"]
    ratios = ["loop / grouped", "loop / decoder", "packs / decoder"]
    print(f"| network | frame | frames a clip | {' | '.join([*names, *ratios])} |")
    print("|---" * (len(names) + len(ratios) + 3) + "|", flush=True)
    for backend in BACKEND_NAMES:
        for text in options.sizes:
            height, width = (int(side) for side in text.split("x"))
            for frames in options.frames:
                with tempfile.TemporaryDirectory() as folder:
                    size = (height, width)
                    calls = methods(backend, options.width, size, options.clips, frames, device, Path(folder))
                    found = time_methods(calls, device)
                cells = [f"{found[name]:.1f}" for name in names]
                for ratio in ratios:
                    slow, fast = ratio.split(" / ")
                    cells.append(f"{found[slow] / found[fast]:.1f}")
                print(f"| {backend} | {text} | {frames} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
