"""The generated corpus of ``neuralloader demo``: textured shapes over drifting, textured backgrounds.

The class of a video is how its shape moves, and nothing else. All that can be seen in one picture (textures, colours,
shape, place, size, angle, background and its drift) is drawn from the video's number alone, and the first frame is
the same whatever the motion. Places and sizes a motion passes through come from the same ranges the first one does.

    move    glides from place to place at a constant speed        zoom     swells and shrinks in place
    turn    spins in place                                        bounce   hops again and again, under gravity
"""

import colorsys
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from neuralloader.corpus.mjpeg import write_mjpeg_avi

MOTIONS = ("bounce", "move", "turn", "zoom")  # sorted, as the class folders will be

_TILE = 256  # side of a texture in texels; it repeats
_LIGHT = np.array([-0.45, -0.65, 0.61], dtype=np.float32)  # towards the light: left, up, and to the viewer


@dataclass(frozen=True)
class _Look:
    """What one picture shows. Lengths are in units of the frame's short side, places relative to its centre (x, y).

    Attributes:
        skin: (_TILE, _TILE, 3) float32 0..255, the shape's texture.
        ground: (_TILE, _TILE, 3) float32 0..255, the background's texture.
        outline: (360,) float32, the shape's radius in each direction, 1 on average.
        place: (2,) where the shape is at first.
        radius: its size at first.
        angle: its angle at first, radians.
        ground_offset: (2,) where the background's texture starts.
        ground_drift: (2,) how far the background moves in a second.
    """

    skin: np.ndarray
    ground: np.ndarray
    outline: np.ndarray
    place: np.ndarray
    radius: float
    angle: float
    ground_offset: np.ndarray
    ground_drift: np.ndarray


@dataclass(frozen=True)
class _Path:
    """A motion that starts at a look's place, radius and angle; each function takes seconds."""

    place: Callable[[float], np.ndarray]
    radius: Callable[[float], float]
    angle: Callable[[float], float]


