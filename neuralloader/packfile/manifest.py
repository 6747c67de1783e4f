"""What a pack says about itself: the manifest as a checked record, and back.

A manifest may come from a stranger: every field is checked for type and bounds before anything is built from it.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuralloader.backends import BACKENDS, Scope
from neuralloader.clips import MAX_SPLITS
from neuralloader.codecs.keyframes import KeyframeCodec
from neuralloader.errors import PackError

MAX_SIDE = 16384  # pixels of a frame's side
MAX_SETTING = 1 << 20  # any number in a network's record
MAX_FRAMES_PER_CLIP = 256


@dataclass(frozen=True)
class PackDescription:
    """What the manifest says about a pack, beside its tensors.

    Attributes:
        backend: name of the backend, such as "dnerv".
        config: name of its configuration, "fast" or "paper".
        network: the frozen record that its network is built from.
        frame_size: (height, width) of every frame in pixels.
        frames_per_clip: frames in a clip.
        key_interval: frames between key-frames; None in a pack without any.
        frame_rate: stored frames per second that were asked for; None is every frame of the source.
        classes: class names that labels index.
        keyframe_codec, keyframe_quality: how key-frames are compressed.
        weight_bits: bits of a weight's code.
        training: how it was trained, as plain JSON values.
        quality: measured on the finished file, as plain JSON values; empty until then.
        scope: what one network holds: the corpus, or a video each.
        splits: names of parts of the corpus, such as "train" and "test", that the bits of a video's ``splits`` stand
            for; a video may be in several, or in none.
    """

    backend: str
    config: str
    network: Any
    frame_size: tuple[int, int]
    frames_per_clip: int
    key_interval: int | None
    frame_rate: float | None
    classes: tuple[str, ...]
    keyframe_codec: KeyframeCodec
    keyframe_quality: int
    weight_bits: int
    training: Mapping[str, Any]
    quality: Mapping[str, Any]
    scope: Scope = "corpus"
    splits: tuple[str, ...] = ()


def write_description(description: PackDescription) -> dict[str, Any]:
    """The manifest's fields, as JSON values.

    One network for the corpus goes without saying, and so does that there are no splits: old packs say nothing.
    """
    fields = dataclasses.asdict(description)
    if description.scope == "corpus":
        del fields["scope"]
    if not description.splits:
        del fields["splits"]
    return fields


def read_description(manifest: Mapping[str, Any]) -> PackDescription:
    """Check the manifest's part, field by field."""
    scope = manifest.get("scope", "corpus")
    if scope not in typing.get_args(Scope):
        raise PackError(
            f"scope {scope!r:.200}: this version reads packs with one network for the corpus, or one for each video; "
            "install a newer neuralloader: pip install -U neuralloader"
        )
    backend, config = _field(manifest, "backend", str), _field(manifest, "config", str)
    if (backend, config) not in BACKENDS:
        known = ", ".join(f"{b} {c}" for b, c in BACKENDS)
        raise PackError(f"the pack needs the backend {backend!r:.200} ({config:.200}); this version knows {known}")
    frame_size = _pair(manifest, "frame_size", MAX_SIDE)
    if scope == "video" and BACKENDS[backend, config][1].uses_keyframes:
        raise PackError(f"scope {scope!r} does not go with the backend {backend}, which has one network for the corpus")
    network = _read_network(BACKENDS[backend, config][0], _field(manifest, "network", dict))
    if network.frame_size != frame_size:
        raise PackError(f"frame_size {frame_size} is not that of the network, {network.frame_size}")
    frame_rate = manifest.get("frame_rate")
    if frame_rate is not None and not (type(frame_rate) in (int, float) and 0 < frame_rate < 1e6):
        raise PackError(f"frame_rate {frame_rate!r:.200} must be above 0, or null")
    splits = _names(manifest, "splits") if "splits" in manifest else ()
    if len(splits) > MAX_SPLITS:
        raise PackError(f"splits of the manifest has {len(splits)} names, where {MAX_SPLITS} are allowed")
    frames_per_clip = _number(manifest, "frames_per_clip", 1, MAX_FRAMES_PER_CLIP)
    if getattr(network, "frames_per_clip", frames_per_clip) != frames_per_clip:
        raise PackError(f"frames_per_clip {frames_per_clip} is not that of the network, {network.frames_per_clip}")
    key_interval = manifest.get("key_interval")
    if BACKENDS[backend, config][1].uses_keyframes != (key_interval is not None):
        raise PackError(f"key_interval {key_interval!r:.200} does not go with the backend {backend}")
    if key_interval is not None and (
        type(key_interval) is not int or key_interval < 1 or key_interval % frames_per_clip
    ):
        raise PackError(
            f"key_interval {key_interval!r:.200} must be a multiple of the {frames_per_clip} frames of a clip"
        )
    codec = _field(manifest, "keyframe_codec", str)
    if codec not in typing.get_args(KeyframeCodec):
        known = ", ".join(typing.get_args(KeyframeCodec))
        raise PackError(f"key-frame codec {codec!r:.200} is unknown; this version knows {known}")
    quality = _field(manifest, "quality", dict)
    for name, value in quality.items():
        if type(value) not in (int, float):
            raise PackError(f"quality of the manifest must hold numbers, not {value!r:.200} for {name!r:.200}")
    return PackDescription(
        backend=backend,
        config=config,
        network=network,
        frame_size=frame_size,
        frames_per_clip=frames_per_clip,
        key_interval=key_interval,
        frame_rate=frame_rate,
        classes=_names(manifest, "classes"),
        keyframe_codec=typing.cast(KeyframeCodec, codec),
        keyframe_quality=_number(manifest, "keyframe_quality", 0, 100),
        weight_bits=_number(manifest, "weight_bits", 2, 8),
        training=_field(manifest, "training", dict),
        quality=quality,
        scope=scope,
        splits=splits,
    )


