"""A reader of packs, written from docs/format.md alone, without neuralloader. It leaves out most of the checks."""

import hashlib
import io
import json
import lzma
import zlib

import numpy as np
import zstandard
from PIL import Image
from safetensors import safe_open


class Reader:
    def __init__(self, path: str) -> None:
        with safe_open(path, "np") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            text, digest = (file.metadata()[key] for key in ("neuralloader", "neuralloader.sha256"))
        self.manifest = json.loads(text)
        assert hashlib.sha256(text.encode()).hexdigest() == digest, "the manifest does not match its hash"
        assert (self.manifest["format"], self.manifest["version"]) == ("nvpack", 1), "not a pack of format 1"

    def videos(self) -> list[tuple[str, int, int, str | None]]:
        names = self.tensors["videos.names"].tobytes().decode().split("\0")[:-1]
        frames, labels = (self.tensors[f"videos.{column}"].tolist() for column in ("num_frames", "label"))
        classes = [*self.manifest["classes"], None]  # None: the class of label -1
        return [(name, n, label, classes[label]) for name, n, label in zip(names, frames, labels, strict=True)]

    def blob(self, name: str) -> list[bytes]:
        data, size, crc = (self.tensors[f"{name}.{part}"] for part in ("data", "size", "crc32"))
        items = [item.tobytes() for item in np.split(data, np.cumsum(size, dtype=np.int64))[:-1]]
        assert [zlib.crc32(item) for item in items] == crc.tolist(), f"an item of {name} is damaged"
        return items

    def keyframe(self, item: bytes) -> np.ndarray:
        data = bytearray(self.tensors["keyframes.template"].tobytes() + item)
        if len(data) > len(item):  # AVIF: boxes of size, type, content; in "meta" they start 4 bytes later
            start, iloc = find_box(data, b"mdat", 0) + 8, find_box(data, b"iloc", find_box(data, b"meta", 0) + 12)
            end = iloc + int.from_bytes(data[iloc : iloc + 4])
            data[end - 4 : end] = (len(data) - start).to_bytes(4)
            data[start - 8 : start - 4] = (len(data) - start + 8).to_bytes(4)
        return np.asarray(Image.open(io.BytesIO(data), formats=[self.manifest["keyframe_codec"]]))

    def weights(self, part: str = "weights") -> dict[str, np.ndarray]:
        packed = self.tensors[f"{part}.codes"].tobytes()
        networks = [len(self.videos())] if self.manifest.get("scope") == "video" else []
        data = np.frombuffer((lzma if packed.startswith(b"\xfd7zXZ\0") else zstandard).decompress(packed), np.uint8)
        codes = data if self.manifest["weight_levels"] <= 256 else data.reshape(2, -1).T.copy().view("<u2").ravel()
        section = "scales" if part == "weights" else part
        minimum, scale = (self.tensors[f"{section}.{name}"].astype(np.float32) for name in ("minimum", "scale"))
        weights = {}
        for name, shape, axis in self.manifest[part]:
            sides = networks + [n if i == axis else 1 for i, n in enumerate(shape)]  # scales spread along the axis
            shape = networks + shape
            n, s = int(np.prod(shape)), int(np.prod(sides))
            weights[name] = codes[:n].reshape(shape) * scale[:s].reshape(sides) + minimum[:s].reshape(sides)
            codes, scale, minimum = codes[n:], scale[s:], minimum[s:]
        return weights


def find_box(data: bytearray, kind: bytes, at: int) -> int:
    return at if data[at + 4 : at + 8] == kind else find_box(data, kind, at + int.from_bytes(data[at : at + 4]))


def latents(pack: Reader) -> list[np.ndarray]:
    """Values of the latents, (frames, channels, height, width) float32, of each clip that has some, in clip order."""
    tensors, network = pack.tensors, pack.manifest["network"]
    height, width = network.get("grid") or (n // np.prod(network.get("strides", 16)) for n in network["frame_size"])
    offsets, frequencies = tensors["latents.offset"].tolist(), tensors["latents.frequencies"].tolist()
    ends = np.cumsum(frequencies, axis=1).tolist()
    values = []
    counts = latents_per_clip(tensors)
    videos = [video for video, count in zip(tensors["clips.video"].tolist(), counts, strict=True) if count]
    for block, count, video in zip(pack.blob("latents"), filter(None, counts), videos, strict=True):
        words = iter(np.frombuffer(block or b"\0\0\1\0", "<u2").tolist())
        x = next(words) + 65536 * next(words)
        symbols = np.empty((count, len(offsets), height, width), np.float32)
        for index in np.ndindex(symbols.shape):
            c, s = index[1], x % 4096
            column = next(i for i, end in enumerate(ends[c]) if s < end)
            f = frequencies[c][column]
            symbols[index] = offsets[c] + column
            x = f * (x // 4096) + s - (ends[c][column] - f)  # where f is 4096, x as it was
            if x < 65536:
                x = 65536 * x + next(words)
        assert (x, [*words]) == (65536, []), "a block of latents is damaged"
        if "latents.scale" in tensors:
            minimum, scale = (tensors[f"latents.{part}"].astype(np.float32) for part in ("minimum", "scale"))
            if pack.manifest.get("scope") == "video":
                minimum, scale = minimum[video], scale[video]
            symbols = minimum[:, None, None] + scale[:, None, None] * (symbols + 128)
        values.append(symbols)
    return values


def more_about_videos(pack: Reader) -> list[tuple[int, list[str], str]]:
    """Frames that its source promised, names of its splits, and what is wrong with it, of each video."""
    names, zeros = pack.manifest.get("splits", []), np.zeros_like(pack.tensors["videos.num_frames"])
    promised, splits = (
        pack.tensors.get(f"videos.{column}", zeros).tolist() for column in ("num_nominal_frames", "splits")
    )
    no_problems = zeros.astype(np.uint8)  # a zero byte ends each text
    problems = pack.tensors.get("videos.problems", no_problems).tobytes().decode().split("\0")[:-1]
    names_of = [[name for i, name in enumerate(names) if bits & 1 << i] for bits in splits]
    return list(zip(promised, names_of, problems, strict=True))


def latents_per_clip(tensors: dict[str, np.ndarray]) -> list[int]:
    """The frames of each clip that are no key-frames."""
    keys = {*zip(tensors["keys.video"].tolist(), tensors["keys.frame"].tolist(), strict=True)}
    columns = (tensors[f"clips.{column}"].tolist() for column in ("video", "first_frame", "num_valid"))
    return [sum((video, first + i) not in keys for i in range(n)) for video, first, n in zip(*columns, strict=True)]