def write_synthetic_corpus(
    folder: Path,
    *,
    num_videos_per_class: int,
    num_frames: int = 24,
    size: tuple[int, int] = (96, 128),
    frame_rate: float = 8.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``bounce/bounce_000.avi`` and so on: MJPEG videos in one folder for each of MOTIONS.

    Args:
        folder: where the class folders go; made if missing.
        num_videos_per_class: videos in each of the four folders.
        num_frames: frames in each video.
        size: (height, width) in pixels, 16 or more each.
        frame_rate: frames per second; motions are in seconds, so more of it is smoother, not faster.
        seed: equal seeds give equal files.
        progress: called with (videos written, videos in all).

    Raises:
        ValueError: a count or size is out of range.
    """
    if num_videos_per_class < 1 or num_frames < 1:
        raise ValueError(f"{num_videos_per_class=} and {num_frames=} must be 1 or more")
    num_videos = num_videos_per_class * len(MOTIONS)
    for number in range(num_videos):
        motion = MOTIONS[number % len(MOTIONS)]
        path = Path(folder) / motion / f"{motion}_{number // len(MOTIONS):03d}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = render_video(motion, seed=seed, number=number, num_frames=num_frames, size=size, frame_rate=frame_rate)
        write_mjpeg_avi(path, frames, frame_rate)
        if progress:
            progress(number + 1, num_videos)


def render_video(
    motion: str, *, seed: int, number: int, num_frames: int, size: tuple[int, int], frame_rate: float
) -> Iterator[np.ndarray]:
    """Render the frames of one video; the first is a function of seed, number and size alone.

    Args:
        motion: one of MOTIONS.
        seed: of the corpus.
        number: of the video in it.
        num_frames: how many frames.
        size: (height, width) in pixels, 16 or more each.
        frame_rate: frames per second.

    Yields:
        (H, W, 3) uint8 RGB frames.

    Raises:
        ValueError: the motion is unknown or the size too small.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion={motion!r} must be one of {', '.join(MOTIONS)}")
    if min(size) < 16:
        raise ValueError(f"size={tuple(size)} must be (height, width) of 16 pixels or more each")
    reach = np.array([size[1], size[0]]) / min(size) / 2  # from the centre to the right and lower edge
    look = _draw_look(np.random.default_rng([seed, number, 0]), reach)
    path = _draw_path(motion, look, np.random.default_rng([seed, number, 1]), reach)
    seconds = (frame / frame_rate for frame in range(num_frames))
    return (_render(look, path, at, size) for at in seconds)


# ---- drawing the parameters


def _draw_place(rng: np.random.Generator, reach: np.ndarray) -> np.ndarray:
    return rng.uniform(-1, 1, 2) * (reach - 0.22)


def _draw_radius(rng: np.random.Generator) -> float:
    return float(0.15 * 2.3 ** rng.uniform(0, 1))  # 0.15 to 0.345


def _draw_far_place(rng: np.random.Generator, reach: np.ndarray, start: np.ndarray) -> np.ndarray:
    """A place that is visibly elsewhere, but not across the whole frame."""
    candidates = [_draw_place(rng, reach) for _ in range(16)]
    return min(candidates, key=lambda place: abs(math.dist(place, start) - 0.55))


def _draw_path(motion: str, look: _Look, rng: np.random.Generator, reach: np.ndarray) -> _Path:
    def place(seconds: float) -> np.ndarray:
        return look.place

    def radius(seconds: float) -> float:
        return look.radius

    def angle(seconds: float) -> float:
        return look.angle

    if motion == "move":
        stops = [look.place]
        for _ in range(64):
            stops.append(_draw_far_place(rng, reach, stops[-1]))
        lengths = np.linalg.norm(np.diff(stops, axis=0), axis=1)
        arrivals = np.concatenate([[0], np.cumsum(lengths)]) / rng.uniform(0.4, 0.6)  # seconds, at a constant speed
        columns = np.array(stops).T

        def place(seconds: float) -> np.ndarray:
            return np.array([np.interp(seconds % arrivals[-1], arrivals, column) for column in columns])

    elif motion == "turn":
        speed = rng.uniform(1.8, 3.2) * rng.choice([-1, 1])

        def angle(seconds: float) -> float:
            return look.angle + speed * seconds

    elif motion == "zoom":
        others = [_draw_radius(rng) for _ in range(4)]
        other = max(others, key=lambda each: abs(math.log(each / look.radius)))
        period = rng.uniform(1.3, 2.1)

        def radius(seconds: float) -> float:
            share = (1 - math.cos(2 * math.pi * seconds / period)) / 2
            return look.radius ** (1 - share) * other**share

    else:
        hop = _draw_far_place(rng, reach, look.place) - look.place
        period = rng.uniform(0.55, 0.8)

        def place(seconds: float) -> np.ndarray:
            phase = seconds / period % 1
            return look.place + hop * (4 * phase * (1 - phase))

    return _Path(place, radius, angle)


def _draw_look(rng: np.random.Generator, reach: np.ndarray) -> _Look:
    hue = rng.uniform()
    apart = rng.uniform(0.3, 0.7)  # the shape's colours differ from the background's
    return _Look(
        skin=_draw_texture(rng, hue, brightness=(0.45, 1.0), saturation=(0.45, 0.85)),
        ground=_draw_texture(rng, hue + apart, brightness=(0.2, 0.72), saturation=(0.15, 0.5)),
        outline=_draw_outline(rng),
        place=_draw_place(rng, reach),
        radius=_draw_radius(rng),
        angle=float(rng.uniform(0, 2 * math.pi)),
        ground_offset=rng.uniform(0, _TILE, 2),
        ground_drift=rng.normal(0, 0.06, 2),
    )


def _draw_outline(rng: np.random.Generator) -> np.ndarray:
    """A disk, rounded square, star or blob, (360,) float32 radius by degree, 1 on average."""
    at = np.arange(360) * (math.pi / 180)
    kind = rng.integers(4)
    if kind == 0:
        radius = np.ones_like(at)
    elif kind == 1:
        radius = (np.abs(np.cos(at)) ** 7 + np.abs(np.sin(at)) ** 7) ** (-1 / 7)
    elif kind == 2:
        points = int(rng.integers(4, 8))
        wave = np.cos(points * at)
        radius = 1 + 0.3 * wave + 0.06 * wave**2
    else:
        radius = np.ones_like(at)
        for harmonic in range(2, 6):
            radius += rng.uniform(0.05, 0.3) / harmonic * np.cos(harmonic * at + rng.uniform(0, 2 * math.pi))
    return (radius / radius.mean()).astype(np.float32)


def _draw_texture(
    rng: np.random.Generator, hue: float, *, brightness: tuple[float, float], saturation: tuple[float, float]
) -> np.ndarray:
    """Clouds, wavy stripes, spots or marble in three related colours, (_TILE, _TILE, 3) float32 0..255, repeating."""
    clouds = _clouds(rng)
    y, x = np.mgrid[0:_TILE, 0:_TILE] * (2 * math.pi / _TILE)
    turns = rng.integers(2, 6, size=2) * rng.choice([-1, 1], size=2)  # whole periods, so that the tile repeats
    kind = rng.integers(4)
    if kind == 0:
        field = clouds
    elif kind == 1:
        field = 0.5 + 0.5 * np.sin(turns[0] * x + turns[1] * y + 5 * clouds)
    elif kind == 2:
        field = 0.5 + 0.5 * np.sin(2 * turns[0] * x + 4 * clouds) * np.sin(2 * turns[1] * y + 4 * clouds)
    else:
        field = np.abs(np.sin(turns[0] * x + 9 * clouds)) ** 0.7
    field = 0.75 * field + 0.25 * _clouds(rng)

    colours = [
        colorsys.hsv_to_rgb((hue + rng.uniform(-0.09, 0.09)) % 1, rng.uniform(*saturation), value)
        for value in np.linspace(*brightness, 3)
    ]
    channels = [np.interp(field, [0.05, 0.5, 0.95], channel) for channel in zip(*colours, strict=True)]
    grain = 1 + 0.10 * (_clouds(rng, coarsest=16) - 0.5)
    return (np.stack(channels, axis=-1) * grain[..., None] * 255).astype(np.float32)


def _clouds(rng: np.random.Generator, coarsest: int = 3) -> np.ndarray:
    """Smooth noise of five octaves, (_TILE, _TILE) float64 that fills 0..1 and repeats without a seam."""
    total = np.zeros((_TILE, _TILE))
    for octave in range(5):
        cells = coarsest << octave
        if cells > _TILE // 4:
            break
        grid = np.pad(rng.uniform(-1, 1, (cells, cells)), 2, mode="wrap").astype(np.float32)
        scale = _TILE / cells
        box = (2.0, 2.0, cells + 2.0, cells + 2.0)
        smooth = Image.fromarray(grid).resize((_TILE, _TILE), Image.Resampling.BICUBIC, box=box)
        total += np.asarray(smooth) * (scale / _TILE) ** 0.9
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


# ---- rendering


def _render(look: _Look, path: _Path, seconds: float, size: tuple[int, int]) -> np.ndarray:
    """One frame, (H, W, 3) uint8."""
    height, width = size
    unit = min(size)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5 - width / 2) / unit, (y + 0.5 - height / 2) / unit

    drift = look.ground_drift * seconds
    texels = 0.75 * _TILE  # of the background along the short side
    picture = _sample(
        look.ground, (x - drift[0]) * texels + look.ground_offset[0], (y - drift[1]) * texels + look.ground_offset[1]
    )
    picture *= (1.06 - 0.22 * x - 0.3 * y - 0.25 * (x * x + y * y))[..., None]  # lit from above, dark in the corners

    place, radius, angle = path.place(seconds), path.radius(seconds), path.angle(seconds)
    pixel = 1 / (unit * radius)  # the side of a pixel in units of the shape
    shape_x, shape_y = (x - place[0]) / radius, (y - place[1]) / radius

    shadow = _cover(look.outline, shape_x - 0.16, shape_y - 0.24, angle, softness=0.34)
    picture *= (1 - 0.5 * shadow)[..., None]

    cover = _cover(look.outline, shape_x, shape_y, angle, softness=1.5 * pixel)
    cosine, sine = math.cos(angle), math.sin(angle)
    skin_x, skin_y = cosine * shape_x + sine * shape_y, cosine * shape_y - sine * shape_x
    skin = _sample(look.skin, skin_x * 50 + _TILE / 2, skin_y * 50 + _TILE / 2)
    skin *= _shading(look.outline, shape_x, shape_y, angle)[..., None]
    picture += cover[..., None] * (skin - picture)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _cover(outline: np.ndarray, x: np.ndarray, y: np.ndarray, angle: float, *, softness: float) -> np.ndarray:
    """How much of each pixel the shape covers, (H, W) float32 0..1, with an edge `softness` wide."""
    distance = np.hypot(x, y)
    inside = np.clip((_radius_towards(outline, x, y, angle) - distance) / softness + 0.5, 0, 1)
    return inside * inside * (3 - 2 * inside)