def _read_network(record: type[Any], values: Mapping[str, Any]) -> Any:
    """The record of a network from JSON: every field that has no default there, of its type, no number out of bounds.

    What a record of today has no field for any more, its ``RETIRED`` names, is passed over.
    """
    hints = typing.get_type_hints(record)
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(record)}
    retired = getattr(record, "RETIRED", frozenset())
    names = set(values) - retired
    if not names <= set(fields) or any(needed and name not in names for name, needed in fields.items()):
        raise PackError(f"the network's record has {sorted(values)!r:.400}, where {sorted(fields)} belong")
    settings = {name: _setting(name, values[name], hints[name]) for name in names}
    try:
        return record(**settings)
    except ValueError as error:
        raise PackError(f"the network's record is impossible: {error}") from error


def _setting(name: str, value: Any, hint: Any) -> Any:
    """One value of a configuration: an int, a float, or a tuple of them."""
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list) or not 1 <= len(value) <= 16:
            raise PackError(f"{name} of the network must be a short list, not {value!r:.200}")
        if kinds[-1] is not Ellipsis and len(kinds) != len(value):
            raise PackError(f"{name} of the network must have {len(kinds)} numbers, not {len(value)}")
        return tuple(_setting(name, part, kinds[0]) for part in value)
    is_number = isinstance(value, int) or (hint is float and isinstance(value, float))
    if not is_number or isinstance(value, bool) or not abs(value) <= MAX_SETTING or (hint is int and value < 1):
        raise PackError(f"{name} of the network must be 1 to {MAX_SETTING}, not {value!r:.200}")
    return hint(value)


def _field(manifest: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = manifest.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PackError(f"{name} of the manifest must be {kind.__name__}, not {value!r:.200}")
    return value


def _names(manifest: Mapping[str, Any], field: str) -> tuple[str, ...]:
    names = _field(manifest, field, list)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise PackError(f"{field} must be texts, each of them once")
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise PackError(f"{field} must be valid Unicode: {error}") from error
    return tuple(names)


def _number(manifest: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = _field(manifest, name, int)
    if not least <= value <= most:
        raise PackError(f"{name} {value} must be {least} to {most}")
    return value


def _pair(manifest: Mapping[str, Any], name: str, most: int) -> tuple[int, int]:
    value = _field(manifest, name, list)
    if len(value) != 2 or not all(type(side) is int and 1 <= side <= most for side in value):
        raise PackError(f"{name} of the manifest must be two numbers from 1 to {most}, not {value!r:.200}")
    return value[0], value[1]
