"""What a network is worth to videos that it was not trained on: packed from some videos, others are added untrained.

    python benchmarks/amortisation.py CORPUS TRAINLIST TESTLIST -o DIR [--minutes 5] [--sizes 10 20 41]
        [--networks dnerv:fast:S hnerv:fast:S cnerv:fast:S] [--frame-rate 4] [--size 128x160]

The lists are UCF101's: a path below CORPUS a line. For each network and size n, the first n videos of TRAINLIST, the
classes taking turns, are packed with ``appendable``, and those of TESTLIST are added to the pack. For comparison, each
network is also packed from all videos of both lists, as a pack that is never added to. Packs that are in DIR already
are kept. With PyAV (``pip install av``), libx264 at the bytes that were added stands beside. Prints Markdown.
"""

import argparse
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from pack_once import pack_once

import neuralloader
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.loading.decode import Decoder
from neuralloader.metrics.quality import psnr_db
from neuralloader.packfile import Pack

NETWORKS = ["dnerv:fast:S", "hnerv:fast:S", "cnerv:fast:S"]
CRFS = (20, 23, 26, 29, 32, 35, 38)
FRAMES_PER_STEP = 64


def read_list(path: Path) -> list[str]:
    """Paths of a list, without the labels behind them."""
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def take_in_turns(names: Sequence[str], count: int) -> list[str]:
    """So many names, the classes (their first folders) taking turns."""
    classes: dict[str, list[str]] = {}
    for name in names:
        classes.setdefault(name.split("/")[0], []).append(name)
    turns = chain.from_iterable(zip_longest(*classes.values()))
    return [name for name in turns if name is not None][:count]


def link_folder(corpus: Path, names: Sequence[str], folder: Path) -> Path:
    """A folder of links to some videos of the corpus."""
    for name in names:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to((corpus / name).resolve())
    return folder


def psnr_of_videos(pack: Pack, names: Sequence[str], originals: dict[str, np.ndarray]) -> np.ndarray:
    """PSNR of every frame of some videos of a pack, as a reader gets them."""
    decoder, place = Decoder(pack, torch.device("cpu")), {v.name: i for i, v in enumerate(pack.index.videos)}
    psnr = []
    for name in names:
        first, end = pack.frames.first_row[[place[name], place[name] + 1]]
        original = torch.from_numpy(originals[name]).permute(0, 3, 1, 2)
        psnr.append(psnr_db(decoder.decode(np.arange(first, end)), original))
    return torch.cat(psnr).numpy()


def read_originals(folder: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    with ingest(find_videos(folder).sources, frame_rate=options.frame_rate, size=options.size) as corpus:
        ends = np.cumsum([video.num_frames for video in corpus.videos])
        parts = np.split(np.array(corpus.frames), ends[:-1])
        return {video.name: part for video, part in zip(corpus.videos, parts, strict=True)}


def x264_sweep(videos: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """(bits per pixel, PSNR) of libx264 medium, a raw stream a video, at each crf; none without PyAV."""
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError:
        return []
    points = []
    for crf in CRFS:
        num_bytes, psnr = 0, []
        for frames in videos:
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width = frames.shape[1:3]
            encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 4), Fraction(4)
            encoder.options = {"crf": str(crf), "preset": "medium"}
            packets = []
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts = number
                packets += encoder.encode(frame)
            packets += encoder.encode(None)
            num_bytes += sum(packet.size for packet in packets)
            decoder = av.CodecContext.create("h264", "r")
            decoded = [f for packet in [*packets, None] for f in decoder.decode(packet)]
            pixels = np.stack([f.to_ndarray(format="rgb24") for f in sorted(decoded, key=lambda f: f.pts or 0)])
            psnr.append(psnr_db(*(torch.from_numpy(p).permute(0, 3, 1, 2) for p in (pixels, frames))))
        num_pixels = sum(frames.size // 3 for frames in videos)
        points.append((8 * num_bytes / num_pixels, float(torch.cat(psnr).mean())))
    return points


def at_bits(points: Sequence[tuple[float, float]], bits_per_pixel: float) -> str:
    """PSNR of a sweep at a rate, interpolated over the logarithm of the rate; empty without one, or outside of it."""
    if not points or not points[-1][0] <= bits_per_pixel <= points[0][0]:
        return ""
    rates, psnr = (np.array(column)[::-1] for column in zip(*points, strict=True))
    return f"{np.interp(np.log(bits_per_pixel), np.log(rates), psnr):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("trainlist", type=Path)
    parser.add_argument("testlist", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 41])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="BACKEND:CONFIG:WIDTH")
    parser.add_argument("--frame-rate", type=float, default=4.0)
    parser.add_argument("--size", type=lambda text: tuple(int(side) for side in text.split("x")), default=(128, 160))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    train, test = read_list(options.trainlist), read_list(options.testlist)
    new = link_folder(options.corpus, test, options.output / "new")
    everything = link_folder(options.corpus, [*train, *test], options.output / "all")
    originals = read_originals(everything, options)
    x264 = x264_sweep([originals[name] for name in test])
    num_pixels = sum(originals[name].size // 3 for name in test)

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.minutes:g} minutes each; PSNR in dB\n"
    )
    columns = [
        "network",
        "trained on",
        "steps",
        "trained videos",
        "new videos",
        "new, in a pack of all",
        "new bits per pixel",
    ]
    columns += ["x264 at these", "encoder bytes"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)
    for network in options.networks:
        name = network.replace(":", "-")
        of_all = Pack(pack_once(options.output / f"{name}-all.nvpack", everything, network, options))
        reference = psnr_of_videos(of_all, test, originals).mean()
        for size in options.sizes:
            chosen = take_in_turns(train, size)
            source = link_folder(options.corpus, chosen, options.output / f"trained-{size}")
            old = Pack(pack_once(options.output / f"{name}-{size}.nvpack", source, network, options, appendable=True))
            path = options.output / f"{name}-{size}-appended.nvpack"
            if not path.exists():
                neuralloader.append(old.path, new, path)
            both, before = Pack(path), old.reader.ledger()
            added = sum(both.reader.ledger()[part] - before[part] for part in ("latents", "keyframes"))
            rate = 8 * added / num_pixels
            cells = [network.replace(":", " "), f"{size} videos", str(old.description.training["steps"])]
            cells += [f"{psnr_of_videos(both, chosen, originals).mean():.2f}"]
            cells += [f"{psnr_of_videos(both, test, originals).mean():.2f}", f"{reference:.2f}"]
            cells += [f"{rate:.4f}", at_bits(x264, rate), f"{before['encoder']:,}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