def _shading(outline: np.ndarray, x: np.ndarray, y: np.ndarray, angle: float) -> np.ndarray:
    """Light on the shape as if it were a flattened dome, (H, W) float32 around 1."""
    edge = _radius_towards(outline, x, y, angle)
    depth = np.clip(np.hypot(x, y) / edge, 0, 1)  # 0 in the middle, 1 at the outline
    tilt = depth**3 * 0.85
    length = np.maximum(np.hypot(x, y), 1e-6)
    normal_z = np.sqrt(1 - tilt * tilt)
    light = tilt * (x * _LIGHT[0] + y * _LIGHT[1]) / length + normal_z * _LIGHT[2]
    return 0.62 + 0.62 * np.clip(light, 0, 1)


def _radius_towards(outline: np.ndarray, x: np.ndarray, y: np.ndarray, angle: float) -> np.ndarray:
    """The outline's radius in the direction of each pixel, between its two nearest degrees."""
    degrees = (np.arctan2(y, x) - angle) * (180 / math.pi)
    below = np.floor(degrees)
    share = (degrees - below).astype(np.float32)
    first = below.astype(np.int64) % 360
    return outline[first] * (1 - share) + outline[(first + 1) % 360] * share


def _sample(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A repeating texture at real-valued places: (H, W) texels each -> (H, W, 3) float32, bilinear."""
    left, top = np.floor(x), np.floor(y)
    right_share, low_share = (x - left).astype(np.float32)[..., None], (y - top).astype(np.float32)[..., None]
    column, row = left.astype(np.int64) % _TILE, top.astype(np.int64) % _TILE
    next_column, next_row = (column + 1) % _TILE, (row + 1) % _TILE
    upper = tile[row, column] * (1 - right_share) + tile[row, next_column] * right_share
    lower = tile[next_row, column] * (1 - right_share) + tile[next_row, next_column] * right_share
    return upper * (1 - low_share) + lower * low_share
