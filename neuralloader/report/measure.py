"""Measured figures of a pack: its quality against the originals, and everything ``neuralloader info`` tells."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neuralloader.clips import VideoTable
from neuralloader.loading.decode import Decoder
from neuralloader.metrics.quality import psnr_db
from neuralloader.metrics.rate import bits_per_pixel, entropy_bits, ledger_lines
from neuralloader.packfile import Pack

if TYPE_CHECKING:
    from neuralloader.corpus.frames import FrameFiles

FRAMES_PER_STEP = 64
PROBLEMS_TO_TELL = 5  # of each kind; a corpus of 100,000 videos may have thousands


def measure_quality(
    path: Path, originals: "np.ndarray | FrameFiles", device: torch.device, on_progress: Callable[[float], None]
) -> dict[str, float]:
    """Quality of a pack as a reader gets it: opened, decoded whole, compared with the frames it was made from.

    Args:
        path: the pack.
        originals: (num_frames, H, W, 3) uint8, all stored frames in order.
        device: where to decode.
        on_progress: called with the share that is done.

    Returns:
        ``psnr_db``, the mean over frames, and ``worst_psnr_db``, of the worst frame; rounded to 0.0001 dB.
    """
    decoder = Decoder(Pack(path), device)
    psnr = []
    for start in range(0, len(originals), FRAMES_PER_STEP):
        rows = np.arange(start, min(start + FRAMES_PER_STEP, len(originals)))
        original = torch.from_numpy(originals[rows]).to(device).permute(0, 3, 1, 2)
        psnr.append(psnr_db(decoder.decode(rows), original).cpu())
        on_progress((start + len(rows)) / len(originals))
    frames = torch.cat(psnr)
    return {"psnr_db": round(float(frames.mean()), 4), "worst_psnr_db": round(float(frames.min()), 4)}


def describe_pack(pack: Pack) -> dict[str, Any]:
    """All that is known about a pack without decoding it, as JSON values; the ledger sums to ``size_bytes``.

    Raises:
        PackError: its weights are damaged: their entropy is among the figures.
    """
    description, index = pack.description, pack.index
    videos = VideoTable.of(index.videos)
    ledger = pack.reader.ledger()
    entropy = entropy_bits(pack.weight_codes())
    papers_bytes = round(pack.num_parameters * entropy / 8) + ledger["latents"] + ledger["keyframes"]
    return {
        "path": str(pack.path),
        "backend": description.backend,
        "config": description.config,
        "scope": description.scope,
        "is_appendable": pack.is_appendable,
        "network": dataclasses.asdict(description.network),
        "num_videos": len(videos),
        "num_clips": len(index.clips),
        "num_frames": len(pack.frames),
        "num_keyframes": len(index.keys),
        "num_networks": pack.num_networks or 1,
        "num_parameters": pack.num_parameters,
        "classes": list(description.classes),
        "splits": {name: int(videos.in_split(split).sum()) for split, name in enumerate(description.splits)},
        "frame_size": list(description.frame_size),
        "frame_rate": description.frame_rate,
        "frames_per_clip": description.frames_per_clip,
        "key_interval": description.key_interval,
        "keyframe_codec": description.keyframe_codec,
        "keyframe_quality": description.keyframe_quality,
        "weight_bits": description.weight_bits,
        "size_bytes": pack.size_bytes,
        "bits_per_pixel": bits_per_pixel(pack.size_bytes, len(pack.frames), description.frame_size),
        "psnr_db": description.quality.get("psnr_db"),
        "worst_psnr_db": description.quality.get("worst_psnr_db"),
        "ledger": ledger,
        "weight_entropy_bits": entropy,
        "papers_would_count": {
            "size_bytes": papers_bytes,
            "bits_per_pixel": bits_per_pixel(papers_bytes, len(pack.frames), description.frame_size),
        },
        "training": dict(description.training),
        "partial": [
            {
                "path": videos.names[video],
                "problem": problem,
                "num_frames": int(videos.num_frames[video]),
                "num_source_frames": int(videos.num_source_frames[video]),
                "num_nominal_frames": int(videos.num_nominal_frames[video]),
            }
            for video, problem in enumerate(videos.problems)
            if problem
        ],
        "skipped": [{"path": source.name, "reason": source.reason} for source in index.skipped],
    }


def info_lines(facts: dict[str, Any]) -> list[str]:
    """What ``describe_pack`` found, for people."""
    height, width = facts["frame_size"]
    rate = "every frame" if facts["frame_rate"] is None else f"{facts['frame_rate']:g} frames/s"
    classes = (
        f"{len(facts['classes'])} classes: {', '.join(map(_printable, facts['classes']))}"
        if facts["classes"]
        else "no classes"
    )
    keyframes = "no key-frames"
    if facts["key_interval"] is not None:
        codec, quality = facts["keyframe_codec"], facts["keyframe_quality"]
        keyframes = f"{facts['num_keyframes']} key-frames ({codec}, quality {quality})"
    networks = f"{facts['num_parameters']:,} parameters"
    if facts["scope"] == "video":
        networks += f" in {facts['num_networks']} networks, one for each video"
    elif facts["is_appendable"]:
        networks += "; videos can be added"
    splits = [f"{_printable(name)} {count}" for name, count in facts["splits"].items()]
    lines = [
        f"{facts['path']}: {facts['backend']} ({facts['config']}), {networks}",
        f"{_count(facts['num_videos'], 'video')}, {classes}",
        *([f"{_count(len(splits), 'split')}, with their videos: {', '.join(splits)}"] if splits else []),
        f"{facts['num_frames']} frames of {height}x{width} at {rate}, in {facts['num_clips']} clips of "
        f"{facts['frames_per_clip']}; {keyframes}",
        f"PSNR {_decibels(facts['psnr_db'])}, worst frame {_decibels(facts['worst_psnr_db'])}, at "
        f"{facts['bits_per_pixel']:.4f} bits per pixel",
        "",
        *ledger_lines(facts["ledger"]),
        "",
        f"The papers would count {facts['papers_would_count']['size_bytes']:,} bytes, "
        f"{facts['papers_would_count']['bits_per_pixel']:.4f} bits per pixel: parameters x {facts['weight_bits']} bits "
        f"x {facts['weight_entropy_bits'] / facts['weight_bits']:.3f} (entropy) + latents + key-frames, and nothing "
        "for scales, tables and header.",
    ]
    for what, videos, reason in (
        ("kept in part", facts["partial"], "problem"),
        ("skipped", facts["skipped"], "reason"),
    ):
        if videos:
            lines += ["", f"{_count(len(videos), 'source')} {what}:"]
            lines += [f"  {_printable(v['path'])}: {_printable(v[reason])}" for v in videos[:PROBLEMS_TO_TELL]]
        if len(videos) > PROBLEMS_TO_TELL:
            lines.append(f"  and {len(videos) - PROBLEMS_TO_TELL} more; --json has all of them")
    return lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _printable(text: str) -> str:
    """Text of a stranger, without what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _decibels(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} dB"
