"""The index of a pack as tensors and back: its videos, what was skipped, its clips and where its key-frames sit.

    videos.*    num_frames, num_source_frames, label (int); frame_rate, source_frame_rate (float64);
                source_size (n, 2) (int, height and width); names (uint8: UTF-8, each name ended by a zero byte);
                and where some video has a value there: num_nominal_frames, splits (int), problems (as names)
    skipped.*   text (uint8: name, zero byte, reason, zero byte, ...)
    clips.*     video, first_frame, num_valid, start_key, end_key (int; the keys are -1 where there are no key-frames)
    keys.*      video, frame (int)

Integers are stored in the smallest type that holds the column. Everything is checked on the way in: a stranger's table
must not lead a reader out of its arrays, nor an extracted video out of its folder.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from neuralloader.clips import NO_KEY, UNLABELLED, ClipTable, KeyframeTable, SkippedSource, VideoInfo, VideoTable
from neuralloader.errors import PackError

_ODD_NAME = re.compile(r"\\|[\0/]\.{0,2}[\0/]")  # in names that zero characters part
_INTEGERS = tuple(np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"))


@dataclass(frozen=True)
class PackIndex:
    """What is in a pack, without the pictures.

    Attributes:
        videos: in the order that the other tables count them.
        skipped: sources that were left out.
        clips: all clips; together they cover every video, and all but a video's last are full.
        keys: where the key-frames sit.
    """

    videos: Sequence[VideoInfo]
    skipped: tuple[SkippedSource, ...]
    clips: ClipTable
    keys: KeyframeTable


def index_to_tensors(index: PackIndex) -> dict[str, np.ndarray]:
    """Lay the index out for ``write_pack``.

    Raises:
        ValueError: a name or reason that cannot be stored (a zero byte, no valid Unicode, a path that leaves its
            folder, two videos of one name).
    """
    videos = VideoTable.of(index.videos)
    _check_names(videos.names)
    tensors = {
        "videos.num_frames": _smallest(videos.num_frames),
        "videos.num_source_frames": _smallest(videos.num_source_frames),
        "videos.label": _smallest(videos.label),
        "videos.frame_rate": videos.frame_rate,
        "videos.source_frame_rate": videos.source_frame_rate,
        "videos.source_size": _smallest(videos.source_size),
        "videos.names": _join_text(videos.names),
        "skipped.text": _join_text([text for source in index.skipped for text in (source.name, source.reason)]),
        "clips.video": _smallest(index.clips.video),
        "clips.first_frame": _smallest(index.clips.first_frame),
        "clips.num_valid": _smallest(index.clips.num_valid),
        "clips.start_key": _smallest(index.clips.start_key),
        "clips.end_key": _smallest(index.clips.end_key),
        "keys.video": _smallest(index.keys.video),
        "keys.frame": _smallest(index.keys.frame),
    }
    if videos.num_nominal_frames.any():
        tensors["videos.num_nominal_frames"] = _smallest(videos.num_nominal_frames)
    if videos.splits.any():
        tensors["videos.splits"] = _smallest(videos.splits)
    if any(videos.problems):
        tensors["videos.problems"] = _join_text(videos.problems)
    return tensors


def index_from_tensors(
    get: Callable[[str], np.ndarray],
    tensor_names: Collection[str],
    *,
    num_classes: int,
    num_splits: int,
    frames_per_clip: int,
) -> PackIndex:
    """Read the index, and check every row of it.

    Args:
        get: gives a tensor by name, as ``PackReader.tensor`` does.
        tensor_names: the tensors that are there; those that few packs have may be missing.
        num_classes: labels must lie below it.
        num_splits: no video may be in another split than these.
        frames_per_clip: frames of a full clip.

    Returns:
        The index; its tables are int32 where all their values are small, else int64.

    Raises:
        PackError: a table that is damaged or contradicts another, with its row and value.
    """
    videos = _read_videos(get, tensor_names, num_classes, num_splits)
    skipped_texts = _split_text("skipped.text", get("skipped.text"))
    if len(skipped_texts) % 2:
        raise PackError(f"skipped.text holds {len(skipped_texts)} texts, where pairs of name and reason belong")
    num_frames = videos.num_frames
    keys = _read_keys(get, num_frames)
    return PackIndex(
        videos=videos,
        skipped=tuple(
            SkippedSource(name, reason) for name, reason in zip(skipped_texts[::2], skipped_texts[1::2], strict=True)
        ),
        clips=_read_clips(get, num_frames, keys, frames_per_clip),
        keys=keys,
    )


def _read_videos(
    get: Callable[[str], np.ndarray], tensor_names: Collection[str], num_classes: int, num_splits: int
) -> VideoTable:
    num_frames = _read_column(get, "videos.num_frames", None, at_least=1)
    n = len(num_frames)
    num_source_frames = _read_column(get, "videos.num_source_frames", n, at_least=1)
    label = _read_column(get, "videos.label", n, at_least=UNLABELLED, below=num_classes)
    frame_rate = _read_rates(get, "videos.frame_rate", n)
    source_frame_rate = _read_rates(get, "videos.source_frame_rate", n)
    source_size = get("videos.source_size")
    if source_size.shape != (n, 2):
        raise PackError(f"videos.source_size has shape {source_size.shape}, not {(n, 2)}")
    height_width = _check_integers("videos.source_size", source_size.ravel(), at_least=1).reshape(n, 2)
    names = _split_text("videos.names", get("videos.names"))
    if len(names) != n:
        raise PackError(f"videos.names holds {len(names)} names for {n} videos")
    _check_names(names)
    num_nominal_frames, splits, problems = np.zeros(n, np.int32), np.zeros(n, np.int32), [""] * n
    if "videos.num_nominal_frames" in tensor_names:
        num_nominal_frames = _read_column(get, "videos.num_nominal_frames", n, at_least=0)
    if "videos.splits" in tensor_names:
        splits = _read_column(get, "videos.splits", n, at_least=0, below=1 << num_splits)
    if "videos.problems" in tensor_names:
        problems = _split_text("videos.problems", get("videos.problems"))
        if len(problems) != n:
            raise PackError(f"videos.problems holds {len(problems)} texts for {n} videos")
    return VideoTable(
        names=names,
        label=label,
        num_frames=num_frames,
        num_source_frames=num_source_frames,
        source_frame_rate=source_frame_rate,
        frame_rate=frame_rate,
        source_size=height_width,
        num_nominal_frames=num_nominal_frames,
        splits=splits,
        problems=problems,
    )


def _read_keys(get: Callable[[str], np.ndarray], num_frames: np.ndarray) -> KeyframeTable:
    video = _read_column(get, "keys.video", None, at_least=0, below=len(num_frames))
    frame = _read_column(get, "keys.frame", len(video), at_least=0)
    _check_rows("keys.frame", frame, frame < num_frames[video], "lies past its video's last frame")
    _check_rows("keys.video", video[1:], video[1:] >= video[:-1], "comes after a later video", first_row=1)
    rising = (video[1:] != video[:-1]) | (frame[1:] > frame[:-1])
    _check_rows("keys.frame", frame[1:], rising, "does not come after the row before", first_row=1)
    return KeyframeTable(video, frame)


def _read_clips(
    get: Callable[[str], np.ndarray], num_frames: np.ndarray, keys: KeyframeTable, frames_per_clip: int
) -> ClipTable:
    video = _read_column(get, "clips.video", None, at_least=0, below=len(num_frames))
    n = len(video)
    first_frame = _read_column(get, "clips.first_frame", n, at_least=0)
    num_valid = _read_column(get, "clips.num_valid", n, at_least=1, below=frames_per_clip + 1)
    least = 0 if len(keys) else NO_KEY
    start_key = _read_column(get, "clips.start_key", n, at_least=least, below=len(keys))
    end_key = _read_column(get, "clips.end_key", n, at_least=least, below=len(keys))

    # The clips must tile the videos: each video in turn, from its first frame to its last, without a gap.
    is_first = np.diff(video, prepend=-1) != 0
    is_last = np.roll(is_first, -1)
    expected_video = np.cumsum(is_first) - 1
    _check_rows("clips.video", video, video == expected_video, "leaves out a video, or comes back to one")
    if is_first.sum() != len(num_frames):
        raise PackError(f"clips.video names {is_first.sum()} of {len(num_frames)} videos")
    end_frame = first_frame + num_valid
    expected_first = np.where(is_first, 0, np.roll(end_frame, 1))
    _check_rows("clips.first_frame", first_frame, first_frame == expected_first, "does not follow the clip before")
    _check_rows("clips.num_valid", num_valid, is_last | (num_valid == frames_per_clip), "is short within its video")
    reaches_end = ~is_last | (end_frame == num_frames[video])
    _check_rows("clips.num_valid", num_valid, reaches_end, "does not end its video's last clip at the last frame")

    if not len(keys):
        return ClipTable(video, first_frame, num_valid, start_key, end_key)
    for name, key in (("clips.start_key", start_key), ("clips.end_key", end_key)):
        _check_rows(name, key, keys.video[key] == video, "is a key-frame of another video")
    _check_rows("clips.start_key", start_key, keys.frame[start_key] <= first_frame, "lies after the clip's start")
    _check_rows("clips.end_key", end_key, keys.frame[end_key] >= first_frame, "lies before the clip's start")
    return ClipTable(video, first_frame, num_valid, start_key, end_key)


def _smallest(values: np.ndarray | Sequence[object]) -> np.ndarray:
    """Integers in the smallest type that holds them all; unsigned where none is negative."""
    values = np.asarray(values, np.int64)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    fitting = (d for d in _INTEGERS if np.iinfo(d).min <= low and high <= np.iinfo(d).max)
    return values.astype(next(fitting))


def _read_column(
    get: Callable[[str], np.ndarray], name: str, length: int | None, *, at_least: int, below: int | None = None
) -> np.ndarray:
    values = get(name)
    if values.ndim != 1 or length not in (None, len(values)):
        raise PackError(f"{name} has shape {values.shape}, not {'(n,)' if length is None else (length,)}")
    return _check_integers(name, values, at_least=at_least, below=below)


def _check_integers(name: str, values: np.ndarray, *, at_least: int, below: int | None = None) -> np.ndarray:
    """The values as int32 or int64, if they are integers of that range; sums of two cannot overflow either."""
    if values.dtype.kind not in "iu":
        raise PackError(f"{name} must hold integers, not {values.dtype}")
    below = 2**62 if below is None else below
    _check_rows(name, values, (values >= at_least) & (values < below), f"must be {at_least} to {below - 1}")
    return values.astype(np.int32 if values.max(initial=0) < 2**30 else np.int64)


def _read_rates(get: Callable[[str], np.ndarray], name: str, length: int) -> np.ndarray:
    values = get(name)
    if values.dtype != np.float64 or values.shape != (length,):
        raise PackError(f"{name} is {values.dtype} {values.shape}, not float64 {(length,)}")
    _check_rows(name, values, np.isfinite(values) & (values > 0), "must be a finite number above 0")
    return values


def _check_rows(name: str, values: np.ndarray, is_good: np.ndarray, problem: str, *, first_row: int = 0) -> None:
    if not is_good.all():
        row = int(is_good.argmin())
        raise PackError(f"{name}[{row + first_row}] = {values[row]} {problem}")


def _join_text(texts: Sequence[str]) -> np.ndarray:
    """(n,) uint8: each text in UTF-8, ended by a zero byte."""
    for text in texts:
        if "\0" in text:
            raise ValueError(f"the text {text!r} holds a zero character, which ends texts in a pack")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the name {text!r} is no valid Unicode; rename the file") from error
    return np.frombuffer("".join(f"{text}\0" for text in texts).encode(), np.uint8)


def _split_text(name: str, blob: np.ndarray) -> list[str]:
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise PackError(f"{name} must be one row of uint8, not {blob.dtype} {blob.shape}")
    data = blob.tobytes()
    try:
        *texts, rest = data.decode().split("\0")
    except UnicodeDecodeError as error:
        row = data.count(b"\0", 0, error.start)
        text = data.split(b"\0")[row]
        raise PackError(f"{name}[{row}] = {text!r:.80} is no valid UTF-8") from error
    if rest:
        raise PackError(f"{name} does not end in a zero byte")
    return texts


def _check_names(names: Sequence[str]) -> None:
    """Names become paths when videos are extracted: none may leave its folder, and no two may meet."""
    if len(set(names)) == len(names) and not _ODD_NAME.search("\0".join(["", *names, ""])):
        return  # a corpus has many names, and they are good
    seen: set[str] = set()
    for row, name in enumerate(names):
        if "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise PackError(f"videos.names[{row}] = {name!r:.200} must be a path below the packed folder")
        if name in seen:
            raise PackError(f"videos.names[{row}] = {name!r:.200} comes twice")
        seen.add(name)
