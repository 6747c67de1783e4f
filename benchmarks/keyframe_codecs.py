"""Key-frame codecs at equal quality: bytes, and time to encode and decode, on the key-frames of a folder of videos.

    python benchmarks/keyframe_codecs.py videos/ [--frame-rate 4] [--size 128 160] [--key-interval 8] [--psnr 32 35 38]

The key-frames are those that a pack of the folder would have. Each codec encodes them at several qualities; what stands
in the table is interpolated between the two nearest, bytes on a logarithmic scale, and "-" where the sweep does not
reach. PSNR is the mean over key-frames of uint8 RGB. Bytes are a mean a key-frame: as whole files, and as stored in a
pack (payload and a share of the template; 6 bytes of size and checksum come to each). Encoding and decoding one by one
is CPU time of one thread; decoding in threads is wall time a key-frame, best of three. Prints a Markdown table.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neuralloader.clips import index_corpus, index_frames
from neuralloader.codecs.keyframes import (
    KeyframeCodec,
    decode_keyframe,
    decode_keyframes,
    encode_keyframe,
    pack_keyframes,
)
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.metrics.quality import psnr_db

FRAMES_PER_CLIP = 8
QUALITIES: dict[KeyframeCodec, tuple[int, ...]] = {
    "avif": (5, 15, 30, 45, 60, 80),
    "webp": (5, 20, 45, 70, 85, 95),
    "jpeg": (15, 30, 50, 70, 85, 93, 97),
}
ROUNDS = 3


@dataclass(frozen=True)
class Point:
    """One codec at one quality: means over all key-frames.

    Attributes:
        quality: on the codec's own scale.
        psnr_db: of uint8 RGB.
        whole_bytes: of a file.
        stored_bytes: of a payload and its share of the template.
        encode_ms, decode_ms: CPU time of one thread.
        threads_ms: wall time of decoding in threads.
    """

    quality: float
    psnr_db: float
    whole_bytes: float
    stored_bytes: float
    encode_ms: float
    decode_ms: float
    threads_ms: float


def read_keyframes(folder: Path, frame_rate: float, size: tuple[int, int], key_interval: int) -> np.ndarray:
    """(num_keys, H, W, 3) uint8: the key-frames of a pack of this folder."""
    with ingest(find_videos(folder).sources, frame_rate=frame_rate, size=size, on_error="skip") as corpus:
        num_frames = np.array([video.num_frames for video in corpus.videos])
        clips, keys = index_corpus(num_frames, frames_per_clip=FRAMES_PER_CLIP, key_interval=key_interval)
        return corpus.frames[index_frames(clips, keys).first_row[keys.video] + keys.frame].copy()


def measure(images: np.ndarray, codec: KeyframeCodec, quality: int) -> Point:
    """Encode and decode all key-frames at one quality."""
    size, count = (images.shape[1], images.shape[2]), len(images)
    start = time.process_time()
    files = [encode_keyframe(image, codec, quality) for image in images]
    encoded = time.process_time()
    decoded = np.stack([decode_keyframe(file, codec, size) for file in files])
    end = time.process_time()
    in_threads = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        decode_keyframes(files, codec, size)
        in_threads.append(time.perf_counter() - begin)
    template, payloads = pack_keyframes(files, codec)
    psnr = psnr_db(*(torch.from_numpy(frames).permute(0, 3, 1, 2) for frames in (decoded, images)))
    return Point(
        quality=quality,
        psnr_db=psnr.mean().item(),
        whole_bytes=sum(map(len, files)) / count,
        stored_bytes=(len(template) + sum(map(len, payloads))) / count,
        encode_ms=1000 * (encoded - start) / count,
        decode_ms=1000 * (end - encoded) / count,
        threads_ms=1000 * min(in_threads) / count,
    )


def at_psnr(points: list[Point], target_db: float) -> Point | None:
    """What the codec gives at a PSNR, between the points of its sweep; None beyond its ends."""
    points = sorted(points, key=lambda point: point.psnr_db)
    psnr = [point.psnr_db for point in points]
    if not psnr[0] <= target_db <= psnr[-1]:
        return None

    def between(name: str, *, logarithmic: bool = False) -> float:
        values = np.array([getattr(point, name) for point in points])
        if logarithmic:
            return float(np.exp(np.interp(target_db, psnr, np.log(values))))
        return float(np.interp(target_db, psnr, values))

    return Point(
        quality=between("quality"),
        psnr_db=target_db,
        whole_bytes=between("whole_bytes", logarithmic=True),
        stored_bytes=between("stored_bytes", logarithmic=True),
        encode_ms=between("encode_ms"),
        decode_ms=between("decode_ms"),
        threads_ms=between("threads_ms"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frame-rate", type=float, default=4.0)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 160), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--key-interval", type=int, default=8)
    parser.add_argument("--psnr", type=float, nargs="+", default=[32.0, 35.0, 38.0], help="dB to compare at")
    options = parser.parse_args()

    images = read_keyframes(options.folder, options.frame_rate, tuple(options.size), options.key_interval)
    sweeps = {codec: [measure(images, codec, q) for q in qualities] for codec, qualities in QUALITIES.items()}

    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    height, width = options.size
    print(f"{len(images)} key-frames of {height}x{width}; {num_threads} threads where there are several\n")
    print(
        "| PSNR | codec | quality | bytes, whole | bytes, stored | to AVIF stored | encode, ms | decode, ms "
        "| decode in threads, ms |"
    )
    print("|---" * 9 + "|")
    for target_db in options.psnr:
        best = at_psnr(sweeps["avif"], target_db)
        for codec, points in sweeps.items():
            point = at_psnr(points, target_db)
            if point is None:
                print(f"| {target_db:g} | {codec} | " + " | ".join("-" * 7) + " |")
                continue
            ratio = f"{point.stored_bytes / best.stored_bytes:.2f}" if best else "-"
            print(
                f"| {target_db:g} | {codec} | {point.quality:.0f} | {point.whole_bytes:.0f} | {point.stored_bytes:.0f} "
                f"| {ratio} | {point.encode_ms:.2f} | {point.decode_ms:.2f} | {point.threads_ms:.2f} |"
            )


if __name__ == "__main__":
    main()
